// A small layer over HDF5's C API: handles that close themselves, every return value checked, the library's
// own printing silenced. For the trace's reader and writer only; throws Hdf5Failure, which they turn into
// errors that name the file.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera {

// "H5Dwrite samples/score: No space left on device"
class Hdf5Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// While it lives, failing calls of this thread print nothing.
class Hdf5Quiet {
 public:
  Hdf5Quiet();
  ~Hdf5Quiet();
  Hdf5Quiet(const Hdf5Quiet&) = delete;
  Hdf5Quiet& operator=(const Hdf5Quiet&) = delete;

 private:
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

class Hdf5Id {
 public:
  using Closer = herr_t (*)(hid_t);
  Hdf5Id() = default;
  Hdf5Id(hid_t id, Closer closer) : id_(id), closer_(closer) {}
  Hdf5Id(Hdf5Id&& other) noexcept : id_(std::exchange(other.id_, -1)), closer_(other.closer_) {}
  Hdf5Id& operator=(Hdf5Id&& other) noexcept;
  Hdf5Id(const Hdf5Id&) = delete;
  Hdf5Id& operator=(const Hdf5Id&) = delete;
  ~Hdf5Id();

  hid_t get() const { return id_; }
  void close(const char* call, const std::string& object);  // checked; the destructor cannot report

 private:
  hid_t id_ = -1;
  Closer closer_ = nullptr;
};

[[noreturn]] void throw_hdf5_failure(const char* call, const std::string& object);

// Passes on what a call returned, or throws when that is negative.
template <typename Result>
Result hdf5_checked(Result result, const char* call, const std::string& object) {
  if (result < 0) throw_hdf5_failure(call, object);
  return result;
}

using Hdf5Shape = std::vector<hsize_t>;

enum class Hdf5Type { kInt32, kInt64, kUint64, kFloat32, kFloat64, kUint8, kUint16, kText };

hid_t memory_type(Hdf5Type type);  // kText: none
Hdf5Id text_type();                // variable-length UTF-8

// ---- writing -----------------------------------------------------------------------------------

// A file in memory, whose bytes are taken when it is complete: then only our own checked writes touch the
// disk.
class Hdf5Image {
 public:
  Hdf5Image();
  Hdf5Image(const Hdf5Image&) = delete;
  Hdf5Image& operator=(const Hdf5Image&) = delete;
  ~Hdf5Image();

  hid_t file() const { return file_.get(); }
  std::string_view close();  // the bytes live as long as the image

 private:
  void* buffer_ = nullptr;  // what the library would have freed when the file closed
  Hdf5Id file_;
};

Hdf5Id create_group(hid_t parent, const std::string& name);  // remembers the order of creation

// Shuffle, gzip 4, and Fletcher-32 except on text; contiguous when empty. `chunk` may be empty: then one is
// chosen. Floats not written are NaN, integers 0.
Hdf5Id create_dataset(hid_t group, const std::string& name, Hdf5Type type, const Hdf5Shape& shape,
                      Hdf5Shape chunk);
void write_all(hid_t dataset, Hdf5Type type, const void* data, const std::string& name);
void write_all_text(hid_t dataset, const std::vector<std::string>& values, const std::string& name);
void write_block(hid_t dataset, Hdf5Type type, const Hdf5Shape& start, const Hdf5Shape& count,
                 const void* data, const std::string& name);

void set_text_attribute(hid_t object, const char* name, const std::string& value);
void set_integer_attribute(hid_t object, const char* name, const std::vector<std::int64_t>& values);
void set_bytes_attribute(hid_t object, const char* name, const std::vector<std::uint8_t>& values);

// ---- reading -----------------------------------------------------------------------------------

Hdf5Id open_file(const std::string& path);
Hdf5Id open_group(hid_t parent, const std::string& name);
bool has_link(hid_t parent, const std::string& name);
Hdf5Id open_dataset(hid_t group, const std::string& name);
Hdf5Shape shape_of(hid_t dataset, const std::string& name);
// The type stored must be of the same class, size and sign as `type`; throws otherwise.
void require_type(hid_t dataset, Hdf5Type type, const std::string& name);
void read_all(hid_t dataset, Hdf5Type type, void* data, const std::string& name);
std::vector<std::string> read_all_text(hid_t dataset, std::size_t count, const std::string& name);
void read_block(hid_t dataset, Hdf5Type type, const Hdf5Shape& start, const Hdf5Shape& count, void* data,
                const std::string& name);
std::string text_attribute(hid_t object, const char* name);
std::int64_t integer_attribute(hid_t object, const char* name);

}  // namespace tessera
