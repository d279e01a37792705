// A regular file mapped read-only. The pages are the page cache's own: nothing is copied, and several ranks
// of one host that map the same file share them.
#pragma once

#include <cstddef>
#include <string>

namespace tessera {

class MappedFile {
 public:
  // InputError when the path is missing, unreadable or not a regular file (links are followed); ResourceError
  // when the system has no descriptor or address space left. An empty file is valid: data() is null, size()
  // 0.
  static MappedFile open(const std::string& path);

  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Valid as long as this object. The file must not shrink while mapped: a read past its new end is SIGBUS.
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  void release() noexcept;

  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::string path_;
};

}  // namespace tessera
