#include "io/json.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "runtime/core/error.hpp"

namespace tessera {

using nlohmann::json;

namespace {

// Text of a key or a value for a message: control characters and broken UTF-8 never reach a terminal.
std::string brief_text(std::string_view text) {
  constexpr std::size_t kMaxBytes = 60;
  const bool cut = text.size() > kMaxBytes;
  std::string brief =
      json(std::string(text.substr(0, kMaxBytes))).dump(-1, ' ', true, json::error_handler_t::replace);
  return cut ? brief + "..." : brief;
}

// Builds the value from parse events, so that depth and duplicate keys are refused before they cost memory.
class BoundedBuilder {
 public:
  BoundedBuilder(json& root, const std::string& file, std::size_t size, int max_depth)
      : root_(root), file_(file), size_(size), max_depth_(static_cast<std::size_t>(max_depth)) {}

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(std::int64_t value) { return add(value); }
  bool number_unsigned(std::uint64_t value) { return add(value); }
  bool number_float(double value, const std::string&) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(json::binary_t&) { return false; }  // not a JSON event
  bool start_object(std::size_t) { return open(json::object()); }
  bool start_array(std::size_t) { return open(json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(std::string& name) {
    const auto [place, inserted] = open_.back()->get_ref<json::object_t&>().emplace(std::move(name), nullptr);
    if (!inserted)
      throw InputError("{}: {}: the key occurs twice in one object; keep one", file_,
                       brief_text(place->first));
    slot_ = &place->second;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) {
    // The library's text reads "[json.exception...] parse error at line L, column C: what": keep "what".
    std::string what = error.what();
    if (const auto end = what.find("] "); end != std::string::npos) what.erase(0, end + 2);
    if (what.rfind("parse error at ", 0) == 0) {
      if (const auto colon = what.find(": "); colon != std::string::npos) what.erase(0, colon + 2);
    }
    for (char& c : what) c = static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    throw InputError("{}: byte {} of {}: not valid JSON: {}", file_, position, size_, what);
  }

 private:
  template <typename Value>
  json& place(Value&& value) {
    if (open_.empty()) return root_ = std::forward<Value>(value);
    json& parent = *open_.back();
    if (parent.is_object()) return *slot_ = std::forward<Value>(value);
    return parent.get_ref<json::array_t&>().emplace_back(std::forward<Value>(value));
  }
  template <typename Value>
  bool add(Value&& value) {
    place(std::forward<Value>(value));
    return true;
  }
  bool open(json&& container) {
    if (open_.size() >= max_depth_) {
      throw InputError("{}: nesting is deeper than {} levels; no file of this kind needs that", file_,
                       max_depth_);
    }
    open_.push_back(
        &place(std::move(container)));  // stays put: nothing is added to its parent while it is open
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  json& root_;
  const std::string& file_;
  std::size_t size_;
  std::size_t max_depth_;
  std::vector<json*> open_;  // containers from the root to the current one
  json* slot_ = nullptr;     // where the value of the last key goes
};

const json* child(const json& parent, std::string_view name) {
  if (parent.is_object()) {
    const auto found = parent.find(name);
    return found == parent.end() ? nullptr : &*found;
  }
  if (!parent.is_array()) return nullptr;
  std::size_t index = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
  if (error != std::errc() || end != name.data() + name.size() || index >= parent.size()) return nullptr;
  return &parent[index];
}

// The value, or nullptr when absent or null.
const json* present(const json& object, const char* path) {
  const json* value = json_find(object, path);
  return value == nullptr || value->is_null() ? nullptr : value;
}

std::int64_t to_integer(const json& value, const char* path, const std::string& file, std::int64_t min,
                        std::int64_t max) {
  const bool fits = value.is_number_unsigned()
                        ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX)
                        : value.is_number_integer();
  if (!fits || value.get<std::int64_t>() < min || value.get<std::int64_t>() > max) {
    throw_json_field(file, path, value, fmt::format("an integer from {} to {}", min, max));
  }
  return value.get<std::int64_t>();
}

double to_number(const json& value, const char* path, const std::string& file, double min, double max) {
  const double number = value.is_number() ? value.get<double>() : NAN;
  if (!(number >= min && number <= max)) {
    throw_json_field(file, path, value, fmt::format("a number from {} to {}", min, max));
  }
  return number;
}

bool to_bool(const json& value, const char* path, const std::string& file) {
  if (!value.is_boolean()) throw_json_field(file, path, value, "true or false");
  return value.get<bool>();
}

std::string to_string(const json& value, const char* path, const std::string& file) {
  if (!value.is_string()) throw_json_field(file, path, value, "a string");
  return value.get<std::string>();
}

}  // namespace

json parse_json(std::string_view text, const std::string& file, int max_depth) {
  // The library takes a NUL byte for the end of the text and would not see what follows it.
  if (const auto nul = text.find('\0'); nul != std::string_view::npos) {
    throw InputError("{}: byte {} of {}: not valid JSON: a NUL byte", file, nul, text.size());
  }
  json root;
  BoundedBuilder builder(root, file, text.size(), max_depth);
  json::sax_parse(text.begin(), text.end(), &builder);
  return root;
}

std::string read_text_file(const std::string& path, std::size_t max_bytes) {
  struct Descriptor {
    int fd;
    ~Descriptor() {
      if (fd >= 0) ::close(fd);
    }
  };
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) throw InputError("{}: cannot open: {}", path, errno_text(errno));
  struct stat status {};
  if (::fstat(file.fd, &status) != 0) throw InputError("{}: cannot stat: {}", path, errno_text(errno));
  if (!S_ISREG(status.st_mode)) throw InputError("{}: not a regular file", path);
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size > max_bytes)
    throw InputError("{}: {} bytes, expected at most {}; is it the right file?", path, size, max_bytes);
  std::string text(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(file.fd, text.data() + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw InputError("{}: cannot read: {}", path, errno_text(errno));
    if (got == 0)
      throw InputError("{}: ended after {} bytes of {}; it changed while it was read", path, done, size);
    done += static_cast<std::size_t>(got);
  }
  return text;
}

json read_json_file(const std::string& path, std::size_t max_bytes) {
  return parse_json(read_text_file(path, max_bytes), path);
}

const json* json_find(const json& object, std::string_view path) {
  const json* value = &object;
  while (value != nullptr) {
    const auto dot = path.find('.');
    value = child(*value, path.substr(0, dot));
    if (dot == std::string_view::npos) break;
    path.remove_prefix(dot + 1);
  }
  return value;
}

const json& json_field(const json& object, const char* path, const std::string& file) {
  const json* value = json_find(object, path);
  if (value == nullptr) throw InputError("{}: {}: the field is missing", file, path);
  return *value;
}

std::int64_t json_integer(const json& object, const char* path, const std::string& file, std::int64_t min,
                          std::int64_t max) {
  return to_integer(json_field(object, path, file), path, file, min, max);
}

double json_number(const json& object, const char* path, const std::string& file, double min, double max) {
  return to_number(json_field(object, path, file), path, file, min, max);
}

bool json_bool(const json& object, const char* path, const std::string& file) {
  return to_bool(json_field(object, path, file), path, file);
}

std::string json_string(const json& object, const char* path, const std::string& file) {
  return to_string(json_field(object, path, file), path, file);
}

const json& json_object(const json& object, const char* path, const std::string& file) {
  const json& value = json_field(object, path, file);
  if (!value.is_object()) throw_json_field(file, path, value, "an object");
  return value;
}

const json& json_array(const json& object, const char* path, const std::string& file) {
  const json& value = json_field(object, path, file);
  if (!value.is_array()) throw_json_field(file, path, value, "an array");
  return value;
}

std::int64_t json_integer_or(const json& object, const char* path, const std::string& file, std::int64_t min,
                             std::int64_t max, std::int64_t fallback) {
  const json* value = present(object, path);
  return value ? to_integer(*value, path, file, min, max) : fallback;
}

double json_number_or(const json& object, const char* path, const std::string& file, double min, double max,
                      double fallback) {
  const json* value = present(object, path);
  return value ? to_number(*value, path, file, min, max) : fallback;
}

bool json_bool_or(const json& object, const char* path, const std::string& file, bool fallback) {
  const json* value = present(object, path);
  return value ? to_bool(*value, path, file) : fallback;
}

std::string json_string_or(const json& object, const char* path, const std::string& file,
                           std::string_view fallback) {
  const json* value = present(object, path);
  return value ? to_string(*value, path, file) : std::string(fallback);
}

std::string json_brief(const json& value) {
  if (value.is_string()) return brief_text(value.get_ref<const std::string&>());
  if (value.is_object()) return fmt::format("an object of {} fields", value.size());
  if (value.is_array()) return fmt::format("an array of {} values", value.size());
  return value.dump();
}

void throw_json_field(const std::string& file, std::string_view path, const json& found,
                      std::string_view expected) {
  throw InputError("{}: {}: found {}, expected {}", file, path, json_brief(found), expected);
}

}  // namespace tessera
