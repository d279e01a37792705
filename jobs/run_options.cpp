#include "jobs/run_options.hpp"

#include "runtime/core/error.hpp"

namespace tessera {

void add_weights(OptionSet& set, WeightsSource* weights) {
  set.custom("weights", OptionKind::kText, "SOURCE", "checkpoint",
             "checkpoint: the safetensors files of --model; random:SEED: drawn from a seed, so that only "
             "config.json and the tokenizer are needed",
             [weights](const OptionValue& value) {
               const std::string& word = value.words.front();
               constexpr std::string_view kRandom = "random:";
               if (word == "checkpoint") {
                 *weights = {};
                 return;
               }
               const std::optional<std::int64_t> seed =
                   word.rfind(kRandom, 0) == 0 ? parse_integer(std::string_view(word).substr(kRandom.size()))
                                               : std::nullopt;
               if (!seed || *seed < 0) {
                 throw UsageError("{}: '{}' is neither checkpoint nor random:SEED (a whole number)",
                                  value.where, word);
               }
               *weights = {true, static_cast<std::uint64_t>(*seed)};
             });
}

void add_weights_dtype(OptionSet& set, WeightsDType* dtype) {
  set.custom("weights-dtype", OptionKind::kText, "file|f32", "file",
             "how weights are kept in memory: as the file has them (converted tile by tile), or f32",
             [dtype](const OptionValue& value) {
               const std::string& word = value.words.front();
               if (word != "file" && word != "f32") {
                 throw UsageError("{}: '{}' is not one of file, f32", value.where, word);
               }
               *dtype = {word == "file", DType::kF32};
             });
}
void add_threads(OptionSet& set, int* threads) {
  set.integer("threads", threads, 1, 4096, "CPU threads a rank", "N",
              "OMP_NUM_THREADS, else the rank's cores");
}

}  // namespace tessera
