#include "io/file_output.hpp"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "runtime/core/error.hpp"

namespace tessera {

namespace {

std::filesystem::path folder_of(const std::string& path) {
  const auto folder = std::filesystem::path(path).parent_path();
  return folder.empty() ? std::filesystem::path(".") : folder;
}

// Removes its file unless told that the file has become somebody else's.
class PrivateFile {
 public:
  explicit PrivateFile(std::string path) : path_(std::move(path)) {}
  PrivateFile(const PrivateFile&) = delete;
  PrivateFile& operator=(const PrivateFile&) = delete;
  ~PrivateFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  void release() { path_.clear(); }

 private:
  std::string path_;
};

std::string this_host() {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

// Whether the process that wrote PREFIX + HOST.PID has gone. Another host's cannot be asked: an hour without
// a write is taken for an answer. A live one keeps its file, since another command may derive the same trace.
bool is_left_behind(const std::filesystem::path& path, const std::string& prefix) {
  const std::string ours = prefix + this_host() + ".";
  const std::string name = path.filename().string();
  if (name.rfind(ours, 0) == 0) {
    const long pid = std::strtol(name.c_str() + ours.size(), nullptr, 10);
    return pid <= 0 || pid == ::getpid() || (::kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH);
  }
  std::error_code error;
  const auto written = std::filesystem::last_write_time(path, error);
  return !error && std::filesystem::file_time_type::clock::now() - written > std::chrono::hours(1);
}

void remove_left_behind(const std::filesystem::path& folder, const std::string& prefix) {
  std::error_code ignored;
  std::vector<std::filesystem::path> left;
  for (std::filesystem::directory_iterator entry(folder, ignored), end; !ignored && entry != end;
       entry.increment(ignored)) {
    const bool is_private = entry->path().filename().string().rfind(prefix, 0) == 0;
    if (is_private && is_left_behind(entry->path(), prefix)) left.push_back(entry->path());
  }
  for (const auto& path : left) ::unlink(path.c_str());
}

}  // namespace

void OwnedFd::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

int write_fully(int fd, std::string_view data) {
  constexpr std::size_t kPiece = std::size_t{1} << 28;  // some file systems return short on larger pieces
  while (!data.empty()) {
    const ssize_t done = ::write(fd, data.data(), std::min(data.size(), kPiece));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return errno;
    if (done == 0) return ENOSPC;
    data.remove_prefix(static_cast<std::size_t>(done));
  }
  return 0;
}

void sync_folder_of(const std::string& path) {
  const std::string folder = folder_of(path).string();
  const OwnedFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) throw_write_error(folder, "opening the folder", errno);
  // EINVAL: a file system whose folders cannot be synced.
  if (::fsync(fd.get()) != 0 && errno != EINVAL) throw_write_error(folder, "syncing the folder", errno);
}

void replace_file(const std::string& path, std::string_view data,
                  const std::function<void(const std::string&)>& verify,
                  const std::function<void()>& before_rename) {
  const auto folder = folder_of(path);
  const std::string prefix = "." + std::filesystem::path(path).filename().string() + ".tmp.";
  remove_left_behind(folder, prefix);
  const std::string private_path =
      (folder / fmt::format("{}{}.{}", prefix, this_host(), ::getpid())).string();

  OwnedFd fd(::open(private_path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!fd) throw_write_error(path, "creating a file beside it", errno);
  PrivateFile file(private_path);
  if (const int error = write_fully(fd.get(), data)) throw_write_error(path, "writing", error);
  if (::fsync(fd.get()) != 0) throw_write_error(path, "syncing", errno);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) throw_write_error(path, "checking what was written", errno);
  if (static_cast<std::size_t>(status.st_size) != data.size()) throw_write_error(path, "writing", ENOSPC);
  fd.reset();
  if (verify) verify(private_path);
  if (before_rename) before_rename();
  if (::rename(private_path.c_str(), path.c_str()) != 0) throw_write_error(path, "renaming over it", errno);
  file.release();
  sync_folder_of(path);
}

}  // namespace tessera
