#include "jobs/tasks/answer_format.hpp"

#include <algorithm>
#include <cctype>

namespace tessera {
namespace {

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

struct Tag {
  bool closing = false;
  std::size_t begin = 0;
  std::size_t end = 0;  // one past '>'
};

// The answer tag that starts at text[begin] == '<', blanks inside allowed; nothing where it is something
// else.
std::optional<Tag> tag_at(std::string_view text, std::size_t begin) {
  Tag tag;
  tag.begin = begin;
  std::size_t at = begin + 1;
  const auto skip_blanks = [&] {
    while (at < text.size() && is_blank(text[at])) ++at;
  };
  skip_blanks();
  if (at < text.size() && text[at] == '/') {
    tag.closing = true;
    ++at;
    skip_blanks();
  }
  for (char c : std::string_view("answer")) {
    if (at >= text.size() || lower(text[at]) != c) return std::nullopt;
    ++at;
  }
  skip_blanks();
  if (at >= text.size() || text[at] != '>') return std::nullopt;
  tag.end = at + 1;
  return tag;
}

// Takes "1.", "1)", "(1)" or "1:" off the front; a number that is the whole item, or part of a word ("1.5",
// "12ab"), stays.
std::optional<std::size_t> take_number(std::string_view& item) {
  std::string_view rest = item;
  const bool bracket = !rest.empty() && rest.front() == '(';
  if (bracket) rest.remove_prefix(1);
  std::size_t digits = 0;
  std::size_t number = 0;
  while (digits < rest.size() && digits < 6 && is_digit(rest[digits])) {
    number = number * 10 + static_cast<std::size_t>(rest[digits++] - '0');
  }
  if (digits == 0 || digits == rest.size()) return std::nullopt;
  const char mark = rest[digits];
  if (bracket ? mark != ')' : (mark != '.' && mark != ')' && mark != ':')) return std::nullopt;
  rest.remove_prefix(digits + 1);
  if (mark == '.' && !rest.empty() && is_digit(rest.front())) return std::nullopt;
  rest = trimmed(rest);
  if (rest.empty()) return std::nullopt;
  item = rest;
  return number;
}

void take_bullet(std::string_view& item) {
  for (std::string_view bullet : {"- ", "* ", "+ ", "\xe2\x80\xa2", "\xe2\x80\x93 "}) {
    if (item.substr(0, bullet.size()) == bullet) {
      item = trimmed(item.substr(bullet.size()));
      return;
    }
  }
}

// Quotes and emphasis around an item, and the mark that ends its sentence.
void take_wrapping(std::string_view& item) {
  constexpr std::string_view kWrap = "\"'`*";
  constexpr std::string_view kEnd = ".,;";
  while (!item.empty() && (kEnd.find(item.back()) != std::string_view::npos)) item.remove_suffix(1);
  while (item.size() >= 2 && item.front() == item.back() &&
         kWrap.find(item.front()) != std::string_view::npos) {
    item = trimmed(item.substr(1, item.size() - 2));
  }
  while (!item.empty() && (kEnd.find(item.back()) != std::string_view::npos)) item.remove_suffix(1);
}

struct Item {
  std::optional<std::size_t> number;
  std::string text;
};

Item read_item(std::string_view text) {
  Item item;
  text = trimmed(text);
  take_bullet(text);
  take_wrapping(text);
  item.number = take_number(text);
  if (const std::size_t colon = text.rfind(':'); colon != std::string_view::npos && colon + 1 < text.size()) {
    text = trimmed(text.substr(colon + 1));
  }
  take_wrapping(text);
  item.text = normalise(text);
  return item;
}

}  // namespace

std::optional<std::string_view> extract_answer(std::string_view prediction) {
  std::optional<std::string_view> answer;
  std::optional<Tag> open;
  for (std::size_t at = prediction.find('<'); at != std::string_view::npos;
       at = prediction.find('<', at + 1)) {
    const std::optional<Tag> tag = tag_at(prediction, at);
    if (!tag) continue;
    if (!tag->closing) {
      open = tag;
    } else if (open) {
      answer = prediction.substr(open->end, tag->begin - open->end);
      open.reset();
    }
  }
  return answer;
}

std::string normalise(std::string_view text) {
  std::string out;
  for (char c : trimmed(text)) {
    if (!is_blank(c)) {
      out += lower(c);
    } else if (out.back() != ' ') {
      out += ' ';
    }
  }
  return out;
}

AnswerList parse_answer_list(std::string_view answer, std::size_t expected) {
  std::vector<Item> items;
  bool all_numbered = true;
  bool rising = true;
  while (!answer.empty()) {
    const std::size_t end = std::min(answer.find_first_of("\n,;"), answer.size());
    Item item = read_item(answer.substr(0, end));
    answer.remove_prefix(std::min(end + 1, answer.size()));
    if (item.text.empty()) continue;
    all_numbered = all_numbered && item.number.has_value();
    const std::size_t before = items.empty() ? 0 : items.back().number.value_or(0);
    rising = rising && item.number.value_or(0) > before;
    items.push_back(std::move(item));
  }
  AnswerList list;
  list.found = items.size();
  if (!items.empty() && all_numbered && rising) {
    list.items.resize(expected);
    for (Item& item : items) {
      if (*item.number <= expected) list.items[*item.number - 1] = std::move(item.text);
    }
  } else {
    for (Item& item : items) list.items.push_back(std::move(item.text));
  }
  return list;
}

}  // namespace tessera
