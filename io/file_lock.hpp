// One writer a file: a lock of the kernel on the open file, or, where the file system has no locks, a lease
// file beside it that its owner renews.
#pragma once

#include <memory>
#include <string>

namespace tessera {

enum class LockMethod {
  kAuto,   // the kernel's lock, a lease where the file system refuses locks
  kLease,  // always a lease
};

struct LeaseTimes {
  double renew_s = 15;
  double stale_s = 60;
};

// Held until destroyed. The kernel's lock ends with the process however it dies; a lease of a dead process of
// this host is taken over at once, one of another host after stale_s seconds without renewal.
class FileLock {
 public:
  // Tries to lock the open file `fd`; `path` names it. Returns null when another holds it, and then `holder`
  // says who where that is known ("process 12 on node3"). ResourceError when neither way of locking works.
  static std::unique_ptr<FileLock> try_acquire(int fd, const std::string& path, LockMethod method,
                                               std::string* holder, LeaseTimes times = {});
  virtual ~FileLock() = default;
  // False when a lease was lost to another writer, because this process slept past its end.
  virtual bool held() const = 0;
};

}  // namespace tessera
