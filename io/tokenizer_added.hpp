// Added tokens: texts that are cut out of the input before anything else and become one id each.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool special = false;
  bool normalized = false;   // matched in normalised text instead of raw text
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // swallows the white space before it
  bool rstrip = false;       // swallows the white space after it
};

// Finds a set of added tokens: at the leftmost place the longest, then on behind it.
class AddedTokenMatcher {
 public:
  // `text` is what is looked for: the content, or its normalised form. Not empty.
  void add(const AddedToken& token, std::string_view text);
  bool empty() const { return tokens_.empty(); }

  // One stretch of the text: a token (id >= 0) or what lies between (id = -1, never empty).
  struct Part {
    std::size_t begin;
    std::size_t end;
    std::int32_t id;
  };
  std::vector<Part> split(std::string_view text) const;

 private:
  struct Node {  // of a tree over bytes: children are a list through `sibling`
    unsigned char byte = 0;
    std::int32_t child = -1;
    std::int32_t sibling = -1;
    std::int32_t token = -1;  // index into tokens_ of the token that ends here
  };
  struct Found {
    std::int32_t token = -1;
    std::size_t end = 0;
  };
  Found longest_at(std::string_view text, std::size_t begin) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::vector<std::int32_t> roots_ = std::vector<std::int32_t>(256, -1);  // by first byte
};

}  // namespace tessera
