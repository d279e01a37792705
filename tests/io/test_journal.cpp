// The journal: nothing acknowledged is ever lost, whatever byte a crash stops at; one writer; one key; and
// any damage is an InputError that names the line.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "io/journal_line.hpp"
#include "io/packing.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/host.hpp"
#include "tests/io/trace_samples.hpp"

using namespace tessera;
using namespace tessera::test;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

template <typename ErrorType, typename Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const ErrorType& error) {
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  FAIL("no error of this kind was thrown");
  return "";
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    lines.push_back(text.substr(at, end - at + 1));
    at = end + 1;
  }
  return lines;
}
std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const auto& line : lines) text += line;
  return text;
}

// A journal of `samples` small samples of one point; its key is simple_key().
void write_small_journal(const std::string& trace_path, int samples) {
  CounterRng rng(7, 7);
  JournalWriter writer(trace_path, simple_key(), "{}");
  writer.add_point(random_point(rng, {1, 1, 1}));
  writer.append_attempt(random_attempt(rng, 1));
  for (int i = 0; i < samples; ++i) {
    SampleRecord sample;
    sample.sample = i;
    sample.prediction = "answer " + std::to_string(i);
    writer.append_sample(sample);
  }
}

}  // namespace

TEST_CASE("packed arrays round trip and refuse other sizes") {
  CounterRng rng(2, 2);
  for (const std::size_t count : {0, 1, 2, 3, 7, 1000}) {
    std::vector<std::uint64_t> values(count);
    for (auto& value : values) value = rng.next() >> rng.below(64);
    const std::string text = pack_array(values);
    std::vector<std::uint64_t> found(count, 0xdeadbeef);
    CHECK(unpack_bytes(text, found.data(), count * 8));
    CHECK(found == values);
    std::vector<std::uint64_t> other(count + 1);
    CHECK_FALSE(unpack_bytes(text, other.data(), (count + 1) * 8));
    if (count > 0) CHECK_FALSE(unpack_bytes(text, other.data(), (count - 1) * 8));
    if (count > 0) CHECK_FALSE(unpack_bytes("!" + text.substr(1), other.data(), count * 8));
    if (count > 0) CHECK_FALSE(unpack_bytes(text + "AAAA", other.data(), count * 8));
  }
}

TEST_CASE("every column and array comes back from the journal") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  const RandomRun run = write_random_run(path, 21, 5);
  const JournalContents journal = read_journal(path + ".journal");
  const LoadSample load = journal_loader(journal);
  CHECK(journal.key.hash() == simple_key().hash());
  CHECK(journal.configuration == "{\"x\":1}");
  CHECK(journal.complete);
  CHECK(journal.run_id.size() == 32);
  CHECK(journal.attempts.size() == 5);
  REQUIRE(journal.points.size() == run.points.size());
  for (std::size_t i = 0; i < run.points.size(); ++i) check_same_columns(journal.points[i], run.points[i]);
  REQUIRE(journal.samples.size() == run.samples.size());
  for (std::size_t i = 0; i < run.samples.size(); ++i) {
    check_same_columns(journal.samples[i], run.samples[i]);
    check_same_arrays(load(i), run.samples[i], /*memory=*/true);
  }
}

TEST_CASE("what the writer holds is what a reader finds, also for text that is not UTF-8") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  JournalWriter writer(path, simple_key(), "{}");
  CounterRng rng(1, 2);
  writer.add_point(random_point(rng, {1, 1, 1}));
  writer.append_attempt(random_attempt(rng, 1));
  SampleRecord sample;
  sample.prediction = std::string("a\xff\xc3(\0z", 6);
  sample.score = HUGE_VAL;
  writer.append_sample(sample);
  const JournalContents journal = read_journal(path + ".journal");
  check_same_columns(journal.samples.at(0), writer.contents().samples.at(0));
  CHECK(contains(journal.samples[0].prediction, "\uFFFD"));
  CHECK(std::isnan(journal.samples[0].score));
}

TEST_CASE("a journal cut at any byte keeps every whole line, and goes on") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_small_journal(path, 3);
  const std::string whole = read_file(path + ".journal");
  const auto lines = lines_of(whole);
  REQUIRE(lines.size() == 6);  // run, point, attempt, three samples
  int reopened = 0;
  for (std::size_t cut = 0; cut < whole.size(); ++cut) {
    std::size_t expected = 0, end = 0;  // samples whose line is whole
    for (std::size_t i = 0; i < lines.size(); ++i) {
      end += lines[i].size();
      if (i >= 3 && end <= cut) ++expected;
    }
    write_file(path + ".journal", whole.substr(0, cut));
    const JournalContents journal = read_journal(path + ".journal");
    REQUIRE(journal.samples.size() == expected);
    for (std::size_t i = 0; i < expected; ++i) {
      REQUIRE(journal.samples[i].prediction == "answer " + std::to_string(i));
    }
    // Reopening syncs the disk, so only every few bytes and around the ends of lines.
    const bool near_an_end = journal.good_bytes == static_cast<std::int64_t>(cut) || whole[cut] == '\n';
    if (cut % 97 != 0 && !near_an_end) continue;
    ++reopened;
    std::string notice;
    JournalWriter::Options options;
    options.notice = [&](const std::string& text) { notice = text; };
    {
      JournalWriter writer(path, simple_key(), "{}", options);
      CHECK(writer.resumed() == (cut >= lines[0].size()));
      CHECK(notice.empty() == !journal.torn_tail);
      CHECK(writer.is_done(0, 0) == (expected > 0));
      CounterRng rng(7, 7);
      writer.add_point(random_point(rng, {1, 1, 1}));
      writer.append_attempt(random_attempt(rng, 1));
      SampleRecord sample;
      sample.sample = 100;
      writer.append_sample(sample);
    }
    const JournalContents after = read_journal(path + ".journal");
    CHECK_FALSE(after.torn_tail);
    CHECK(after.points.size() == 1);
    REQUIRE(after.samples.size() == expected + 1);
    CHECK(after.samples.back().sample == 100);
  }
  CHECK(reopened > 15);
}

TEST_CASE("a torn line in the middle is refused by line") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_small_journal(path, 3);
  const auto lines = lines_of(read_file(path + ".journal"));
  const auto refused = [&](const std::vector<std::string>& changed) {
    write_file(path + ".journal", joined(changed));
    return message_of<InputError>([&] { read_journal(path + ".journal"); });
  };
  for (std::size_t i = 1; i + 1 < lines.size(); ++i) {
    auto changed = lines;
    changed[i][changed[i].size() / 2] ^= 1;
    CHECK(contains(refused(changed), path + ".journal: line " + std::to_string(i + 1) + ": damaged"));
    changed = lines;
    changed.erase(changed.begin() + static_cast<std::ptrdiff_t>(i));
    CHECK(contains(refused(changed), "line " + std::to_string(i + 1) + ": seq: found"));
  }
  auto swapped = lines;
  std::swap(swapped[3], swapped[4]);
  CHECK(contains(refused(swapped), "line 4: seq"));
  // A damaged last line is a torn one.
  auto last = lines;
  last.back()[20] ^= 1;
  write_file(path + ".journal", joined(last));
  CHECK(read_journal(path + ".journal").torn_tail);
  CHECK(read_journal(path + ".journal").samples.size() == 2);
}

TEST_CASE("files that are no journal are refused, never truncated") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  for (const std::string& text :
       {std::string("hello\n"), std::string("{\"seq\":1"), std::string("{}"), std::string(100, '\0')}) {
    write_file(path + ".journal", text);
    CHECK(contains(message_of<InputError>([&] { JournalWriter(path, simple_key(), "{}"); }),
                   "not a Tessera journal"));
    CHECK((read_file(path + ".journal") == text));
  }
  message_of<InputError>([&] { read_journal(folder.file("absent")); });
  message_of<InputError>([&] { read_journal(folder.file("")); });
  message_of<ResourceError>([&] { JournalWriter(folder.file("absent/run.h5"), simple_key(), "{}"); });
}

TEST_CASE("another key is refused, each field that differs named with both values") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_small_journal(path, 2);
  RunKey key = simple_key();
  key.set("length", "1024");
  key.set("rope", "auto");
  const std::string message = message_of<UsageError>([&] { JournalWriter(path, key, "{}"); });
  CHECK(contains(message, "length: 512 there, 1024 here"));
  CHECK(contains(message, "rope: (none) there, auto here"));
  CHECK_FALSE(contains(message, "task:"));
  CHECK(contains(message, "--fresh"));
  CHECK(read_journal(path + ".journal").samples.size() == 2);
  JournalWriter::Options options;
  options.fresh = true;
  CHECK_FALSE(JournalWriter(path, key, "{}", options).resumed());
  CHECK(read_journal(path + ".journal").samples.empty());
}

TEST_CASE("the key's hash depends on names and values, not on their order") {
  RunKey a, b, c;
  a.set("x", "1");
  a.set("y", "2");
  b.set("y", "2");
  b.set("x", "0");
  CHECK(a.hash() != b.hash());
  b.set("x", "1");
  CHECK(a.hash() == b.hash());
  CHECK(a.hash().size() == 16);
  c.set("x", "1;1:y=1:2");
  CHECK(a.hash() != c.hash());
}

TEST_CASE("a second writer is refused and told who writes") {
  for (const LockMethod method : {LockMethod::kAuto, LockMethod::kLease}) {
    const TemporaryFolder folder;
    const std::string path = folder.file("run.h5");
    JournalWriter::Options options;
    options.lock = method;
    int ready[2], leave[2];
    REQUIRE(::pipe(ready) == 0);
    REQUIRE(::pipe(leave) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
      char byte = 'x';
      JournalWriter writer(path, simple_key(), "{}", options);
      if (::write(ready[1], &byte, 1) != 1) ::_exit(1);
      ::close(leave[1]);
      if (::read(leave[0], &byte, 1) < 0) ::_exit(1);
      ::_exit(0);  // as a crash: nothing is unlocked by hand
    }
    char byte = 0;
    REQUIRE(::read(ready[0], &byte, 1) == 1);
    const std::string message =
        message_of<UsageError>([&] { JournalWriter(path, simple_key(), "{}", options); });
    CHECK(contains(message, "process " + std::to_string(child) + " on " + host_name()));
    // --fresh must not get past the lock either.
    options.fresh = true;
    message_of<UsageError>([&] { JournalWriter(path, simple_key(), "{}", options); });
    options.fresh = false;
    ::close(leave[0]);
    ::close(leave[1]);
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    CHECK(JournalWriter(path, simple_key(), "{}", options).resumed());
    ::close(ready[0]);
    ::close(ready[1]);
  }
}

TEST_CASE("a lease is renewed, ends with its owner, and goes stale") {
  const TemporaryFolder folder;
  const std::string path = folder.file("x");
  const LeaseTimes quick{0.05, 1.0};
  std::string holder;
  {
    const auto lock = FileLock::try_acquire(-1, path, LockMethod::kLease, &holder, quick);
    REQUIRE(lock);
    const std::string first = read_file(path + ".lease");
    ::usleep(400'000);
    CHECK((read_file(path + ".lease") != first));
    CHECK(lock->held());
    // A renewal that is just being written replaces the other's lease once: it takes over as a real one
    // would, by insisting.
    for (int attempt = 0; attempt < 50 && lock->held(); ++attempt) {
      write_file(path + ".lease", "elsewhere 5 99999999999\n");
      ::usleep(100'000);
    }
    CHECK_FALSE(lock->held());
  }
  CHECK_FALSE(FileLock::try_acquire(-1, path, LockMethod::kLease, &holder, quick));
  CHECK(holder == "process 5 on elsewhere");
  write_file(path + ".lease", "elsewhere 5 1000\n");
  CHECK(FileLock::try_acquire(-1, path, LockMethod::kLease, &holder, quick));
  CHECK_FALSE(std::filesystem::exists(path + ".lease"));
}

TEST_CASE("a sample that is there already is not taken twice") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_small_journal(path, 1);
  {
    JournalWriter writer(path, simple_key(), "{}");
    SampleRecord sample;
    sample.prediction = "other";
    writer.append_sample(sample);
    CHECK(writer.contents().samples.size() == 1);
  }
  const JournalContents journal = read_journal(path + ".journal");
  REQUIRE(journal.samples.size() == 1);
  CHECK(journal.samples[0].prediction == "answer 0");
  CHECK(journal.duplicates == 1);
}

TEST_CASE("a failed append leaves the journal as it was, and the next one works") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_small_journal(path, 1);
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  JournalWriter writer(path, simple_key(), "{}");
  const std::string original = read_file(path + ".journal");
  SampleRecord sample;
  sample.sample = 1;
  sample.prediction = std::string(1000, 'p');
  const rlimit small{original.size() + 500, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  message_of<ResourceError>([&] { writer.append_sample(sample); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, SIG_DFL);
  CHECK((read_file(path + ".journal") == original));
  CHECK_FALSE(writer.is_done(0, 1));
  writer.append_sample(sample);
  CHECK(writer.is_done(0, 1));
  CHECK(read_journal(path + ".journal").samples.size() == 2);
}

TEST_CASE("bodies that hold what they must not are refused by line and field") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_small_journal(path, 2);
  const auto lines = lines_of(read_file(path + ".journal"));
  using nlohmann::json;
  const auto changed = [&](std::size_t line, auto change) {
    auto copy = lines;
    const auto parsed = parse_journal_line(std::string_view(lines[line]).substr(0, lines[line].size() - 1));
    REQUIRE(parsed);
    json body = json::parse(parsed->body);
    change(body);
    copy[line] = journal_line(parsed->seq, body.dump());
    write_file(path + ".journal", joined(copy));
    return message_of<InputError>([&] { read_journal(path + ".journal"); });
  };
  CHECK(contains(changed(0, [](json& b) { b["schema_version"] = 2; }), "line 1: schema_version: found 2"));
  CHECK(contains(changed(0, [](json& b) { b["key"]["model"] = 5; }), "key.model"));
  CHECK(contains(changed(0, [](json& b) { b["type"] = "sample"; }), "line 1: type"));
  CHECK(contains(changed(1, [](json& b) { b["dims"]["layers"] = 1000000000; }), "line 2: dims.layers"));
  CHECK(contains(changed(1,
                         [](json& b) {
                           b["dims"] = {{"layers", 8000}, {"heads", 8000}, {"kv_heads", 1}};
                         }),
                 "dims"));
  CHECK(contains(changed(1, [](json& b) { b["point"] = 1; }), "line 2: point: found 1"));
  CHECK(contains(changed(1, [](json& b) { b["type"] = "run"; }), "line 2: type"));
  CHECK(contains(changed(1, [](json& b) { b.erase("tp"); }), "line 2: tp: the field is missing"));
  CHECK(contains(changed(2, [](json& b) { b["ranks"][0]["world_rank"] = -1; }), "line 3: ranks"));
  CHECK(contains(changed(2, [](json& b) { b["ranks"] = 1; }), "line 3: ranks"));
  CHECK(contains(changed(3, [](json& b) { b["point"] = 7; }), "line 4: point: found 7"));
  CHECK(contains(changed(3, [](json& b) { b["attempt"] = -1; }), "line 4: attempt: found -1"));
  CHECK(contains(changed(3, [](json& b) { b["score"] = "high"; }), "line 4: score"));
  CHECK(contains(changed(3,
                         [](json& b) {
                           b["arrays"]["kv_read"] = {{"packed", "f8"}, {"count", 1}, {"data", ""}};
                         }),
                 "kv_read.packed"));
  CHECK(contains(changed(3,
                         [](json& b) {
                           b["arrays"]["kv_read"] = {{"packed", "u8"}, {"count", 9}, {"data", ""}};
                         }),
                 "kv_read.count: found 9"));
  CHECK(contains(changed(3,
                         [](json& b) {
                           b["arrays"]["kv_read"] = {{"packed", "u8"}, {"count", 1}, {"data", "AAAA"}};
                         }),
                 "kv_read.data"));
  CHECK(contains(changed(3,
                         [](json& b) {
                           b["ranks"] = {{{"world_rank", 3},
                                          {"arrays", json::object()},
                                          {"kv", 0},
                                          {"weights", 0},
                                          {"workspace", 0},
                                          {"host_rss", 0},
                                          {"device_peak", 0}}};
                         }),
                 "rank 3"));
  CHECK(contains(changed(4, [](json& b) { b["type"] = "dance"; }), "line 5: type: found \"dance\""));
}

TEST_CASE("random damage is an InputError or leaves a readable journal") {
  const TemporaryFolder folder;
  const std::string path = folder.file("run.h5");
  write_random_run(path, 31, 2);
  const std::string whole = read_file(path + ".journal");
  const auto lines = lines_of(whole);
  CounterRng rng(9, 9);
  int refused = 0;
  const auto try_reading = [&](const std::string& text) {
    write_file(path + ".journal", text);
    try {
      const JournalContents journal = read_journal(path + ".journal");
      const LoadSample load = journal_loader(journal);
      for (std::size_t i = 0; i < journal.samples.size(); ++i) load(i);
    } catch (const InputError&) {
      ++refused;
    }
  };
  for (int round = 0; round < 300; ++round) {
    std::string text = whole;
    for (std::uint64_t n = 1 + rng.below(3); n > 0; --n)
      text[rng.below(text.size())] = static_cast<char>(rng.below(256));
    if (rng.below(4) == 0) text.resize(rng.below(text.size()));
    try_reading(text);
  }
  // Damage under a right checksum reaches the parsers of the bodies.
  for (int round = 0; round < 1500; ++round) {
    auto copy = lines;
    const std::size_t at = rng.below(lines.size());
    const auto parsed = parse_journal_line(std::string_view(lines[at]).substr(0, lines[at].size() - 1));
    REQUIRE(parsed);
    std::string body(parsed->body);
    const std::size_t place = rng.below(std::min<std::size_t>(body.size(), 1 + rng.below(body.size())));
    switch (rng.below(4)) {
      case 0:
        body[place] = static_cast<char>(rng.below(256));
        break;
      case 1:
        body.erase(place, 1 + rng.below(20));
        break;
      case 2:
        body.insert(place, body.substr(rng.below(body.size()), rng.below(30)));
        break;
      default:
        body.insert(place, 1, "0123456789-{}[]\",:e"[rng.below(18)]);
        break;
    }
    if (body.find('\n') != std::string::npos) continue;
    copy[at] = journal_line(parsed->seq, body);
    try_reading(joined(copy));
  }
  CHECK(refused > 1000);
}
