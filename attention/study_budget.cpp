#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "attention/budget.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera {
namespace {

// Shares of the causal pairs, or of the cache, that the study's budgets aim at: 1 / compression.
struct Share {
  std::int64_t numerator;
  std::int64_t denominator;
  double compression() const { return static_cast<double>(denominator) / static_cast<double>(numerator); }
};

constexpr std::array<Share, 10> kTenShares = {
    {{1, 20}, {1, 15}, {1, 10}, {2, 15}, {1, 5}, {3, 10}, {2, 5}, {1, 2}, {3, 5}, {7, 10}}};
constexpr std::array<Share, 7> kSevenShares = {{{1, 20}, {1, 15}, {1, 10}, {2, 15}, {1, 5}, {1, 3}, {1, 2}}};

struct Listed {
  std::int64_t length;
  std::array<double, 10> values;  // in the order of the method's shares
};

// Columns; as many diagonals.
constexpr std::array<Listed, 4> kVerticalSlash = {{
    {16384, {164, 240, 315, 400, 448, 576, 768, 1024, 1536, 2304}},
    {32768, {290, 384, 448, 576, 704, 1024, 1536, 2304, 3584, 4608}},
    {65536, {400, 448, 544, 640, 960, 1280, 2304, 4096, 6144, 8192}},
    {131072, {480, 768, 1024, 1536, 2048, 3584, 5632, 10240, 13312, 18432}},
}};

constexpr std::array<Listed, 3> kFlexPrefillAlpha = {{
    {16384, {0, 0, 0, 0, .55, .71, .88}},
    {32768, {0, 0, .45, .6, .7, .8, .92}},
    {65536, {0, .45, .55, .7, .77, .85, .94}},
}};
constexpr std::array<Listed, 3> kFlexPrefillFloor = {{
    {16384, {164, 240, 315, 400, 512, 512, 512}},
    {32768, {290, 384, 512, 512, 512, 512, 512}},
    {65536, {400, 512, 512, 512, 512, 512, 512}},
}};

// Blocks of 16 tokens a row.
constexpr std::array<Listed, 3> kBlockSparse = {{
    {16384, {26, 35, 53, 71, 108, 188, 300}},
    {32768, {52, 69, 105, 141, 216, 376, 600}},
    {65536, {104, 139, 210, 283, 432, 752, 1200}},
}};
constexpr int kStudyBlockEdge = 16;

// SnapKV and Quest have no table: they keep a share of the prompt. 128K was run for Quest alone.
constexpr std::array<std::int64_t, 4> kLengths = {16384, 32768, 65536, 131072};

enum class Rule : std::uint8_t { kColumns, kCoverage, kBlocks, kTokens, kPages };

struct Row {
  std::string_view method;
  Rule rule;
  std::span<const Share> shares;
  std::size_t lengths;  // the first so many of kLengths
};

constexpr std::array<Row, 7> kRows = {{
    {"vertical_slash", Rule::kColumns, kTenShares, 4},
    {"flexprefill", Rule::kCoverage, kSevenShares, 3},
    {"block_sparse", Rule::kBlocks, kSevenShares, 3},
    {"snapkv", Rule::kTokens, kTenShares, 3},
    {"ada_snapkv", Rule::kTokens, kTenShares, 3},
    {"pyramidkv", Rule::kTokens, kTenShares, 3},
    {"quest", Rule::kPages, kTenShares, 4},
}};

const Row& row_of(std::string_view method) {
  std::string names;
  for (const Row& row : kRows) {
    if (row.method == method) return row;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", row.method);
  }
  throw UsageError(
      "--budget study: the study has no budget for {}, only for {}; use --set {}.NAME=VALUE or a target "
      "sparsity",
      method, names, method);
}

// An index into kLengths, and into the tables.
std::size_t find_length(const Row& row, std::int64_t length) {
  std::string names;
  for (std::size_t i = 0; i < row.lengths; ++i) {
    if (std::llabs(length - kLengths[i]) * 20 <= kLengths[i]) return i;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", kLengths[i]);
  }
  throw UsageError(
      "--budget study: the study has no {} budget within 5 % of length {}, only at {}; use one of these "
      "lengths or a "
      "target sparsity",
      row.method, length, names);
}

std::size_t find_compression(const Row& row, double compression) {
  std::string names;
  for (std::size_t i = 0; i < row.shares.size(); ++i) {
    // 3.33 stands for 10/3.
    if (std::abs(compression / row.shares[i].compression() - 1) < 0.005) return i;
    names += fmt::format("{}{:.3g}x", names.empty() ? "" : ", ", row.shares[i].compression());
  }
  throw UsageError(
      "--budget study:{}x: the study has no {} budget of that compression, only {}; use one of these or a "
      "target "
      "sparsity",
      compression, row.method, names);
}

}  // namespace

BudgetResult study_budget(const Method& method, std::int64_t length, double compression) {
  const Row& row = row_of(method.name);
  const std::size_t at = find_length(row, length);
  const std::size_t column = find_compression(row, compression);
  const Share share = row.shares[column];
  const std::int64_t tokens = length * share.numerator / share.denominator;

  BudgetResult result;
  switch (row.rule) {
    case Rule::kColumns:
      result.native = {{"columns", kVerticalSlash[at].values[column]},
                       {"diagonals", kVerticalSlash[at].values[column]}};
      break;
    case Rule::kCoverage:
      result.native = {{"alpha", kFlexPrefillAlpha[at].values[column]},
                       {"floor", kFlexPrefillFloor[at].values[column]}};
      break;
    case Rule::kBlocks:
      result.native = {{"blocks", kBlockSparse[at].values[column]}, {"edge", kStudyBlockEdge}};
      break;
    case Rule::kTokens:
      result.native = {{"tokens", static_cast<double>(tokens)}};
      break;
    case Rule::kPages:
      result.native = {{"tokens", static_cast<double>(tokens / kPageTokens * kPageTokens)}};
      break;
  }
  if (method.name == "pyramidkv")
    result.note = "pyramidkv is not in the study: it gets snapkv's budget as its mean";

  MethodSettings settings(method, {});
  for (const auto& [name, value] : result.native) settings.set(name, value);
  result.expected_sparsity = sparsity_of(settings, length, 0).value_or(1 - 1 / share.compression());
  return result;
}

}  // namespace tessera
