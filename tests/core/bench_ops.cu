// Times of the device operations at the shapes of Qwen2.5-72B and 7B, beside the copy rates of this machine:
// bench_core_ops [ops|layer|upload]. Linear layers are timed by `tessera bench gemm`.
#include <cuda_runtime.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_upload.hpp"
#include "runtime/core/device_gemm.hpp"
#include "runtime/core/device_ops.hpp"
#include "tests/cuda_support.hpp"

using namespace tessera;
using namespace tessera::cuda;
using cuda_test::Gpu;

namespace {

Gpu* gpu;

double median_us(const std::function<void(int)>& work, int repeats = 15, int inner = 4) {
  std::vector<double> times;
  CudaEvent first(Gpu::device(), EventUse::kTiming), last(Gpu::device(), EventUse::kTiming);
  for (int i = 0; i < repeats + 2; ++i) {
    first.record(gpu->stream());
    for (int j = 0; j < inner; ++j) work(i * inner + j);
    last.record(gpu->stream());
    const double us = milliseconds_between(first, last) * 1e3 / inner;
    if (i >= 2) times.push_back(us);
  }
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[repeats / 2];
}

void row(const char* name, double us, double bytes, double flops = 0) {
  std::printf("%-34s %9.1f us %7.2f TB/s", name, us, bytes / us * 1e-6);
  if (flops > 0) std::printf(" %7.1f TF/s", flops / us * 1e-6);
  std::printf("\n");
}

DeviceBuffer noise(std::size_t bytes) {  // bf16 of size about 1, from a random tile
  std::mt19937_64 rng(1);
  const std::vector<std::uint16_t> tile =
      cuda_test::rounded(cuda_test::random_floats(1 << 22, rng), DType::kBF16);
  DeviceBuffer buffer(bytes, Gpu::device(), MemoryKind::kWorkspace, gpu->meter());
  for (std::size_t at = 0; at < bytes; at += tile.size() * 2) {
    copy_to_device(buffer.data() + at, tile.data(), std::min(tile.size() * 2, bytes - at), gpu->stream());
  }
  gpu->synchronize();
  return buffer;
}

void bench_ops(DeviceBuffer& a, DeviceBuffer& b, DeviceBuffer& c) {
  for (const std::int64_t T : {std::int64_t{1}, std::int64_t{64}, std::int64_t{16384}}) {
    std::printf("-- %ld tokens, E 8192, H 64, K 8, D 128, F 29568\n", static_cast<long>(T));
    const double t = static_cast<double>(T);
    cuda::RmsNormParams n;
    n.rows = T, n.columns = 8192, n.x = a.data(), n.weight = b.data(), n.y = c.data(), n.eps = 1e-6f;
    n.stream = gpu->stream();
    row("rms_norm", median_us([&](int) { cuda::rms_norm(n); }), t * 8192 * 4);
    AddNormParams r;
    r.rows = T, r.columns = 8192, r.x = a.data(), r.residual = c.data(), r.weight = b.data();
    r.y = c.data() + T * 16384, r.eps = 1e-6f, r.stream = gpu->stream();
    row("add_norm", median_us([&](int) { add_norm(r); }), t * 8192 * 8);
    r.post_weight = b.data(), r.weight_offset = 1;
    row("add_norm with post norm", median_us([&](int) { add_norm(r); }), t * 8192 * 8);
    cuda::GatedActivationParams g;
    g.rows = std::min<std::int64_t>(T, 8192), g.columns = 29568, g.gate = a.data(),
    g.up = a.data() + 2 * 29568;
    g.in_stride = 2 * 29568, g.y = c.data(), g.stream = gpu->stream();
    row("silu(gate) up, <= 8192 tokens", median_us([&](int) { cuda::gated_activation(g); }),
        static_cast<double>(g.rows) * 29568 * 6);

    std::vector<std::int32_t> positions, table, sequences;
    const bool decode = T <= 64;
    for (std::int64_t i = 0; i < T; ++i) {
      positions.push_back(static_cast<std::int32_t>(decode ? 1000 : i)),
          sequences.push_back(static_cast<int>(i));
    }
    const std::int64_t blocks = decode ? 16 : T / 64;
    for (std::int64_t i = 0; i < 8 * blocks * (decode ? T : 1); ++i) table.push_back(static_cast<int>(i));
    DeviceBuffer positions_there = gpu->upload(positions), table_there = gpu->upload(table);
    DeviceBuffer sequences_there = gpu->upload(sequences);
    DeviceBuffer angles(20000 * 64 * 4, Gpu::device(), MemoryKind::kWorkspace, gpu->meter());
    fill_bytes(angles.data(), 0, angles.bytes(), gpu->stream());
    DeviceBuffer bounds(table.size() * 4 * 2 * 128 * 2, Gpu::device(), MemoryKind::kKv, gpu->meter());
    DeviceBuffer slots(table.size() * 2 * 64 * 128 * 2, Gpu::device(), MemoryKind::kKv, gpu->meter());
    for (const int each : {0, 1}) {
      QkvParams p;
      p.tokens = T, p.heads = 64, p.kv_heads = 8, p.head_dim = 128;
      p.q = a.data(), p.k = a.data() + 16384, p.v = a.data() + 16384 + 2048;
      p.q_stride = p.kv_stride = 80 * 128, p.q_bias = p.k_bias = p.v_bias = b.data();
      if (each == 1) p.q_norm = p.k_norm = b.data();
      p.positions = positions_there.as<std::int32_t>(), p.cosines = p.sines = angles.as<float>();
      p.q_out = c.data(), p.slots = slots.data(), p.slot_bytes = 2 * 64 * 128 * 2;
      p.table = table_there.as<std::int32_t>(), p.table_stride = blocks, p.table_sequence_stride = 8 * blocks;
      p.sequences = decode ? sequences_there.as<std::int32_t>() : nullptr;
      p.stream = gpu->stream();
      const double bytes = t * 80 * 128 * 4;
      row(each ? "qkv to cache, norms" : "qkv to cache", median_us([&](int) { qkv_to_cache(p); }), bytes);
      p.bounds = bounds.data();
      row(each ? "qkv to cache, norms, bounds" : "qkv to cache, bounds",
          median_us([&](int) { qkv_to_cache(p); }), bytes);
    }
  }
  for (const std::int64_t rows : {1, 16}) {
    DeviceBuffer keys = gpu->poisoned(1024), indices = gpu->poisoned(1024);
    ArgmaxParams p;
    p.rows = rows, p.columns = 152064, p.logits = a.data(), p.keys = keys.as<std::uint64_t>();
    p.indices = indices.as<std::int32_t>(), p.stream = gpu->stream();
    row(rows == 1 ? "argmax 1 x 152064 f32" : "argmax 16 x 152064 f32",
        median_us([&](int) { argmax_rows(p); }), static_cast<double>(rows) * 152064 * 4);
  }
}

// One layer of Qwen2.5-7B at one token, without attention, captured: the products' share of a decode step.
void bench_layer(DeviceBuffer& weights) {
  constexpr std::int64_t kE = 3584, kF = 18944, kQkv = 4608, kSets = 4;
  StreamPool pool(gpu->stream(), gpu->meter());
  DeviceGemm gemm(pool);
  const std::size_t bytes = static_cast<std::size_t>((kQkv * kE + kE * kE + 3 * kF * kE) * 2);
  DeviceBuffer x = noise(1 << 20), y = noise(1 << 20), z = noise(1 << 20), norm = noise(1 << 20);
  for (const std::int64_t rows : {1, 2}) {
    for (const int way : {0, 1, 2}) {
      const auto linear = [&](const void* in, std::byte*& weight, void* out, std::int64_t inner,
                              std::int64_t columns) {
        LinearParams p;
        p.rows = rows, p.inner = inner, p.columns = columns, p.x = in, p.weight = weight, p.y = out;
        p.settled_weight = way == 2;
        weight += inner * columns * 2;
        way == 0 ? gemm.linear_by_library(p) : linear_few_rows(p, gpu->stream());
      };
      const auto layer = [&](std::byte* weight) {
        AddNormParams n;
        n.rows = rows, n.columns = kE, n.x = y.data(), n.residual = x.data(), n.weight = norm.data();
        n.y = z.data(), n.eps = 1e-6f, n.stream = gpu->stream();
        add_norm(n);
        linear(z.data(), weight, y.data(), kE, kQkv);
        linear(y.data(), weight, z.data(), kE, kE);
        n.x = z.data();
        add_norm(n);
        linear(z.data(), weight, y.data(), kE, 2 * kF);
        cuda::GatedActivationParams g;
        g.rows = rows, g.columns = kF, g.gate = y.data(), g.up = y.data() + kF * 2, g.in_stride = 2 * kF;
        g.y = z.data(), g.stream = gpu->stream();
        cuda::gated_activation(g);
        linear(z.data(), weight, y.data(), kF, kE);
      };
      layer(weights.data());
      gpu->synchronize();
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t executable = nullptr;
      CUDA_CHECK(cudaStreamBeginCapture(native(gpu->stream()), cudaStreamCaptureModeThreadLocal));
      for (int i = 0; i < 28; ++i) layer(weights.data() + static_cast<std::size_t>(i % kSets) * bytes);
      CUDA_CHECK(cudaStreamEndCapture(native(gpu->stream()), &graph));
      CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
      const double us =
          median_us([&](int) { CUDA_CHECK(cudaGraphLaunch(executable, native(gpu->stream()))); }, 11, 2) / 28;
      const char* names[] = {"layer 7B by library", "layer 7B own", "layer 7B own, settled weights"};
      std::printf("%ld rows ", static_cast<long>(rows));
      row(names[way], us, static_cast<double>(bytes));
      CUDA_CHECK(cudaGraphExecDestroy(executable));
      CUDA_CHECK(cudaGraphDestroy(graph));
    }
  }
}

void bench_upload(DeviceBuffer& target) {
  const std::size_t bytes = std::size_t{1} << 30;
  PinnedBuffer pinned(std::size_t{256} << 20);
  std::fill_n(pinned.data(), pinned.bytes(), std::byte{7});
  const double us = median_us(
      [&](int) { copy_to_device(target.data(), pinned.data(), pinned.bytes(), gpu->stream()); }, 9, 1);
  const double link = static_cast<double>(pinned.bytes()) / us * 1e-3;
  char name[] = "/tmp/tessera_upload_XXXXXX";
  const int file = mkstemp(name);
  if (file < 0) return;
  std::vector<std::uint64_t> words(1 << 20);
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = i * 0x9e3779b97f4a7c15ULL;
  for (std::size_t at = 0; at < bytes; at += words.size() * 8) {
    if (write(file, words.data(), words.size() * 8) < 0) return;
  }
  std::printf("host to device, pinned: %.1f GB/s\n", link);
  struct Way {
    int threads;
    std::size_t kib;
  };
  for (const Way& way : {Way{1, 2048}, Way{4, 2048}, Way{8, 512}, Way{8, 2048}, Way{8, 8192}, Way{12, 512},
                         Way{12, 1024}, Way{12, 2048}, Way{12, 8192}, Way{16, 1024}}) {
    Uploader uploader(Gpu::device(), {.threads = way.threads, .chunk_bytes = way.kib << 10});
    std::printf("upload of a mapped file, %2d threads, chunks of %4zu KiB:", way.threads, way.kib);
    for (int round = 0; round < 2; ++round) {  // mapped anew: its pages have no entries yet
      void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
      const UploadPiece piece = {static_cast<const std::byte*>(mapped), target.data(), 1, bytes, 0};
      for (int again = 0; again < 2; ++again) {
        const UploadResult result = uploader.upload({&piece, 1});
        const double rate = static_cast<double>(result.bytes) / result.seconds * 1e-9;
        std::printf(" %.1f GB/s (%.0f%%)", rate, 100 * rate / link);
      }
      munmap(mapped, bytes);
    }
    std::printf("\n");
  }
  close(file);
  unlink(name);
}

}  // namespace

int main(int argc, char** argv) {
  Gpu here;
  gpu = &here;
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, cuBLASLt %s\n", properties.name, DeviceGemm::library_version().c_str());
  const std::string what = argc > 1 ? argv[1] : "all";
  DeviceBuffer a = noise(std::size_t{2} << 30), b = noise(std::size_t{1} << 28),
               c = noise(std::size_t{2} << 30);
  const double us =
      median_us([&](int) { copy_on_device(c.data(), a.data(), a.bytes(), gpu->stream()); }, 7, 1);
  row("device copy, read and written", us, 2.0 * static_cast<double>(a.bytes()));
  if (what == "all" || what == "ops") bench_ops(a, b, c);
  if (what == "all" || what == "layer") bench_layer(a);
  if (what == "all" || what == "upload") bench_upload(a);
  return 0;
}
