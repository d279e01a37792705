// Patterns of tokenizer.json: a literal string or a regular expression, both found leftmost-first.
//
// The files are written for the Oniguruma library (Ruby syntax, Unicode classes). We match with PCRE2, whose
// dialect differs in places: what means the same is passed on, \s, \S, \w, \W and \uHHHH are spelled out, and
// what would change meaning or has no use in a tokenizer is refused.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct pcre2_real_code_8;

namespace tessera {

// A stretch [begin, end) of a text, found by a pattern or lying between two finds.
struct Span {
  std::size_t begin;
  std::size_t end;
  bool is_match;
};

class Pattern {
 public:
  // `file` and `field` name the source in errors: InputError when empty, not supported or not compilable.
  static Pattern literal(std::string_view text, const std::string& file, const std::string& field);
  static Pattern regex(std::string_view expression, const std::string& file, const std::string& field);

  // Covers valid UTF-8 text by spans, matches and gaps between them, in order, into `spans` (cleared first).
  // An empty match gives an empty span; empty gaps are left out. InputError when a match exceeds the limits
  // on steps or time: a file's expression may need exponential time.
  void find(std::string_view text, std::vector<Span>& spans) const;

  // The text with each match replaced.
  std::string replace(std::string_view text, std::string_view content) const;

 private:
  void find_literal(std::string_view text, std::vector<Span>& spans) const;
  void find_regex(std::string_view text, std::vector<Span>& spans) const;

  std::string source_;                       // the literal, or the expression as the file has it
  std::string where_;                        // "FILE: FIELD"
  std::shared_ptr<pcre2_real_code_8> code_;  // null: a literal
};

}  // namespace tessera
