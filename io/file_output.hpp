// Writing files so that a crash or a full disk leaves either the old content or the new one: every return
// value is checked, and names are made durable by syncing their folder.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace tessera {

class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  ~OwnedFd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset();

 private:
  int fd_ = -1;
};

// All of `data`, or 0 for success and errno for failure.
int write_fully(int fd, std::string_view data);

// Makes creations, renames and removals in the folder of `path` durable; ResourceError when it cannot.
void sync_folder_of(const std::string& path);

// Replaces `path` by `data` in one step: a private file ".NAME.tmp.HOST.PID" in the same folder is written,
// synced, passed to `verify`, and renamed over it. On any failure (ResourceError, or what verify throws)
// `path` is as it was and the private file is gone. Private files that earlier writers of the same name left
// are removed. `before_rename` is for tests that end the process there.
void replace_file(const std::string& path, std::string_view data,
                  const std::function<void(const std::string& private_path)>& verify = {},
                  const std::function<void()>& before_rename = {});

}  // namespace tessera
