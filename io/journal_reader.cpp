#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "io/journal.hpp"
#include "io/journal_line.hpp"
#include "io/json.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

using nlohmann::json;

namespace {

constexpr std::size_t kMaxTextBytes = std::size_t{1} << 24;  // of one number-free field; see run_id and key

// Lines of a file, with their newline. The buffer never outgrows the file.
class LineReader {
 public:
  explicit LineReader(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rbe")) {
    if (file_ == nullptr) throw InputError("{}: cannot open: {}", path, errno_text(errno));
  }
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;
  ~LineReader() {
    std::free(buffer_);
    std::fclose(file_);
  }

  // False at the end of the file.
  bool next(std::string_view* line) {
    errno = 0;
    const ssize_t bytes = ::getline(&buffer_, &capacity_, file_);
    if (bytes < 0) {
      if (std::ferror(file_)) throw InputError("{}: cannot read: {}", path_, errno_text(errno));
      if (errno == ENOMEM) throw ResourceError("{}: no memory for a line of it", path_);
      return false;
    }
    *line = {buffer_, static_cast<std::size_t>(bytes)};
    return true;
  }

  // True when the file begins like a journal, or is a beginning of such a beginning. Asked before the first
  // line is read, because the first line of some other file can be all of it.
  bool starts_like_a_journal() {
    std::string start(kFirstLineStart.size(), '\0');
    start.resize(std::fread(start.data(), 1, start.size(), file_));
    std::rewind(file_);
    return start == kFirstLineStart.substr(0, start.size());
  }

 private:
  const std::string& path_;
  std::FILE* file_;
  char* buffer_ = nullptr;
  std::size_t capacity_ = 0;
};

// Builds the contents from bodies, in order. Every reference between lines is checked here.
class Assembler {
 public:
  explicit Assembler(JournalContents* contents) : contents_(*contents) {}

  void add(std::string_view text, const JournalLine& line) {
    const std::string where = fmt::format("{}: line {}", contents_.path, line.number);
    const json body = parse_json(text, where, 16);
    if (!body.is_object())
      throw InputError("{}: body: found {}, expected an object", where, json_brief(body));
    const std::string type = json_string(body, "type", where);
    if ((line.number == 1) != (type == "run")) {
      throw InputError(
          "{}: type: found {}, expected {}", where, json_brief(type),
          line.number == 1 ? "run, which begins a journal" : "another type: run is the first line");
    }
    if (type == "run") return add_run(body, where);
    if (type == "point") return add_point(body, where);
    if (type == "attempt") return add_attempt(body, where);
    if (type == "sample") return add_sample(body, where, line);
    if (type == "end") return add_end(body, where);
    throw InputError("{}: type: found {}, expected run, point, attempt, sample or end", where,
                     json_brief(type));
  }

 private:
  void add_run(const json& body, const std::string& where) {
    json_integer(body, "schema_version", where, kTraceSchemaVersion, kTraceSchemaVersion);
    contents_.run_id = json_string(body, "run_id", where);
    contents_.created = json_string(body, "created", where);
    contents_.configuration = json_string(body, "configuration", where);
    if (contents_.run_id.size() > 64 || contents_.configuration.size() > kMaxTextBytes) {
      throw InputError("{}: run_id: {} bytes (at most 64), configuration {} bytes (at most {})", where,
                       contents_.run_id.size(), contents_.configuration.size(), kMaxTextBytes);
    }
    for (const auto& [name, value] : json_object(body, "key", where).items()) {
      if (!value.is_string()) throw_json_field(where, "key." + name, value, "a string");
      contents_.key.fields.emplace_back(name, value.get<std::string>());
    }
    contents_.last_writer = json_string(body, "writer", where);
  }

  void add_point(const json& body, const std::string& where) {
    const auto next = static_cast<std::int64_t>(contents_.points.size());
    json_integer(body, "point", where, next, next);
    contents_.points.push_back(decode_point(body, where));
  }

  void add_attempt(const json& body, const std::string& where) {
    json_integer(body, "attempt", where, attempts_, attempts_);
    contents_.last_writer = json_string(body, "writer", where);
    std::int64_t previous = -1;
    ranks_.emplace_back();
    for (const json& row : json_array(body, "ranks", where)) {
      AttemptRank rank = decode_attempt_row(row, where);
      if (rank.attempt != attempts_ || rank.world_rank <= previous || rank.world_rank > INT32_MAX) {
        throw InputError(
            "{}: ranks: rank {} of attempt {} after rank {}, expected rising ranks of attempt {}", where,
            rank.world_rank, rank.attempt, previous, attempts_);
      }
      previous = rank.world_rank;
      ranks_.back().insert(rank.world_rank);
      contents_.attempts.push_back(std::move(rank));
    }
    ++attempts_;
    contents_.end_reason.clear();
    contents_.complete = false;
  }

  void add_sample(const json& body, const std::string& where, const JournalLine& line) {
    SampleRecord sample = decode_sample(body, where);
    const auto points = static_cast<std::int64_t>(contents_.points.size());
    json_integer(body, "point", where, 0, points - 1);
    json_integer(body, "attempt", where, 0, attempts_ - 1);
    SampleRecord arrays;  // decoded to be checked, then dropped
    decode_sample_arrays(body, contents_.points[static_cast<std::size_t>(sample.point)].dims, where, &arrays);
    std::int64_t previous = -1;
    for (const auto& rank : arrays.ranks) {
      if (rank.world_rank <= previous ||
          !ranks_[static_cast<std::size_t>(sample.attempt)].count(rank.world_rank)) {
        throw InputError("{}: ranks: rank {} after rank {}, expected rising ranks of attempt {}", where,
                         rank.world_rank, previous, sample.attempt);
      }
      previous = rank.world_rank;
    }
    if (!seen_.insert({sample.point, sample.sample}).second) {
      ++contents_.duplicates;
      return;
    }
    contents_.samples.push_back(std::move(sample));
    contents_.sample_lines.push_back(line);
  }

  void add_end(const json& body, const std::string& where) {
    contents_.end_reason = json_string(body, "why", where);
    contents_.complete = contents_.end_reason == "done";
  }

  JournalContents& contents_;
  std::int64_t attempts_ = 0;
  std::vector<std::set<std::int64_t>> ranks_;             // of each attempt
  std::set<std::pair<std::int64_t, std::int64_t>> seen_;  // (point, sample)
};

std::string read_line_at(int fd, const JournalLine& line, const std::string& path) {
  std::string text(static_cast<std::size_t>(line.bytes), '\0');
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t got = ::pread(fd, text.data() + done, text.size() - done,
                                static_cast<off_t>(line.offset + static_cast<std::int64_t>(done)));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw InputError("{}: line {}: cannot read: {}", path, line.number, errno_text(errno));
    if (got == 0)
      throw InputError("{}: line {}: the file became shorter while it was read", path, line.number);
    done += static_cast<std::size_t>(got);
  }
  text.pop_back();  // newline
  return text;
}

}  // namespace

std::string journal_path_of(const std::string& trace_path) {
  return trace_path + ".journal";
}

JournalContents read_journal(const std::string& path) {
  JournalContents contents;
  contents.path = path;
  LineReader reader(contents.path);
  if (!reader.starts_like_a_journal()) {
    throw InputError("{}: line 1: not a Tessera journal (it does not begin with {}...)", path,
                     kFirstLineStart);
  }
  Assembler assembler(&contents);
  std::string_view text;
  JournalLine line;
  bool bad = false;  // the line before this one did not hold: only the last may be so
  while (reader.next(&text)) {
    if (bad) {
      throw InputError(
          "{}: line {}: damaged: its checksum does not hold and more lines follow; restore the file", path,
          line.number);
    }
    line.offset += line.bytes;
    line.bytes = static_cast<std::int64_t>(text.size());
    ++line.number;
    const bool whole = text.back() == '\n';
    const auto parsed = whole ? parse_journal_line(text.substr(0, text.size() - 1)) : std::nullopt;
    if (!parsed) {
      bad = true;
      continue;
    }
    if (parsed->seq != contents.next_seq) {
      throw InputError("{}: line {}: seq: found {}, expected {}; lines were removed, added or reordered",
                       path, line.number, parsed->seq, contents.next_seq);
    }
    assembler.add(parsed->body, line);
    contents.good_bytes = line.offset + line.bytes;
    ++contents.next_seq;
  }
  contents.torn_tail = bad;
  return contents;
}

LoadSample journal_loader(const JournalContents& contents) {
  auto fd = std::make_shared<OwnedFd>(::open(contents.path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!*fd) throw InputError("{}: cannot open: {}", contents.path, errno_text(errno));
  return [fd, &contents](std::size_t index) {
    TESSERA_CHECK(index < contents.samples.size());
    const JournalLine& line = contents.sample_lines[index];
    const std::string where = fmt::format("{}: line {}", contents.path, line.number);
    const std::string text = read_line_at(fd->get(), line, contents.path);
    const auto parsed = parse_journal_line(text);
    if (!parsed) throw InputError("{}: damaged since it was first read", where);
    const json body = parse_json(parsed->body, where, 16);
    SampleRecord sample = contents.samples[index];
    decode_sample_arrays(body, contents.points[static_cast<std::size_t>(sample.point)].dims, where, &sample);
    return sample;
  };
}

}  // namespace tessera
