#include "io/run_key.hpp"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>

namespace tessera {

namespace {

std::vector<std::pair<std::string, std::string>> sorted_fields(const RunKey& key) {
  auto fields = key.fields;
  std::sort(fields.begin(), fields.end());
  return fields;
}

// Values can be long (budgets, lists of files): a message shows their beginning.
std::string shown(const std::string* value) {
  constexpr std::size_t kMaxBytes = 80;
  if (value == nullptr) return "(none)";
  return value->size() <= kMaxBytes ? *value : value->substr(0, kMaxBytes) + "...";
}

}  // namespace

void RunKey::set(std::string name, std::string value) {
  for (auto& field : fields) {
    if (field.first == name) {
      field.second = std::move(value);
      return;
    }
  }
  fields.emplace_back(std::move(name), std::move(value));
}

const std::string* RunKey::find(std::string_view name) const {
  for (const auto& field : fields) {
    if (field.first == name) return &field.second;
  }
  return nullptr;
}

std::string RunKey::hash() const {
  // Lengths go in front, so that no two different keys spell the same bytes.
  std::string bytes;
  for (const auto& [name, value] : sorted_fields(*this)) {
    bytes += fmt::format("{}:{}={}:{};", name.size(), name, value.size(), value);
  }
  return fmt::format("{:016x}", static_cast<unsigned long long>(XXH3_64bits(bytes.data(), bytes.size())));
}

std::string describe_key_difference(const RunKey& recorded, const RunKey& requested) {
  std::string text;
  const auto mention = [&](const std::string& name) {
    const std::string* there = recorded.find(name);
    const std::string* here = requested.find(name);
    if (there != nullptr && here != nullptr && *there == *here) return;
    text += fmt::format("{}{}: {} there, {} here", text.empty() ? "" : "; ", name, shown(there), shown(here));
  };
  for (const auto& field : sorted_fields(recorded)) mention(field.first);
  for (const auto& field : sorted_fields(requested)) {
    if (recorded.find(field.first) == nullptr) mention(field.first);
  }
  return text;
}

}  // namespace tessera
