#include "jobs/option_set.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <set>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

// Help is wrapped to this many columns; the second column starts at kHelpColumn.
constexpr std::size_t kHelpWidth = 100;
constexpr std::size_t kHelpColumn = 30;

void append_wrapped(std::string& out, std::string_view text, std::size_t column) {
  std::size_t used = column;
  bool first = true;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!first && used + 1 + word.size() > kHelpWidth) {
      out += '\n';
      out.append(column, ' ');
      used = column;
    } else if (!first) {
      out += ' ';
      ++used;
    }
    out += word;
    used += word.size();
    first = false;
  }
  out += '\n';
}

std::string left_column(const OptionSet::Entry& entry) {
  if (entry.positional) return entry.metavar;
  return entry.kind == OptionKind::kFlag ? "--" + entry.name
                                         : fmt::format("--{} {}", entry.name, entry.metavar);
}

std::int64_t bounded_integer(const OptionValue& value, std::int64_t least, std::int64_t most) {
  const std::string& word = value.words.front();
  const std::optional<std::int64_t> number = parse_integer(word);
  if (!number)
    throw UsageError("{}: '{}' is not a whole number from {} to {}", value.where, word, least, most);
  if (*number < least)
    throw UsageError("{}: {} is below {}, the least it can be", value.where, *number, least);
  if (*number > most) throw UsageError("{}: {} is above {}, the most it can be", value.where, *number, most);
  return *number;
}

// The numbers of "3" or "4-6".
std::vector<std::int64_t> parse_range(const std::string& text, std::int64_t most, const std::string& where) {
  const std::size_t dash = text.find('-', 1);
  const std::optional<std::int64_t> first = parse_integer(text.substr(0, dash));
  const std::optional<std::int64_t> last =
      dash == std::string::npos ? first : parse_integer(text.substr(dash + 1));
  if (!first || !last || *first < 0 || *last < *first) {
    throw UsageError("{}: '{}' is neither a whole number nor a range such as 0-3", where, text);
  }
  if (*last > most) throw UsageError("{}: {} is above {}, the most it can be", where, *last, most);
  constexpr std::int64_t kMostInRange = 1 << 16;
  if (*last - *first >= kMostInRange) {
    throw UsageError("{}: the range {} holds more than {} numbers", where, text, kMostInRange);
  }
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(*last - *first + 1));
  std::iota(numbers.begin(), numbers.end(), *first);
  return numbers;
}

// What the command line may do wrong before a value is even read.
void check_written(const OptionSet::Entry& entry, const std::vector<std::string>& words,
                   const std::string& where) {
  if (entry.kind == OptionKind::kFlag) {
    if (words.front() != "true") throw UsageError("{}: takes no value, found '{}'", where, words.front());
  } else if (entry.kind != OptionKind::kList && entry.kind != OptionKind::kNumbers &&
             entry.kind != OptionKind::kSettings && words.size() > 1) {
    throw UsageError("{}: given {} times ({}); give it once", where, words.size(), fmt::join(words, ", "));
  }
}

}  // namespace

std::vector<std::string> split_list(const OptionValue& value) {
  std::vector<std::string> items;
  for (const std::string& word : value.words) {
    std::size_t start = 0;
    while (true) {
      const std::size_t comma = std::min(word.find(',', start), word.size());
      if (comma == start) throw UsageError("{}: '{}' holds an empty name", value.where, word);
      items.push_back(word.substr(start, comma - start));
      if (comma == word.size()) break;
      start = comma + 1;
    }
  }
  return items;
}

OptionSet::OptionSet(std::string command, std::string summary, std::string example)
    : command_(std::move(command)), summary_(std::move(summary)), example_(std::move(example)) {
  entries_.reserve(64);  // the references that declaring functions return stay good
}

OptionSet::Entry& OptionSet::add(Entry entry) {
  TESSERA_CHECK(find(entry.name) == nullptr && entries_.size() < entries_.capacity());
  entry.group = group_;
  return entries_.emplace_back(std::move(entry));
}

OptionSet::Entry& OptionSet::custom(std::string name, OptionKind kind, std::string metavar, std::string shown,
                                    std::string help, std::function<void(const OptionValue&)> apply) {
  Entry entry;
  entry.name = std::move(name);
  entry.kind = kind;
  entry.metavar = std::move(metavar);
  entry.default_text = std::move(shown);
  entry.help = std::move(help);
  entry.apply = std::move(apply);
  return add(std::move(entry));
}

OptionSet::Entry& OptionSet::integer(std::string name, std::int64_t* target, std::int64_t least,
                                     std::int64_t most, std::string help, std::string metavar,
                                     std::string shown) {
  if (shown.empty()) shown = std::to_string(*target);
  return custom(
      std::move(name), OptionKind::kInteger, std::move(metavar), std::move(shown), std::move(help),
      [target, least, most](const OptionValue& value) { *target = bounded_integer(value, least, most); });
}

OptionSet::Entry& OptionSet::integer(std::string name, int* target, int least, int most, std::string help,
                                     std::string metavar, std::string shown) {
  if (shown.empty()) shown = std::to_string(*target);
  return custom(std::move(name), OptionKind::kInteger, std::move(metavar), std::move(shown), std::move(help),
                [target, least, most](const OptionValue& value) {
                  *target = static_cast<int>(bounded_integer(value, least, most));
                });
}

OptionSet::Entry& OptionSet::unsigned64(std::string name, std::uint64_t* target, std::string help) {
  return custom(std::move(name), OptionKind::kInteger, "N", std::to_string(*target), std::move(help),
                [target](const OptionValue& value) {
                  // TOML integers are signed: the file and the command line accept the same range.
                  *target = static_cast<std::uint64_t>(
                      bounded_integer(value, 0, std::numeric_limits<std::int64_t>::max()));
                });
}

OptionSet::Entry& OptionSet::text(std::string name, std::string* target, std::string metavar,
                                  std::string help) {
  return custom(std::move(name), OptionKind::kText, std::move(metavar), *target, std::move(help),
                [target](const OptionValue& value) {
                  if (value.words.front().empty()) throw UsageError("{}: must not be empty", value.where);
                  *target = value.words.front();
                });
}

OptionSet::Entry& OptionSet::choice(std::string name, std::string* target, std::vector<std::string> choices,
                                    std::string help) {
  std::string metavar = fmt::format("{}", fmt::join(choices, "|"));
  return custom(std::move(name), OptionKind::kText, std::move(metavar), *target, std::move(help),
                [target, choices = std::move(choices)](const OptionValue& value) {
                  const std::string& word = value.words.front();
                  if (std::find(choices.begin(), choices.end(), word) == choices.end()) {
                    throw UsageError("{}: '{}' is not one of {}", value.where, word,
                                     fmt::join(choices, ", "));
                  }
                  *target = word;
                });
}

OptionSet::Entry& OptionSet::flag(std::string name, bool* target, std::string help) {
  return custom(std::move(name), OptionKind::kFlag, "", "", std::move(help),
                [target](const OptionValue& value) { *target = value.words.front() == "true"; });
}

OptionSet::Entry& OptionSet::list(std::string name, std::vector<std::string>* target, std::string metavar,
                                  std::string help) {
  return custom(std::move(name), OptionKind::kList, std::move(metavar), "", std::move(help),
                [target](const OptionValue& value) { *target = split_list(value); });
}

OptionSet::Entry& OptionSet::numbers(std::string name, std::vector<std::int64_t>* target, std::int64_t most,
                                     std::string help) {
  return custom(std::move(name), OptionKind::kNumbers, "N[,N-N]", "", std::move(help),
                [target, most](const OptionValue& value) {
                  std::set<std::int64_t> numbers;
                  for (const std::string& item : split_list(value)) {
                    const std::vector<std::int64_t> range = parse_range(item, most, value.where);
                    numbers.insert(range.begin(), range.end());
                  }
                  target->assign(numbers.begin(), numbers.end());
                });
}

OptionSet::Entry& OptionSet::settings(std::string name, std::map<std::string, std::string>* target,
                                      std::string help) {
  return custom(std::move(name), OptionKind::kSettings, "KEY=VALUE", "", std::move(help),
                [target](const OptionValue& value) {
                  for (const std::string& word : value.words) {
                    const std::size_t equals = word.find('=');
                    if (equals == std::string::npos || equals == 0) {
                      throw UsageError("{}: '{}' is not KEY=VALUE (for example ruler_niah.queries=4)",
                                       value.where, word);
                    }
                    (*target)[word.substr(0, equals)] = word.substr(equals + 1);
                  }
                });
}

OptionSet::Entry& OptionSet::duration(std::string name, double* seconds, std::string help,
                                      std::string shown) {
  return custom(std::move(name), OptionKind::kDuration, "TIME", std::move(shown), std::move(help),
                [seconds](const OptionValue& value) {
                  const std::optional<double> parsed = parse_duration(value.words.front());
                  if (!parsed) {
                    throw UsageError("{}: '{}' is not a time; write seconds, 90m, 1h30m or 1:30:00",
                                     value.where, value.words.front());
                  }
                  if (*parsed <= 0) throw UsageError("{}: {} seconds is not above 0", value.where, *parsed);
                  *seconds = *parsed;
                });
}

OptionSet::Entry& OptionSet::file(std::string name, std::vector<std::string>* target, std::string help) {
  Entry& entry = custom(std::move(name), OptionKind::kText, "FILE", "", std::move(help),
                        [target](const OptionValue& value) { *target = value.words; });
  entry.positional = entry.required = true;
  return entry;
}

OptionSet::Entry& OptionSet::files(std::string name, std::vector<std::string>* target, std::string help) {
  Entry& entry = custom(std::move(name), OptionKind::kList, "FILE...", "", std::move(help),
                        [target](const OptionValue& value) { *target = value.words; });
  entry.positional = entry.required = true;
  return entry;
}

const OptionSet::Entry* OptionSet::find(std::string_view name) const {
  for (const Entry& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::vector<std::string> OptionSet::names() const {
  std::vector<std::string> all;
  for (const Entry& entry : entries_) {
    if (!entry.positional) all.push_back(entry.name);
  }
  return all;
}

std::string OptionSet::help_text() const {
  std::string out = fmt::format("tessera {}", command_);
  for (const Entry& entry : entries_) {
    if (!entry.positional && entry.required) out += " " + left_column(entry);
  }
  out += " [OPTIONS]";
  for (const Entry& entry : entries_) {
    if (entry.positional) out += " " + left_column(entry);
  }
  out += "\n\n";
  append_wrapped(out, summary_, 0);
  std::string group;
  for (const Entry& entry : entries_) {
    if (entry.group != group) {
      group = entry.group;
      out += fmt::format("\n{}:\n", group);
    }
    std::string left = "  " + left_column(entry);
    if (left.size() + 2 > kHelpColumn) {
      out += left + "\n" + std::string(kHelpColumn, ' ');
    } else {
      out += fmt::format("{:<{}}", left, kHelpColumn);
    }
    std::string right = entry.help;
    if (entry.required) {
      right += " (required)";
    } else if (!entry.default_text.empty()) {
      right += fmt::format(" [{}]", entry.default_text);
    }
    append_wrapped(out, right, kHelpColumn);
  }
  if (!example_.empty()) out += fmt::format("\nExample:\n  {}\n", example_);
  return out;
}

bool OptionSet::parse(const std::vector<std::string>& words) {
  std::vector<std::vector<std::string>> given;  // by entry, as written; empty: not given
  if (!split_words(words, given)) return true;
  std::map<std::string, OptionValue> from_file;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].name == "config" && !given[i].empty()) {
      from_file = read_options_file(given[i].front(), *this);
    }
  }
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    const std::string where = entry.positional ? entry.metavar : "--" + entry.name;
    const bool on_line = !given[i].empty();
    if (on_line) check_written(entry, given[i], where);
    const auto file_value = from_file.find(entry.name);
    const bool in_file = file_value != from_file.end();
    if (in_file && (!on_line || entry.kind == OptionKind::kSettings)) entry.apply(file_value->second);
    if (on_line) entry.apply({given[i], where});
    if (on_line || in_file) given_.push_back(entry.name);
    if (entry.required && !on_line && !in_file) {
      throw UsageError("{}: missing; `tessera {}` needs it", entry.positional ? where : left_column(entry),
                       command_);
    }
  }
  return false;
}

bool OptionSet::was_given(std::string_view name) const {
  return std::find(given_.begin(), given_.end(), name) != given_.end();
}

bool OptionSet::split_words(const std::vector<std::string>& words,
                            std::vector<std::vector<std::string>>& given) const {
  given.assign(entries_.size(), {});
  CLI::App app;
  app.set_help_flag();
  app.allow_extras();
  bool help = false;
  app.add_flag("-h,--help", help);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    const auto keep = [&slot = given[i]](const CLI::results_t& results) {
      slot = results;
      return true;
    };
    if (entry.kind == OptionKind::kFlag) {
      app.add_flag("--" + entry.name, given[i]);
    } else if (!entry.positional) {
      app.add_option("--" + entry.name, keep)
          ->expected(1)
          ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    } else if (CLI::Option* option = app.add_option(entry.name, keep); entry.kind == OptionKind::kList) {
      option->expected(1, CLI::detail::expected_max_vector_size)->allow_extra_args();
    }
  }
  try {
    std::vector<std::string> reversed(words.rbegin(), words.rend());  // the order CLI11 takes them in
    app.parse(reversed);
  } catch (const CLI::ArgumentMismatch& e) {
    const std::string what = e.what();
    throw UsageError("{}: needs a value; `tessera {} --help` says which", what.substr(0, what.find(':')),
                     command_);
  } catch (const CLI::ParseError& e) {
    throw UsageError("{}; see `tessera {} --help`", e.what(), command_);
  }
  if (help) return false;

  for (const std::string& extra : app.remaining()) {
    const std::string otherwise = fmt::format("; `tessera {} --help` lists what there is", command_);
    if (extra.rfind("--", 0) == 0 && extra.size() > 2) {
      const std::string name = extra.substr(2, std::min(extra.find('='), extra.size()) - 2);
      throw UsageError("--{}: unknown option{}", name, suggestion(name, names(), "--", otherwise));
    }
    throw UsageError("'{}': unexpected word after `tessera {}`{}", extra, command_, otherwise);
  }
  return true;
}

std::optional<std::int64_t> parse_integer(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (problem != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<double> parse_real(std::string_view text) {
  double value = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (problem != std::errc{} || end != text.data() + text.size() || !std::isfinite(value))
    return std::nullopt;
  return value;
}

std::optional<double> parse_duration(std::string_view text) {
  constexpr double kMost = 3.2e9;  // a century in seconds
  double seconds = 0;
  if (text.find(':') != std::string_view::npos) {
    double days = 0;
    if (const std::size_t dash = text.find('-'); dash != std::string_view::npos) {
      const std::optional<std::int64_t> parsed = parse_integer(text.substr(0, dash));
      if (!parsed || *parsed < 0) return std::nullopt;
      days = static_cast<double>(*parsed);
      text.remove_prefix(dash + 1);
    }
    int parts = 0;
    while (true) {
      const std::size_t colon = std::min(text.find(':'), text.size());
      const std::optional<std::int64_t> parsed = parse_integer(text.substr(0, colon));
      if (!parsed || *parsed < 0 || (parts > 0 && *parsed > 59) || ++parts > 3) return std::nullopt;
      seconds = seconds * 60 + static_cast<double>(*parsed);
      if (colon == text.size()) break;
      text.remove_prefix(colon + 1);
    }
    seconds += days * 86400;
  } else {
    double last_unit = 1e9;
    while (!text.empty()) {
      const std::size_t end = std::min(text.find_first_not_of("0123456789."), text.size());
      const std::optional<double> parsed = parse_real(text.substr(0, end));
      if (!parsed) return std::nullopt;
      const char letter = end < text.size() ? text[end] : 's';
      const double unit = letter == 'd'   ? 86400
                          : letter == 'h' ? 3600
                          : letter == 'm' ? 60
                          : letter == 's' ? 1
                                          : 0;
      if (unit == 0 || unit >= last_unit) return std::nullopt;
      last_unit = unit;
      seconds += *parsed * unit;
      text.remove_prefix(std::min(end + 1, text.size()));
    }
    if (last_unit == 1e9) return std::nullopt;
  }
  if (seconds > kMost) return std::nullopt;
  return seconds;
}

std::optional<std::string> nearest_name(std::string_view word, const std::vector<std::string>& candidates) {
  std::optional<std::string> best;
  std::size_t best_distance = word.size() / 3 + 2;  // one more than is accepted
  for (const std::string& candidate : candidates) {
    // Optimal string alignment: insertions, deletions, changes and swaps of neighbours cost one each.
    const std::size_t columns = candidate.size() + 1;
    std::vector<std::size_t> before(columns), above(columns), row(columns);
    for (std::size_t j = 0; j < columns; ++j) above[j] = j;
    for (std::size_t i = 1; i <= word.size(); ++i) {
      row[0] = i;
      for (std::size_t j = 1; j < columns; ++j) {
        const std::size_t change = above[j - 1] + (word[i - 1] == candidate[j - 1] ? 0 : 1);
        row[j] = std::min({above[j] + 1, row[j - 1] + 1, change});
        if (i > 1 && j > 1 && word[i - 1] == candidate[j - 2] && word[i - 2] == candidate[j - 1]) {
          row[j] = std::min(row[j], before[j - 2] + 1);
        }
      }
      before.swap(above);
      above.swap(row);
    }
    std::size_t distance = above[candidate.size()];
    // A word that starts or ends another is likely meant for it: --len for --length.
    if (word.size() >= 3 && (candidate.rfind(word, 0) == 0 || word.rfind(candidate, 0) == 0)) {
      distance = std::min<std::size_t>(distance, 1);
    }
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string suggestion(std::string_view word, const std::vector<std::string>& candidates,
                       std::string_view prefix, std::string_view otherwise) {
  const std::optional<std::string> nearest = nearest_name(word, candidates);
  return nearest ? fmt::format("; did you mean {}{}?", prefix, *nearest) : std::string(otherwise);
}

}  // namespace tessera
