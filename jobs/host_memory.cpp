#include "jobs/host_memory.hpp"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

namespace tessera {
namespace {

// Names of version 1 and 2 of control groups for the same three things.
struct GroupFiles {
  const char* limit;
  const char* usage;
  const char* inactive_file;  // in memory.stat, with groups below
  const char* active_file;
};
constexpr GroupFiles kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
                               "total_active_file"};
constexpr GroupFiles kVersion2{"memory.max", "memory.current", "inactive_file", "active_file"};
constexpr std::int64_t kNoLimit = std::int64_t{1} << 60;  // version 1 says "none" by a number near 2^63

std::int64_t read_number(const std::string& path, std::int64_t otherwise) {
  std::ifstream file(path);
  std::int64_t value = 0;
  return file >> value ? value : otherwise;
}

// The number behind `name` in a file of lines "name number" or "name: number kB"; 0 where it is not there.
std::int64_t named_number(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  std::string line, word;
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::int64_t value = 0;
    if (fields >> word >> value && word == name) return value;
  }
  return 0;
}

void apply_group(const std::string& folder, const GroupFiles& files, HostMemory& memory) {
  const std::int64_t limit = read_number(folder + "/" + files.limit, kNoLimit);
  if (limit <= 0 || limit >= kNoLimit) return;
  const std::string stat = folder + "/memory.stat";
  const std::int64_t cached = named_number(stat, files.inactive_file) + named_number(stat, files.active_file);
  const std::int64_t used = read_number(folder + "/" + files.usage, 0);
  const std::int64_t held = std::max<std::int64_t>(0, used - cached);
  memory.limit = memory.limit == 0 ? limit : std::min(memory.limit, limit);
  memory.available = std::min(memory.available, std::max<std::int64_t>(0, limit - held));
}

// From the group at `path` up. In a container the path may be the host's, and only the root is there.
void apply_groups_above(const std::string& mount, std::string path, const GroupFiles& files,
                        HostMemory& memory) {
  while (!path.empty() && path != "/") {
    apply_group(mount + path, files, memory);
    path.erase(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
  apply_group(mount, files, memory);
}

}  // namespace

HostMemory read_host_memory(const std::string& root) {
  HostMemory memory;
  memory.total = named_number(root + "/proc/meminfo", "MemTotal:") * 1024;
  memory.available = named_number(root + "/proc/meminfo", "MemAvailable:") * 1024;
  if (memory.available == 0) memory.available = std::numeric_limits<std::int64_t>::max();

  std::ifstream groups(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {  // "0::/path" in version 2, "4:memory:/path" in version 1
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") {
      apply_groups_above(root + "/sys/fs/cgroup", path, kVersion2, memory);
    } else if (controllers.find(",memory,") != std::string::npos) {
      apply_groups_above(root + "/sys/fs/cgroup/memory", path, kVersion1, memory);
    }
  }
  return memory;
}

}  // namespace tessera
