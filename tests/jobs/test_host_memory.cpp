#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "jobs/host_memory.hpp"

using namespace tessera;

namespace {

// A folder that stands for the root of a machine.
struct FakeRoot {
  FakeRoot() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tessera-root-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path = pattern;
    write("/proc/meminfo",
          "MemTotal:       1000 kB\nMemFree:          10 kB\nMemAvailable:    800 kB\nHugePages_Total:  0\n");
  }
  ~FakeRoot() { std::filesystem::remove_all(path); }
  FakeRoot(const FakeRoot&) = delete;
  FakeRoot& operator=(const FakeRoot&) = delete;

  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(path + name).parent_path());
    std::ofstream(path + name) << text;
  }

  std::string path;
};

}  // namespace

TEST_CASE("without control groups the machine's memory counts") {
  const FakeRoot root;
  const HostMemory memory = read_host_memory(root.path);
  CHECK(memory.total == 1000 * 1024);
  CHECK(memory.available == 800 * 1024);
  CHECK(memory.limit == 0);
}

TEST_CASE("the limit of a batch job lies between its own group and the root") {
  const FakeRoot root;
  const std::string job = "/sys/fs/cgroup/system.slice/job_7";
  root.write("/proc/self/cgroup", "0::/system.slice/job_7/step_0/task_1\n");
  root.write(job + "/step_0/task_1/memory.max", "max\n");
  root.write(job + "/memory.max", "300000\n");
  root.write(job + "/memory.current", "250000\n");
  SUBCASE("what processes hold is gone") {
    CHECK(read_host_memory(root.path).available == 50000);
  }
  SUBCASE("cached files can be reclaimed") {
    root.write(job + "/memory.stat", "anon 40000\nfile 210000\ninactive_file 150000\nactive_file 60000\n");
    CHECK(read_host_memory(root.path).available == 260000);
  }
  CHECK(read_host_memory(root.path).limit == 300000);
}

TEST_CASE("version 1, in a container that does not see its own path") {
  const FakeRoot root;
  root.write("/proc/self/cgroup", "9:name=systemd:/\n4:cpuset,memory:/docker/abc\n0::/\n");
  root.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "500000\n");
  root.write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "100000\n");
  root.write("/sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 30000\n");
  CHECK(read_host_memory(root.path).limit == 500000);
  CHECK(read_host_memory(root.path).available == 430000);
}

TEST_CASE("a limit near 2^63 is none") {
  const FakeRoot root;
  root.write("/proc/self/cgroup", "4:memory:/\n");
  root.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  root.write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "100000\n");
  CHECK(read_host_memory(root.path).limit == 0);
  CHECK(read_host_memory(root.path).available == 800 * 1024);
}
