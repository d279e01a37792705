// The HDF5 trace: what is derived from a journal reads back value by value, at irregular and empty sizes;
// failing writes leave the older trace; commands.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/trace_check.hpp"
#include "io/trace_reader.hpp"
#include "io/trace_writer.hpp"
#include "jobs/trace_command.hpp"
#include "runtime/core/error.hpp"
#include "tests/command_text.hpp"
#include "tests/io/trace_samples.hpp"

using namespace tessera;
using namespace tessera::test;

namespace {

// The trace at `path` holds exactly this run, samples by (point, sample).
void check_holds(const std::string& path, RandomRun run) {
  const TraceTables tables = read_trace(path);
  const LoadSample load = trace_loader(tables, path);
  std::sort(run.samples.begin(), run.samples.end(), [](const auto& a, const auto& b) {
    return std::pair(a.point, a.sample) < std::pair(b.point, b.sample);
  });
  REQUIRE(tables.samples.size() == run.samples.size());
  REQUIRE(tables.points.size() == run.points.size());
  for (std::size_t i = 0; i < run.points.size(); ++i) {
    check_same_columns(tables.points[i], run.points[i]);
    CHECK(tables.points[i].dims == run.points[i].dims);
    CHECK(tables.points[i].op_method == run.points[i].op_method);
  }
  for (std::size_t i = 0; i < run.samples.size(); ++i) {
    check_same_columns(tables.samples[i], run.samples[i]);
    check_same_arrays(load(i), run.samples[i], /*memory=*/false);
  }
}

}  // namespace

TEST_CASE("a trace holds every column and array of its journal") {
  for (const int samples : {1, 3, 17}) {
    const TemporaryFolder folder;
    const std::string path = folder.file("run.h5");
    const RandomRun run = write_random_run(path, static_cast<std::uint64_t>(samples), samples);
    const JournalContents journal = read_journal(path + ".journal");
    write_trace(journal, path);
    CHECK(folder.names() == std::vector<std::string>{"run.h5", "run.h5.journal"});
    check_holds(path, run);
    const TraceTables tables = read_trace(path);
    CHECK(tables.complete);
    CHECK(tables.run_id == journal.run_id);
    REQUIRE(tables.attempts.size() == 5);
    for (std::size_t i = 0; i < 5; ++i) check_same_columns(tables.attempts[i], journal.attempts[i]);
    CHECK(check_against_journal(tables, journal, path) == 0);
    CHECK(contains(printed([&](std::FILE* out) { return run_trace_check(path, out); }), "agrees"));
  }
}

TEST_CASE("memory of a rank is the largest over its samples") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  const RandomRun run = write_random_run(path, 5, 6);
  write_trace(read_journal(path + ".journal"), path);
  const TraceTables tables = read_trace(path);
  const LoadSample load = trace_loader(tables, path);
  std::uint64_t largest = 0;
  for (const auto& sample : run.samples) {
    if (sample.point != 1 || sample.attempt != 1) continue;
    for (const auto& rank : sample.ranks) {
      if (rank.world_rank == 0) largest = std::max(largest, rank.kv);
    }
  }
  for (std::size_t i = 0; i < tables.samples.size(); ++i) {
    if (tables.samples[i].point != 1 || tables.samples[i].attempt != 1) continue;
    CHECK(load(i).ranks.at(0).kv == largest);
  }
}

TEST_CASE("empty runs give valid traces") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  CounterRng rng(1, 1);
  for (int stage = 0; stage < 4; ++stage) {
    {
      JournalWriter writer(path, simple_key(), "{}");
      if (stage == 1) writer.append_attempt(random_attempt(rng, 2));
      if (stage == 2) writer.add_point(random_point(rng, {4, 2, 1}));
      if (stage == 3) writer.add_point(random_point(rng, {0, 0, 0}));
    }
    write_trace(read_journal(path + ".journal"), path);
    const TraceTables tables = read_trace(path);
    CHECK(tables.samples.empty());
    CHECK(tables.points.size() == static_cast<std::size_t>(std::max(0, stage - 1)));
    CHECK(tables.attempts.size() == (stage >= 1 ? 2 : 0));
    printed([&](std::FILE* out) { return run_trace_check(path, out); });
  }
  // A sample without any measurement, and one of a model without layers.
  {
    JournalWriter writer(path, simple_key(), "{}");
    writer.append_attempt(random_attempt(rng, 1));
    for (int point = 0; point < 2; ++point) {
      SampleRecord sample;
      sample.point = point;
      writer.append_sample(sample);
    }
  }
  write_trace(read_journal(path + ".journal"), path);
  CHECK(read_trace(path).samples.size() == 2);
  printed([&](std::FILE* out) { return run_trace_check(path, out); });
}

// HDF5 stores the time of the root group whatever it is told: 16 bytes and a checksum near the file's start.
bool same_but_for_root_times(const std::string& a, const std::string& b) {
  constexpr std::size_t kRootHeaderEnd = 512;
  return a.size() == b.size() && a.size() > kRootHeaderEnd &&
         a.substr(kRootHeaderEnd) == b.substr(kRootHeaderEnd);
}

TEST_CASE("rebuilding gives the same bytes") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_random_run(path, 8, 4);
  write_trace(read_journal(path + ".journal"), path);
  const std::string original = read_file(path);
  ::usleep(1'100'000);  // times of objects, if any were stored, have a resolution of a second
  std::filesystem::remove(path);
  printed([&](std::FILE* out) { return run_trace_rebuild(path, out); });
  CHECK(same_but_for_root_times(read_file(path), original));
  std::filesystem::remove(path);
  printed([&](std::FILE* out) { return run_trace_rebuild(path + ".journal", out); });
  CHECK(same_but_for_root_times(read_file(path), original));
}

TEST_CASE("a process that dies before the rename leaves the older trace, and the next one cleans up") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_random_run(path, 8, 2);
  const JournalContents journal = read_journal(path + ".journal");
  write_trace(journal, path);
  const std::string original = read_file(path);
  const pid_t child = ::fork();
  if (child == 0) {
    TraceTables none;
    write_trace(none, {}, path, [] { ::_exit(7); });
    ::_exit(8);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WEXITSTATUS(status) == 7);
  CHECK((read_file(path) == original));
  CHECK(folder.names().size() == 3);  // the private file is left
  write_trace(journal, path);
  CHECK(same_but_for_root_times(read_file(path), original));
  CHECK(folder.names().size() == 2);
}

TEST_CASE("a write that fails leaves the older trace and no file beside it") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_random_run(path, 8, 3);
  const JournalContents journal = read_journal(path + ".journal");
  write_trace(journal, path);
  const std::string original = read_file(path);

  SUBCASE("file size limit") {
    ::signal(SIGXFSZ, SIG_IGN);
    rlimit before{};
    ::getrlimit(RLIMIT_FSIZE, &before);
    for (const std::size_t limit :
         {std::size_t{0}, std::size_t{1}, original.size() / 2, original.size() - 1}) {
      const rlimit small{limit, before.rlim_max};
      ::setrlimit(RLIMIT_FSIZE, &small);
      const std::string message = message_of([&] { write_trace(journal, path); }, ExitCode::kResource);
      ::setrlimit(RLIMIT_FSIZE, &before);
      CHECK(contains(message, path));
      CHECK((read_file(path) == original));
      CHECK(folder.names().size() == 2);
    }
    ::signal(SIGXFSZ, SIG_DFL);
  }
  SUBCASE("full disk") {
    const std::string small = folder.file("small");
    ::mkdir(small.c_str(), 0755);
    if (::mount("none", small.c_str(), "tmpfs", 0, "size=64k") != 0) {
      MESSAGE("SKIPPED: mounting a small tmpfs is not allowed here");
      return;
    }
    const std::string full = small + "/run.h5";
    write_file(small + "/filler", std::string(40000, 'x'));
    write_file(full, "older");
    CHECK(contains(message_of([&] { write_trace(journal, full); }, ExitCode::kResource), "No space left"));
    CHECK(read_file(full) == "older");
    const auto entries = std::distance(std::filesystem::directory_iterator(small), {});
    CHECK(entries == 2);  // filler and the older trace
    ::umount(small.c_str());
  }
  SUBCASE("no such folder") {
    message_of([&] { write_trace(journal, folder.file("absent/run.h5")); }, ExitCode::kResource);
  }
}

TEST_CASE("trace check names what is wrong") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_random_run(path, 9, 2);
  const JournalContents journal = read_journal(path + ".journal");
  const LoadSample load = journal_loader(journal);
  const auto check = [&] {
    return message_of([&] { printed([&](std::FILE* out) { return run_trace_check(path, out); }); },
                      ExitCode::kInput);
  };
  SUBCASE("visible above causal") {
    write_trace(
        journal,
        [&](std::size_t i) {
          SampleRecord sample = load(i);
          sample.pairs_visible[1] = sample.pairs_causal[1] + 1;
          return sample;
        },
        path);
    CHECK(contains(check(), "pairs_visible: entry 1"));
  }
  SUBCASE("sparsity out of range") {
    TraceTables tables = journal;
    tables.samples[0].decode_sparsity = 1.5;
    write_trace(tables, load, path);
    const std::string message = message_of(
        [&] { printed([&](std::FILE* out) { return run_trace_check(path, out); }); }, ExitCode::kInput);
    CHECK(contains(message, "decode_sparsity: 1.5"));
  }
  SUBCASE("another run") {
    TraceTables tables = journal;
    tables.run_id = "00";
    write_trace(tables, load, path);
    CHECK(contains(check(), "@run_id: found 00"));
  }
  SUBCASE("truncated or not a trace") {
    write_trace(journal, path);
    const std::string bytes = read_file(path);
    write_file(path, bytes.substr(0, bytes.size() / 2));
    CHECK(contains(check(), path));
    write_file(path, "hello");
    CHECK(contains(check(), "not a Tessera journal"));
    write_file(path, "");
    printed([&](std::FILE* out) { return run_trace_rebuild(path, out); });
    printed([&](std::FILE* out) { return run_trace_check(path, out); });
  }
  SUBCASE("behind its journal") {
    write_trace(journal, path);
    {
      CounterRng rng(3, 3);
      JournalWriter writer(path, simple_key(), "{}");
      writer.append_attempt(random_attempt(rng, 1));
      writer.append_sample(random_sample(rng, 0, 77777, {3, 6, 2}, 1));
    }
    const std::string text = printed([&](std::FILE* out) { return run_trace_check(path, out); });
    CHECK(contains(text, "1 samples more"));
  }
}

TEST_CASE("a damaged trace is refused or read, never more") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_random_run(path, 10, 2);
  write_trace(read_journal(path + ".journal"), path);
  std::filesystem::remove(path + ".journal");
  const std::string bytes = read_file(path);
  CounterRng rng(4, 4);
  // Each in a process of its own: HDF5 1.10 does not check every piece of metadata, and can itself crash on
  // it.
  int refused = 0, crashed = 0;
  for (int round = 0; round < 60; ++round) {
    std::string damaged = bytes;
    for (std::uint64_t n = 1 + rng.below(4); n > 0; --n) {
      damaged[rng.below(damaged.size())] ^= static_cast<char>(1 + rng.below(255));
    }
    write_file(path, damaged);
    const pid_t child = ::fork();
    if (child == 0) {
      ::signal(SIGSEGV, SIG_DFL);
      ::signal(SIGABRT, SIG_DFL);
      int code = 0;
      std::FILE* nowhere = std::fopen("/dev/null", "w");
      try {
        run_trace_check(path, nowhere);
      } catch (const InputError&) {
        code = 3;
      } catch (...) {
        code = 1;
      }
      ::_exit(code);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    crashed += WIFSIGNALED(status);
    refused += WIFEXITED(status) && WEXITSTATUS(status) == 3;
    CHECK((WIFSIGNALED(status) || WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3));
  }
  if (crashed > 0) MESSAGE("HDF5 crashed on " << crashed << " of 60 damaged files");
  CHECK(crashed <= 6);
  CHECK(refused > 10);
}

TEST_CASE("tables are exported") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  const RandomRun run = write_random_run(path, 11, 3);
  write_trace(read_journal(path + ".journal"), path);
  const std::string lines = printed([&](std::FILE* out) {
    return run_trace_export({path, "samples", "jsonl"}, out);
  });
  std::istringstream stream(lines);
  std::string line;
  std::size_t rows = 0;
  const TraceTables tables = read_trace(path);
  while (std::getline(stream, line)) {
    const auto row = nlohmann::json::parse(line);
    CHECK(row.at("prediction") == tables.samples[rows].prediction);
    CHECK(row.at("score").is_null() == std::isnan(tables.samples[rows].score));
    ++rows;
  }
  CHECK(rows == run.samples.size());
  const std::string csv = printed([&](std::FILE* out) {
    return run_trace_export({path, "points", "csv"}, out);
  });
  CHECK(csv.rfind("point,model,family,", 0) == 0);
  CHECK(contains(printed([&](std::FILE* out) {
                   return run_trace_export({path + ".journal", "attempts", "csv"}, out);
                 }),
                 "attempt,world_rank,host"));
  message_of([&] { run_trace_export({path, "rows", "csv"}, stdout); }, ExitCode::kUsage);
  message_of([&] { run_trace_export({path, "samples", "xml"}, stdout); }, ExitCode::kUsage);
}

TEST_CASE("traces and journals merge into one trace of many points") {
  const TemporaryFolder folder;
  const std::string a = folder.file("a.h5"), b = folder.file("b.h5"), merged = folder.file("all.h5");
  RandomRun all = write_random_run(a, 12, 3);
  const RandomRun second = write_random_run(b, 13, 2);
  write_trace(read_journal(a + ".journal"), a);
  printed([&](std::FILE* out) { return run_trace_merge(merged, {a, b + ".journal"}, out); });
  all.points.insert(all.points.end(), second.points.begin(), second.points.end());
  for (SampleRecord sample : second.samples) {
    sample.point += 2;
    sample.attempt += 2;
    all.samples.push_back(sample);
  }
  check_holds(merged, all);
  printed([&](std::FILE* out) { return run_trace_check(merged, out); });
  message_of([&] { run_trace_merge(a, {a, b}, stdout); }, ExitCode::kUsage);
}

TEST_CASE("h5py, and xarray where installed, open a trace and find the exported values") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5"), expected = folder.file("expected.jsonl"),
                    printed_to = folder.file("printed");
  const std::string script =
      (std::filesystem::path(TESSERA_FIXTURES).parent_path() / "io/check_trace.py").string();
  const char* chosen = std::getenv("TESSERA_PYTHON");
  const std::string python = chosen != nullptr ? chosen : "python3";
  const auto check = [&](const std::string& arguments) {
    const int status =
        std::system((python + " " + script + " " + arguments + " > " + printed_to + " 2>&1").c_str());
    const std::string output = read_file(printed_to);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (code == 77 || code == 127) {
      MESSAGE("SKIPPED: " << output);
      return;
    }
    INFO(output);
    CHECK(code == 0);
  };
  write_random_run(path, 14, 4);
  write_trace(read_journal(path + ".journal"), path);
  write_file(expected, printed([&](std::FILE* out) {
               return run_trace_export({path, "samples", "jsonl"}, out);
             }));
  check(path + " " + expected);
  const std::string empty = folder.file("empty.h5");
  write_trace(TraceTables(), {}, empty);
  check(empty);
}
