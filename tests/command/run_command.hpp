// Runs the built `tessera` as a user would: a process of its own, with a time limit, its output captured.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace tessera::test {

using Words = std::vector<std::string>;

struct CommandOptions {
  double limit_s = 120;                                          // then the whole process group is killed
  std::vector<std::pair<std::string, std::string>> environment;  // added to ours
  std::optional<std::uint64_t> most_file_bytes;  // of any file it writes: a disk that is full from there on
  bool no_fsize_signal = true;                   // the write fails with EFBIG instead of killing
};

struct CommandResult {
  int code = -1;  // exit code, or 128 + the signal that ended it
  bool timed_out = false;
  std::string out;
  std::string err;
};

// A process that runs beside the test. Killed with its group when it is dropped.
class RunningCommand {
 public:
  RunningCommand(const Words& words, const CommandOptions& options = {});
  ~RunningCommand();
  RunningCommand(const RunningCommand&) = delete;
  RunningCommand& operator=(const RunningCommand&) = delete;

  void signal(int number) const;
  bool running();  // takes in what it has printed
  CommandResult wait();

 private:
  void read_some(int wait_ms);

  pid_t pid_ = -1;
  int out_ = -1;
  int err_ = -1;
  double deadline_ = 0;
  std::optional<int> status_;
  CommandResult result_;
};

CommandResult run_command(const Words& words, const CommandOptions& options = {});

// `tessera ARGUMENTS`, or the same under mpirun on `ranks` ranks of this machine.
Words tessera(const Words& arguments);
Words tessera_on(int ranks, const Words& arguments);
// mpirun and what it needs to put any number of ranks on this machine.
Words mpirun();

// Processes whose command line holds `text`, zombies and this process left out.
std::vector<pid_t> processes_with(const std::string& text);
// Waits until there is none; false when some remain after `limit_s`.
bool all_gone(const std::string& text, double limit_s);

// Lines that are not blank.
std::vector<std::string> lines_of(const std::string& text);

Words operator+(Words left, const Words& right);

}  // namespace tessera::test
