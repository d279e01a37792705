// What determines the results of a run, as named fields: model, weights, tokenizer, task, prompt, methods,
// budgets, dtypes, numerics revision (DESIGN.md section 6). Grid, batch and sample count are not part of it,
// so that another grid resumes and more samples append.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera {

struct RunKey {
  std::vector<std::pair<std::string, std::string>> fields;  // name, value; the order does not matter

  void set(std::string name, std::string value);         // replaces a field of the same name
  const std::string* find(std::string_view name) const;  // nullptr when absent
  std::string hash() const;                              // 16 hex digits
};

// "length: 4096 there, 8192 here; task: ..." for every field that differs or is in one key only; "" when
// equal.
std::string describe_key_difference(const RunKey& recorded, const RunKey& requested);

}  // namespace tessera
