#include "jobs/run_identity.hpp"

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "io/checkpoint.hpp"
#include "jobs/info.hpp"
#include "jobs/tasks/sample_file.hpp"
#include "runtime/core/bytes.hpp"
#include "runtime/model/numerics.hpp"

namespace tessera {
namespace {

std::string hex(std::uint64_t value) {
  return fmt::format("{:016x}", value);
}

std::string joined_task_names(const std::vector<const Task*>& tasks) {
  std::string names;
  for (const Task* task : tasks) names += (names.empty() ? "" : ",") + task->name;
  return names;
}

std::string weights_dtype_text(const EvalOptions& options) {
  return options.weights_dtype.as_file ? "file" : std::string(name_of(options.weights_dtype.dtype));
}

std::string weights_identity(const EvalOptions& options) {
  if (options.weights.random) return fmt::format("random:{}", options.weights.seed);
  return hex(Checkpoint::open(options.model).fingerprint());
}

// Every setting of the run's tasks, defaults included: a default that changes later must not pass for the
// same run.
nlohmann::json task_settings(const EvalOptions& options, const std::vector<const Task*>& tasks) {
  nlohmann::json settings = nlohmann::json::object();
  for (const Task* task : tasks) {
    for (const TaskSetting& setting : task->settings) {
      settings[fmt::format("{}.{}", task->name, setting.name)] =
          setting_of(*task, options.settings, setting.name);
    }
  }
  return settings;
}

// "qa_squad:HASH,…" of the tasks whose content was read from a file; "" where there is none.
std::string task_data(const std::vector<const Task*>& tasks) {
  std::string data;
  for (const Task* task : tasks) {
    if (task->data_hash.empty()) continue;
    data += (data.empty() ? "" : ",") + task->name + ":" + task->data_hash;
  }
  return data;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

void pack_attempt(ByteWriter& writer, const AttemptRank& rank) {
  for (const auto& column : attempt_columns()) {
    std::visit(
        [&](auto member) {
          if constexpr (std::is_same_v<decltype(member), std::string AttemptRank::*>) {
            writer.array(rank.*member);
          } else {
            writer.value(rank.*member);
          }
        },
        column.member);
  }
}

AttemptRank unpack_attempt(ByteReader& reader) {
  AttemptRank rank;
  for (const auto& column : attempt_columns()) {
    std::visit(
        [&](auto member) {
          if constexpr (std::is_same_v<decltype(member), std::string AttemptRank::*>) {
            reader.array(rank.*member);
          } else {
            reader.value(rank.*member);
          }
        },
        column.member);
  }
  return rank;
}

}  // namespace

std::int64_t max_output_of(const EvalOptions& options, const Task& task) {
  return options.max_output_tokens > 0 ? options.max_output_tokens : task.max_output_tokens;
}

RunKey make_run_key(const EvalOptions& options, const ModelSetup& model, const AttentionSetup& attention,
                    const std::vector<const Task*>& tasks) {
  std::string max_output;
  for (const Task* task : tasks) {
    max_output += (max_output.empty() ? "" : ",") + std::to_string(max_output_of(options, *task));
  }
  RunKey key;
  key.set("numerics_revision", std::to_string(kNumericsRevision));
  key.set("model", hex(model.config.fingerprint()));
  key.set("weights", weights_identity(options));
  key.set("tokenizer", hex(model.tokenizer.fingerprint()));
  key.set("task", joined_task_names(tasks));
  key.set("task_settings", task_settings(options, tasks).dump());
  if (const std::string data = task_data(tasks); !data.empty()) key.set("task_data", data);
  key.set("length", std::to_string(options.length));
  key.set("prompt_style", std::string(name_of(options.prompt_style)));
  key.set("seed", std::to_string(options.seed));
  key.set("max_output_tokens", max_output);
  add_attention_to_key(attention, key);
  key.set("rope", model.rope.description);
  key.set("dtype", std::string(name_of(options.dtype)));
  key.set("weights_dtype", weights_dtype_text(options));
  key.set("kv_dtype", std::string(name_of(options.kv_dtype)));
  key.set("device", options.device == DeviceKind::kCpu ? "cpu" : "cuda");
  return key;
}

std::string configuration_json(const EvalOptions& options, const ModelSetup& model,
                               const AttentionSetup& attention, const std::string& command_line) {
  nlohmann::json configuration = {
      {"command_line", command_line},
      {"model_directory", options.model},
      {"model", model.model_name},
      {"model_type", model.config.model_type},
      {"rope", model.rope.description},
      {"length", options.length},
      {"seed", options.seed},
      {"prompt_style", name_of(options.prompt_style)},
      // A resumed run takes calibrated budgets from here: adopt_frozen_budgets.
      {"attention", nlohmann::json::parse(budget_json(attention))},
  };
  return configuration.dump();
}

PointInfo make_point(const EvalOptions& options, const ModelSetup& model, const AttentionSetup& attention,
                     const Task& task, const GridShape& shape, const RunKey& key) {
  PointInfo point;
  point.model = model.model_name;
  point.family = name_of(model.config.family);
  point.parameters = model.config.parameter_count();
  point.task = task.name;
  point.length = options.length;
  point.prefill = attention.plan.prefill.method().name;
  point.decode = attention.plan.decode.method().name;
  point.target_prefill_sparsity = attention.prefill.target.value_or(kMissing);
  point.target_decode_sparsity = attention.decode.target.value_or(kMissing);
  point.budget_json = budget_json(attention);
  nlohmann::json arguments = {{"task_settings", task_settings(options, {&task})},
                              {"prompt_style", name_of(options.prompt_style)},
                              {"max_output_tokens", max_output_of(options, task)},
                              {"rope", model.rope.description},
                              {"exchange", name_of(attention.plan.exchange)}};
  if (!task.data_hash.empty()) arguments["data_hash"] = task.data_hash;
  point.arguments_json = arguments.dump();
  point.weights_dtype = options.weights_dtype.as_file ? std::string(name_of(model.config.dtype))
                                                      : std::string(name_of(options.weights_dtype.dtype));
  point.kv_dtype = name_of(options.kv_dtype);
  point.seed = static_cast<std::int64_t>(options.seed);
  point.tp = shape.tp;
  point.sp = shape.sp;
  point.dp = shape.dp;
  point.batch = options.batch;
  point.key = key.hash();
  point.dims = {static_cast<int>(model.config.layers), static_cast<int>(model.config.heads),
                static_cast<int>(model.config.kv_heads)};
  return point;
}

std::vector<AttemptRank> gather_attempt(const EvalOptions& options, MpiSession& session, Grid& grid,
                                        const std::string& command_line) {
  const HostInfo host = collect_host_info({options.device, 0});
  const BuildInfo build = collect_build_info();
  AttemptRank rank;
  rank.world_rank = grid.world->rank();
  rank.host = host.host;
  rank.device_name = host.device_name;
  rank.pci = host.pci;
  const bool one_node = host.numa.find_first_not_of("0123456789") == std::string::npos;
  rank.numa = host.numa.empty() || !one_node ? -1 : std::atoll(host.numa.c_str());
  rank.tp = grid.place.tp;
  rank.sp = grid.place.sp;
  rank.dp = grid.place.dp;
  rank.git_revision = build.git_revision;
  rank.git_dirty = build.git_dirty;
  rank.version = build.version;
  rank.compiler = build.compiler;
  rank.cuda = build.cuda_compiler;
  rank.nccl = build.nccl;
  rank.mpi = session.library_version();
  rank.hdf5 = build.hdf5;
  rank.slurm_job_id = environment("SLURM_JOB_ID");
  rank.restart_count = std::atoll(environment("SLURM_RESTART_COUNT").c_str());
  rank.command_line = command_line;

  ByteWriter writer;
  pack_attempt(writer, rank);
  std::vector<AttemptRank> ranks;
  for (const auto& part : grid.world->gather(writer.take(), 0)) {
    ByteReader reader(part);
    ranks.push_back(unpack_attempt(reader));
  }
  return ranks;
}

}  // namespace tessera
