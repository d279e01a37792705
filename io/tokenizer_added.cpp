#include "io/tokenizer_added.hpp"

#include <utf8proc.h>

#include "io/utf8.hpp"

namespace tessera {

namespace {

// Characters of words as Rust's regular expressions see them (\w): alphabetic, marks, decimal digits,
// connectors, joiners.
bool is_word(char32_t value) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(value))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return value == 0x200C || value == 0x200D ||      // joiners
             (value >= 0x24B6 && value <= 0x24E9) ||    // circled letters, and other
             (value >= 0x1F130 && value <= 0x1F149) ||  // symbols that count as letters
             (value >= 0x1F150 && value <= 0x1F169) || (value >= 0x1F170 && value <= 0x1F189);
  }
}

bool touches_word(std::string_view text, std::size_t begin, std::size_t end) {
  return (begin > 0 && is_word(code_point_before(text, begin).value)) ||
         (end < text.size() && is_word(code_point_at(text, end).value));
}

}  // namespace

void AddedTokenMatcher::add(const AddedToken& token, std::string_view text) {
  const auto new_node = [&](char byte) {
    Node node;
    node.byte = static_cast<unsigned char>(byte);
    nodes_.push_back(node);
    return static_cast<std::int32_t>(nodes_.size() - 1);
  };
  std::int32_t& root = roots_[static_cast<unsigned char>(text[0])];
  if (root < 0) root = new_node(text[0]);
  std::int32_t node = root;
  for (const char byte : text.substr(1)) {
    std::int32_t child = nodes_[static_cast<std::size_t>(node)].child;
    while (child >= 0 && nodes_[static_cast<std::size_t>(child)].byte != static_cast<unsigned char>(byte)) {
      child = nodes_[static_cast<std::size_t>(child)].sibling;
    }
    if (child < 0) {
      child = new_node(byte);
      nodes_[static_cast<std::size_t>(child)].sibling = nodes_[static_cast<std::size_t>(node)].child;
      nodes_[static_cast<std::size_t>(node)].child = child;
    }
    node = child;
  }
  nodes_[static_cast<std::size_t>(node)].token = static_cast<std::int32_t>(tokens_.size());
  tokens_.push_back(token);
}

AddedTokenMatcher::Found AddedTokenMatcher::longest_at(std::string_view text, std::size_t begin) const {
  Found found;
  std::int32_t node = roots_[static_cast<unsigned char>(text[begin])];
  for (std::size_t at = begin + 1; node >= 0; ++at) {
    const Node& here = nodes_[static_cast<std::size_t>(node)];
    if (here.token >= 0) found = {here.token, at};
    if (at == text.size()) break;
    node = here.child;
    while (node >= 0 && nodes_[static_cast<std::size_t>(node)].byte != static_cast<unsigned char>(text[at])) {
      node = nodes_[static_cast<std::size_t>(node)].sibling;
    }
  }
  return found;
}

std::vector<AddedTokenMatcher::Part> AddedTokenMatcher::split(std::string_view text) const {
  std::vector<Part> parts;
  std::size_t done = 0;  // parts cover [0, done)
  std::size_t at = 0;
  while (!tokens_.empty() && at < text.size()) {
    const Found found = longest_at(text, at);
    if (found.token < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<std::size_t>(found.token)];
    std::size_t begin = at;
    std::size_t end = found.end;
    at = end;  // also where the find is discarded
    if (token.single_word && touches_word(text, begin, end)) continue;
    while (token.lstrip && begin > done) {
      const CodePoint before = code_point_before(text, begin);
      if (!is_white_space(before.value)) break;
      begin -= before.size;
    }
    while (token.rstrip && end < text.size()) {
      const CodePoint after = code_point_at(text, end);
      if (!is_white_space(after.value)) break;
      end += after.size;
    }
    if (begin > done) parts.push_back({done, begin, -1});
    parts.push_back({begin, end, token.id});
    // The search goes on behind the token itself: what follows is found even in white space that was
    // swallowed, as in the reference implementation.
    done = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), -1});
  return parts;
}

}  // namespace tessera
