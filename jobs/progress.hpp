// How far a run is, on standard error: rewritten in place on a terminal, one line a minute elsewhere (a batch
// system's log). Used by one thread of rank 0.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>

namespace tessera {

struct ProgressOutput {
  std::ostream* stream = nullptr;
  bool terminal = false;
  std::function<double()> seconds;  // a clock that never goes back
};
ProgressOutput standard_error_progress();

class Progress {
 public:
  // label: "ruler_niah"; unit: "samples"; done_before: what an earlier attempt finished, which tells nothing
  // about today's rate.
  Progress(std::string label, std::string unit, std::int64_t total, std::int64_t done_before,
           ProgressOutput output);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // done: in all, earlier attempts included. note: shown at the end ("score 0.91"). Writes when it is time.
  void update(std::int64_t done, const std::string& note = {});
  // A full line of its own, above the progress on a terminal.
  void print(const std::string& line);
  // The last state on a line that stays. Later calls do nothing.
  void finish();

  std::string text() const;  // "ruler_niah: 12/100 samples, 0.35 samples/s, 4 min 12 s left, score 0.91"

 private:
  void write();

  std::string label_;
  std::string unit_;
  std::string note_;
  std::int64_t total_;
  std::int64_t done_before_;
  std::int64_t done_;
  ProgressOutput output_;
  double start_;
  double written_;        // when the last line was
  bool on_line_ = false;  // the terminal's cursor is behind an unfinished line
  bool finished_ = false;
};

}  // namespace tessera
