#include "jobs/log.hpp"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/ostream_sink.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <iostream>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

std::string opened_path(int rank, const std::string& log_dir) {
  std::error_code problem;
  std::filesystem::create_directories(log_dir, problem);
  if (problem) throw_write_error(log_dir, "making the folder of --log-dir", problem.value());
  const std::string path = (std::filesystem::path(log_dir) / fmt::format("tessera.{}.log", rank)).string();
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0) throw_write_error(path, "opening", errno);
  ::close(file);
  return path;
}

}  // namespace

struct Log::Parts {
  std::unique_ptr<spdlog::logger> console;
  std::unique_ptr<spdlog::logger> file;
};

Log::Log(int rank, std::string host, const std::string& log_dir)
    : Log(rank, std::move(host), log_dir, std::cerr) {}

Log::Log(int rank, std::string host, const std::string& log_dir, std::ostream& errors)
    : parts_(std::make_unique<Parts>()) {
  auto console = std::make_shared<spdlog::sinks::ostream_sink_mt>(errors, true);
  parts_->console = std::make_unique<spdlog::logger>("console", console);
  // %l: the level. A host's name is data, not a pattern.
  std::string escaped;
  for (char c : host) escaped += c == '%' ? "%%" : std::string(1, c);
  parts_->console->set_pattern(rank == 0 ? "tessera: %l: %v"
                                         : fmt::format("tessera: rank {} on {}: %l: %v", rank, escaped));
  parts_->console->set_level(rank == 0 ? spdlog::level::warn : spdlog::level::err);
  if (log_dir.empty()) return;
  const std::string path = opened_path(rank, log_dir);
  try {
    auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
    parts_->file = std::make_unique<spdlog::logger>("file", file);
  } catch (const spdlog::spdlog_ex& e) {
    throw ResourceError("{}: cannot be written: {}", path, e.what());
  }
  parts_->file->set_pattern(fmt::format("%Y-%m-%dT%H:%M:%S.%e%z rank {} {} %l: %v", rank, escaped));
  parts_->file->flush_on(spdlog::level::info);  // what came before a crash is there
}

Log::~Log() = default;
Log::Log(Log&&) noexcept = default;
Log& Log::operator=(Log&&) noexcept = default;

void Log::write(Level level, std::string_view message) {
  const auto spd_level = level == Level::kInfo      ? spdlog::level::info
                         : level == Level::kWarning ? spdlog::level::warn
                                                    : spdlog::level::err;
  const spdlog::string_view_t text(message.data(), message.size());
  parts_->console->log(spd_level, text);
  if (parts_->file) parts_->file->log(spd_level, text);
}

}  // namespace tessera
