#include "jobs/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iostream>

#include "jobs/summary.hpp"

namespace tessera {
namespace {

constexpr double kTerminalPeriod = 0.2;  // seconds
constexpr double kLogPeriod = 60;

}  // namespace

ProgressOutput standard_error_progress() {
  const auto start = std::chrono::steady_clock::now();
  return {&std::cerr, isatty(STDERR_FILENO) == 1, [start] {
            return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
          }};
}

Progress::Progress(std::string label, std::string unit, std::int64_t total, std::int64_t done_before,
                   ProgressOutput output)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      done_before_(done_before),
      done_(done_before),
      output_(std::move(output)),
      start_(output_.seconds()),
      written_(start_) {
  if (output_.terminal) write();
}

Progress::~Progress() {
  if (on_line_) *output_.stream << std::endl;
}

std::string Progress::text() const {
  std::string text = fmt::format("{}: {}/{} {}", label_, done_, total_, unit_);
  const double elapsed = output_.seconds() - start_;
  const auto fresh = static_cast<double>(done_ - done_before_);
  if (fresh > 0 && elapsed > 0) {
    const double rate = fresh / elapsed;
    text += rate >= 0.1 ? fmt::format(", {:.3g} {}/s", rate, unit_)
                        : fmt::format(", {:.3g} {}/min", rate * 60, unit_);
    if (done_ < total_) {
      text += ", " + duration_text(static_cast<double>(total_ - done_) / rate) + " left";
    } else {
      text += ", took " + duration_text(elapsed);
    }
  }
  if (!note_.empty()) text += ", " + note_;
  return text;
}

void Progress::write() {
  written_ = output_.seconds();
  if (output_.terminal) {
    *output_.stream << '\r' << text() << "\x1b[K" << std::flush;  // to the start, and clear what is behind
    on_line_ = true;
  } else {
    *output_.stream << text() << std::endl;
  }
}

void Progress::update(std::int64_t done, const std::string& note) {
  if (finished_) return;
  done_ = done;
  note_ = note;
  if (output_.seconds() - written_ >= (output_.terminal ? kTerminalPeriod : kLogPeriod)) write();
}

void Progress::print(const std::string& line) {
  if (on_line_) *output_.stream << "\r\x1b[K";
  *output_.stream << line << std::endl;
  on_line_ = false;
  if (output_.terminal && !finished_) write();
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  write();
  if (on_line_) *output_.stream << std::endl;
  on_line_ = false;
}

}  // namespace tessera
