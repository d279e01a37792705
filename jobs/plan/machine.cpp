#include "jobs/plan/machine.hpp"

#include <algorithm>
#include <array>
#include <cctype>

#include <fmt/format.h>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr double kGiga = 1e9, kTera = 1e12, kMicro = 1e-6;

struct BuiltIn {
  const char* name;
  double memory, flops;
  AttentionRates attention;
  double bandwidth, link_bandwidth, layer_latency;
};

// h200: DESIGN.md section 8: bf16 GEMM sustained on 72B shapes 671 TFLOP/s; read-only copy 4.47 TB/s; link
// from its all-gather over NVLink, 3/4 of 42.9/2 GB in 43 ms. Memory is the nominal one, in powers of ten:
// some 6 % less than the device shows, for the context of CUDA. h100: memory 80 GB, whose nominal 3.35 TB/s
// are taken to sustain the same share as the 4.8 TB/s of the H200. Both, measured on an H100, which has the
// same compute die: our causal attention at 32K by `tessera bench attention` (the README's table; with D =
// 128 the mean of 16K, 32K and 128K); what a decode step of 24, 36 and 28 layers took beyond its bytes, a
// layer: 20 to 29 us.
constexpr AttentionRates kHopperAttention{552e12, 690e12, 778e12};
constexpr double kHopperLayer = 25e-6;
constexpr std::array kBuiltIn = {
    BuiltIn{"h200", 141e9, 671e12, kHopperAttention, 4.47e12, 375e9, kHopperLayer},
    BuiltIn{"h100", 80e9, 671e12, kHopperAttention, 4.47e12 * 3.35 / 4.8, 375e9, kHopperLayer},
};

// Above any machine, below what somebody gives who means FLOP/s or bytes.
constexpr double kMost = 1e6;

void add_rate(OptionSet& set, const char* name, std::optional<double>* target, const char* unit, double scale,
              const char* help) {
  set.custom(name, OptionKind::kReal, unit, "of --machine", help, [=](const OptionValue& value) {
    const std::optional<double> number = parse_real(value.words.front());
    if (!number || *number <= 0 || *number > kMost) {
      throw UsageError("{}: '{}' is not a number above 0 and at most {:.0f}, in {}", value.where,
                       value.words.front(), kMost, unit);
    }
    *target = *number * scale;
  });
}

void replace(const MachineOptions& options, Machine& machine) {
  const auto set = [](const std::optional<double>& value, double& target) {
    target = value.value_or(target);
  };
  set(options.memory, machine.memory);
  set(options.flops, machine.flops);
  if (const std::optional<double> rate = options.attention_flops) machine.attention = {*rate, *rate, *rate};
  set(options.bandwidth, machine.bandwidth);
  set(options.link_bandwidth, machine.link_bandwidth);
  set(options.link_latency, machine.link_latency);
  set(options.layer_latency, machine.layer_latency);
}

// --device-memory, --flops, …
void add_machine_rates(OptionSet& set, MachineOptions& o) {
  add_rate(set, "device-memory", &o.memory, "GB", kGiga, "memory that a rank may take, in 10^9 bytes");
  add_rate(set, "flops", &o.flops, "TFLOP/s", kTera, "matrix products of a rank, sustained");
  add_rate(set, "attention-flops", &o.attention_flops, "TFLOP/s", kTera,
           "prefill attention of a rank, sustained; else as --flops");
  add_rate(set, "bandwidth", &o.bandwidth, "GB/s", kGiga, "reads of a rank from its memory");
  add_rate(set, "link-bandwidth", &o.link_bandwidth, "GB/s", kGiga,
           "what a rank receives from all others together");
  add_rate(set, "link-latency", &o.link_latency, "US", kMicro,
           "microseconds that a collective takes beside its bytes; none are counted without it");
  add_rate(set, "layer-latency", &o.layer_latency, "US", kMicro,
           "microseconds that the kernels of a layer take to start and to end in a decode step");
}

std::vector<std::string> machine_names() {
  std::vector<std::string> names{"cpu"};
  for (const BuiltIn& row : kBuiltIn) names.emplace_back(row.name);
  return names;
}

}  // namespace

void add_machine_options(OptionSet& set, MachineOptions& o, const std::string& default_machine) {
  set.text("machine", &o.machine, "NAME|FILE.toml",
           fmt::format("what a rank runs on: {}, or a file with the keys device-memory, flops, … of the "
                       "options below. cpu knows nothing but this host's memory, which all ranks share "
                       "unless --device-memory is given",
                       fmt::join(machine_names(), ", ")))
      .default_text = default_machine;
  add_machine_rates(set, o);
}

// "NVIDIA H100 80GB HBM3" holds h100.
std::string machine_of_device(const std::string& device_name) {
  std::string lower = device_name;
  for (char& letter : lower) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  for (const BuiltIn& row : kBuiltIn) {
    if (lower.find(row.name) != std::string::npos) return row.name;
  }
  return "";
}

bool is_gpu(const std::string& machine) {
  return std::any_of(kBuiltIn.begin(), kBuiltIn.end(),
                     [&](const BuiltIn& row) { return row.name == machine; });
}

Machine make_machine(const MachineOptions& options) {
  Machine machine;
  if (options.machine.ends_with(".toml")) {
    machine.name = options.machine;
    MachineOptions from_file;
    OptionSet keys("plan --machine", "", "");
    add_machine_rates(keys, from_file);
    for (const auto& [name, value] : read_options_file(options.machine, keys, "--machine"))
      keys.find(name)->apply(value);
    replace(from_file, machine);
  } else if (is_gpu(options.machine)) {
    const BuiltIn& row = *std::find_if(kBuiltIn.begin(), kBuiltIn.end(), [&](const BuiltIn& candidate) {
      return candidate.name == options.machine;
    });
    machine = {row.name, row.memory, row.flops, row.attention, row.bandwidth, row.link_bandwidth};
    machine.layer_latency = row.layer_latency;
  } else if (!options.machine.empty() && options.machine != "cpu") {
    const std::vector<std::string> names = machine_names();
    throw UsageError("--machine: '{}' is not known{}", options.machine,
                     suggestion(options.machine, names, "",
                                fmt::format("; use one of {}, or FILE.toml", fmt::join(names, ", "))));
  }
  replace(options, machine);
  if (machine.attention.d128 == 0) machine.attention = {machine.flops, machine.flops, machine.flops};
  return machine;
}

}  // namespace tessera
