// What is asked of a replica and what comes back, with their form in messages between ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/core/bytes.hpp"

namespace tessera {

// What crossed between sequence-parallel ranks, as received by this rank.
struct ExchangeCounts {
  std::vector<std::uint64_t> bytes_selected;  // (L) bytes of the units that the selection names
  std::vector<std::uint64_t> bytes_needed;    // (L) of them, bytes that this rank's rows need
  std::vector<std::uint64_t> bytes_full;      // (L) bytes of a full all-gather
  std::vector<std::uint64_t> units_sent;      // (L) pages sent to all peers together
};

struct Request {
  std::int64_t id = 0;
  std::vector<std::int32_t> tokens;  // at least one
  std::int64_t max_output = 0;       // at least one
};

// What one rank of the group spent on a request, gathered by the leader.
struct RankReport {
  int world_rank = 0;
  std::vector<double> op_s;  // (Ph, L + 1, O)
  ExchangeCounts exchange;   // (L) each; empty without sequence parallelism
  std::int64_t peak_total = 0, peak_weights = 0, peak_kv = 0, peak_workspace = 0, peak_resident = 0;  // bytes
};

struct Completion {
  std::int64_t id = 0;
  std::int64_t input_tokens = 0;
  std::vector<std::int32_t> output;  // without the stop token
  std::string finish_reason;         // "stop" or "length"
  double started_epoch = 0;          // seconds since 1970
  double prefill_s = 0;
  double first_token_s = 0;  // from admission to the first token
  double per_token_s = 0;  // mean over later tokens, waits for prefills of others included; NaN for one token
  std::vector<std::int64_t> decode_positions;  // of every decode step this request took part in
  double weight_passes = 0;                    // Σ over its decode steps of 1 / sequences in the step
  std::vector<RankReport> ranks;
};

void pack_report(ByteWriter& writer, const RankReport& report);
RankReport unpack_report(ByteReader& reader);
void pack_completion(ByteWriter& writer, const Completion& completion);
Completion unpack_completion(ByteReader& reader);

}  // namespace tessera
