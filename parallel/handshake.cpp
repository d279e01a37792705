#include "parallel/handshake.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "parallel/gather_texts.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

// Names and values one after another, each ended by a zero byte.
std::string packed(std::span<const Fact> facts) {
  std::string bytes;
  for (const Fact& fact : facts) bytes += fact.name + '\0' + fact.value + '\0';
  return bytes;
}

std::vector<Fact> unpacked(const std::string& bytes) {
  std::vector<std::string> texts;
  for (std::size_t begin = 0; begin < bytes.size();) {
    const std::size_t end = bytes.find('\0', begin);
    TESSERA_CHECK(end != std::string::npos);
    texts.push_back(bytes.substr(begin, end - begin));
    begin = end + 1;
  }
  TESSERA_CHECK(texts.size() % 2 == 0);
  std::vector<Fact> facts;
  for (std::size_t i = 0; i < texts.size(); i += 2) facts.push_back({texts[i], texts[i + 1]});
  return facts;
}

// FNV-1a, 64 bits.
std::uint64_t hash_of(const std::string& bytes) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  return hash;
}

std::string value_of(const std::vector<Fact>& facts, const std::string& name) {
  const auto found = std::ranges::find(facts, name, &Fact::name);
  return found == facts.end() ? "(none)" : found->value;
}

// "rank 3", "ranks 0-2, 5"; ranks ascend.
std::string ranks_text(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    if (i > 0) text += ", ";
    text += i == last ? fmt::format("{}", ranks[i]) : fmt::format("{}-{}", ranks[i], ranks[last]);
    i = last + 1;
  }
  return text;
}

// "version 1.0 on rank 0, 1.1 on ranks 1-3"; empty where all ranks have the same value.
std::string difference_in(const std::string& name, std::span<const std::vector<Fact>> facts) {
  std::vector<std::string> values;  // in the order of the first rank that has each
  std::map<std::string, std::vector<int>> ranks;
  for (std::size_t r = 0; r < facts.size(); ++r) {
    const std::string value = value_of(facts[r], name);
    if (!ranks.contains(value)) values.push_back(value);
    ranks[value].push_back(static_cast<int>(r));
  }
  if (values.size() == 1) return {};
  std::string text = name;
  for (const std::string& value : values) {
    text += fmt::format("{} {} on {}", value == values.front() ? "" : ",", value, ranks_text(ranks[value]));
  }
  return text;
}

}  // namespace

std::string differing_facts(std::span<const std::vector<Fact>> facts) {
  std::vector<std::string> names;
  for (const std::vector<Fact>& of_rank : facts) {
    for (const Fact& fact : of_rank) {
      if (std::ranges::find(names, fact.name) == names.end()) names.push_back(fact.name);
    }
  }
  std::string text;
  for (const std::string& name : names) {
    const std::string difference = difference_in(name, facts);
    if (!difference.empty()) text += (text.empty() ? "" : "; ") + difference;
  }
  return text;
}

std::string gather_differences(Communicator& world, std::span<const Fact> facts) {
  const std::string mine = packed(facts);
  const std::uint64_t hash = hash_of(mine);
  std::vector<std::uint64_t> hashes(static_cast<std::size_t>(world.size()));
  world.all_gather(&hash, sizeof hash, hashes.data());
  if (std::ranges::all_of(hashes, [&](std::uint64_t other) { return other == hashes.front(); })) return {};

  std::vector<std::vector<Fact>> of_ranks;
  for (const std::string& bytes : all_gather_texts(world, mine)) of_ranks.push_back(unpacked(bytes));
  return differing_facts(of_ranks);
}

void require_equal_facts(Communicator& world, std::span<const Fact> facts) {
  const std::string differences = gather_differences(world, facts);
  if (differences.empty()) return;
  UsageError error("the ranks differ in what must be the same: {}", differences);
  error.mark_on_all_ranks();
  throw error;
}

}  // namespace tessera
