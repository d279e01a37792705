// Collectives of device memory against what a loop on the host makes of the same numbers. Values are small
// integers, which every type holds: sums are exact in any order.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "parallel/mpi_session.hpp"
#include "parallel/nccl_communicator.hpp"
#include "runtime/core/cuda_graph.hpp"
#include "tests/cuda_support.hpp"

using namespace tessera;
using namespace tessera::cuda;

namespace {

constexpr std::int64_t kGuard = 37;  // elements behind each output, which stay poisoned

struct Ranks {
  Ranks() : session(MpiSession::start(detect_launch())), host(session.world()), stream(device()) {}
  Device device() const {
    const auto devices = static_cast<int>(query_cuda().devices.size());
    return {DeviceKind::kCuda, session.launch().local_rank % devices};
  }
  NcclOptions options() const {
    NcclOptions o;
    o.device = device();
    o.name = "test";
    o.world_rank = session.rank();
    o.timeout = std::chrono::seconds(40);
    return o;
  }

  MpiSession session;
  std::unique_ptr<Communicator> host;
  CudaStream stream;
  MemoryMeter meter;
};

// What rank r holds at i: −3 … 3.
int value_at(int rank, std::int64_t i) {
  return static_cast<int>((i * 5 + rank * 3 + i / 7) % 7) - 3;
}

// Numbers in the bytes of a type, and back.
std::vector<std::byte> packed(const std::vector<int>& values, NcclType type) {
  std::vector<std::byte> bytes(values.size() * size_of(type));
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::byte* at = bytes.data() + i * size_of(type);
    const auto put = [at](auto value) { std::memcpy(at, &value, sizeof value); };
    const auto v = values[i];
    switch (type) {
      case NcclType::kF32:
        put(static_cast<float>(v));
        break;
      case NcclType::kBF16:
        put(cuda_test::bits_of(static_cast<float>(v), DType::kBF16));
        break;
      case NcclType::kF16:
        put(cuda_test::bits_of(static_cast<float>(v), DType::kF16));
        break;
      case NcclType::kInt32:
        put(static_cast<std::int32_t>(v));
        break;
      case NcclType::kInt64:
        put(static_cast<std::int64_t>(v));
        break;
      case NcclType::kUint64:
        put(static_cast<std::uint64_t>(v + 3));
        break;
      case NcclType::kByte:
        put(static_cast<std::uint8_t>(v + 3));
        break;
    }
  }
  return bytes;
}

// −0 and 0 are the same number.
bool same(std::vector<std::byte> got, std::vector<std::byte> want, NcclType type) {
  const auto plain = [type](std::vector<std::byte>& bytes) {
    const bool is_float = type == NcclType::kF32 || type == NcclType::kBF16 || type == NcclType::kF16;
    if (!is_float) return;
    const std::size_t size = size_of(type);
    for (std::size_t i = 0; i + size <= bytes.size(); i += size) {
      bool zero = bytes[i + size - 1] == std::byte{0x80};
      for (std::size_t b = 0; b + 1 < size; ++b) zero = zero && bytes[i + b] == std::byte{0};
      if (zero) bytes[i + size - 1] = std::byte{0};
    }
  };
  plain(got);
  plain(want);
  return got == want;
}

class Arrays {
 public:
  explicit Arrays(Ranks& ranks) : ranks_(ranks) {}
  DeviceBuffer upload(const std::vector<std::byte>& bytes) {
    DeviceBuffer buffer(std::max<std::size_t>(bytes.size(), 1), ranks_.device(), MemoryKind::kWorkspace,
                        ranks_.meter);
    copy_to_device(buffer.data(), bytes.data(), bytes.size(), ranks_.stream);
    ranks_.stream.synchronize();
    return buffer;
  }
  DeviceBuffer poisoned(std::size_t bytes) { return upload(std::vector<std::byte>(bytes, std::byte{0xff})); }
  std::vector<std::byte> download(const DeviceBuffer& buffer, std::size_t bytes) {
    std::vector<std::byte> values(bytes);
    copy_to_host(values.data(), buffer.data(), bytes, ranks_.stream);
    ranks_.stream.synchronize();
    return values;
  }
  // `count` elements as wanted, and nothing written behind them.
  void check(const DeviceBuffer& buffer, const std::vector<int>& want, NcclType type) {
    const std::size_t bytes = want.size() * size_of(type), guard = kGuard * size_of(type);
    std::vector<std::byte> got = download(buffer, bytes + guard);
    CHECK(std::all_of(got.begin() + static_cast<std::ptrdiff_t>(bytes), got.end(),
                      [](std::byte b) { return b == std::byte{0xff}; }));
    got.resize(bytes);
    CHECK(same(std::move(got), packed(want, type), type));
  }

 private:
  Ranks& ranks_;
};

std::vector<int> values_of(int rank, std::int64_t count) {
  std::vector<int> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(value_at(rank, i));
  return values;
}

constexpr std::int64_t kCounts[] = {0, 1, 3, 127, 4096, 100003};

}  // namespace

TEST_CASE("NCCL: all-reduce, all-gather, reduce-scatter and broadcast are what a loop makes") {
  Ranks ranks;
  NcclCommunicator nccl(*ranks.host, ranks.options());
  Arrays arrays(ranks);
  const int me = nccl.rank(), size = nccl.size();
  REQUIRE(size == ranks.session.size());
  for (const NcclType type :
       {NcclType::kF32, NcclType::kBF16, NcclType::kF16, NcclType::kInt32, NcclType::kInt64}) {
    for (const std::int64_t count : kCounts) {
      CAPTURE(count);
      CAPTURE(static_cast<int>(type));
      const std::size_t guarded = static_cast<std::size_t>(count + kGuard) * size_of(type);
      const DeviceBuffer mine = arrays.upload(packed(values_of(me, count), type));
      std::vector<int> sums(static_cast<std::size_t>(count)), most(sums.size(), -3), all;
      for (int r = 0; r < size; ++r) {
        const std::vector<int> part = values_of(r, count);
        all.insert(all.end(), part.begin(), part.end());
        for (std::size_t i = 0; i < part.size(); ++i) {
          sums[i] += part[i];
          most[i] = std::max(most[i], part[i]);
        }
      }
      DeviceBuffer out = arrays.poisoned(guarded);
      nccl.all_reduce(mine.data(), out.data(), count, type, NcclSum::kSum, ranks.stream);
      nccl.wait(ranks.stream, "sum");
      arrays.check(out, sums, type);

      out = arrays.poisoned(guarded);
      nccl.all_reduce(mine.data(), out.data(), count, type, NcclSum::kMax, ranks.stream);
      nccl.wait(ranks.stream, "max");
      arrays.check(out, most, type);

      out = arrays.poisoned(static_cast<std::size_t>(size * count + kGuard) * size_of(type));
      nccl.all_gather(mine.data(), out.data(), count, type, ranks.stream);
      nccl.wait(ranks.stream, "gather");
      arrays.check(out, all, type);

      // Of size() · count elements each.
      const DeviceBuffer wide = arrays.upload(packed(values_of(me, size * count), type));
      std::vector<int> part(static_cast<std::size_t>(count));
      for (int r = 0; r < size; ++r) {
        for (std::int64_t i = 0; i < count; ++i) {
          part[static_cast<std::size_t>(i)] += value_at(r, me * count + i);
        }
      }
      out = arrays.poisoned(guarded);
      nccl.reduce_scatter(wide.data(), out.data(), count, type, ranks.stream);
      nccl.wait(ranks.stream, "scatter");
      arrays.check(out, part, type);

      for (int root = 0; root < size; ++root) {
        out = arrays.poisoned(guarded);
        if (me == root)
          copy_on_device(out.data(), mine.data(), static_cast<std::size_t>(count) * size_of(type),
                         ranks.stream);
        nccl.broadcast(out.data(), count, type, root, ranks.stream);
        nccl.wait(ranks.stream, "broadcast");
        arrays.check(out, values_of(root, count), type);
      }
    }
  }
}

TEST_CASE("NCCL: parts of irregular sizes, none included, go to each rank and itself, 200 times") {
  Ranks ranks;
  NcclCommunicator nccl(*ranks.host, ranks.options());
  Arrays arrays(ranks);
  const int me = nccl.rank(), size = nccl.size();
  for (int turn = 0; turn < 200; ++turn) {
    const auto bytes_between = [turn](int from, int to) {
      return static_cast<std::size_t>((from * 977 + to * 331 + turn * 53) % 5 == 0
                                          ? 0
                                          : (from * 7919 + to * 104729 + turn * 613) % 20011);
    };
    const auto byte_at = [turn](int from, int to, std::size_t i) {
      return static_cast<std::byte>((static_cast<std::size_t>(from * 31 + to * 17 + turn) + i) % 251);
    };
    std::vector<std::byte> sent, want;
    for (int r = 0; r < size; ++r) {
      for (std::size_t i = 0; i < bytes_between(me, r); ++i) sent.push_back(byte_at(me, r, i));
      for (std::size_t i = 0; i < bytes_between(r, me); ++i) want.push_back(byte_at(r, me, i));
    }
    const DeviceBuffer out = arrays.upload(sent);
    DeviceBuffer in = arrays.poisoned(want.size() + kGuard);
    std::vector<SendPart> sends;
    std::vector<ReceivePart> receives;
    std::size_t from = 0, to = 0;
    for (int r = 0; r < size; ++r) {
      sends.push_back({r, out.data() + from, bytes_between(me, r)});
      receives.push_back({r, in.data() + to, bytes_between(r, me)});
      from += sends.back().bytes;
      to += receives.back().bytes;
    }
    nccl.exchange(sends, receives, ranks.stream);
    nccl.wait(ranks.stream, "exchange");
    want.insert(want.end(), kGuard, std::byte{0xff});
    CAPTURE(turn);
    REQUIRE(arrays.download(in, want.size()) == want);
  }
}

TEST_CASE("NCCL: a captured all-reduce gives, replayed 200 times, what it gives launched") {
  Ranks ranks;
  NcclCommunicator nccl(*ranks.host, ranks.options());
  Arrays arrays(ranks);
  constexpr std::int64_t kCount = 5003;
  const DeviceBuffer mine = arrays.upload(packed(values_of(nccl.rank(), kCount), NcclType::kF32));
  DeviceBuffer out = arrays.poisoned((kCount + kGuard) * sizeof(float));
  const auto add = [&] {
    nccl.all_reduce(mine.data(), out.data(), kCount, NcclType::kF32, NcclSum::kSum, ranks.stream);
  };
  add();  // what NCCL sets up when it is first asked cannot be captured
  nccl.wait(ranks.stream, "sum");
  const CudaGraph graph(ranks.stream, add);
  std::vector<int> sums(kCount);
  for (int r = 0; r < nccl.size(); ++r) {
    for (std::int64_t i = 0; i < kCount; ++i) sums[static_cast<std::size_t>(i)] += value_at(r, i);
  }
  fill_bytes(out.data(), 0xff, out.bytes(), ranks.stream);
  for (int turn = 0; turn < 200; ++turn) graph.launch(ranks.stream);
  nccl.wait(ranks.stream, "replays");
  arrays.check(out, sums, NcclType::kF32);
}

TEST_CASE("NCCL: communicators of the grid's tp groups stand beside that of the world") {
  Ranks ranks;
  if (ranks.session.size() % 2 != 0) return;
  const Grid grid = make_grid(ranks.session, {2, 1, ranks.session.size() / 2});
  NcclCommunicator world(*ranks.host, ranks.options()), tp(*grid.tp, ranks.options());
  Arrays arrays(ranks);
  const int partner = ranks.session.rank() ^ 1;
  const DeviceBuffer mine = arrays.upload(packed(values_of(ranks.session.rank(), 100), NcclType::kF32));
  DeviceBuffer out = arrays.poisoned((100 + kGuard) * sizeof(float));
  tp.all_reduce(mine.data(), out.data(), 100, NcclType::kF32, NcclSum::kSum, ranks.stream);
  tp.wait(ranks.stream, "sum");
  std::vector<int> sums = values_of(ranks.session.rank(), 100);
  for (std::int64_t i = 0; i < 100; ++i) sums[static_cast<std::size_t>(i)] += value_at(partner, i);
  arrays.check(out, sums, NcclType::kF32);
  world.check();
}
