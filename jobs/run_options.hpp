// Options that commands which run a model or a part of it have in common.
#pragma once

#include "jobs/option_set.hpp"
#include "jobs/options.hpp"

namespace tessera {

void add_weights(OptionSet& set, WeightsSource* weights);             // --weights
void add_weights_dtype(OptionSet& set, WeightsDType* weights_dtype);  // --weights-dtype
void add_threads(OptionSet& set, int* threads);                       // --threads

}  // namespace tessera
