#define PCRE2_CODE_UNIT_WIDTH 8
#include "io/tokenizer_pattern.hpp"

#include <pcre2.h>

#include <chrono>

#include "io/utf8.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

namespace {

// Limits that no real tokenizer comes near. A match may start at most kStride bytes after the place where the
// search begins, so that control (and the clock) comes back often even where nothing matches.
constexpr std::size_t kMaxExpression = 1 << 16;
constexpr std::uint32_t kMaxSteps = 10'000'000;
constexpr std::uint32_t kMaxHeapKiB = 64 << 10;
constexpr std::size_t kStride = 4096;
constexpr std::chrono::seconds kMaxTime{30};

// Characters of words as Oniguruma has them: alone, \w also takes the superscript digits and fractions of
// Latin-1.
constexpr std::string_view kWordInClass = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
constexpr std::string_view kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";

// Rewrites an Oniguruma expression for PCRE2, or throws.
class Translator {
 public:
  Translator(std::string_view source, const std::string& where) : in_(source), where_(where) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        class_member(c);
      } else if (c == '(') {
        group();
      } else if (c == '{') {
        repeat();
      } else {
        if (c == '[') open_class();
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  bool next_is(std::string_view text) const { return in_.substr(at_, text.size()) == text; }
  void copy(std::size_t count) {
    out_ += in_.substr(at_, count);
    at_ += std::min(count, in_.size() - at_);
  }
  [[noreturn]] void refuse(std::string_view what) const {
    throw InputError("{}: the regular expression has {} at byte {}, which this runtime does not support",
                     where_, what, at_);
  }

  void escape() {
    if (at_ + 1 == in_.size()) refuse("a trailing backslash");
    const char c = in_[at_ + 1];
    switch (c) {
      case 's':  // PCRE2's own \s also takes U+180E, which is no white space since Unicode 6.3
        out_ += "\\p{White_Space}";
        at_ += 2;
        return;
      case 'S':
        out_ += "\\P{White_Space}";
        at_ += 2;
        return;
      case 'w':  // PCRE2's own \w changed between releases
        out_ += in_class_ ? std::string(kWordInClass) : fmt::format("[{}]", kWord);
        at_ += 2;
        return;
      case 'W':
        if (in_class_) refuse("\\W inside a class");
        out_ += fmt::format("[^{}]", kWord);
        at_ += 2;
        return;
      case 'u':
        out_ += fmt::format("\\x{{{}}}", in_.substr(at_ + 2, 4));
        at_ += 6;
        if (at_ > in_.size()) refuse("an unfinished \\u");
        return;
      case 'p':
      case 'P':
      case 'x':
        if (at_ + 2 < in_.size() && in_[at_ + 2] == '{') {
          const auto close = in_.find('}', at_);
          if (close == std::string_view::npos) refuse("an unfinished brace");
          copy(close + 1 - at_);
        } else {
          copy(2);
        }
        return;
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'A':
      case 'z':
        copy(2);
        return;
      default:
        if (std::string_view("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz").find(c) !=
            std::string_view::npos) {
          refuse(fmt::format("\\{}", c));
        }
        copy(1 + utf8_size(c));
    }
  }

  void open_class() {
    in_class_ = true;
    if (in_.substr(at_ + 1, 1) == "^") {
      out_ += '[';
      ++at_;
    }
    if (in_.substr(at_ + 1, 1) == "]") refuse("an empty class");
  }

  void class_member(char c) {
    if (c == '[') refuse("a class inside a class");
    if (next_is("&&")) refuse("an intersection of classes");
    if (c == ']') in_class_ = false;
    copy(1);
  }

  void group() {
    if (next_is("(*")) refuse("a control verb");
    if (next_is("(?")) {
      constexpr std::string_view kKnown[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?i)"};
      for (const std::string_view known : kKnown) {
        if (next_is(known)) return copy(known.size());
      }
      refuse(fmt::format("the group '{}'", in_.substr(at_, 3)));
    }
    copy(1);
  }

  void repeat() {
    if (next_is("{,")) refuse("a repeat without a lower bound");
    const auto close = in_.find('}', at_);
    if (close == std::string_view::npos) refuse("an unfinished brace");
    copy(close + 1 - at_);
    if (next_is("+")) refuse("a '+' after a repeat");
  }

  std::string_view in_;
  const std::string& where_;
  std::size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct FreeCompileContext {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

std::string pcre2_text(int code) {
  unsigned char text[256] = {};
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

Pattern Pattern::literal(std::string_view text, const std::string& file, const std::string& field) {
  if (text.empty()) throw InputError("{}: {}: found an empty string, expected a text to find", file, field);
  Pattern pattern;
  pattern.source_ = text;
  pattern.where_ = fmt::format("{}: {}", file, field);
  return pattern;
}

Pattern Pattern::regex(std::string_view expression, const std::string& file, const std::string& field) {
  Pattern pattern;
  pattern.source_ = expression;
  pattern.where_ = fmt::format("{}: {}", file, field);
  if (expression.empty() || expression.size() > kMaxExpression) {
    throw InputError("{}: found {} bytes, expected a regular expression of 1 to {} bytes", pattern.where_,
                     expression.size(), kMaxExpression);
  }
  const std::string translated = Translator(expression, pattern.where_).run();
  const std::unique_ptr<pcre2_compile_context, FreeCompileContext> context(
      pcre2_compile_context_create(nullptr));
  TESSERA_CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // Ruby's ^ and $ always match at line ends.
  constexpr std::uint32_t kOptions =
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT;
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   kOptions, &error, &offset, context.get());
  if (code == nullptr) {
    throw InputError("{}: the regular expression does not compile: {} at byte {}", pattern.where_,
                     pcre2_text(error), offset);
  }
  pattern.code_ = std::shared_ptr<pcre2_code>(code, pcre2_code_free);
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is no JIT, pcre2_match interprets
  return pattern;
}

void Pattern::find(std::string_view text, std::vector<Span>& spans) const {
  spans.clear();
  if (text.empty()) return;
  code_ ? find_regex(text, spans) : find_literal(text, spans);
}

void Pattern::find_literal(std::string_view text, std::vector<Span>& spans) const {
  std::size_t done = 0;
  for (auto found = text.find(source_); found != std::string_view::npos; found = text.find(source_, done)) {
    if (found > done) spans.push_back({done, found, false});
    done = found + source_.size();
    spans.push_back({found, done, true});
  }
  if (done < text.size()) spans.push_back({done, text.size(), false});
}

void Pattern::find_regex(std::string_view text, std::vector<Span>& spans) const {
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(pcre2_match_data_create(1, nullptr));
  const std::unique_ptr<pcre2_match_context, FreeMatchContext> context(pcre2_match_context_create(nullptr));
  TESSERA_CHECK(data != nullptr && context != nullptr);
  pcre2_set_match_limit(context.get(), kMaxSteps);
  pcre2_set_heap_limit(context.get(), kMaxHeapKiB);
  const PCRE2_SIZE* const offsets = pcre2_get_ovector_pointer(data.get());
  const auto start_time = std::chrono::steady_clock::now();

  std::size_t done = 0;  // end of the last match: spans cover [0, done)
  std::size_t from = 0;  // where the search goes on
  while (from <= text.size()) {
    const std::size_t last_start = std::min(from + kStride, text.size());
    pcre2_set_offset_limit(context.get(), last_start);
    const auto match = [&](std::uint32_t options) {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from, options,
                         data.get(), context.get());
    };
    int result = match(PCRE2_NO_UTF_CHECK);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
    if (std::chrono::steady_clock::now() - start_time > kMaxTime) {
      throw InputError(
          "{}: the regular expression needs more than {} s on a text of {} bytes; it is not one of "
          "a usable tokenizer",
          where_, kMaxTime.count(), text.size());
    }
    if (result == PCRE2_ERROR_NOMATCH) {
      if (last_start == text.size()) break;
      from = last_start;  // starts there were tried, save that one byte is tried again
      while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xC0) == 0x80) ++from;
      continue;
    }
    if (result < 0) {
      throw InputError("{}: the regular expression cannot be matched on a text of {} bytes: {}", where_,
                       text.size(), pcre2_text(result));
    }
    const std::size_t begin = offsets[0];
    const std::size_t end = offsets[1];
    if (begin == end) {  // empty: never directly after a match, and always one step forward
      const bool after_match = !spans.empty() && spans.back().is_match && begin == done;
      if (!after_match) {
        if (begin > done) spans.push_back({done, begin, false});
        spans.push_back({begin, end, true});
        done = end;
      }
      if (end >= text.size()) break;
      from = end + utf8_size(text[end]);
      continue;
    }
    if (begin > done) spans.push_back({done, begin, false});
    spans.push_back({begin, end, true});
    done = from = end;
  }
  if (done < text.size()) spans.push_back({done, text.size(), false});
}

std::string Pattern::replace(std::string_view text, std::string_view content) const {
  std::vector<Span> spans;
  find(text, spans);
  std::string out;
  out.reserve(text.size());
  for (const Span& span : spans) {
    out += span.is_match ? content : text.substr(span.begin, span.end - span.begin);
  }
  return out;
}

}  // namespace tessera
