// The transformer against Hugging Face transformers in fp32 (tests/fixtures/make_fixtures.py), on every grid
// that the number of ranks allows: logits within 1e-4 relative, greedy text identical for 64 tokens.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "io/model_config.hpp"
#include "io/safetensors.hpp"
#include "parallel/mpi_session.hpp"
#include "runtime/model/engine.hpp"
#include "runtime/model/memory_needs.hpp"
#include "runtime/model/transformer.hpp"

using namespace tessera;

namespace {

constexpr const char* kFixtures[] = {"qwen2-tied", "qwen2-untied-yarn", "llama3", "gemma3", "gemma3-text"};
constexpr double kTolerance = 1e-4;

template <typename T>
std::vector<T> read_array(const SafetensorsFile& file, const char* name) {
  const TensorEntry* entry = file.find(name);
  REQUIRE(entry != nullptr);
  std::vector<T> values(entry->bytes / sizeof(T));
  std::memcpy(values.data(), file.data(*entry), entry->bytes);
  return values;
}

struct Expected {
  explicit Expected(const std::string& folder) {
    const SafetensorsFile file = SafetensorsFile::open(folder + "/expected.safetensors");
    prompt = read_array<std::int32_t>(file, "prompt");
    for (std::int32_t p : read_array<std::int32_t>(file, "positions")) positions.push_back(p);
    logits = read_array<float>(file, "logits");
    greedy = read_array<std::int32_t>(file, "greedy");
    decode_steps = read_array<std::int32_t>(file, "decode_steps");
    decode_logits = read_array<float>(file, "decode_logits");
  }
  std::vector<std::int32_t> prompt, greedy, decode_steps;
  std::vector<std::int64_t> positions;
  std::vector<float> logits, decode_logits;
};

// ‖ours − theirs‖∞ / ‖theirs‖∞; NaN anywhere gives NaN, which no bound accepts.
double relative_error(const float* ours, const float* theirs, std::size_t count) {
  double worst = 0, scale = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double difference = std::abs(static_cast<double>(ours[i]) - theirs[i]);
    if (std::isnan(difference)) return difference;
    worst = std::max(worst, difference);
    scale = std::max(scale, std::abs(static_cast<double>(theirs[i])));
  }
  return worst / scale;
}

// A model on one grid.
struct Model {
  Model(const std::string& folder, const GridShape& shape, MpiSession& session, std::int64_t prompt_tokens,
        int batch, LoadOptions load = {}, DType kv_dtype = DType::kF32, const AttentionPlan& plan = {})
      : config(read_model_config(folder)),
        grid(make_grid(session, shape)),
        weights(load_weights(folder, config, load, *grid.tp, meter)),
        share(head_share(config, grid.place.tp, shape.tp)),
        cache({static_cast<int>(config.layers), static_cast<int>(share.kv_heads),
               static_cast<int>(config.head_dim), kv_dtype, LayerPlans(plan, config).needs_page_bounds()},
              kv_slots_needed(config, {shape, prompt_tokens, prompt_tokens + 64, batch, kv_dtype}, plan),
              meter),
        transformer(config, resolve_rope(config, "auto", prompt_tokens + 64).rope, weights, grid, cache,
                    prompt_tokens + 64, meter, plan) {
    cache.poison_new_slots(true);
  }
  MemoryMeter meter;
  ModelConfig config;
  Grid grid;
  Weights weights;
  HeadShare share;
  KvCache cache;
  Transformer transformer;
};

std::vector<GridShape> grids_of(int ranks) {
  std::vector<GridShape> shapes;
  for (int tp : {1, 2, 4}) {
    for (int sp = 1; sp <= ranks; ++sp) {
      if (ranks % (tp * sp) == 0) shapes.push_back({tp, sp, ranks / (tp * sp)});
    }
  }
  return shapes;
}

// Returns the worst relative error of the logits.
double compare_with_reference(Model& model, const Expected& expected) {
  double worst = 0;
  const std::int64_t length = static_cast<std::int64_t>(expected.prompt.size());
  const std::size_t vocab = static_cast<std::size_t>(model.config.vocab);
  const SequencePartition partition(length, model.grid.shape.sp);
  const int sequence = model.cache.add_sequence(length + 64);
  std::vector<float> logits;
  std::vector<std::int32_t> next;
  model.transformer.set_want_logits(true);
  model.transformer.prefill({sequence, &partition, expected.prompt, expected.positions}, logits);
  REQUIRE(logits.size() == expected.logits.size());
  for (std::size_t i = 0; i < expected.positions.size(); ++i) {
    INFO("position ", expected.positions[i]);
    const double error = relative_error(logits.data() + i * vocab, expected.logits.data() + i * vocab, vocab);
    CHECK(error <= kTolerance);
    worst = std::max(worst, error);
  }
  REQUIRE(expected.positions.back() == length - 1);
  model.transformer.greedy_tokens(next);
  std::vector<std::int32_t> text{next.back()};
  std::size_t checked = 0;
  for (std::int32_t step = 0; step < 64; ++step) {
    if (step > 0) {
      const DecodeRow row{sequence, &partition, static_cast<std::int32_t>(length) + step - 1, text.back()};
      model.transformer.decode({&row, 1}, logits);
      model.transformer.greedy_tokens(next);
      text.push_back(next.front());
    }
    if (checked < expected.decode_steps.size() && expected.decode_steps[checked] == step) {
      INFO("decode step ", step);
      const float* last = logits.data() + logits.size() - vocab;
      const double error = relative_error(last, expected.decode_logits.data() + checked * vocab, vocab);
      CHECK(error <= kTolerance);
      worst = std::max(worst, error);
      ++checked;
    }
  }
  CHECK(checked == expected.decode_steps.size());
  CHECK(text == expected.greedy);
  model.cache.remove_sequence(sequence);
  CHECK(model.cache.used_slots() == 0);
  return worst;
}

// Hands out the same prompt cut to several lengths, and keeps what comes back.
class PromptList : public RequestSource {
 public:
  explicit PromptList(std::vector<Request> requests) : requests_(std::move(requests)) {}
  std::optional<Request> next() override {
    if (next_ == requests_.size()) return std::nullopt;
    return requests_[next_++];
  }
  void finished(Completion completion) override { completions.push_back(std::move(completion)); }
  bool stop_requested() override { return false; }

  std::vector<Completion> completions;

 private:
  std::vector<Request> requests_;
  std::size_t next_ = 0;
};

}  // namespace

TEST_CASE("logits and greedy text equal those of transformers on every grid") {
  MpiSession session = MpiSession::start(detect_launch());
  for (const char* name : kFixtures) {
    const std::string folder = std::string(TESSERA_FIXTURES) + "/" + name;
    const Expected expected(folder);
    for (const GridShape& shape : grids_of(session.size())) {
      CAPTURE(name);
      CAPTURE(shape.tp);
      CAPTURE(shape.sp);
      CAPTURE(shape.dp);
      Model model(folder, shape, session, static_cast<std::int64_t>(expected.prompt.size()), 1);
      const double worst = compare_with_reference(model, expected);
      if (model.grid.world->rank() == 0) {
        std::printf("%s tp=%d sp=%d dp=%d: worst relative logit error %.2e\n", name, shape.tp, shape.sp,
                    shape.dp, worst);
      }
    }
  }
}

TEST_CASE("keys and values kept in 16 bits change logits by about their rounding") {
  MpiSession session = MpiSession::start(detect_launch());
  for (const char* name : kFixtures) {
    const std::string folder = std::string(TESSERA_FIXTURES) + "/" + name;
    const Expected expected(folder);
    const std::int64_t length = static_cast<std::int64_t>(expected.prompt.size());
    const GridShape shape{1, session.size(), 1};
    for (const auto& [dtype, most] : {std::pair{DType::kBF16, 3e-2}, {DType::kF16, 4e-3}}) {
      CAPTURE(name);
      CAPTURE(name_of(dtype));
      Model model(folder, shape, session, length, 1, {}, dtype);
      const SequencePartition partition(length, shape.sp);
      const int sequence = model.cache.add_sequence(length + 64);
      const std::int64_t last = expected.positions.back();
      std::vector<float> logits;
      model.transformer.set_want_logits(true);
      model.transformer.prefill({sequence, &partition, expected.prompt, {&last, 1}}, logits);
      const double error = relative_error(
          logits.data(), expected.logits.data() + expected.logits.size() - logits.size(), logits.size());
      CHECK(error <= most);
      CHECK(error > 1e-6);  // it is not fp32 under another name
    }
  }
}

TEST_CASE("the memory that is planned is what a prompt takes") {
  MpiSession session = MpiSession::start(detect_launch());
  for (const char* name : kFixtures) {
    const std::string folder = std::string(TESSERA_FIXTURES) + "/" + name;
    const Expected expected(folder);
    const std::int64_t length = static_cast<std::int64_t>(expected.prompt.size());
    for (const GridShape& shape : grids_of(session.size())) {
      CAPTURE(name);
      CAPTURE(shape.tp);
      CAPTURE(shape.sp);
      Model model(folder, shape, session, length, 1);
      const SequencePartition partition(length, shape.sp);
      const std::int64_t last = length - 1;
      std::vector<float> logits;
      const int sequence = model.cache.add_sequence(length);
      model.transformer.prefill({sequence, &partition, expected.prompt, {&last, 1}}, logits);
      std::int64_t peak = model.meter.peak(MemoryKind::kWorkspace);
      model.grid.group->all_reduce_max(&peak, 1);
      const std::int64_t planned =
          workspace_bytes_needed(model.config, {shape, length, length + 64, 1, DType::kF32}, {});
      CHECK(peak <= planned);
      CHECK(peak >= planned * 9 / 10);
    }
  }
}

TEST_CASE("column slices that every rank copies for itself are those that one rank scatters") {
  MpiSession session = MpiSession::start(detect_launch());
  const std::string folder = std::string(TESSERA_FIXTURES) + "/qwen2-untied-yarn";
  const ModelConfig config = read_model_config(folder);
  MemoryMeter meter;
  for (const GridShape& shape : grids_of(session.size())) {
    Grid grid = make_grid(session, shape);
    LoadOptions scatter, copy;
    scatter.short_row_bytes = 1 << 30;
    copy.short_row_bytes = 0;
    const Weights a = load_weights(folder, config, scatter, *grid.tp, meter);
    const Weights b = load_weights(folder, config, copy, *grid.tp, meter);
    for (std::size_t layer = 0; layer < a.layers.size(); ++layer) {
      for (auto member : {&LayerWeights::o, &LayerWeights::down}) {
        const MatrixView& x = a.layers[layer].*member;
        const MatrixView& y = b.layers[layer].*member;
        REQUIRE(x.bytes() == y.bytes());
        CHECK(x.bytes() > 0);
        CHECK(std::memcmp(x.data, y.data, x.bytes()) == 0);
      }
    }
  }
}

TEST_CASE("weights widened to fp32 on loading give the same text") {
  MpiSession session = MpiSession::start(detect_launch());
  const std::string folder = std::string(TESSERA_FIXTURES) + "/qwen2-tied";
  const Expected expected(folder);
  LoadOptions load;
  load.as_f32 = true;
  for (const GridShape& shape : grids_of(session.size())) {
    Model model(folder, shape, session, static_cast<std::int64_t>(expected.prompt.size()), 1, load);
    compare_with_reference(model, expected);
  }
}

TEST_CASE("sequences that decode together, and join and leave at any step, get the text they get alone") {
  MpiSession session = MpiSession::start(detect_launch());
  const std::string folder = std::string(TESSERA_FIXTURES) + "/qwen2-tied";
  const Expected expected(folder);
  const std::int64_t length = static_cast<std::int64_t>(expected.prompt.size());
  std::vector<Request> requests;
  for (int i = 0; i < 7; ++i) {  // the first one is the reference prompt, the others are its beginnings
    const std::int64_t cut = i == 0 ? length : length * (i + 1) / 9 + 1;
    requests.push_back(
        {i, {expected.prompt.begin(), expected.prompt.begin() + cut}, i == 0 ? 64 : 5 + 3 * i});
  }
  for (const GridShape& shape : grids_of(session.size())) {
    std::vector<std::vector<std::int32_t>> alone;
    for (int batch : {1, 3}) {
      CAPTURE(batch);
      CAPTURE(shape.tp);
      CAPTURE(shape.sp);
      Model model(folder, shape, session, length, batch);
      Engine engine(model.transformer, model.grid, model.meter, {batch, {}});
      PromptList list(requests);
      CHECK(engine.run(model.grid.is_group_leader() ? &list : nullptr));
      CHECK(model.cache.used_slots() == 0);
      if (!model.grid.is_group_leader()) continue;
      REQUIRE(list.completions.size() == requests.size());
      std::vector<std::vector<std::int32_t>> texts(requests.size());
      for (Completion& c : list.completions) {
        CHECK(c.finish_reason == "length");
        CHECK(static_cast<int>(c.ranks.size()) == shape.tp * shape.sp);
        texts[static_cast<std::size_t>(c.id)] = c.output;
      }
      CHECK(texts[0] == expected.greedy);
      if (batch == 1) alone = texts;
      CHECK(texts == alone);
    }
  }
}

TEST_CASE("a stop id ends a sequence and is not part of its output") {
  MpiSession session = MpiSession::start(detect_launch());
  const std::string folder = std::string(TESSERA_FIXTURES) + "/llama3";
  const Expected expected(folder);
  const GridShape shape{1, session.size(), 1};
  const std::int32_t stop = expected.greedy[20];
  const auto first = std::find(expected.greedy.begin(), expected.greedy.end(), stop);
  Model model(folder, shape, session, static_cast<std::int64_t>(expected.prompt.size()), 1);
  Engine engine(model.transformer, model.grid, model.meter, {1, {-7, stop}});
  PromptList list({{0, expected.prompt, 64}});
  CHECK(engine.run(model.grid.is_group_leader() ? &list : nullptr));
  if (!model.grid.is_group_leader()) return;
  REQUIRE(list.completions.size() == 1);
  CHECK(list.completions[0].finish_reason == "stop");
  CHECK(list.completions[0].output == std::vector<std::int32_t>(expected.greedy.begin(), first));
}

TEST_CASE("drawn weights are the same model on every grid") {
  MpiSession session = MpiSession::start(detect_launch());
  const std::string folder = std::string(TESSERA_FIXTURES) + "/gemma3-text";
  LoadOptions load;
  load.random_seed = 7;
  const ModelConfig config = read_model_config(folder);
  MemoryMeter meter;
  auto alone = make_local_communicator();
  const Weights whole = load_weights(folder, config, load, *alone, meter);
  for (const GridShape& shape : grids_of(session.size())) {
    Grid grid = make_grid(session, shape);
    const Weights part = load_weights(folder, config, load, *grid.tp, meter);
    const HeadShare share = head_share(config, grid.place.tp, shape.tp);
    for (int layer = 0; layer < config.layers; ++layer) {
      const LayerWeights& w = part.layers[layer];
      const LayerWeights& all = whole.layers[layer];
      const std::size_t row = static_cast<std::size_t>(config.hidden) * size_of(w.q.dtype);
      const std::size_t q_first = static_cast<std::size_t>(share.first_head * config.head_dim) * row;
      CHECK(std::memcmp(w.q.data, all.q.data + q_first, w.q.bytes()) == 0);
      const std::size_t whole_row = static_cast<std::size_t>(all.down.columns) * size_of(w.down.dtype);
      const std::size_t part_row = static_cast<std::size_t>(w.down.columns) * size_of(w.down.dtype);
      for (std::int64_t r = 0; r < w.down.rows; ++r) {
        REQUIRE(std::memcmp(w.down.data + r * part_row,
                            all.down.data + r * whole_row + grid.place.tp * part_row, part_row) == 0);
      }
    }
  }
}
