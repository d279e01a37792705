// Prefill methods against fp64 oracles written from their definitions (DESIGN.md section 4): native
// decisions, and the Selection that follows from them.
#include <doctest/doctest.h>

#include <functional>
#include <numeric>

#include "tests/attention/select_cases.hpp"
#include "tests/reference/naive_expand.hpp"

using namespace tessera;
using namespace tessera::testing;
using reference::PageFlags;

namespace {

using PagesOf = std::function<PageFlags(std::size_t list, std::size_t query_block)>;

std::vector<std::int32_t> numbers(std::size_t begin, std::size_t end) {
  std::vector<std::int32_t> values(end > begin ? end - begin : 0);
  std::iota(values.begin(), values.end(), static_cast<std::int32_t>(begin));
  return values;
}

std::vector<char> first_units(std::size_t units, std::size_t forced) {
  std::vector<char> flags(units, 0);
  std::fill_n(flags.begin(), std::min(units, forced), 1);
  return flags;
}

// The Selection holds, list by list and row by row, the expected pages, and the expected columns beside them.
void check_expansion(const SelectCase& c, const PrefillSelection& selection, std::size_t rows,
                     const PagesOf& pages_of, const std::vector<std::vector<std::int32_t>>& columns) {
  check_selection(selection);
  const reference::SelectProblem& p = c.problem;
  REQUIRE_MESSAGE(selection.length == static_cast<std::int64_t>(p.tokens), c.name);
  REQUIRE_MESSAGE(selection.heads == static_cast<int>(p.lists()), c.name);
  REQUIRE_MESSAGE(selection.shared_by_group == p.share, c.name);
  REQUIRE_MESSAGE(selection.rows_per_block == static_cast<int>(rows), c.name);
  const PairCounts counts = count_pairs(selection);
  REQUIRE_MESSAGE(counts.visible.size() == p.lists(), c.name);
  const bool count_visible = p.tokens < 300 || p.tokens % 4 == 0;
  for (std::size_t list = 0; list < p.lists(); ++list) {
    const auto kept = selection.columns_of(static_cast<int>(list));
    CHECK_MESSAGE(std::vector<std::int32_t>(kept.begin(), kept.end()) == columns[list], c.name << " columns");
    std::vector<char> is_column(p.tokens, 0);
    for (std::int32_t column : columns[list]) is_column[static_cast<std::size_t>(column)] = 1;
    std::uint64_t visible = 0;
    for (std::size_t b = 0; b * rows < p.tokens; ++b) {
      PageFlags got(reference::page_count(p.tokens), 0);
      for (const BlockEntry& entry : selection.row(static_cast<int>(list), static_cast<std::int64_t>(b))) {
        for (unsigned page = 0; page < 4; ++page) {
          if (!(entry.pages() >> page & 1u)) continue;
          const auto at = static_cast<std::size_t>(entry.block()) * 4 + page;
          REQUIRE_MESSAGE(at < got.size(), c.name << ": a page past the last key");
          got[at] = 1;
        }
      }
      PageFlags want = pages_of(list, b);
      reference::drop_future(want, p.tokens, b, rows);
      reference::drop_future(got, p.tokens, b, rows);
      CHECK_MESSAGE(got == want, c.name << ": pages of list " << list << ", query block " << b);
      if (count_visible) visible += reference::visible_pairs(p.tokens, b, rows, want, is_column);
    }
    if (count_visible) CHECK_MESSAGE(counts.visible[list] == visible, c.name << " visible pairs");
    CHECK_MESSAGE(counts.causal[list] == std::uint64_t{p.tokens} * (p.tokens + 1) / 2, c.name);
  }
}

void check_block_expansion(const SelectCase& c, const PrefillChoice& choice, std::size_t edge) {
  const std::size_t rows = std::min<std::size_t>(edge, 64);
  check_expansion(
      c, choice.selection, rows,
      [&](std::size_t list, std::size_t b) {
        return reference::pages_of_blocks(c.problem.tokens, edge,
                                          choice.native.blocks[list][b * rows / edge]);
      },
      std::vector<std::vector<std::int32_t>>(c.problem.lists()));
}

// Columns and diagonals choices of one case, and their Selection.
void check_columns_and_diagonals(
    const SelectCase& c, const PrefillChoice& choice, const reference::WindowSums& sums,
    const std::function<reference::Count(const reference::Scores&)>& columns_budget,
    const std::function<reference::Count(const reference::Scores&)>& diagonals_budget, Report& columns,
    Report& diagonals) {
  const std::size_t lists = c.problem.lists();
  REQUIRE_MESSAGE(choice.native.columns.size() == lists, c.name);
  REQUIRE_MESSAGE(choice.native.diagonals.size() == lists, c.name);
  for (std::size_t list = 0; list < lists; ++list) {
    const std::string of = " of list " + std::to_string(list);
    columns.judge(c, sums.vertical[list], first_units(c.problem.tokens, 4),
                  columns_budget(sums.vertical[list]), choice.native.columns[list], "columns" + of);
    diagonals.judge(c, sums.slash[list], first_units(c.problem.tokens, 64),
                    diagonals_budget(sums.slash[list]), choice.native.diagonals[list], "diagonals" + of);
  }
  check_expansion(
      c, choice.selection, 64,
      [&](std::size_t list, std::size_t b) {
        return reference::pages_of_diagonals(c.problem.tokens, b, choice.native.diagonals[list]);
      },
      choice.native.columns);
}

SelectCase window_case(std::string_view method, int number, bool exact, Draw& draw, double window) {
  SelectCase c;
  draw_shape(draw, c, window, 1.5e6);
  if (exact) {
    fill_ties(draw, c, draw.one_in(4));
  } else {
    fill_gaussian(draw, c);
  }
  describe(c, method, number);
  return c;
}

}  // namespace

TEST_CASE("streaming sees its sinks and its local window") {
  for (int number = 0; number < kCases; ++number) {
    Draw draw("streaming", number);
    SelectCase c;
    draw_shape(draw, c, 1, 1e9);
    fill_gaussian(draw, c);
    Settings settings(Phase::kPrefill, "streaming");
    settings.set("sinks", static_cast<double>(draw.between(0, 40)))
        .set("window", draw_budget(draw, c.problem.tokens, 64, 1));
    describe(c, "streaming", number);
    c.name += settings.text();
    const PrefillChoice choice = select_prefill(c.input(), settings.build());
    // The window is the diagonals 0 … window − 1, the sinks are columns.
    const std::vector<std::int32_t> offsets = numbers(0, settings.whole("window"));
    const std::vector<std::vector<std::int32_t>> sinks(
        c.problem.lists(), numbers(0, std::min(settings.whole("sinks"), c.problem.tokens)));
    check_expansion(
        c, choice.selection, 64,
        [&](std::size_t, std::size_t b) {
          return reference::pages_of_diagonals(c.problem.tokens, b, offsets);
        },
        sinks);
  }
}

TEST_CASE("dense prefill selects everything") {
  for (int number = 0; number < 20; ++number) {
    Draw draw("dense", number);
    SelectCase c;
    draw_shape(draw, c, 1, 1e7);
    fill_gaussian(draw, c);
    describe(c, "dense", number);
    const PrefillChoice choice = select_prefill(c.input(), Settings(Phase::kPrefill, "dense").build());
    check_expansion(
        c, choice.selection, 64,
        [&](std::size_t, std::size_t) { return PageFlags(reference::page_count(c.problem.tokens), 1); },
        std::vector<std::vector<std::int32_t>>(c.problem.lists()));
  }
}

TEST_CASE("vertical_slash keeps the oracle's columns and diagonals") {
  Report columns, diagonals;
  for (int number = 0; number < 2 * kCases; ++number) {
    Draw draw("vertical_slash", number);
    Settings settings(Phase::kPrefill, "vertical_slash");
    settings.set("window", static_cast<double>(draw.of({1, 2, 7, 16, 33, 64, 256})));
    SelectCase c = window_case("vertical_slash", number, number % 2 == 1, draw,
                               static_cast<double>(settings.whole("window")));
    settings.set("columns", draw_budget(draw, c.problem.tokens, 4, 1))
        .set("diagonals", draw_budget(draw, c.problem.tokens, 64, 1));
    c.name += settings.text();
    const PrefillChoice choice = select_prefill(c.input(), settings.build());
    check_columns_and_diagonals(
        c, choice, reference::window_sums(c.problem, settings.whole("window")),
        [&](const reference::Scores&) { return reference::exactly(settings.whole("columns")); },
        [&](const reference::Scores&) { return reference::exactly(settings.whole("diagonals")); }, columns,
        diagonals);
  }
  columns.finish("vertical_slash columns");
  diagonals.finish("vertical_slash diagonals");
}

TEST_CASE("flexprefill takes as many columns and diagonals as cover alpha") {
  Report columns, diagonals;
  for (int number = 0; number < 2 * kCases; ++number) {
    Draw draw("flexprefill", number);
    Settings settings(Phase::kPrefill, "flexprefill");
    settings.set("window", static_cast<double>(draw.of({1, 5, 16, 33, 64, 256})))
        .set("alpha", draw.of({0.0, 0.05, 0.3, 0.55, 0.71, 0.88, 0.94, 1.0}))
        .set("floor", static_cast<double>(draw.of({0, 1, 8, 70, 164, 512})));
    SelectCase c = window_case("flexprefill", number, number % 2 == 1, draw,
                               static_cast<double>(settings.whole("window")));
    c.name += settings.text();
    const PrefillChoice choice = select_prefill(c.input(), settings.build());
    const reference::WindowSums sums = reference::window_sums(c.problem, settings.whole("window"));
    // Rows of probabilities that sum to 1 each, over the heads that the list sums.
    const auto total = static_cast<double>(sums.rows * c.problem.heads_a_list());
    const auto budget = [&](const reference::Scores& scores) {
      return reference::coverage_count(scores, total, settings.at("alpha"), settings.whole("floor"));
    };
    check_columns_and_diagonals(c, choice, sums, budget, budget, columns, diagonals);
  }
  columns.finish("flexprefill columns");
  diagonals.finish("flexprefill diagonals");
}

TEST_CASE("flexprefill's running sum that equals alpha still counts") {
  // One row of equal keys: every probability is 2^-9, and 256 of them make 1/2 exactly.
  SelectCase c;
  c.problem.tokens = 512;
  c.problem.heads = 4;
  c.problem.kv_heads = 2;
  c.problem.dim = 16;
  c.problem.scale = 0.25;
  c.problem.q.assign(512 * 4 * 16, 1.0f);
  c.problem.k.assign(512 * 2 * 16, 1.0f);
  c.name = "flexprefill at alpha";
  Settings settings(Phase::kPrefill, "flexprefill");
  settings.set("window", 1).set("alpha", 0.5).set("floor", 0);
  REQUIRE(settings.whole("window") == 1);
  for (const bool share : {false, true}) {
    c.problem.share = share;
    const PrefillChoice choice = select_prefill(c.input(), settings.build());
    for (std::size_t list = 0; list < c.problem.lists(); ++list) {
      CHECK(choice.native.columns[list] == numbers(0, 257));
      CHECK(choice.native.diagonals[list] == numbers(0, 257));
    }
  }
}

TEST_CASE("block_sparse keeps the oracle's blocks at every edge") {
  for (const std::size_t edge : {16, 32, 64, 128}) {
    Report report;
    for (int number = 0; number < 2 * kCases; ++number) {
      Draw draw("block_sparse " + std::to_string(edge), number);
      SelectCase c;
      c.exact = number % 2 == 1;
      draw_shape(draw, c, static_cast<double>(edge), 1e7);
      if (edge >= 64) c.problem.tokens *= 3;
      if (c.exact) {
        // The last block holds a power of two of tokens, so that its mean is exact.
        std::size_t rest = c.problem.tokens % edge;
        while ((rest & (rest - 1)) != 0) rest = (--c.problem.tokens) % edge;
        fill_whole_numbers(draw, c, edge);
      } else {
        fill_gaussian(draw, c);
      }
      describe(c, "block_sparse", number);
      const std::size_t blocks = (c.problem.tokens + edge - 1) / edge;
      Settings settings(Phase::kPrefill, "block_sparse");
      settings.set("edge", static_cast<double>(edge)).set("blocks", draw_budget(draw, blocks, 3, 1));
      c.name += settings.text();
      const PrefillChoice choice = select_prefill(c.input(), settings.build());
      const auto scores = reference::pooled_block_scores(c.problem, edge);
      REQUIRE_MESSAGE(choice.native.blocks.size() == c.problem.lists(), c.name);
      for (std::size_t list = 0; list < c.problem.lists(); ++list) {
        REQUIRE_MESSAGE(choice.native.blocks[list].size() == blocks, c.name);
        for (std::size_t row = 0; row < blocks; ++row) {
          std::vector<char> forced(row + 1, 0);
          forced[0] = forced[row] = 1;
          if (row > 0) forced[row - 1] = 1;
          report.judge(c, scores[list][row], forced, reference::exactly(settings.whole("blocks")),
                       choice.native.blocks[list][row],
                       "list " + std::to_string(list) + ", row " + std::to_string(row));
        }
      }
      check_block_expansion(c, choice, edge);
    }
    report.finish("block_sparse " + std::to_string(edge));
  }
}

TEST_CASE("xattention keeps the fewest blocks that cover its threshold") {
  Report report;
  for (int number = 0; number < 2 * kCases; ++number) {
    Draw draw("xattention", number);
    Settings settings(Phase::kPrefill, "xattention");
    settings.set("edge", draw.of({64.0, 128.0}))
        .set("stride", draw.of({4.0, 8.0, 16.0}))
        .set("threshold", draw.of({0.0, 0.1, 0.3, 0.5, 0.77, 0.9, 0.95, 1.0}));
    const std::size_t edge = settings.whole("edge"), stride = settings.whole("stride");
    SelectCase c;
    draw_shape(draw, c, 700.0, 2e7);
    if (number % 2 == 1) {
      fill_ties(draw, c, draw.one_in(2));
    } else {
      fill_gaussian(draw, c);
    }
    describe(c, "xattention", number);
    c.name += settings.text();
    const PrefillChoice choice = select_prefill(c.input(), settings.build());
    const auto scores = reference::antidiagonal_block_scores(c.problem, edge, stride);
    const std::size_t blocks = (c.problem.tokens + edge - 1) / edge;
    REQUIRE_MESSAGE(choice.native.blocks.size() == c.problem.lists(), c.name);
    for (std::size_t list = 0; list < c.problem.lists(); ++list) {
      REQUIRE_MESSAGE(choice.native.blocks[list].size() == blocks, c.name);
      for (std::size_t row = 0; row < blocks; ++row) {
        // The first block and the diagonal one are forced, and what they hold counts.
        std::vector<char> forced(row + 1, 0);
        forced[0] = forced[row] = 1;
        report.judge(c, scores[list][row], forced,
                     reference::fewest_that_cover(scores[list][row], forced, settings.at("threshold"), 0),
                     choice.native.blocks[list][row],
                     "list " + std::to_string(list) + ", row " + std::to_string(row));
      }
    }
    check_block_expansion(c, choice, edge);
  }
  report.finish("xattention");
}
