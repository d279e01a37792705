// What happens to text before byte-pair encoding: normalisation, then cutting into pieces.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "io/tokenizer_pattern.hpp"

namespace tessera {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

// The text in a Unicode normalisation form. Time is n log n even for hostile runs of combining marks.
std::string unicode_normalize(std::string_view text, UnicodeForm form);

// Steps applied in order to each stretch of text between added tokens.
class Normalizer {
 public:
  struct Replace {
    Pattern pattern;
    std::string content;
  };
  struct Prepend {
    std::string text;  // not added to an empty stretch
  };
  using Step = std::variant<UnicodeForm, Replace, Prepend>;

  void add(Step step) { steps_.push_back(std::move(step)); }
  bool empty() const { return steps_.empty(); }
  std::string apply(std::string_view text) const;

 private:
  std::vector<Step> steps_;
};

enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

// Cuts normalised text into pieces, each of which is then encoded on its own.
class PreTokenizer {
 public:
  struct Split {
    Pattern pattern;
    SplitBehavior behavior;
    bool invert;  // what the pattern finds is the gap, what lies between is the match
  };
  struct PrefixSpace {};  // ByteLevel's add_prefix_space: a piece that does not start with a space gets one
  using Step = std::variant<Split, PrefixSpace>;

  void add(Step step) { steps_.push_back(std::move(step)); }

  // Calls visit(piece) for each non-empty piece in order.
  template <typename Visit>
  void apply(std::string_view text, Visit&& visit) const {
    if (!text.empty()) run(text, 0, visit);
  }

 private:
  template <typename Visit>
  void run(std::string_view piece, std::size_t step, Visit& visit) const {
    if (step == steps_.size()) return visit(piece);
    if (std::holds_alternative<PrefixSpace>(steps_[step])) {
      if (piece.front() == ' ') return run(piece, step + 1, visit);
      return run(std::string(" ").append(piece), step + 1, visit);
    }
    std::vector<Span> spans;
    split(std::get<Split>(steps_[step]), piece, spans);
    for (const Span& span : spans) {
      if (span.end > span.begin) run(piece.substr(span.begin, span.end - span.begin), step + 1, visit);
    }
  }
  static void split(const Split& step, std::string_view piece, std::vector<Span>& spans);

  std::vector<Step> steps_;
};

}  // namespace tessera
