#include <doctest/doctest.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "jobs/info.hpp"

using namespace tessera;

TEST_CASE("info: this machine") {
  const HostInfo info = collect_host_info();
  std::array<char, 256> name{};
  REQUIRE(gethostname(name.data(), name.size() - 1) == 0);
  CHECK(info.host == name.data());
  CHECK(!info.cpu.empty());
  CHECK(info.cores >= 1);
  CHECK(info.hardware_threads >= info.cores);
  CHECK(info.bound_count >= 1);
  CHECK(info.bound_count <= info.hardware_threads);
  CHECK(info.bound_cores <= info.bound_count);
  CHECK(!info.bound.empty());
  CHECK(info.memory_total > info.memory_available);
  CHECK(info.memory_available > 0);
  CHECK(info.device_name == info.cpu);
  CHECK(info.pci.empty());
}

TEST_CASE("info: JSON of a world of one has every field, with its type") {
  std::ostringstream out;
  const std::unique_ptr<Communicator> world = make_local_communicator();
  run_info({true}, *world, out);
  const nlohmann::json json = nlohmann::json::parse(out.str());
  for (const char* key :
       {"version", "git_revision", "compiler", "build_type", "mpi", "hdf5", "blas", "cuda_compiler"}) {
    CAPTURE(key);
    CHECK(json.at("build").at(key).is_string());
  }
  CHECK(json.at("build").at("git_dirty").is_boolean());
  CHECK(json.at("build").at("hdf5").get<std::string>().rfind("1.", 0) == 0);
  CHECK(json.at("build").at("mpi").get<std::string>().size() > 3);
  REQUIRE(json.at("ranks").size() == 1);
  const nlohmann::json& rank = json.at("ranks")[0];
  CHECK(rank.at("rank") == 0);
  CHECK(rank.at("memory_total").get<std::int64_t>() > (1 << 20));
  CHECK(rank.at("cuda").at("devices").is_array());
  CHECK(rank.at("host").get<std::string>() == collect_host_info().host);
}

TEST_CASE("info: text of a world of one") {
  std::ostringstream out;
  const std::unique_ptr<Communicator> world = make_local_communicator();
  run_info({false}, *world, out);
  for (const char* word : {"tessera ", "build ", "HDF5 1.", "host ", "cores ", "memory ", "cuda "}) {
    CAPTURE(word);
    CHECK(out.str().find(word) != std::string::npos);
  }
}
