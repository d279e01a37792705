#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "jobs/options.hpp"
#include "jobs/plan/machine.hpp"
#include "runtime/core/error.hpp"

using namespace tessera;

namespace {

ParsedCommand parse_words(const std::string& line) {
  std::istringstream stream(line);
  std::vector<std::string> words{"tessera"};
  for (std::string word; stream >> word;) words.push_back(word);
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  return parse_command_line(static_cast<int>(argv.size()), argv.data());
}

PlanOptions plan(const std::string& more) {
  return std::get<PlanOptions>(parse_words("plan --model m --length 4096 " + more));
}

std::string plan_problem(const std::string& more) {
  try {
    make_machine(plan(more).eval.machine);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "accepted";
}

void check_plan_problem(const std::string& more, const std::vector<std::string>& says) {
  const std::string problem = plan_problem(more);
  CAPTURE(problem);
  for (const std::string& part : says) CHECK(problem.find(part) != std::string::npos);
}

struct MachineFile {
  explicit MachineFile(const std::string& text)
      : path((std::filesystem::temp_directory_path() /
              ("tessera_machine_" + std::to_string(::getpid()) + ".toml"))
                 .string()) {
    std::ofstream(path) << text;
  }
  ~MachineFile() { std::filesystem::remove(path); }
  std::string path;
};

}  // namespace

TEST_CASE("plan takes what eval takes, and nothing of it must be there but a model") {
  const PlanOptions o = plan("");
  CHECK(o.ranks == 1);
  CHECK(o.eval.tp == 0);
  CHECK(o.eval.sp == 0);
  CHECK(o.eval.dp == 0);
  CHECK(o.eval.dtype == DType::kF32);
  CHECK(o.format == "text");
  const PlanOptions as_eval = plan(
      "--task ruler_niah --prefill vertical_slash --prefill-sparsity 0.9 --decode quest --set "
      "quest.tokens=512 --tp 4 --sp 2 --device cpu --trace out.h5 --batch 4");
  CHECK(as_eval.ranks == 8);
  CHECK(as_eval.eval.method_settings.at("quest.tokens") == "512");
  CHECK(as_eval.eval.trace == "out.h5");
}

TEST_CASE("plan: a GPU runs in bf16 unless told otherwise") {
  for (const char* words : {"--machine h200", "--machine h100", "--device cuda"}) {
    CHECK(plan(words).eval.dtype == DType::kBF16);
    CHECK(plan(words).eval.kv_dtype == DType::kBF16);
    CHECK(plan(words).eval.device == DeviceKind::kCuda);
  }
  CHECK(plan("--machine h200 --kv-dtype f32 --dtype f16").eval.kv_dtype == DType::kF32);
  CHECK(plan("--machine h200 --kv-dtype f32 --dtype f16").eval.dtype == DType::kF16);
  CHECK(plan("--dtype bf16").eval.dtype == DType::kBF16);
}

TEST_CASE("plan: grids must divide the ranks") {
  CHECK(plan("--ranks 8 --tp 4").ranks == 8);
  check_plan_problem("--ranks 8 --tp 3", {"--tp 3", "--ranks 8"});
  check_plan_problem("--ranks 8 --tp 2 --sp 2 --dp 1", {"--tp 2", "--sp 2", "--dp 1", "--ranks 8"});
  check_plan_problem("--ranks 0", {"--ranks", "0"});
  check_plan_problem("--format xml", {"--format", "xml"});
}

TEST_CASE("machines: by name, by file, by options") {
  const Machine h200 = make_machine(plan("--machine h200").eval.machine);
  CHECK(h200.flops == 671e12);
  CHECK(h200.bandwidth == 4.47e12);
  CHECK(h200.memory == 141e9);
  const Machine other =
      make_machine(plan("--machine h200 --device-memory 100 --link-bandwidth 50").eval.machine);
  CHECK(other.memory == 100e9);
  CHECK(other.link_bandwidth == 50e9);
  CHECK(other.flops == h200.flops);
  const Machine cpu = make_machine(plan("--flops 1.5 --bandwidth 200 --link-latency 20").eval.machine);
  CHECK(cpu.name == "cpu");
  CHECK(cpu.flops == 1.5e12);
  CHECK(cpu.attention.of(64) == 1.5e12);
  CHECK(cpu.attention.of(256) == 1.5e12);
  CHECK(cpu.link_latency == doctest::Approx(20e-6));
  CHECK(cpu.has_rates());
  CHECK(!make_machine({}).has_rates());
  CHECK(machine_of_device("NVIDIA H100 80GB HBM3") == "h100");
  CHECK(machine_of_device("NVIDIA H200") == "h200");
  CHECK(machine_of_device("NVIDIA A100-SXM4-80GB") == "");
  const auto eval = std::get<EvalOptions>(
      parse_words("eval --model m --task ruler_niah --length 4096 --trace o.h5 --machine h200 --flops 2"));
  CHECK(make_machine(eval.machine).flops == 2e12);
  CHECK(make_machine(eval.machine).bandwidth == 4.47e12);

  const MachineFile file("device-memory = 24\nflops = 100.5\nbandwidth = 900\n");
  const Machine read = make_machine(plan("--bandwidth 1000 --machine " + file.path).eval.machine);
  CHECK(read.memory == 24e9);
  CHECK(read.flops == 100.5e12);
  CHECK(read.bandwidth == 1000e9);
}

TEST_CASE("machines that cannot be are refused") {
  check_plan_problem("--machine h20", {"--machine", "h20", "h200"});
  check_plan_problem("--machine /nowhere/m.toml", {"--machine", "/nowhere/m.toml"});
  check_plan_problem("--flops 0", {"--flops", "0", "TFLOP/s"});
  check_plan_problem("--bandwidth fast", {"--bandwidth", "fast", "GB/s"});
  const MachineFile file("bandwith = 900\n");
  check_plan_problem("--machine " + file.path, {file.path + ":1", "bandwith", "bandwidth"});
}
