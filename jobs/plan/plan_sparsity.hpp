// What a plan takes for the sparsity of a phase before anything has run, and the sentence that says so.
#pragma once

#include <cstdint>
#include <string>

#include "attention/method.hpp"
#include "jobs/attention_setup.hpp"
#include "jobs/plan/plan.hpp"

namespace tessera {

// Arithmetic where the method allows it; else the target, which calibration will aim at; else what the study
// aimed at with its table; else, for columns and diagonals, offsets drawn at random; else unknown: as dense.
PhaseSparsity phase_sparsity(const MethodSettings& settings, const PhaseBudget& budget, std::int64_t length);

// Empty where nothing is assumed.
std::string sparsity_note(const MethodSettings& settings, const PhaseBudget& budget,
                          const PhaseSparsity& sparsity);

// Share of the causal pairs that vertical_slash leaves out where its diagonals are uniform random offsets: a
// run of 64 keys a query block is rounded out to pages, 64 + 15 keys on average, and of diagonals that
// overlap the union counts: 1 − (1 − c/S)·exp(−(n − 64)·79/S). Diagonals of real text lie together, so that
// it shows less.
double random_offsets_sparsity(double columns, double diagonals, std::int64_t length);

}  // namespace tessera
