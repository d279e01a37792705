#include "jobs/output_place.hpp"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

std::filesystem::path folder_of(const std::string& file) {
  const std::filesystem::path folder = std::filesystem::path(file).parent_path();
  return folder.empty() ? std::filesystem::path(".") : folder;
}

}  // namespace

void check_writable(const std::string& trace) {
  if (::access(folder_of(trace).c_str(), W_OK) != 0) {
    throw ResourceError("{}: cannot write in its folder: {}; choose another --trace", trace,
                        std::error_code(errno, std::generic_category()).message());
  }
}

void check_dump_folder(const std::string& folder) {
  if (!folder.empty() && std::filesystem::exists(folder) && !std::filesystem::is_directory(folder)) {
    throw UsageError("--dump-selections {}: it is not a folder; name one that is there or can be made",
                     folder);
  }
}

std::int64_t room_beside(const std::string& file) {
  std::error_code problem;
  const std::filesystem::space_info space = std::filesystem::space(folder_of(file), problem);
  if (problem) throw ResourceError("{}: cannot tell the room of its disk: {}", file, problem.message());
  return static_cast<std::int64_t>(space.available);
}

}  // namespace tessera
