#include "io/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

// Closes on every way out; the mapping outlives the descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void throw_open_error(const std::string& path, int error_number) {
  if (error_number == EMFILE || error_number == ENFILE || error_number == ENOMEM) {
    throw ResourceError("{}: cannot open: {}; raise the limit (ulimit -n) or stop other programs", path,
                        errno_text(error_number));
  }
  throw InputError("{}: cannot open: {}; check the path and its permissions", path, errno_text(error_number));
}

}  // namespace

MappedFile MappedFile::open(const std::string& path) {
  // O_NONBLOCK: opening a FIFO by mistake must not wait for a writer.
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) throw_open_error(path, errno);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) throw_open_error(path, errno);
  if (!S_ISREG(status.st_mode)) {
    throw InputError("{}: cannot open: found a {}, expected a regular file; check the path", path,
                     S_ISDIR(status.st_mode) ? "directory" : "device, pipe or socket");
  }

  MappedFile file;
  file.path_ = path;
  file.size_ = static_cast<std::size_t>(status.st_size);
  if (file.size_ == 0) return file;  // mmap refuses a length of 0
  void* data = ::mmap(nullptr, file.size_, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) {
    const int error_number = errno;
    file.size_ = 0;
    if (error_number == ENODEV || error_number == EACCES) throw_open_error(path, error_number);
    throw ResourceError("{}: cannot map {} bytes: {}; raise the address space limit (ulimit -v)", path,
                        status.st_size, errno_text(error_number));
  }
  file.data_ = static_cast<const std::byte*>(data);
  return file;
}

MappedFile::~MappedFile() {
  release();
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    path_ = std::move(other.path_);
  }
  return *this;
}

void MappedFile::release() noexcept {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  data_ = nullptr;
  size_ = 0;
}

}  // namespace tessera
