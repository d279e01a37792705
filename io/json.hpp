// Bounded reading of untrusted JSON: size, nesting, duplicate keys, UTF-8 and trailing bytes are checked
// while parsing, and typed access reports one-line errors that name the file and the dotted field.
//
// A *path* is a key, or keys joined by dots and walked from `object` ("text_config.rope_scaling.factor"); on
// an array a component is an index ("layer_types.3"). Keys that contain a dot cannot be reached this way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace tessera {

constexpr int kJsonMaxDepth = 64;

// Parses a whole text. `file` names it in errors: InputError "FILE: byte N: ...".
nlohmann::json parse_json(std::string_view text, const std::string& file, int max_depth = kJsonMaxDepth);

// Reads and parses a file of at most max_bytes. Errors carry `path` as given.
nlohmann::json read_json_file(const std::string& path, std::size_t max_bytes);

// The bytes of a file of at most max_bytes; InputError if it cannot be read or is larger.
std::string read_text_file(const std::string& path, std::size_t max_bytes);

// The value at a path, or nullptr when absent (JSON null counts as a value here).
const nlohmann::json* json_find(const nlohmann::json& object, std::string_view path);

// The value at a path; InputError when absent.
const nlohmann::json& json_field(const nlohmann::json& object, const char* path, const std::string& file);

// Typed access to a required field. Ranges include both ends. A whole number may be written only as an
// integer (json_integer); json_number takes any finite number.
std::int64_t json_integer(const nlohmann::json& object, const char* path, const std::string& file,
                          std::int64_t min, std::int64_t max);
double json_number(const nlohmann::json& object, const char* path, const std::string& file, double min,
                   double max);
bool json_bool(const nlohmann::json& object, const char* path, const std::string& file);
std::string json_string(const nlohmann::json& object, const char* path, const std::string& file);
const nlohmann::json& json_object(const nlohmann::json& object, const char* path, const std::string& file);
const nlohmann::json& json_array(const nlohmann::json& object, const char* path, const std::string& file);

// Likewise, where a field that is absent or null takes a default.
std::int64_t json_integer_or(const nlohmann::json& object, const char* path, const std::string& file,
                             std::int64_t min, std::int64_t max, std::int64_t fallback);
double json_number_or(const nlohmann::json& object, const char* path, const std::string& file, double min,
                      double max, double fallback);
bool json_bool_or(const nlohmann::json& object, const char* path, const std::string& file, bool fallback);
std::string json_string_or(const nlohmann::json& object, const char* path, const std::string& file,
                           std::string_view fallback);

// A value shortened for a message: its JSON text, cut after about 60 bytes, on one line.
std::string json_brief(const nlohmann::json& value);

// Throws the InputError that the functions above throw: "FILE: PATH: found VALUE, expected EXPECTED".
[[noreturn]] void throw_json_field(const std::string& file, std::string_view path,
                                   const nlohmann::json& found, std::string_view expected);

}  // namespace tessera
