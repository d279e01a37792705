// The journal of a run: the truth from which the trace is derived (DESIGN.md section 6). TRACE.journal holds
// one JSON object a line,
//
//   {"seq":N,"crc":"CRC-32 of N:BODY in hex","body":{"type":...}}
//
// of types run (always first: run id, key, configuration), point, attempt, sample and end. A line counts when
// it is complete; append returns after fdatasync, so that what was acknowledged survives any crash. A last
// line that is torn is dropped; a bad line before it is an InputError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/file_lock.hpp"
#include "io/file_output.hpp"
#include "io/run_key.hpp"
#include "io/trace_schema.hpp"

namespace tessera {

std::string journal_path_of(const std::string& trace_path);  // TRACE.journal

struct JournalLine {
  std::int64_t offset = 0;  // bytes
  std::int64_t bytes = 0;   // newline included
  std::int64_t number = 0;  // counted from 1
};

struct JournalContents : TraceTables {
  std::string path;
  RunKey key;
  std::string configuration;  // JSON text
  std::string last_writer;    // "process 12 on node3": who wrote the last run or attempt line
  std::string end_reason;     // of the last attempt; "" while it runs or when it died
  bool torn_tail = false;     // the last line was incomplete and was dropped
  std::int64_t good_bytes = 0;
  std::int64_t next_seq = 0;
  std::int64_t duplicates = 0;            // samples that were there already: the first one wins
  std::vector<JournalLine> sample_lines;  // of each entry of samples
};

// Reads and checks a whole journal, arrays included (but does not keep them). InputError names file and line.
JournalContents read_journal(const std::string& path);

// Fetches samples with their arrays from the journal's file. `contents` must outlive the result.
LoadSample journal_loader(const JournalContents& contents);

// Appends to a journal; rank 0 only, from one thread. Every append throws ResourceError when the line did not
// reach the disk, and leaves the journal as it was before.
class JournalWriter {
 public:
  struct Options {
    bool fresh = false;  // forget what the journal holds
    LockMethod lock = LockMethod::kAuto;
    std::function<void(const std::string&)> notice;  // one-line messages to the user
  };

  // Locks the journal of `trace_path`, creating it or resuming it. UsageError when another process writes it,
  // or when its key differs (the message names every field that does); InputError when it is damaged.
  JournalWriter(const std::string& trace_path, const RunKey& key, const std::string& configuration,
                Options options);
  JournalWriter(const std::string& trace_path, const RunKey& key, const std::string& configuration)
      : JournalWriter(trace_path, key, configuration, Options()) {}

  bool resumed() const { return resumed_; }
  const JournalContents& contents() const { return contents_; }
  bool is_done(std::int64_t point, std::int64_t sample) const { return done_.count({point, sample}) != 0; }

  // Returns the index of the point; one with the same key and task that is there already is not written
  // again.
  int add_point(PointInfo point);
  // One row a rank, by world rank. Returns the index of the attempt and makes it the current one.
  int append_attempt(std::vector<AttemptRank> ranks);
  // Arrays must be empty or of the point's sizes. record.attempt is set to the current attempt.
  void append_sample(SampleRecord record);
  // Why the attempt ended. "done" marks the trace complete.
  void append_end(std::string_view reason);

 private:
  void append(const std::string& body);
  void start_new(const RunKey& key, const std::string& configuration);
  void resume(const RunKey& key, const Options& options);

  std::string path_;
  OwnedFd fd_;
  std::unique_ptr<FileLock> lock_;  // released before fd_ is closed
  JournalContents contents_;
  std::set<std::pair<std::int64_t, std::int64_t>> done_;  // (point, sample)
  bool resumed_ = false;
  bool broken_ = false;  // a failed append could not be undone
};

}  // namespace tessera
