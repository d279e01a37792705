// Native budgets from the study's tables, and from a target sparsity where arithmetic gives it (DESIGN.md
// section 4).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "attention/method.hpp"

namespace tessera {

struct BudgetResult {
  std::map<std::string, double> native;  // names as in the method's row: "tokens", "blocks"
  double expected_sparsity = 0;
  std::string note;  // what the run should say (one line); empty when there is nothing to say
};

// The budget that the study used at that length and compression (`--budget study:10x`), for vertical_slash,
// flexprefill, block_sparse (blocks of 16), snapkv, ada_snapkv, pyramidkv (of the same mean) and quest.
// Lengths within 5 % of a listed one take its row; SnapKV's and Quest's budgets are a share of the length
// itself. expected_sparsity is by arithmetic where sparsity_of knows the method, and 1 − 1 / compression
// otherwise. UsageError lists what exists.
BudgetResult study_budget(const Method& method, std::int64_t length, double compression);

// Share of causal pairs (prefill), or of the tokens that a dense cache would read (decode), that is not
// visible with these settings: exact, forced units included, and the same for every head and input
// (ada_snapkv, pyramidkv: their mean over heads and layers). Empty for methods whose choice depends on the
// data in size (vertical_slash, flexprefill, xattention, topp_pages).
//
// length S: tokens of the prompt. output_tokens: the first comes from the prefill, so decode has
// output_tokens − 1 steps, and step i = 1 … reads against a dense cache of S + i tokens, its own among them;
// what is 1 or less counts one step. Evicting methods keep what is decoded; streaming's window moves on with
// it. Prefill streaming counts what its Selection names: the window of the first row of a query block,
// rounded out to pages.
std::optional<double> sparsity_of(const MethodSettings& settings, std::int64_t length,
                                  std::int64_t output_tokens);

// The largest native budget whose sparsity is at least target, the other settings (edge, sinks, recent …) as
// given. Where forced units leave none, the smallest budget, and the note says what can be reached. The name
// that is solved for: blocks (block_sparse), tokens (quest, snapkv family), window (streaming). UsageError
// for methods that need calibration, and for a target outside [0, 1).
BudgetResult solve_target(const MethodSettings& settings, std::int64_t length, std::int64_t output_tokens,
                          double target);

}  // namespace tessera
