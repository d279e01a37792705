// Options from a TOML file: keys are option names without dashes, at the top level.
#include <fmt/format.h>
#include <toml++/toml.h>

#include <fstream>
#include <sstream>

#include "jobs/option_set.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr std::size_t kMostBytes = 1u << 20;

std::string read_text(const std::string& path, std::string_view option) {
  std::ifstream stream(path, std::ios::binary);
  std::string text(kMostBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!stream.is_open() || stream.bad() || (stream.gcount() == 0 && !stream.eof())) {
    throw UsageError("{}: {}: cannot be read; name a TOML file", option, path);
  }
  text.resize(static_cast<std::size_t>(stream.gcount()));
  if (text.size() > kMostBytes) {
    throw UsageError("{}: {}: more than {} bytes; a configuration is far smaller", option, path, kMostBytes);
  }
  return text;
}

std::string type_text(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a float";
    case toml::node_type::boolean:
      return "a boolean";
    case toml::node_type::array:
      return "an array";
    case toml::node_type::table:
      return "a table";
    default:
      return "a date or time";
  }
}

// A scalar as the command line would write it; nothing for arrays, tables and dates.
std::optional<std::string> scalar_text(const toml::node& node) {
  if (const auto* value = node.as_string()) return value->get();
  if (const auto* value = node.as_integer()) return std::to_string(value->get());
  if (const auto* value = node.as_floating_point()) return fmt::format("{}", value->get());
  if (const auto* value = node.as_boolean()) return value->get() ? "true" : "false";
  return std::nullopt;
}

[[noreturn]] void throw_wrong_type(const std::string& where, std::string_view wanted,
                                   const toml::node& found) {
  const std::optional<std::string> text = scalar_text(found);
  throw UsageError("{}: needs {}, found {}{}", where, wanted, type_text(found),
                   text ? " (" + *text + ")" : "");
}

void append_settings(const toml::table& table, const std::string& prefix, const std::string& where,
                     std::vector<std::string>& words) {
  for (const auto& [key, node] : table) {
    const std::string name = prefix + std::string(key.str());
    if (const toml::table* inner = node.as_table()) {
      append_settings(*inner, name + ".", where, words);
    } else if (const std::optional<std::string> text = scalar_text(node)) {
      words.push_back(name + "=" + *text);
    } else {
      throw_wrong_type(where + "." + name, "a number, string or boolean", node);
    }
  }
}

std::vector<std::string> string_array(const toml::array& array, const std::string& where) {
  std::vector<std::string> words;
  for (const toml::node& node : array) {
    const auto* text = node.as_string();
    if (text == nullptr) throw_wrong_type(where, "an array of strings", node);
    words.push_back(text->get());
  }
  if (words.empty()) throw UsageError("{}: the array is empty; leave the key out instead", where);
  return words;
}

std::vector<std::string> number_array(const toml::array& array, const std::string& where) {
  std::vector<std::string> words;
  for (const toml::node& node : array) {
    if (!node.is_integer() && !node.is_string()) throw_wrong_type(where, "an array of integers", node);
    words.push_back(*scalar_text(node));
  }
  if (words.empty()) throw UsageError("{}: the array is empty; leave the key out instead", where);
  return words;
}

std::vector<std::string> words_of(const toml::node& node, OptionKind kind, const std::string& where) {
  const auto scalar_of = [&](bool fits, std::string_view wanted) {
    if (!fits) throw_wrong_type(where, wanted, node);
    return std::vector<std::string>{*scalar_text(node)};
  };
  switch (kind) {
    case OptionKind::kFlag:
      return scalar_of(node.is_boolean(), "true or false");
    case OptionKind::kInteger:
      return scalar_of(node.is_integer(), "an integer");
    case OptionKind::kReal:
      return scalar_of(node.is_number(), "a number");
    case OptionKind::kText:
      return scalar_of(node.is_string(), "a string");
    case OptionKind::kDuration:
      return scalar_of(node.is_string() || node.is_integer(), "seconds or a string such as \"90m\"");
    case OptionKind::kList:
      if (const toml::array* array = node.as_array()) return string_array(*array, where);
      return scalar_of(node.is_string(), "a string or an array of strings");
    case OptionKind::kNumbers:
      if (const toml::array* array = node.as_array()) return number_array(*array, where);
      return scalar_of(node.is_integer() || node.is_string(), "an integer, a string or an array of integers");
    case OptionKind::kSettings: {
      if (const toml::array* array = node.as_array()) return string_array(*array, where);
      const toml::table* table = node.as_table();
      if (table == nullptr) throw_wrong_type(where, "a table or an array of \"KEY=VALUE\"", node);
      std::vector<std::string> words;
      append_settings(*table, "", where, words);
      return words;
    }
  }
  throw InternalError("option kind {} has no TOML form", static_cast<int>(kind));
}

}  // namespace

std::map<std::string, OptionValue> read_options_file(const std::string& path, const OptionSet& options,
                                                     std::string_view option) {
  const std::string text = read_text(path, option);
  toml::table table;
  try {
    table = toml::parse(text, path);
  } catch (const toml::parse_error& e) {
    throw UsageError("{}:{}: not valid TOML: {}", path, e.source().begin.line, e.description());
  }
  std::vector<std::string> allowed;
  for (const std::string& name : options.names()) {
    if (options.find(name)->in_file) allowed.push_back(name);
  }
  std::map<std::string, OptionValue> values;
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    const std::string where = fmt::format("{}:{}: {}", path, key.source().begin.line, name);
    const OptionSet::Entry* entry = options.find(name);
    if (entry == nullptr || entry->positional) {
      throw UsageError("{}: unknown key{}", where,
                       suggestion(name, allowed, "", "; keys are option names without dashes"));
    }
    if (!entry->in_file) throw UsageError("{}: can be given on the command line only", where);
    values[name] = OptionValue{words_of(node, entry->kind, where), where};
  }
  return values;
}

}  // namespace tessera
