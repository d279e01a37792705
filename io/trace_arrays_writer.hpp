// Writes /arrays/NNN of one point. Internal to the trace writer.
#pragma once

#include <cstddef>
#include <vector>

#include "io/hdf5.hpp"
#include "io/trace_schema.hpp"

namespace tessera {

// `samples`: indices into tables.samples of this point's samples, in the order in which they are stored.
void write_point_arrays(hid_t file, const TraceTables& tables, std::size_t point,
                        const std::vector<std::size_t>& samples, const LoadSample& load);

// Creates a dimension scale of numbers or names, with its attributes.
Hdf5Id write_scale(hid_t group, const char* name, const std::vector<std::int64_t>& values,
                   const char* long_name);
Hdf5Id write_name_scale(hid_t group, const char* name, const std::vector<std::string>& values,
                        const char* long_name);
void describe_dataset(hid_t dataset, const char* units, const char* long_name);
void attach_scale(hid_t dataset, hid_t scale, unsigned axis, const char* name);

}  // namespace tessera
