#include "io/file_lock.hpp"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <thread>

#include "io/file_output.hpp"
#include "io/trace_schema.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/host.hpp"

namespace tessera {

namespace {

// The lock belongs to the open file, so closing other descriptors of the same file does not drop it. The file
// is owned by the caller and closing it unlocks.
class KernelLock : public FileLock {
 public:
  explicit KernelLock(int fd) : fd_(fd) {}
  ~KernelLock() override {
    struct flock region {};
    region.l_type = F_UNLCK;
    region.l_whence = SEEK_SET;
    ::fcntl(fd_, F_OFD_SETLK, &region);
  }
  bool held() const override { return true; }

 private:
  int fd_;
};

struct Lease {
  std::string host;
  long pid = 0;
  double renewed = 0;  // seconds since 1970
  bool same_owner(const Lease& other) const { return host == other.host && pid == other.pid; }
};

bool read_lease(const std::string& path, Lease* lease) {
  std::ifstream file(path);
  return static_cast<bool>(file >> lease->host >> lease->pid >> lease->renewed);
}

std::string lease_text(const Lease& lease) {
  return fmt::format("{} {} {:.3f}\n", lease.host, lease.pid, lease.renewed);
}

bool is_stale(const Lease& lease, double stale_s) {
  if (lease.host == host_name() && ::kill(static_cast<pid_t>(lease.pid), 0) != 0 && errno == ESRCH)
    return true;
  return epoch_now() - lease.renewed > stale_s;
}

class LeaseLock : public FileLock {
 public:
  LeaseLock(std::string path, LeaseTimes times) : path_(std::move(path)), times_(times) {
    renewer_ = std::thread([this] { renew_until_stopped(); });
  }
  ~LeaseLock() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    renewer_.join();
    Lease found;
    if (held_ && read_lease(path_, &found) && found.same_owner(ours())) ::unlink(path_.c_str());
  }
  bool held() const override { return held_; }

  static Lease ours() { return {host_name(), static_cast<long>(::getpid()), epoch_now()}; }

 private:
  void renew_until_stopped() {
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, std::chrono::duration<double>(times_.renew_s), [this] { return stop_; })) {
      Lease found;
      if (read_lease(path_, &found) && !found.same_owner(ours())) {
        held_ = false;
        return;
      }
      try {
        replace_file(path_, lease_text(ours()));
      } catch (const Error&) {
        // A full disk now may be free at the next renewal; a lease that ends meanwhile is noticed above.
      }
    }
  }

  std::string path_;
  LeaseTimes times_;
  std::atomic<bool> held_{true};
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread renewer_;
};

std::unique_ptr<FileLock> try_lease(const std::string& path, std::string* holder, LeaseTimes times) {
  const std::string lease_path = path + ".lease";
  const Lease ours = LeaseLock::ours();
  const OwnedFd fd(::open(lease_path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (fd) {
    if (const int error = write_fully(fd.get(), lease_text(ours))) {
      ::unlink(lease_path.c_str());
      throw_write_error(lease_path, "writing the lease", error);
    }
    return std::make_unique<LeaseLock>(lease_path, times);
  }
  if (errno != EEXIST) throw_write_error(lease_path, "creating the lease", errno);

  Lease found;
  // A lease that cannot be read is being written: its writer is alive. One that stays so is left by a crash.
  for (int attempt = 0; attempt < 20 && !read_lease(lease_path, &found); ++attempt) ::usleep(50'000);
  if (!found.host.empty() && !is_stale(found, times.stale_s)) {
    if (holder != nullptr) *holder = fmt::format("process {} on {}", found.pid, found.host);
    return nullptr;
  }
  // Of several that take over a stale lease, the last to rename wins; all look again before they believe.
  replace_file(lease_path, lease_text(ours));
  ::usleep(200'000);
  if (!read_lease(lease_path, &found) || !found.same_owner(ours)) {
    if (holder != nullptr) *holder = fmt::format("process {} on {}", found.pid, found.host);
    return nullptr;
  }
  return std::make_unique<LeaseLock>(lease_path, times);
}

}  // namespace

std::unique_ptr<FileLock> FileLock::try_acquire(int fd, const std::string& path, LockMethod method,
                                                std::string* holder, LeaseTimes times) {
  if (method == LockMethod::kLease) return try_lease(path, holder, times);
  struct flock region {};
  region.l_type = F_WRLCK;
  region.l_whence = SEEK_SET;
  if (::fcntl(fd, F_OFD_SETLK, &region) == 0) return std::make_unique<KernelLock>(fd);
  if (errno == EAGAIN || errno == EACCES) return nullptr;
  const bool no_locks = errno == ENOLCK || errno == ENOSYS || errno == EOPNOTSUPP || errno == EINVAL;
  if (!no_locks) throw_write_error(path, "locking", errno);
  return try_lease(path, holder, times);
}

}  // namespace tessera
