// A batch of decode steps on the device, and what fp64 on plain arrays says of it. Slots lie in shuffled
// order; whatever no key owns is NaN; plan, workspace and outputs are NaN before every run.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "attention/decode_cuda.hpp"
#include "kvcache/kv_view.hpp"
#include "tests/cuda_support.hpp"

namespace cuda_test {

struct DecodeShape {
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  tessera::DType dtype = tessera::DType::kBF16;
};

// Does head h of sequence n see the key at a position (or row, where heads are packed)?
using Sees = std::function<bool(int sequence, int head, std::int64_t position)>;
using HoldsBlock = std::function<bool(int sequence, int kv_head, std::int64_t block)>;

struct DecodeErrors {
  double out = 0;        // ‖out − ref‖ / ‖ref‖, the worst row
  double lse = 0;        // largest difference
  bool complete = true;  // every value written, rows that see nothing are 0 and −inf
};

class DecodeBatch {
 public:
  // rows: (N · K) keys of each head of each sequence.
  DecodeBatch(
      Gpu& gpu, const DecodeShape& shape, std::vector<std::int64_t> rows, std::uint64_t seed,
      const HoldsBlock& holds = [](int, int, std::int64_t) { return true; })
      : gpu_(gpu), shape_(shape), rows_(std::move(rows)) {
    const std::size_t kv_heads = static_cast<std::size_t>(shape.kv_heads);
    const std::size_t dim = static_cast<std::size_t>(shape.head_dim);
    sequences_ = static_cast<int>(rows_.size() / kv_heads);
    std::mt19937_64 rng(seed);
    const auto draw = [&](std::size_t count, float range) {
      return widened(rounded(random_floats(count, rng, -range, range), shape.dtype), shape.dtype);
    };
    q_ = draw(static_cast<std::size_t>(sequences_) * static_cast<std::size_t>(shape.heads) * dim, 2);
    std::int64_t slots = 1;
    for (const std::int64_t count : rows_) {
      table_stride_ = std::max(table_stride_, tessera::ceil_div(count, tessera::kBlockTokens) + 3);
      slots += tessera::ceil_div(count, tessera::kBlockTokens);
    }
    std::vector<std::int32_t> order(static_cast<std::size_t>(slots));
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
    std::shuffle(order.begin(), order.end(), rng);
    const std::size_t slot_values = 2 * tessera::kBlockTokens * dim;
    std::vector<std::uint16_t> pool(static_cast<std::size_t>(slots) * slot_values, 0xffff);
    std::vector<std::int32_t> table(rows_.size() * static_cast<std::size_t>(table_stride_), tessera::kNoSlot);
    std::size_t next = 0;
    for (std::size_t list = 0; list < rows_.size(); ++list) {
      k_.push_back(draw(static_cast<std::size_t>(rows_[list]) * dim, 1));
      v_.push_back(draw(static_cast<std::size_t>(rows_[list]) * dim, 1));
      held_.emplace_back();
      for (std::int64_t block = 0; block * tessera::kBlockTokens < rows_[list]; ++block) {
        const int sequence = static_cast<int>(list / kv_heads);
        held_.back().push_back(holds(sequence, static_cast<int>(list % kv_heads), block));
        if (!held_.back().back()) continue;
        const std::int32_t slot = order[next++];
        table[list * static_cast<std::size_t>(table_stride_) + static_cast<std::size_t>(block)] = slot;
        const std::int64_t begin = block * tessera::kBlockTokens;
        const std::int64_t end = std::min(rows_[list], begin + tessera::kBlockTokens);
        for (std::size_t i = 0; i < static_cast<std::size_t>(end - begin) * dim; ++i) {
          const std::size_t source = static_cast<std::size_t>(begin) * dim + i;
          std::uint16_t* target = pool.data() + static_cast<std::size_t>(slot) * slot_values + i;
          target[0] = bits_of(k_.back()[source], shape.dtype);
          target[tessera::kBlockTokens * dim] = bits_of(v_.back()[source], shape.dtype);
        }
      }
    }
    pool_ = gpu.upload(pool);
    table_ = gpu.upload(table);
    std::vector<const std::int32_t*> tables;
    for (int n = 0; n < sequences_; ++n) {
      tables.push_back(table_.as<std::int32_t>() +
                       static_cast<std::int64_t>(n) * shape.kv_heads * table_stride_);
    }
    tables_ = gpu.upload(tables);
    q_on_device_ = gpu.upload(rounded(q_, shape.dtype));
  }

  int sequences() const { return sequences_; }
  const std::vector<std::int64_t>& rows() const { return rows_; }

  // ctas 0: as chosen for 132 multiprocessors.
  void run(const tessera::cuda::DecodeReach& reach, int lists, int ctas, bool out_f32, bool overlaps = false,
           bool settled = false) {
    using namespace tessera::cuda;
    DecodeAttendParams p;
    p.problem = {sequences_, shape_.heads, shape_.kv_heads, shape_.head_dim, lists};
    p.config = choose_decode_config(p.problem, 132);
    if (ctas > 0) p.config.ctas = ctas;
    DeviceBuffer plan = gpu_.poisoned(decode_plan_bytes(p.problem, p.config));
    DeviceBuffer workspace = gpu_.poisoned(decode_workspace_bytes(p.problem, p.config));
    const std::size_t heads = static_cast<std::size_t>(sequences_ * shape_.heads);
    DeviceBuffer out = gpu_.poisoned(heads * static_cast<std::size_t>(shape_.head_dim) * (out_f32 ? 4 : 2));
    DeviceBuffer lse = gpu_.poisoned(heads * 4);
    plan_decode({p.problem, p.config, reach, plan.data(), overlaps, gpu_.stream()});
    p.reach = reach;
    p.plan = plan.data();
    p.workspace = workspace.data();
    p.dtype = shape_.dtype;
    p.q = q_on_device_.data();
    p.slots = pool_.data();
    p.slot_bytes = 2ull * tessera::kBlockTokens * static_cast<std::size_t>(shape_.head_dim) * 2;
    p.tables = tables_.as<const std::int32_t*>();
    p.table_stride = table_stride_;
    p.scale = scale();
    p.out = out.data();
    p.out_dtype = out_f32 ? tessera::DType::kF32 : shape_.dtype;
    p.lse = lse.as<float>();
    p.overlaps_previous = overlaps;
    p.stream = gpu_.stream();
    DeviceBuffer other_out = gpu_.poisoned(out.bytes());
    if (settled) {  // behind a kernel that is not the plan
      p.out = other_out.data();
      attend_decode(p);
      p.out = out.data();
      p.settled = true;
    }
    attend_decode(p);
    gpu_.synchronize();
    out_ = out_f32 ? gpu_.download<float>(out) : widened(gpu_.download<std::uint16_t>(out), shape_.dtype);
    lse_ = gpu_.download<float>(lse);
  }

  const std::vector<float>& out() const { return out_; }
  const std::vector<float>& lse() const { return lse_; }

  DecodeErrors compare(const Sees& sees) const {
    DecodeErrors errors;
    const std::size_t dim = static_cast<std::size_t>(shape_.head_dim);
    const int group = shape_.heads / shape_.kv_heads;
    std::vector<double> scores;
    std::vector<std::size_t> keys;
    std::vector<double> want(dim);
    for (int n = 0; n < sequences_; ++n) {
      for (int head = 0; head < shape_.heads; ++head) {
        const std::size_t list = static_cast<std::size_t>(n * shape_.kv_heads + head / group);
        const std::size_t row = static_cast<std::size_t>(n * shape_.heads + head);
        scores.clear();
        keys.clear();
        double largest = -std::numeric_limits<double>::infinity();
        for (std::int64_t j = 0; j < rows_[list]; ++j) {
          if (!held_[list][static_cast<std::size_t>(j / tessera::kBlockTokens)] || !sees(n, head, j))
            continue;
          const float* key = k_[list].data() + static_cast<std::size_t>(j) * dim;
          double score = 0;
          for (std::size_t d = 0; d < dim; ++d) score += double{q_[row * dim + d]} * double{key[d]};
          keys.push_back(static_cast<std::size_t>(j));
          scores.push_back(score * double{scale()});
          largest = std::max(largest, scores.back());
        }
        std::fill(want.begin(), want.end(), 0.0);
        double sum = 0;
        for (const double score : scores) sum += std::exp(score - largest);
        for (std::size_t i = 0; i < keys.size(); ++i) {
          const double weight = std::exp(scores[i] - largest) / sum;
          for (std::size_t d = 0; d < dim; ++d) want[d] += weight * double{v_[list][keys[i] * dim + d]};
        }
        double difference = 0;
        double size = 0;
        for (std::size_t d = 0; d < dim; ++d) {
          const double got = out_[row * dim + d];
          if (!std::isfinite(got)) errors.complete = false;
          if (keys.empty() && got != 0) errors.complete = false;
          difference += (got - want[d]) * (got - want[d]);
          size += want[d] * want[d];
        }
        if (keys.empty()) {
          if (lse_[row] != -std::numeric_limits<float>::infinity()) errors.complete = false;
          continue;
        }
        if (!std::isfinite(lse_[row])) errors.complete = false;
        errors.out = std::max(errors.out, std::sqrt(difference / size));
        errors.lse = std::max(errors.lse, std::abs(double{lse_[row]} - (largest + std::log(sum))));
      }
    }
    return errors;
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }

 private:
  Gpu& gpu_;
  DecodeShape shape_;
  std::vector<std::int64_t> rows_;
  int sequences_ = 0;
  std::int64_t table_stride_ = 0;
  std::vector<float> q_;               // (N, H, D)
  std::vector<std::vector<float>> k_;  // (N · K) of (rows, D)
  std::vector<std::vector<float>> v_;
  std::vector<std::vector<char>> held_;  // (N · K) of blocks
  tessera::cuda::DeviceBuffer pool_;
  tessera::cuda::DeviceBuffer table_;
  tessera::cuda::DeviceBuffer tables_;
  tessera::cuda::DeviceBuffer q_on_device_;
  std::vector<float> out_;
  std::vector<float> lse_;
};

}  // namespace cuda_test
