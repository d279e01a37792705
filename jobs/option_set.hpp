// The options of one command: each is declared once with its bounds, default and help, and set from the
// command line (split by CLI11) or from a TOML file by the same function, so that both are checked alike.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

// What a TOML file may give for an option.
enum class OptionKind : std::uint8_t {
  kFlag,      // a boolean
  kInteger,   // an integer
  kReal,      // a float or an integer
  kText,      // a string
  kDuration,  // seconds as an integer, or a string ("90m", "1:30:00")
  kList,      // a string ("a,b") or an array of strings
  kNumbers,   // an integer, a string ("0,4-6") or an array of integers
  kSettings,  // a table (nested tables are joined with dots), or an array of "KEY=VALUE"
};

// One option's value as it was written, and where ("--length", or "run.toml:3: length") for messages.
struct OptionValue {
  std::vector<std::string> words;
  std::string where;
};

// The items of words such as "a,b"; UsageError where one is empty.
std::vector<std::string> split_list(const OptionValue& value);

class OptionSet {
 public:
  struct Entry {
    std::string name;  // without dashes
    OptionKind kind = OptionKind::kText;
    std::string metavar;
    std::string help;
    std::string default_text;  // shown in help; empty: none
    std::string group;
    bool positional = false;
    bool required = false;
    bool in_file = true;  // a configuration file may set it
    std::function<void(const OptionValue&)> apply;
  };

  // command: "eval"; summary and example are shown by --help.
  OptionSet(std::string command, std::string summary, std::string example);

  // Options declared from here on are listed under this title.
  void group(std::string title) { group_ = std::move(title); }

  // Whole numbers in [least, most]; what *target holds now is the default that --help shows. `shown`, where
  // given, is shown instead ("from --model").
  Entry& integer(std::string name, std::int64_t* target, std::int64_t least, std::int64_t most,
                 std::string help, std::string metavar = "N", std::string shown = {});
  Entry& integer(std::string name, int* target, int least, int most, std::string help,
                 std::string metavar = "N", std::string shown = {});
  Entry& unsigned64(std::string name, std::uint64_t* target, std::string help);
  Entry& text(std::string name, std::string* target, std::string metavar, std::string help);
  Entry& choice(std::string name, std::string* target, std::vector<std::string> choices, std::string help);
  Entry& flag(std::string name, bool* target, std::string help);
  Entry& list(std::string name, std::vector<std::string>* target, std::string metavar, std::string help);
  // Whole numbers and ranges in [0, most], "0,4-6": ascending, each once.
  Entry& numbers(std::string name, std::vector<std::int64_t>* target, std::int64_t most, std::string help);
  Entry& settings(std::string name, std::map<std::string, std::string>* target, std::string help);
  Entry& duration(std::string name, double* seconds, std::string help, std::string shown = {});
  Entry& custom(std::string name, OptionKind kind, std::string metavar, std::string shown, std::string help,
                std::function<void(const OptionValue&)> apply);
  // Words without an option name, after all options of the same line: one, or one and more.
  Entry& file(std::string name, std::vector<std::string>* target, std::string help);
  Entry& files(std::string name, std::vector<std::string>* target, std::string help);

  // Sets every option from the words after the command, and from the TOML file that --config names (the
  // command line wins; settings are joined key by key). True: help was asked for and nothing was set.
  // UsageError.
  bool parse(const std::vector<std::string>& words);
  // Whether the last parse found it, on the line or in the file.
  bool was_given(std::string_view name) const;

  std::string help_text() const;
  const Entry* find(std::string_view name) const;
  std::vector<std::string> names() const;

 private:
  Entry& add(Entry entry);
  // given[i]: the words of entry i. False: help was asked for.
  bool split_words(const std::vector<std::string>& words, std::vector<std::vector<std::string>>& given) const;

  std::string command_;
  std::string summary_;
  std::string example_;
  std::string group_ = "Options";
  std::vector<Entry> entries_;
  std::vector<std::string> given_;
};

// Values of a TOML file by option name, checked against the kinds that `options` declares. UsageError starts
// with "FILE:LINE: KEY: ", or with the option that named the file.
std::map<std::string, OptionValue> read_options_file(const std::string& path, const OptionSet& options,
                                                     std::string_view option = "--config");

// Whole text or nothing: "12", "-3". Nothing when it is no number or out of the type's range.
std::optional<std::int64_t> parse_integer(std::string_view text);
std::optional<double> parse_real(std::string_view text);  // finite
// Seconds from "90", "90s", "15m", "2h", "1h30m", "1:30" (minutes and seconds), "1:30:00", "2-00:00:00"
// (days).
std::optional<double> parse_duration(std::string_view text);

// The candidate that a mistyped word most resembles, or nothing where none is near (a third of its letters).
std::optional<std::string> nearest_name(std::string_view word, const std::vector<std::string>& candidates);
// "; did you mean X?" or the given alternative.
std::string suggestion(std::string_view word, const std::vector<std::string>& candidates,
                       std::string_view prefix, std::string_view otherwise);

}  // namespace tessera
