#include "io/tokenizer_text.hpp"

#include <utf8proc.h>

#include <algorithm>

#include "io/utf8.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

namespace {

// True where NFC changes nothing for sure: below U+0300 nothing decomposes for good or composes. The first
// byte of such a code point is at most 0xCB.
bool is_plainly_nfc(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
}

void decompose(char32_t value, int options, std::vector<utf8proc_int32_t>& out) {
  constexpr int kRoom = 32;  // the longest decomposition has 18 code points
  utf8proc_int32_t buffer[kRoom];
  int boundary = 0;
  const utf8proc_ssize_t count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(value), buffer, kRoom,
                                                         static_cast<utf8proc_option_t>(options), &boundary);
  TESSERA_CHECK(count >= 0 && count <= kRoom);
  out.insert(out.end(), buffer, buffer + count);
}

// Canonical ordering: a stable sort by combining class of each run of non-starters. utf8proc_map does this in
// quadratic time, which a megabyte of combining marks would turn into minutes.
void order_marks(std::vector<utf8proc_int32_t>& text) {
  const auto combining = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (auto begin = text.begin(); begin != text.end();) {
    if (combining(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end = std::find_if(begin, text.end(), [&](utf8proc_int32_t c) { return combining(c) == 0; });
    std::stable_sort(begin, end, [&](auto a, auto b) { return combining(a) < combining(b); });
    begin = end;
  }
}

// Canonical composition. U+11A7 is no trailing consonant (the first is U+11A8), but utf8proc 2.8 composes it
// and so swallows it; as a starter that composes with nothing, it cuts the text into stretches that are
// independent.
void compose_in_place(std::vector<utf8proc_int32_t>& text) {
  constexpr utf8proc_int32_t kNotTrailing = 0x11A7;
  auto out = text.begin();
  for (auto begin = text.begin(); begin != text.end();) {
    const auto end = std::find(begin, text.end(), kNotTrailing);
    const utf8proc_ssize_t count = utf8proc_normalize_utf32(
        &*begin, end - begin, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    TESSERA_CHECK(count >= 0 && count <= end - begin);
    out = std::copy(begin, begin + count, out);
    begin = end;
    for (; begin != text.end() && *begin == kNotTrailing; ++begin) *out++ = kNotTrailing;
  }
  text.erase(out, text.end());
}

// Joins matches to their neighbours by the rules of Hugging Face's tokenizers.
std::vector<Span> merge_spans(const std::vector<Span>& spans, SplitBehavior behavior) {
  std::vector<Span> out;
  out.reserve(spans.size());
  bool previous_match = false;
  if (behavior == SplitBehavior::kMergedWithNext) {
    for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
      const bool join = span->is_match && !previous_match && !out.empty();
      if (join) {
        out.back().begin = span->begin;
      } else {
        out.push_back(*span);
      }
      previous_match = span->is_match;
    }
    std::reverse(out.begin(), out.end());
    return out;
  }
  for (const Span& span : spans) {
    const bool joins = behavior == SplitBehavior::kContiguous ? span.is_match == previous_match
                                                              : span.is_match && !previous_match;
    if (joins && !out.empty()) {
      out.back().end = span.end;
    } else {
      out.push_back(span);
    }
    previous_match = span.is_match;
  }
  return out;
}

}  // namespace

std::string unicode_normalize(std::string_view text, UnicodeForm form) {
  if (form == UnicodeForm::kNfc && is_plainly_nfc(text)) return std::string(text);
  const bool compatible = form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
  const bool compose = form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc;
  const int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0);

  std::vector<utf8proc_int32_t> code_points;
  code_points.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point_at(text, at);
    if (c.value < 0x80) {
      code_points.push_back(static_cast<utf8proc_int32_t>(c.value));
    } else {
      decompose(c.value, options, code_points);
    }
    at += c.size;
  }
  order_marks(code_points);
  if (compose) compose_in_place(code_points);
  std::string out;
  out.reserve(text.size());
  for (const utf8proc_int32_t c : code_points) append_utf8(out, static_cast<char32_t>(c));
  return out;
}

std::string Normalizer::apply(std::string_view text) const {
  std::string out(text);
  for (const Step& step : steps_) {
    if (const auto* form = std::get_if<UnicodeForm>(&step)) {
      out = unicode_normalize(out, *form);
    } else if (const auto* replace = std::get_if<Replace>(&step)) {
      out = replace->pattern.replace(out, replace->content);
    } else if (!out.empty()) {
      out.insert(0, std::get<Prepend>(step).text);
    }
  }
  return out;
}

void PreTokenizer::split(const Split& step, std::string_view piece, std::vector<Span>& spans) {
  step.pattern.find(piece, spans);
  if (step.invert) {
    for (Span& span : spans) span.is_match = !span.is_match;
  }
  if (step.behavior == SplitBehavior::kRemoved) {
    std::erase_if(spans, [](const Span& span) { return span.is_match; });
  } else if (step.behavior != SplitBehavior::kIsolated) {
    spans = merge_spans(spans, step.behavior);
  }
}

}  // namespace tessera
