// What ranks must have in common, on 1 to 4 ranks.
#include "parallel/handshake.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "parallel/gather_texts.hpp"
#include "parallel/mpi_session.hpp"
#include "runtime/core/error.hpp"

using namespace tessera;

namespace {

// The refusal of this rank; empty: none.
std::string refusal(Communicator& world, const std::vector<Fact>& facts) {
  try {
    require_equal_facts(world, facts);
  } catch (const UsageError& error) {
    CHECK(error.on_all_ranks());
    return error.what();
  }
  return {};
}

}  // namespace

TEST_CASE("ranks that have the same facts go on") {
  MpiSession session = MpiSession::start(detect_launch());
  const auto world = session.world();
  CHECK(refusal(*world, {}).empty());
  CHECK(refusal(*world, {{"version", "1.0"}, {"options", ""}}).empty());
}

TEST_CASE("a rank with another value is named on all ranks") {
  MpiSession session = MpiSession::start(detect_launch());
  const auto world = session.world();
  const bool other = world->rank() == world->size() - 1 && world->size() > 1;
  const std::string text =
      refusal(*world, {{"version", "1.0"}, {"revision", other ? "bb" : "aa"}, {"options", "eval"}});
  if (world->size() == 1) {
    CHECK(text.empty());
    return;
  }
  CHECK(text.find("revision aa on rank") != std::string::npos);
  CHECK(text.find("bb on rank " + std::to_string(world->size() - 1)) != std::string::npos);
  CHECK(text.find("version") == std::string::npos);
  CHECK(text.find("options") == std::string::npos);
}

TEST_CASE("differences that refuse nothing are told to every rank") {
  MpiSession session = MpiSession::start(detect_launch());
  const auto world = session.world();
  const std::vector<Fact> same{{"processor", "A"}};
  CHECK(gather_differences(*world, same).empty());
  const std::vector<Fact> mine{{"processor", world->rank() == 0 ? "A" : "B"}};
  const std::string wanted = world->size() == 1 ? ""
                             : world->size() == 2
                                 ? "processor A on rank 0, B on rank 1"
                                 : "processor A on rank 0, B on ranks 1-" + std::to_string(world->size() - 1);
  CHECK(gather_differences(*world, mine) == wanted);
}

TEST_CASE("texts of all lengths reach every rank") {
  MpiSession session = MpiSession::start(detect_launch());
  const auto world = session.world();
  const auto text_of = [](int rank) { return std::string(static_cast<std::size_t>(rank) * 1000, 'x'); };
  const std::vector<std::string> texts = all_gather_texts(*world, text_of(world->rank()));
  REQUIRE(texts.size() == static_cast<std::size_t>(world->size()));
  for (int r = 0; r < world->size(); ++r) CHECK(texts[static_cast<std::size_t>(r)] == text_of(r));
}

TEST_CASE("differences name field, values and ranks") {
  using Facts = std::vector<Fact>;
  const std::vector<Facts> facts = {{{"version", "1.0"}, {"HDF5", "1.10"}},
                                    {{"version", "1.1"}, {"HDF5", "1.10"}},
                                    {{"version", "1.0"}, {"HDF5", "1.10"}},
                                    {{"version", "1.0"}},
                                    {{"version", "1.0"}, {"HDF5", "1.10"}, {"CUDA driver", "13.0"}}};
  CHECK(differing_facts(facts) ==
        "version 1.0 on ranks 0, 2-4, 1.1 on rank 1; HDF5 1.10 on ranks 0-2, 4, (none) on rank 3; "
        "CUDA driver (none) on ranks 0-3, 13.0 on rank 4");
  CHECK(differing_facts(std::vector<Facts>(3, facts[0])).empty());
  CHECK(differing_facts({}).empty());
}
