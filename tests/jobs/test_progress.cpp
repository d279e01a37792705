#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "jobs/log.hpp"
#include "jobs/progress.hpp"
#include "runtime/core/error.hpp"

using namespace tessera;

namespace {

struct FakeOutput {
  std::ostringstream stream;
  double now = 100;
  ProgressOutput output(bool terminal) {
    return {&stream, terminal, [this] { return now; }};
  }
};

std::size_t lines_of(const std::string& text) {
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

TEST_CASE("progress away from a terminal: one line a minute and the last") {
  FakeOutput fake;
  {
    Progress progress("ruler_niah", "samples", 1000, 0, fake.output(false));
    CHECK(fake.stream.str().empty());
    for (int second = 1; second <= 600; ++second) {
      fake.now = 100 + second;
      progress.update(second);
    }
    CHECK(lines_of(fake.stream.str()) == 10);
    CHECK(fake.stream.str().rfind("ruler_niah: 60/1000 samples, 1 samples/s, 15 min 40 s left\n", 0) == 0);
    CHECK(fake.stream.str().find('\r') == std::string::npos);
    progress.update(1000, "score 0.5");
    progress.finish();
    progress.finish();
    progress.update(1000);
  }
  CHECK(lines_of(fake.stream.str()) == 11);
  CHECK(fake.stream.str().ends_with(
      "ruler_niah: 1000/1000 samples, 1.67 samples/s, took 10 min 00 s, score 0.5\n"));
}

TEST_CASE("progress on a terminal: one line, rewritten at most five times a second") {
  FakeOutput fake;
  Progress progress("t", "samples", 10, 0, fake.output(true));
  CHECK(fake.stream.str() == "\rt: 0/10 samples\x1b[K");
  fake.now += 0.1;
  progress.update(1);
  CHECK(fake.stream.str() == "\rt: 0/10 samples\x1b[K");
  fake.now += 0.4;
  progress.update(2);
  CHECK(fake.stream.str() == "\rt: 0/10 samples\x1b[K\rt: 2/10 samples, 4 samples/s, 2 s left\x1b[K");
  fake.stream.str("");
  progress.print("a message");
  CHECK(fake.stream.str() == "\r\x1b[Ka message\n\rt: 2/10 samples, 4 samples/s, 2 s left\x1b[K");
  fake.stream.str("");
  progress.finish();
  CHECK(fake.stream.str() == "\rt: 2/10 samples, 4 samples/s, 2 s left\x1b[K\n");
}

TEST_CASE("progress after a resume: the rate is today's") {
  FakeOutput fake;
  Progress progress("t", "samples", 100, 90, fake.output(false));
  CHECK(progress.text() == "t: 90/100 samples");
  fake.now += 120;
  progress.update(92);
  CHECK(progress.text() == "t: 92/100 samples, 1 samples/min, 8 min 00 s left");
}

TEST_CASE("progress that is dropped leaves the cursor on a new line") {
  FakeOutput fake;
  { Progress progress("t", "samples", 100, 0, fake.output(true)); }
  CHECK(fake.stream.str().ends_with("\n"));
}

TEST_CASE("log: rank 0 warns, other ranks only say errors, with their place") {
  std::ostringstream zero, third;
  Log first(0, "node1", "", zero);
  first.info("loaded {} tensors", 3);
  first.warn("journal: {} lines dropped", 1);
  first.error("bad: {}");
  CHECK(zero.str() == "tessera: warning: journal: 1 lines dropped\ntessera: error: bad: {}\n");
  Log other(3, "node%v", "", third);
  other.warn("quiet");
  other.error("out of memory");
  CHECK(third.str() == "tessera: rank 3 on node%v: error: out of memory\n");
}

TEST_CASE("log: one file a rank, appended to") {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("tessera_log_" + std::to_string(::getpid())) / "deeper";
  std::ostringstream errors;
  for (int attempt = 0; attempt < 2; ++attempt) {
    Log log(2, "node1", folder.string(), errors);
    log.info("attempt {}", attempt);
    CHECK(contents(folder / "tessera.2.log").find("attempt " + std::to_string(attempt)) != std::string::npos);
  }
  const std::string text = contents(folder / "tessera.2.log");
  CHECK(lines_of(text) == 2);
  CHECK(text.find("rank 2 node1 info: attempt 0\n") != std::string::npos);
  CHECK(errors.str().empty());
  std::filesystem::remove_all(folder.parent_path());
}

TEST_CASE("log: a folder that cannot be made is a resource error that names it") {
  std::ostringstream errors;
  try {
    Log log(0, "node1", "/proc/none/logs", errors);
    FAIL("accepted");
  } catch (const ResourceError& e) {
    CHECK(std::string(e.what()).find("/proc/none/logs") != std::string::npos);
  }
}
