// What one rank may count on: memory and rates of its device, and its link to the other ranks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "jobs/option_set.hpp"

namespace tessera {

// FLOP/s sustained in prefill attention, by the channels of a head: with few of them the exponentials of a
// pair, which are as many, weigh more beside its products.
struct AttentionRates {
  double d64 = 0, d128 = 0, d256 = 0;
  double of(std::int64_t head_dim) const { return head_dim <= 64 ? d64 : head_dim <= 128 ? d128 : d256; }
};

// 0: not known, and nothing is derived from it.
struct Machine {
  std::string name = "cpu";
  double memory = 0;          // bytes a rank may take, or (memory_is_shared) all ranks together
  double flops = 0;           // FLOP/s sustained in matrix products
  AttentionRates attention;   // of prefill
  double bandwidth = 0;       // bytes/s read from memory
  double link_bandwidth = 0;  // bytes/s that a rank receives from others, all of them together
  double link_latency = 0;    // seconds a collective takes beside its bytes
  double layer_latency = 0;  // seconds that the kernels of a layer take to start and to end, in a decode step

  bool memory_is_shared = false;  // all ranks on this host, which share the mapped pages of a checkpoint
  bool decodes_by_heads = false;  // keys and values are resharded for decoding (DESIGN.md section 2); the CPU
                                  // backend decodes on the grid of the prefill
  bool has_rates() const { return flops > 0 && bandwidth > 0; }
};

// As options or a TOML file give them, in the units of their help.
struct MachineOptions {
  std::string machine;  // a name or FILE.toml; empty: by the device
  std::optional<double> memory, flops, attention_flops, bandwidth, link_bandwidth, link_latency,
      layer_latency;
};

// --machine, then --device-memory, --flops, … ; a file has the same keys as the latter. default_machine: what
// the help says is taken where --machine is not given.
void add_machine_options(OptionSet& set, MachineOptions& options, const std::string& default_machine);
std::string machine_of_device(const std::string& device_name);  // built-in name of a GPU; empty: none
bool is_gpu(const std::string& machine);                        // a built-in one

// The built-in machine, or the file, with what the options say in its place. UsageError.
Machine make_machine(const MachineOptions& options);

}  // namespace tessera
