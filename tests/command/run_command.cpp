#include "tests/command/run_command.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

namespace tessera::test {
namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Between fork and exec: only calls that are safe there, and nothing that allocates.
[[noreturn]] void become(char* const* words, char* const* environment, int out, int err,
                         const CommandOptions& options) {
  ::setpgid(0, 0);
  const int nothing = ::open("/dev/null", O_RDONLY);
  ::dup2(nothing, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  if (options.most_file_bytes) {
    const rlimit limit{*options.most_file_bytes, *options.most_file_bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    if (options.no_fsize_signal) ::signal(SIGXFSZ, SIG_IGN);
  }
  ::execvpe(words[0], words, environment);
  ::_exit(127);
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> all;
  for (std::string& word : words) all.push_back(word.data());
  all.push_back(nullptr);
  return all;
}

std::vector<std::string> environment_with(const std::vector<std::pair<std::string, std::string>>& added) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    bool replaced = false;
    for (const auto& [name, value] : added) replaced = replaced || text.rfind(name + "=", 0) == 0;
    if (!replaced) all.push_back(text);
  }
  for (const auto& [name, value] : added) all.push_back(name + "=" + value);
  return all;
}

}  // namespace

RunningCommand::RunningCommand(const Words& words, const CommandOptions& options) {
  int out[2], err[2];
  REQUIRE(::pipe2(out, O_CLOEXEC) == 0);
  REQUIRE(::pipe2(err, O_CLOEXEC) == 0);
  std::vector<std::string> copies = words;
  std::vector<std::string> environment = environment_with(options.environment);
  const std::vector<char*> arguments = pointers(copies);
  const std::vector<char*> variables = pointers(environment);
  pid_ = ::fork();
  REQUIRE(pid_ >= 0);
  if (pid_ == 0) become(arguments.data(), variables.data(), out[1], err[1], options);
  ::setpgid(pid_, pid_);  // whichever of the two comes first
  ::close(out[1]);
  ::close(err[1]);
  out_ = out[0];
  err_ = err[0];
  ::fcntl(out_, F_SETFL, O_NONBLOCK);
  ::fcntl(err_, F_SETFL, O_NONBLOCK);
  deadline_ = now_s() + options.limit_s;
}

RunningCommand::~RunningCommand() {
  if (!status_) {
    ::kill(-pid_, SIGKILL);
    int status = 0;
    ::waitpid(pid_, &status, 0);
  }
  if (out_ >= 0) ::close(out_);
  if (err_ >= 0) ::close(err_);
}

void RunningCommand::signal(int number) const {
  REQUIRE(::kill(pid_, number) == 0);
}

void RunningCommand::read_some(int wait_ms) {
  pollfd ends[2] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}};  // a negative one is left out
  ::poll(ends, 2, wait_ms);
  for (auto [end, text] : {std::pair{&out_, &result_.out}, {&err_, &result_.err}}) {
    char buffer[4096];
    while (*end >= 0) {
      const ssize_t bytes = ::read(*end, buffer, sizeof buffer);
      if (bytes > 0) {
        text->append(buffer, static_cast<std::size_t>(bytes));
        continue;
      }
      if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) break;
      ::close(*end);
      *end = -1;
    }
  }
}

bool RunningCommand::running() {
  read_some(0);
  if (status_) return false;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) == pid_) status_ = status;
  return !status_;
}

CommandResult RunningCommand::wait() {
  while (running()) {
    if (out_ >= 0 || err_ >= 0)
      read_some(20);
    else
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    if (now_s() < deadline_) continue;
    result_.timed_out = true;
    ::kill(-pid_, SIGKILL);
    int status = 0;
    ::waitpid(pid_, &status, 0);
    status_ = status;
  }
  // A process that outlives the command may hold the pipe: do not wait for it.
  for (const double enough = now_s() + 2; (out_ >= 0 || err_ >= 0) && now_s() < enough;) read_some(20);
  result_.code = WIFEXITED(*status_) ? WEXITSTATUS(*status_) : 128 + WTERMSIG(*status_);
  return result_;
}

CommandResult run_command(const Words& words, const CommandOptions& options) {
  RunningCommand command(words, options);
  return command.wait();
}

Words tessera(const Words& arguments) {
  return Words{TESSERA_BINARY} + arguments;
}

Words mpirun() {
  return {"mpirun", "--oversubscribe",     "--bind-to", "none",  "--allow-run-as-root",
          "--mca",  "mpi_yield_when_idle", "1",         "--mca", "btl_vader_single_copy_mechanism",
          "none"};
}

Words tessera_on(int ranks, const Words& arguments) {
  return mpirun() + Words{"-np", std::to_string(ranks)} + tessera(arguments);
}

std::vector<pid_t> processes_with(const std::string& text) {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto pid = static_cast<pid_t>(std::atol(name.c_str()));
    std::ifstream file(entry.path() / "cmdline", std::ios::binary);  // empty for a zombie
    std::string line{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (pid != ::getpid() && line.find(text) != std::string::npos) found.push_back(pid);
  }
  return found;
}

bool all_gone(const std::string& text, double limit_s) {
  for (const double end = now_s() + limit_s; now_s() < end;) {
    if (processes_with(text).empty()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return false;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back(line);
  }
  return lines;
}

Words operator+(Words left, const Words& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

}  // namespace tessera::test
