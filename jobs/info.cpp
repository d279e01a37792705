#include "jobs/info.hpp"

#include <fmt/format.h>
#include <hdf5.h>
#include <hwloc.h>
#include <mpi.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>

#include "jobs/host_memory.hpp"
#include "parallel/nccl_communicator.hpp"
#include "runtime/core/blas.hpp"
#include "runtime/core/host.hpp"
#include "tessera_build_info.hpp"

namespace tessera {
namespace {

using Json = nlohmann::ordered_json;

// The value of "key : value" or "key: value" in a /proc file, the first that is there.
std::string proc_value(const char* path, std::string_view key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos || line.find_first_not_of(" \t", key.size()) != colon) continue;
    const std::size_t value = line.find_first_not_of(" \t", colon + 1);
    if (value != std::string::npos) return line.substr(value);
  }
  return {};
}

std::string list_text(hwloc_const_bitmap_t bitmap) {
  if (bitmap == nullptr || hwloc_bitmap_iszero(bitmap)) return {};
  char* text = nullptr;
  if (hwloc_bitmap_list_asprintf(&text, bitmap) < 0) return {};
  const std::unique_ptr<char, void (*)(void*)> owner(text, std::free);
  return text;
}

void fill_topology(HostInfo& info) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return;
  const std::unique_ptr<hwloc_topology, void (*)(hwloc_topology_t)> topology(raw, hwloc_topology_destroy);
  if (hwloc_topology_load(raw) != 0) return;
  info.cores = std::max(0, hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_CORE));
  info.hardware_threads = std::max(0, hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_PU));
  info.numa_nodes = std::max(0, hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_NUMANODE));
  const std::unique_ptr<hwloc_bitmap_s, void (*)(hwloc_bitmap_t)> bound(hwloc_bitmap_alloc(),
                                                                        hwloc_bitmap_free);
  const std::unique_ptr<hwloc_bitmap_s, void (*)(hwloc_bitmap_t)> nodes(hwloc_bitmap_alloc(),
                                                                        hwloc_bitmap_free);
  if (!bound || !nodes || hwloc_get_cpubind(raw, bound.get(), HWLOC_CPUBIND_PROCESS) != 0) return;
  hwloc_bitmap_and(bound.get(), bound.get(), hwloc_topology_get_topology_cpuset(raw));
  info.bound = list_text(bound.get());
  info.bound_count = std::max(0, hwloc_bitmap_weight(bound.get()));
  for (hwloc_obj_t core = nullptr;
       (core = hwloc_get_next_obj_by_type(raw, HWLOC_OBJ_CORE, core)) != nullptr;) {
    if (hwloc_bitmap_intersects(core->cpuset, bound.get()) != 0) ++info.bound_cores;
  }
  hwloc_cpuset_to_nodeset(raw, bound.get(), nodes.get());
  info.numa = list_text(nodes.get());
}

std::string bytes_text(std::int64_t bytes) {
  return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / (1024.0 * 1024 * 1024));
}

Json host_json(const HostInfo& h) {
  return {{"host", h.host},
          {"cpu", h.cpu},
          {"cores", h.cores},
          {"hardware_threads", h.hardware_threads},
          {"bound", h.bound},
          {"bound_count", h.bound_count},
          {"bound_cores", h.bound_cores},
          {"numa_nodes", h.numa_nodes},
          {"numa", h.numa},
          {"memory_total", h.memory_total},
          {"memory_available", h.memory_available},
          {"memory_limit", h.memory_limit},
          {"device_name", h.device_name},
          {"pci", h.pci}};
}

Json build_json(const BuildInfo& b) {
  return {{"version", b.version},
          {"git_revision", b.git_revision},
          {"git_dirty", b.git_dirty},
          {"compiler", b.compiler},
          {"build_type", b.build_type},
          {"mpi", b.mpi},
          {"hdf5", b.hdf5},
          {"blas", b.blas},
          {"cuda_compiler", b.cuda_compiler},
          {"nccl", b.nccl}};
}

Json cuda_json(const CudaInfo& cuda) {
  Json devices = Json::array();
  for (const GpuInfo& gpu : cuda.devices) {
    devices.push_back({{"name", gpu.name},
                       {"pci", gpu.pci},
                       {"total_bytes", gpu.total_bytes},
                       {"free_bytes", gpu.free_bytes},
                       {"multiprocessors", gpu.multiprocessors},
                       {"compute", fmt::format("{}.{}", gpu.compute_major, gpu.compute_minor)}});
  }
  return {{"built", cuda.built},
          {"runtime", cuda.runtime},
          {"driver", cuda.driver},
          {"problem", cuda.problem},
          {"devices", devices}};
}

std::string text_of(const Json& rank, const char* key) {
  return rank.at(key).get<std::string>();
}

void write_build(const BuildInfo& b, std::ostream& out) {
  out << fmt::format("tessera   {}, git {}{}\n", b.version, b.git_revision, b.git_dirty ? " (changed)" : "");
  out << fmt::format("build     {}, {}{}\n", b.build_type, b.compiler,
                     b.cuda_compiler.empty() ? ", without CUDA" : ", nvcc " + b.cuda_compiler);
  out << fmt::format("libraries {}; HDF5 {}; {}; {}\n", b.mpi, b.hdf5, b.blas,
                     b.nccl.empty() ? "without NCCL" : "NCCL " + b.nccl);
}

void write_host(const Json& r, std::ostream& out) {
  out << fmt::format("host      {}, {}\n", text_of(r, "host"), text_of(r, "cpu"));
  out << fmt::format(
      "cores     {} cores, {} hardware threads, {} NUMA nodes; bound to {} ({} cores, NUMA {})\n",
      r.at("cores").get<int>(), r.at("hardware_threads").get<int>(), r.at("numa_nodes").get<int>(),
      text_of(r, "bound"), r.at("bound_cores").get<int>(), text_of(r, "numa"));
  const auto limit = r.at("memory_limit").get<std::int64_t>();
  out << fmt::format("memory    {}, {} free{}\n", bytes_text(r.at("memory_total").get<std::int64_t>()),
                     bytes_text(r.at("memory_available").get<std::int64_t>()),
                     limit > 0 ? ", limited to " + bytes_text(limit) : "");
  const Json& cuda = r.at("cuda");
  if (cuda.at("devices").empty()) {
    out << fmt::format("cuda      none: {}\n", text_of(cuda, "problem"));
    return;
  }
  out << fmt::format("cuda      runtime {}, driver {}\n", text_of(cuda, "runtime"), text_of(cuda, "driver"));
  int ordinal = 0;
  for (const Json& gpu : cuda.at("devices")) {
    out << fmt::format("  device {}  {}, {}, {} of {} free, {} multiprocessors, compute {}\n", ordinal++,
                       text_of(gpu, "name"), text_of(gpu, "pci"),
                       bytes_text(gpu.at("free_bytes").get<std::int64_t>()),
                       bytes_text(gpu.at("total_bytes").get<std::int64_t>()),
                       gpu.at("multiprocessors").get<int>(), text_of(gpu, "compute"));
  }
}

std::string rank_line(int rank, const Json& r) {
  const Json& devices = r.at("cuda").at("devices");
  return fmt::format("rank {:<4} {}  threads {} ({} cores)  NUMA {}  {} free  {}", rank, text_of(r, "host"),
                     text_of(r, "bound"), r.at("bound_cores").get<int>(), text_of(r, "numa"),
                     bytes_text(r.at("memory_available").get<std::int64_t>()),
                     devices.empty() ? text_of(r, "cpu")
                                     : fmt::format("{} x {}", devices.size(), text_of(devices[0], "name")));
}

}  // namespace

std::string processor_name() {
  const std::string name = proc_value("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown CPU" : name;  // Arm kernels do not name it
}

HostInfo collect_host_info(const Device& device) {
  HostInfo info;
  info.host = host_name();
  info.cpu = processor_name();
  fill_topology(info);
  const HostMemory memory = read_host_memory();
  info.memory_total = memory.total;
  info.memory_available = memory.available;
  info.memory_limit = memory.limit;
  info.device_name = info.cpu;
  if (device.kind == DeviceKind::kCuda) {
    const CudaInfo cuda = query_cuda();
    info.device_name.clear();
    if (device.ordinal >= 0 && static_cast<std::size_t>(device.ordinal) < cuda.devices.size()) {
      const GpuInfo& gpu = cuda.devices[static_cast<std::size_t>(device.ordinal)];
      info.device_name = gpu.name;
      info.pci = gpu.pci;
    }
  }
  return info;
}

BuildInfo collect_build_info() {
  BuildInfo info;
  info.version = build_info::kVersion;
  info.git_revision = build_info::kGitRevision;
  info.git_dirty = build_info::kGitDirty;
  info.compiler = build_info::kCompiler;
  info.build_type = build_info::kBuildType;
  info.cuda_compiler = build_info::kCudaCompiler;
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int size = 0;
  if (MPI_Get_library_version(text.data(), &size) == MPI_SUCCESS) info.mpi = text.data();
  info.mpi.resize(std::min(info.mpi.find_first_of(",\n"), info.mpi.size()));
  unsigned major = 0, minor = 0, release = 0;
  if (H5get_libversion(&major, &minor, &release) >= 0)
    info.hdf5 = fmt::format("{}.{}.{}", major, minor, release);
  info.nccl = cuda::nccl_version();
  info.blas = blas_description();
  info.blas.resize(info.blas.find_last_not_of(' ') + 1);
  return info;
}

void run_info(const InfoOptions& options, Communicator& world, std::ostream& out) {
  Json mine = host_json(collect_host_info());
  mine["cuda"] = cuda_json(query_cuda());
  // Names come from the machine: bytes that are no UTF-8 are replaced rather than refused.
  const std::string text = mine.dump(-1, ' ', false, Json::error_handler_t::replace);
  const std::vector<std::vector<std::byte>> parts = world.gather(std::as_bytes(std::span(text)), 0);
  if (world.rank() != 0) return;

  Json ranks = Json::array();
  for (const std::vector<std::byte>& part : parts) {
    const auto* bytes = reinterpret_cast<const char*>(part.data());
    ranks.push_back(Json::parse(bytes, bytes + part.size()));
    ranks.back()["rank"] = ranks.size() - 1;
  }
  const BuildInfo build = collect_build_info();
  if (options.json) {
    out << Json{{"build", build_json(build)}, {"ranks", ranks}}.dump(2, ' ', false,
                                                                     Json::error_handler_t::replace)
        << '\n';
    return;
  }
  write_build(build, out);
  if (ranks.size() == 1) {
    write_host(ranks[0], out);
    return;
  }
  for (std::size_t rank = 0; rank < ranks.size(); ++rank)
    out << rank_line(static_cast<int>(rank), ranks[rank]) << '\n';
}

}  // namespace tessera
