#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "jobs/info.hpp"
#include "parallel/mpi_communicator.hpp"

using namespace tessera;

TEST_CASE("info on several ranks: rank 0 writes one entry or line a rank, the others nothing") {
  MPI_Comm copy = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &copy);
  MpiCommunicator world{MpiHandle(copy)};
  std::ostringstream json, text;
  run_info({true}, world, json);
  run_info({false}, world, text);
  if (world.rank() != 0) {
    CHECK(json.str().empty());
    CHECK(text.str().empty());
    return;
  }
  const nlohmann::json parsed = nlohmann::json::parse(json.str());
  REQUIRE(parsed.at("ranks").size() == static_cast<std::size_t>(world.size()));
  for (int rank = 0; rank < world.size(); ++rank) {
    CHECK(parsed.at("ranks")[static_cast<std::size_t>(rank)].at("rank") == rank);
    if (world.size() > 1) {
      CHECK(text.str().find("\nrank " + std::to_string(rank) + " ") != std::string::npos);
    }
  }
}
