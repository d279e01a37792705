#include "jobs/bench_shape.hpp"

#include <fmt/format.h>

#include <optional>

#include "jobs/option_set.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr std::int64_t kMostHeads = 1024;
constexpr std::int64_t kMostSequences = 256;
constexpr std::int64_t kMostLength = std::int64_t{1} << 24;

std::vector<std::string_view> split_at_dashes(std::string_view text) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t dash = text.find('-');
    parts.push_back(text.substr(0, dash));
    if (dash == std::string_view::npos) return parts;
    text.remove_prefix(dash + 1);
  }
}

// The number behind a letter, or nothing where it is not in [1, most].
std::optional<std::int64_t> number_behind(std::string_view part, char letter, std::int64_t most) {
  if (part.empty() || part.front() != letter) return std::nullopt;
  const std::optional<std::int64_t> number = parse_integer(part.substr(1));
  return number && *number >= 1 && *number <= most ? number : std::nullopt;
}

std::optional<std::int64_t> tokens_of(std::string_view part) {
  const bool thousands = part.ends_with('K');
  if (thousands) part.remove_suffix(1);
  const std::optional<std::int64_t> number = parse_integer(part);
  if (!number || *number < 1 || *number > kMostLength / (thousands ? 1024 : 1)) return std::nullopt;
  return thousands ? *number * 1024 : *number;
}

}  // namespace

BenchShape parse_bench_shape(std::string_view text, const std::string& where) {
  const std::vector<std::string_view> parts = split_at_dashes(text);
  if (parts.size() == 4 || parts.size() == 5) {
    const auto head_dim = number_behind(parts[0], 'D', 256);
    const auto heads = number_behind(parts[1], 'H', kMostHeads);
    const auto kv_heads = number_behind(parts[2], 'K', kMostHeads);
    const auto length = tokens_of(parts[3]);
    const auto sequences = parts.size() == 4 ? 1 : number_behind(parts[4], 'N', kMostSequences);
    const bool known_dim = head_dim && (*head_dim == 64 || *head_dim == 128 || *head_dim == 256);
    if (known_dim && heads && kv_heads && length && sequences && *heads % *kv_heads == 0) {
      return {static_cast<int>(*head_dim), static_cast<int>(*heads), static_cast<int>(*kv_heads), *length,
              static_cast<int>(*sequences)};
    }
  }
  throw UsageError(
      "{}: '{}' is no shape; write D128-H64-K8-128K or D128-H64-K8-128K-N8: head dimension 64, 128 or 256, "
      "query heads, KV heads that divide them, tokens, sequences up to {}",
      where, text, kMostSequences);
}

std::string name_of(const BenchShape& shape) {
  const std::string length =
      shape.length % 1024 == 0 ? fmt::format("{}K", shape.length / 1024) : fmt::format("{}", shape.length);
  std::string name = fmt::format("D{}-H{}-K{}-{}", shape.head_dim, shape.heads, shape.kv_heads, length);
  if (shape.sequences > 1) name += fmt::format("-N{}", shape.sequences);
  return name;
}

}  // namespace tessera
