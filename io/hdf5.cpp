#include "io/hdf5.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "runtime/core/error.hpp"

namespace tessera {

namespace {

struct Innermost {
  std::string text;
};

herr_t keep_innermost(unsigned, const H5E_error2_t* error, void* data) {
  auto* innermost = static_cast<Innermost*>(data);
  if (innermost->text.empty() && error->desc != nullptr) innermost->text = error->desc;
  return 0;
}

Hdf5Id simple_space(const Hdf5Shape& shape, const std::string& name) {
  const hid_t space = shape.empty() ? H5Screate(H5S_SCALAR)
                                    : H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
  return {hdf5_checked(space, "H5Screate", name), H5Sclose};
}

Hdf5Id stored_type(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::kText:
      return text_type();
    case Hdf5Type::kInt64:
      return {H5Tcopy(H5T_STD_I64LE), H5Tclose};
    case Hdf5Type::kUint64:
      return {H5Tcopy(H5T_STD_U64LE), H5Tclose};
    case Hdf5Type::kUint8:
      return {H5Tcopy(H5T_STD_U8LE), H5Tclose};
    case Hdf5Type::kFloat64:
      return {H5Tcopy(H5T_IEEE_F64LE), H5Tclose};
  }
  return {};
}

std::size_t size_of(Hdf5Type type) {
  return type == Hdf5Type::kUint8 ? 1 : type == Hdf5Type::kText ? 16 : 8;
}

// About 256 KiB: whole trailing axes, as many of the first as fit.
Hdf5Shape default_chunk(const Hdf5Shape& shape, Hdf5Type type) {
  constexpr hsize_t kChunkBytes = 1 << 18;
  Hdf5Shape chunk = shape;
  hsize_t row = size_of(type);
  for (std::size_t i = 1; i < shape.size(); ++i) row *= shape[i];
  chunk[0] = std::clamp<hsize_t>(kChunkBytes / row, 1, shape[0]);
  return chunk;
}

Hdf5Id select_block(hid_t dataset, const Hdf5Shape& start, const Hdf5Shape& count, const std::string& name) {
  Hdf5Id space(hdf5_checked(H5Dget_space(dataset), "H5Dget_space", name), H5Sclose);
  hdf5_checked(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr),
               "H5Sselect_hyperslab", name);
  return space;
}

void write_attribute(hid_t object, const char* name, hid_t stored, hid_t memory, const Hdf5Shape& shape,
                     const void* data) {
  const Hdf5Id space = simple_space(shape, name);
  Hdf5Id attribute(hdf5_checked(H5Acreate2(object, name, stored, space.get(), H5P_DEFAULT, H5P_DEFAULT),
                                "H5Acreate", name),
                   H5Aclose);
  hdf5_checked(H5Awrite(attribute.get(), memory, data), "H5Awrite", name);
  attribute.close("H5Aclose", name);
}

// How the library manages the bytes of a file in memory: as usual, but that what it frees when the file
// closes is kept for Hdf5Image, whose buffer `udata` points to.
void* image_malloc(std::size_t size, H5FD_file_image_op_t, void*) {
  return std::malloc(size);
}
void* image_memcpy(void* to, const void* from, std::size_t size, H5FD_file_image_op_t, void*) {
  return std::memcpy(to, from, size);
}
void* image_realloc(void* buffer, std::size_t size, H5FD_file_image_op_t, void*) {
  return std::realloc(buffer, size);
}
herr_t image_free(void* buffer, H5FD_file_image_op_t operation, void* udata) {
  if (operation == H5FD_FILE_IMAGE_OP_FILE_CLOSE && udata != nullptr) {
    *static_cast<void**>(udata) = buffer;
  } else {
    std::free(buffer);
  }
  return 0;
}
void* image_same_udata(void* udata) {
  return udata;
}
herr_t image_keep_udata(void*) {
  return 0;
}

}  // namespace

Hdf5Quiet::Hdf5Quiet() {
  // Every file is closed by its owner. The library's own closing at exit adds nothing, but complains on
  // stderr about what a damaged file left in its caches. The first call counts, and comes before any other.
  H5dont_atexit();
  H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}
Hdf5Quiet::~Hdf5Quiet() {
  H5Eset_auto2(H5E_DEFAULT, function_, data_);
}

Hdf5Id& Hdf5Id::operator=(Hdf5Id&& other) noexcept {
  if (this != &other) {
    if (id_ >= 0) closer_(id_);
    id_ = std::exchange(other.id_, -1);
    closer_ = other.closer_;
  }
  return *this;
}
Hdf5Id::~Hdf5Id() {
  if (id_ >= 0) closer_(id_);
}
void Hdf5Id::close(const char* call, const std::string& object) {
  const hid_t id = std::exchange(id_, -1);
  if (id >= 0) hdf5_checked(closer_(id), call, object);
}

void throw_hdf5_failure(const char* call, const std::string& object) {
  Innermost innermost;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_innermost, &innermost);
  std::replace(innermost.text.begin(), innermost.text.end(), '\n', ' ');
  throw Hdf5Failure(
      fmt::format("{} {}: {}", call, object, innermost.text.empty() ? "failed" : innermost.text));
}

hid_t memory_type(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::kInt64:
      return H5T_NATIVE_INT64;
    case Hdf5Type::kUint64:
      return H5T_NATIVE_UINT64;
    case Hdf5Type::kFloat64:
      return H5T_NATIVE_DOUBLE;
    case Hdf5Type::kUint8:
      return H5T_NATIVE_UINT8;
    case Hdf5Type::kText:
      break;
  }
  return -1;
}

Hdf5Id text_type() {
  Hdf5Id type(hdf5_checked(H5Tcopy(H5T_C_S1), "H5Tcopy", "text"), H5Tclose);
  hdf5_checked(H5Tset_size(type.get(), H5T_VARIABLE), "H5Tset_size", "text");
  hdf5_checked(H5Tset_cset(type.get(), H5T_CSET_UTF8), "H5Tset_cset", "text");
  return type;
}

// ---- writing -----------------------------------------------------------------------------------

Hdf5Image::Hdf5Image() {
  constexpr std::size_t kGrowth = std::size_t{1} << 22;
  const Hdf5Id access(hdf5_checked(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate", "/"), H5Pclose);
  hdf5_checked(H5Pset_fapl_core(access.get(), kGrowth, 0), "H5Pset_fapl_core", "/");
  hdf5_checked(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V18), "H5Pset_libver_bounds",
               "/");
  hdf5_checked(H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG), "H5Pset_fclose_degree", "/");
  H5FD_file_image_callbacks_t callbacks = {image_malloc,     image_memcpy,     image_realloc, image_free,
                                           image_same_udata, image_keep_udata, &buffer_};
  hdf5_checked(H5Pset_file_image_callbacks(access.get(), &callbacks), "H5Pset_file_image_callbacks", "/");
  const Hdf5Id create(hdf5_checked(H5Pcreate(H5P_FILE_CREATE), "H5Pcreate", "/"), H5Pclose);
  hdf5_checked(H5Pset_link_creation_order(create.get(), H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED),
               "H5Pset_link_creation_order", "/");
  hdf5_checked(H5Pset_obj_track_times(create.get(), false), "H5Pset_obj_track_times", "/");
  // Most datasets are of few chunks: the default would give each an index of 4 KiB or more.
  hdf5_checked(H5Pset_istore_k(create.get(), 4), "H5Pset_istore_k", "/");
  file_ = {hdf5_checked(H5Fcreate("tessera-trace-image", H5F_ACC_TRUNC, create.get(), access.get()),
                        "H5Fcreate", "/"),
           H5Fclose};
}

Hdf5Image::~Hdf5Image() {
  file_ = {};
  std::free(buffer_);
}

// Not H5Fget_file_image: in HDF5 1.10 it clears a flag in the superblock of this version without updating the
// checksum beside it. Only closing writes a superblock that can be opened; the size is known before.
std::string_view Hdf5Image::close() {
  hdf5_checked(H5Fflush(file_.get(), H5F_SCOPE_GLOBAL), "H5Fflush", "/");
  const ssize_t bytes = hdf5_checked(H5Fget_file_image(file_.get(), nullptr, 0), "H5Fget_file_image", "/");
  file_.close("H5Fclose", "/");
  if (buffer_ == nullptr) throw Hdf5Failure("H5Fclose /: the library gave no image of the file");
  return {static_cast<const char*>(buffer_), static_cast<std::size_t>(bytes)};
}

Hdf5Id create_group(hid_t parent, const std::string& name) {
  const Hdf5Id create(hdf5_checked(H5Pcreate(H5P_GROUP_CREATE), "H5Pcreate", name), H5Pclose);
  hdf5_checked(H5Pset_link_creation_order(create.get(), H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED),
               "H5Pset_link_creation_order", name);
  hdf5_checked(H5Pset_obj_track_times(create.get(), false), "H5Pset_obj_track_times", name);
  return {hdf5_checked(H5Gcreate2(parent, name.c_str(), H5P_DEFAULT, create.get(), H5P_DEFAULT), "H5Gcreate",
                       name),
          H5Gclose};
}

Hdf5Id create_dataset(hid_t group, const std::string& name, Hdf5Type type, const Hdf5Shape& shape,
                      Hdf5Shape chunk) {
  const Hdf5Id create(hdf5_checked(H5Pcreate(H5P_DATASET_CREATE), "H5Pcreate", name), H5Pclose);
  // Without times of objects, the same content gives the same bytes.
  hdf5_checked(H5Pset_obj_track_times(create.get(), false), "H5Pset_obj_track_times", name);
  if (type == Hdf5Type::kFloat64) {
    const double missing = std::numeric_limits<double>::quiet_NaN();
    hdf5_checked(H5Pset_fill_value(create.get(), H5T_NATIVE_DOUBLE, &missing), "H5Pset_fill_value", name);
  }
  if (std::find(shape.begin(), shape.end(), hsize_t{0}) == shape.end()) {
    if (chunk.empty()) chunk = default_chunk(shape, type);
    hdf5_checked(H5Pset_chunk(create.get(), static_cast<int>(chunk.size()), chunk.data()), "H5Pset_chunk",
                 name);
    hdf5_checked(H5Pset_shuffle(create.get()), "H5Pset_shuffle", name);
    hdf5_checked(H5Pset_deflate(create.get(), 4), "H5Pset_deflate", name);
    if (type != Hdf5Type::kText) hdf5_checked(H5Pset_fletcher32(create.get()), "H5Pset_fletcher32", name);
  }
  const Hdf5Id space = simple_space(shape, name);
  const Hdf5Id stored = stored_type(type);
  return {hdf5_checked(H5Dcreate2(group, name.c_str(), stored.get(), space.get(), H5P_DEFAULT, create.get(),
                                  H5P_DEFAULT),
                       "H5Dcreate", name),
          H5Dclose};
}

void write_all(hid_t dataset, Hdf5Type type, const void* data, const std::string& name) {
  hdf5_checked(H5Dwrite(dataset, memory_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data), "H5Dwrite", name);
}

void write_all_text(hid_t dataset, const std::vector<std::string>& values, const std::string& name) {
  if (values.empty()) return;
  std::vector<const char*> pointers;
  for (const auto& value : values) pointers.push_back(value.c_str());
  const Hdf5Id type = text_type();
  hdf5_checked(H5Dwrite(dataset, type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, pointers.data()), "H5Dwrite",
               name);
}

void write_block(hid_t dataset, Hdf5Type type, const Hdf5Shape& start, const Hdf5Shape& count,
                 const void* data, const std::string& name) {
  const Hdf5Id file_space = select_block(dataset, start, count, name);
  const Hdf5Id memory_space = simple_space(count, name);
  hdf5_checked(H5Dwrite(dataset, memory_type(type), memory_space.get(), file_space.get(), H5P_DEFAULT, data),
               "H5Dwrite", name);
}

void set_text_attribute(hid_t object, const char* name, const std::string& value) {
  const Hdf5Id type = text_type();
  const char* pointer = value.c_str();
  write_attribute(object, name, type.get(), type.get(), {}, &pointer);
}

void set_integer_attribute(hid_t object, const char* name, const std::vector<std::int64_t>& values) {
  const Hdf5Shape shape = values.size() == 1 ? Hdf5Shape{} : Hdf5Shape{values.size()};
  write_attribute(object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, shape, values.data());
}

void set_bytes_attribute(hid_t object, const char* name, const std::vector<std::uint8_t>& values) {
  const Hdf5Shape shape = values.size() == 1 ? Hdf5Shape{} : Hdf5Shape{values.size()};
  write_attribute(object, name, H5T_STD_U8LE, H5T_NATIVE_UINT8, shape, values.data());
}

// ---- reading -----------------------------------------------------------------------------------

Hdf5Id open_file(const std::string& path) {
  const Hdf5Id access(hdf5_checked(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate", "/"), H5Pclose);
#if H5_VERSION_GE(1, 10, 7)
  // Traces are replaced, never changed in place, so reading needs no lock; some file systems have none to
  // give.
  hdf5_checked(H5Pset_file_locking(access.get(), false, true), "H5Pset_file_locking", "/");
#endif
  return {hdf5_checked(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), "H5Fopen", "/"), H5Fclose};
}

Hdf5Id open_group(hid_t parent, const std::string& name) {
  return {hdf5_checked(H5Gopen2(parent, name.c_str(), H5P_DEFAULT), "H5Gopen", name), H5Gclose};
}

bool has_link(hid_t parent, const std::string& name) {
  return hdf5_checked(H5Lexists(parent, name.c_str(), H5P_DEFAULT), "H5Lexists", name) > 0;
}

Hdf5Id open_dataset(hid_t group, const std::string& name) {
  return {hdf5_checked(H5Dopen2(group, name.c_str(), H5P_DEFAULT), "H5Dopen", name), H5Dclose};
}

Hdf5Shape shape_of(hid_t dataset, const std::string& name) {
  const Hdf5Id space(hdf5_checked(H5Dget_space(dataset), "H5Dget_space", name), H5Sclose);
  const int rank = hdf5_checked(H5Sget_simple_extent_ndims(space.get()), "H5Sget_simple_extent_ndims", name);
  Hdf5Shape shape(static_cast<std::size_t>(rank));
  hdf5_checked(H5Sget_simple_extent_dims(space.get(), shape.data(), nullptr), "H5Sget_simple_extent_dims",
               name);
  return shape;
}

void require_type(hid_t dataset, Hdf5Type type, const std::string& name) {
  const Hdf5Id stored(hdf5_checked(H5Dget_type(dataset), "H5Dget_type", name), H5Tclose);
  bool same = false;
  if (type == Hdf5Type::kText) {
    same = H5Tget_class(stored.get()) == H5T_STRING && H5Tis_variable_str(stored.get()) > 0;
  } else {
    const hid_t memory = memory_type(type);
    same = H5Tget_class(stored.get()) == H5Tget_class(memory) &&
           H5Tget_size(stored.get()) == H5Tget_size(memory) &&
           (type == Hdf5Type::kFloat64 || H5Tget_sign(stored.get()) == H5Tget_sign(memory));
  }
  if (!same)
    throw Hdf5Failure(fmt::format("{}: holds another type of number or text than a trace does", name));
}

void read_all(hid_t dataset, Hdf5Type type, void* data, const std::string& name) {
  hdf5_checked(H5Dread(dataset, memory_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data), "H5Dread", name);
}

std::vector<std::string> read_all_text(hid_t dataset, std::size_t count, const std::string& name) {
  std::vector<std::string> values(count);
  if (count == 0) return values;
  std::vector<char*> pointers(count, nullptr);
  const Hdf5Id type = text_type();
  const Hdf5Id space(hdf5_checked(H5Dget_space(dataset), "H5Dget_space", name), H5Sclose);
  hdf5_checked(H5Dread(dataset, type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, pointers.data()), "H5Dread", name);
  for (std::size_t i = 0; i < count; ++i) {
    if (pointers[i] != nullptr) values[i] = pointers[i];
  }
  hdf5_checked(H5Dvlen_reclaim(type.get(), space.get(), H5P_DEFAULT, pointers.data()), "H5Dvlen_reclaim",
               name);
  return values;
}

void read_block(hid_t dataset, Hdf5Type type, const Hdf5Shape& start, const Hdf5Shape& count, void* data,
                const std::string& name) {
  const Hdf5Id file_space = select_block(dataset, start, count, name);
  const Hdf5Id memory_space = simple_space(count, name);
  hdf5_checked(H5Dread(dataset, memory_type(type), memory_space.get(), file_space.get(), H5P_DEFAULT, data),
               "H5Dread", name);
}

std::string text_attribute(hid_t object, const char* name) {
  const Hdf5Id attribute(hdf5_checked(H5Aopen(object, name, H5P_DEFAULT), "H5Aopen", name), H5Aclose);
  const Hdf5Id stored(hdf5_checked(H5Aget_type(attribute.get()), "H5Aget_type", name), H5Tclose);
  const Hdf5Id space(hdf5_checked(H5Aget_space(attribute.get()), "H5Aget_space", name), H5Sclose);
  if (H5Tget_class(stored.get()) != H5T_STRING || H5Tis_variable_str(stored.get()) <= 0 ||
      H5Sget_simple_extent_npoints(space.get()) != 1) {
    throw Hdf5Failure(fmt::format("@{}: not one text", name));
  }
  char* value = nullptr;
  const Hdf5Id type = text_type();
  hdf5_checked(H5Aread(attribute.get(), type.get(), &value), "H5Aread", name);
  const std::string text = value == nullptr ? "" : value;
  H5Dvlen_reclaim(type.get(), space.get(), H5P_DEFAULT, &value);
  return text;
}

std::int64_t integer_attribute(hid_t object, const char* name) {
  const Hdf5Id attribute(hdf5_checked(H5Aopen(object, name, H5P_DEFAULT), "H5Aopen", name), H5Aclose);
  const Hdf5Id stored(hdf5_checked(H5Aget_type(attribute.get()), "H5Aget_type", name), H5Tclose);
  const Hdf5Id space(hdf5_checked(H5Aget_space(attribute.get()), "H5Aget_space", name), H5Sclose);
  if (H5Tget_class(stored.get()) != H5T_INTEGER || H5Sget_simple_extent_npoints(space.get()) != 1) {
    throw Hdf5Failure(fmt::format("@{}: not one integer", name));
  }
  std::int64_t value = 0;
  hdf5_checked(H5Aread(attribute.get(), H5T_NATIVE_INT64, &value), "H5Aread", name);
  return value;
}

}  // namespace tessera
