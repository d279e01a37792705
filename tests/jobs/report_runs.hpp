// Made-up runs for the tests of `tessera report`.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "jobs/report.hpp"
#include "tests/command_text.hpp"

namespace tessera::test {

inline const char* const kSlash =
    R"({"prefill":{"method":"vertical_slash","native":{"columns":512,"diagonals":256,"window":256}},
        "decode":{"method":"dense","native":{}},"share_group":false,"dense_layers":[]})";
inline const char* const kQuest =
    R"({"prefill":{"method":"dense","native":{}},
        "decode":{"method":"quest","native":{"tokens":1024,"per_query_head":0}}})";

inline PointInfo point_of(const std::string& prefill, const std::string& decode,
                          const std::string& budget = "{}") {
  PointInfo point;
  point.model = "tiny";
  point.task = "qa_squad";
  point.length = 4096;
  point.seed = 43;
  point.prefill = prefill;
  point.decode = decode;
  point.budget_json = budget;
  return point;
}

inline SampleRecord sample_of(std::int64_t point, std::int64_t number, double score) {
  SampleRecord sample;
  sample.point = point;
  sample.sample = number;
  sample.score = score;
  sample.metric = "f1";
  sample.prompt_hash = "hash of " + std::to_string(number);
  return sample;
}

// A run of one attempt, in memory, with the arrays of its samples.
class MadeRun {
 public:
  explicit MadeRun(std::string id, int sequence_ranks = 1) : sequence_ranks_(sequence_ranks) {
    tables_.run_id = std::move(id);
    for (int rank = 0; rank < sequence_ranks; ++rank) {
      AttemptRank row;
      row.world_rank = row.sp = rank;
      tables_.attempts.push_back(row);
    }
  }
  std::int64_t add(PointInfo point) {
    point.sp = sequence_ranks_;
    tables_.points.push_back(std::move(point));
    return static_cast<std::int64_t>(tables_.points.size()) - 1;
  }
  void add(SampleRecord sample) {
    whole_.push_back(sample);
    sample.ranks.clear();
    tables_.samples.push_back(std::move(sample));
  }
  void add(std::int64_t point, const std::vector<double>& scores) {
    for (std::size_t i = 0; i < scores.size(); ++i)
      add(sample_of(point, static_cast<std::int64_t>(i), scores[i]));
  }
  ReportSource source() {
    return {tables_.run_id + ".h5", &tables_, [this](std::size_t i) {
              ++loads;
              return whole_.at(i);
            }};
  }

  int loads = 0;

 private:
  int sequence_ranks_;
  TraceTables tables_;
  std::vector<SampleRecord> whole_;
};

inline std::vector<ReportRow> rows_of(std::vector<MadeRun*> runs) {
  std::vector<ReportSource> sources;
  for (MadeRun* run : runs) sources.push_back(run->source());
  return report_rows(sources);
}

}  // namespace tessera::test
