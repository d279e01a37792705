// Reads a trace back: its tables at once, the arrays of one sample at a time.
#pragma once

#include <string>

#include "io/trace_schema.hpp"

namespace tessera {

// Tables with all columns, and the shapes of all arrays checked. Points carry their dims. InputError names
// the file and the dataset.
TraceTables read_trace(const std::string& path);

// Fetches samples of `tables`, as read from the same path, with their arrays. What was not measured comes
// back as zeros, or as no times; ranks that took no part do not come back. Memory is the largest over the
// point's samples. `tables` must outlive the result.
LoadSample trace_loader(const TraceTables& tables, const std::string& path);

}  // namespace tessera
