// ruler_niah: find the values of a few keys among many key/value records (after RULER's multi-key,
// multi-query needle task, Hsieh et al. 2024). Keys and values are hyphenated groups of lower-case letters
// and digits.
#pragma once

#include "jobs/tasks/task.hpp"

namespace tessera {

Task ruler_niah_task();

}  // namespace tessera
