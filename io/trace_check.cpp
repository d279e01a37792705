#include "io/trace_check.hpp"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <map>

#include "runtime/core/error.hpp"

namespace tessera {

namespace {

std::string name_of_sample(const SampleRecord& sample) {
  return fmt::format("point {} sample {}", sample.point, sample.sample);
}

class SampleChecker {
 public:
  SampleChecker(const std::string& path, const SampleRecord& sample) : path_(path), sample_(sample) {}

  void check() const {
    for (auto [name, value] : {std::pair("prefill_s", sample_.prefill_s), std::pair("ttft_s", sample_.ttft_s),
                               std::pair("tpot_s", sample_.tpot_s), std::pair("t_start", sample_.t_start)}) {
      if (value < 0 || std::isinf(value)) fail(name, fmt::format("{} s, expected a time or NaN", value));
    }
    for (auto [name, value] : {std::pair("prefill_sparsity", sample_.prefill_sparsity),
                               std::pair("decode_sparsity_first", sample_.decode_sparsity_first),
                               std::pair("decode_sparsity", sample_.decode_sparsity)}) {
      if (value < 0 || value > 1) fail(name, fmt::format("{}, expected 0 to 1 or NaN", value));
    }
    if (sample_.input_tokens < 0 || sample_.output_tokens < 0) {
      fail("input_tokens",
           fmt::format("{} in, {} out, expected counts", sample_.input_tokens, sample_.output_tokens));
    }
    check_at_most("pairs_visible", sample_.pairs_visible, "pairs_causal", sample_.pairs_causal);
    check_at_most("kv_read", sample_.kv_read, "kv_dense", sample_.kv_dense);
    for (const auto& rank : sample_.ranks) check_times(rank);
  }

 private:
  [[noreturn]] void fail(const std::string& field, const std::string& problem) const {
    throw InputError("{}: {}: {}: {}", path_, name_of_sample(sample_), field, problem);
  }

  void check_at_most(const char* name, const std::vector<std::uint64_t>& values, const char* bound_name,
                     const std::vector<std::uint64_t>& bounds) const {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint64_t bound = i < bounds.size() ? bounds[i] : 0;
      if (values[i] > bound) {
        fail(name, fmt::format("entry {} is {}, more than {} of {}", i, values[i], bound_name, bound));
      }
    }
  }

  void check_times(const RankTimes& rank) const {
    for (const auto& array : rank_time_arrays()) {
      const auto& values = rank.*array.member;
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (values[i] < 0 || std::isinf(values[i])) {
          fail(array.name,
               fmt::format("rank {} entry {} is {} s, expected a time", rank.world_rank, i, values[i]));
        }
      }
    }
  }

  const std::string& path_;
  const SampleRecord& sample_;
};

}  // namespace

bool is_hdf5_file(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rbe");
  if (file == nullptr) throw InputError("{}: cannot open: {}", path, errno_text(errno));
  char start[8] = {};
  const std::size_t got = std::fread(start, 1, sizeof(start), file);
  const bool failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed) throw InputError("{}: cannot read; is it a file?", path);
  return std::string(start, got) == "\x89HDF\r\n\x1a\n";
}

void check_values(const TraceTables& tables, const LoadSample& load, const std::string& path) {
  for (std::size_t i = 0; i < tables.samples.size(); ++i) {
    const SampleRecord sample = load(i);
    SampleChecker(path, sample).check();
  }
}

std::size_t check_against_journal(const TraceTables& trace, const TraceTables& journal,
                                  const std::string& path) {
  if (trace.run_id != journal.run_id) {
    throw InputError(
        "{}: @run_id: found {}, its journal is of run {}; rebuild the trace or move one of them away", path,
        trace.run_id, journal.run_id);
  }
  if (trace.points.size() > journal.points.size()) {
    throw InputError("{}: points: {} rows, its journal has {}; rebuild the trace", path, trace.points.size(),
                     journal.points.size());
  }
  for (std::size_t i = 0; i < trace.points.size(); ++i) {
    const std::string column = first_different_column(trace.points[i], journal.points[i]);
    if (!column.empty())
      throw InputError("{}: points/{}: row {} differs from the journal; rebuild the trace", path, column, i);
  }
  std::map<std::pair<std::int64_t, std::int64_t>, const SampleRecord*> recorded;
  for (const auto& sample : journal.samples) recorded[{sample.point, sample.sample}] = &sample;
  for (const auto& sample : trace.samples) {
    const auto found = recorded.find({sample.point, sample.sample});
    if (found == recorded.end()) {
      throw InputError("{}: samples: {} is not in the journal; rebuild the trace", path,
                       name_of_sample(sample));
    }
    const std::string column = first_different_column(sample, *found->second);
    if (!column.empty()) {
      throw InputError("{}: samples/{}: {} differs from the journal; rebuild the trace", path, column,
                       name_of_sample(sample));
    }
  }
  return journal.samples.size() - trace.samples.size();
}

}  // namespace tessera
