// Every collective on 1 to 4 ranks, against what each rank can compute by itself from a counter hash: sizes
// that are zero, irregular, and longer than the largest message.
#include <doctest/doctest.h>
#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "parallel/mpi_communicator.hpp"
#include "parallel/mpi_session.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/random.hpp"

using namespace tessera;

namespace {

std::unique_ptr<Communicator> communicator_with(std::size_t max_message_bytes) {
  MPI_Comm copy = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &copy);
  return std::make_unique<MpiCommunicator>(MpiHandle(copy), max_message_bytes);
}

// What rank r contributes in round `round`: any rank can compute it.
std::vector<std::byte> bytes_of(int rank, int round, std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) {
    bytes[i] = static_cast<std::byte>(
        hash_counter(static_cast<std::uint64_t>(round), static_cast<std::uint64_t>(rank), i));
  }
  return bytes;
}

// Magnitudes from 1e-4 to 1e4 of both signs: another order of addition gives other bits.
float float_of(int rank, int round, std::size_t i) {
  CounterRng rng(static_cast<std::uint64_t>(round) * 64 + static_cast<std::uint64_t>(rank), i);
  constexpr float kScales[] = {1e-4f, 1e-2f, 1.0f, 1e2f, 1e4f};
  return (static_cast<float>(rng.uniform()) - 0.5f) * kScales[rng.below(5)];
}

constexpr std::size_t kMaxMessages[] = {64, 1000, kMaxMpiMessageBytes};
constexpr std::size_t kSizes[] = {0, 1, 3, 63, 64, 65, 999, 4097, 70001};

}  // namespace

TEST_CASE("broadcast from every root") {
  for (const std::size_t most : kMaxMessages) {
    const auto world = communicator_with(most);
    for (const std::size_t size : kSizes) {
      for (int root = 0; root < world->size(); ++root) {
        auto data = bytes_of(world->rank(), 1, size);
        world->broadcast(data.data(), size, root);
        CHECK(data == bytes_of(root, 1, size));
      }
    }
  }
}

TEST_CASE("all_reduce_sum of floats adds in the order of the ranks, to the same bits everywhere") {
  for (const std::size_t most : kMaxMessages) {
    const auto world = communicator_with(most);
    for (const std::size_t count : {0, 1, 2, 3, 5, 1023, 1025, 4099, 16387, 1100003}) {
      if (most < kMaxMpiMessageBytes && count > 20000) continue;
      std::vector<float> data(count), expected(count);
      for (std::size_t i = 0; i < count; ++i) {
        data[i] = float_of(world->rank(), 2, i);
        expected[i] = float_of(0, 2, i);
        for (int r = 1; r < world->size(); ++r) expected[i] += float_of(r, 2, i);
      }
      world->all_reduce_sum(data.data(), count);
      CHECK((count == 0 || std::memcmp(data.data(), expected.data(), count * sizeof(float)) == 0));
    }
  }
}

TEST_CASE("all_reduce of integers") {
  for (const std::size_t most : kMaxMessages) {
    const auto world = communicator_with(most);
    for (const std::size_t count : {0, 1, 7, 8, 9, 1000, 4099}) {
      std::vector<std::int64_t> sums(count), maxima(count), expected_sums(count), expected_maxima(count);
      for (std::size_t i = 0; i < count; ++i) {
        for (int r = 0; r < world->size(); ++r) {
          const auto value =
              static_cast<std::int64_t>(hash_counter(3, static_cast<std::uint64_t>(r), i)) >> 8;
          if (r == world->rank()) sums[i] = maxima[i] = value;
          expected_sums[i] += value;
          expected_maxima[i] = r == 0 ? value : std::max(expected_maxima[i], value);
        }
      }
      world->all_reduce_sum(sums.data(), count);
      world->all_reduce_max(maxima.data(), count);
      CHECK(sums == expected_sums);
      CHECK(maxima == expected_maxima);
    }
  }
}

TEST_CASE("all_gather, also in place") {
  for (const std::size_t most : kMaxMessages) {
    const auto world = communicator_with(most);
    for (const std::size_t size : kSizes) {
      std::vector<std::byte> expected;
      for (int r = 0; r < world->size(); ++r) {
        const auto part = bytes_of(r, 4, size);
        expected.insert(expected.end(), part.begin(), part.end());
      }
      const auto mine = bytes_of(world->rank(), 4, size);
      std::vector<std::byte> all(expected.size(), std::byte{0xee});
      world->all_gather(mine.data(), size, all.data());
      CHECK(all == expected);

      std::vector<std::byte> in_place(expected.size(), std::byte{0xee});
      std::byte* place = in_place.data() + static_cast<std::size_t>(world->rank()) * size;
      std::copy(mine.begin(), mine.end(), place);
      world->all_gather(place, size, in_place.data());
      CHECK(in_place == expected);
    }
  }
}

TEST_CASE("all_gather_v, scatter_v and gather with parts of irregular sizes, some empty") {
  for (const std::size_t most : kMaxMessages) {
    const auto world = communicator_with(most);
    const auto me = static_cast<std::size_t>(world->rank());
    for (int round = 0; round < 40; ++round) {
      CounterRng rng(5, static_cast<std::uint64_t>(round));
      std::vector<std::size_t> counts;
      std::vector<std::byte> joined;
      for (int r = 0; r < world->size(); ++r) {
        counts.push_back(round == 0 || rng.below(3) == 0 ? 0 : rng.below(5000));
        const auto part = bytes_of(r, round, counts.back());
        joined.insert(joined.end(), part.begin(), part.end());
      }
      const auto mine = bytes_of(world->rank(), round, counts[me]);

      std::vector<std::byte> all(joined.size(), std::byte{0xee});
      world->all_gather_v(mine.data(), all.data(), counts);
      CHECK(all == joined);

      const int root = static_cast<int>(rng.below(static_cast<std::uint64_t>(world->size())));
      const bool is_root = world->rank() == root;
      std::vector<std::byte> received(counts[me], std::byte{0xee});
      // Only the root has the counts of the others.
      world->scatter_v(is_root ? joined.data() : nullptr, is_root ? counts : std::vector<std::size_t>{},
                       received.data(), counts[me], root);
      CHECK(received == mine);

      const auto parts = world->gather(mine, root);
      REQUIRE(parts.size() == (is_root ? counts.size() : 0));
      for (int r = 0; is_root && r < world->size(); ++r) {
        CHECK(parts[static_cast<std::size_t>(r)] == bytes_of(r, round, counts[static_cast<std::size_t>(r)]));
      }
    }
  }
}

TEST_CASE("an MPI error is a PeerError with call, place and rank") {
  const auto world = communicator_with(kMaxMpiMessageBytes);
  int value = 0;
  try {
    world->broadcast(&value, sizeof value,
                     world->size());  // no such root: refused on every rank before anything is sent
    FAIL("nothing was thrown");
  } catch (const PeerError& error) {
    const std::string text = error.what();
    CHECK(text.find("rank " + std::to_string(world->rank()) +
                    ": MPI_Bcast failed at mpi_communicator.cpp:") == 0);
    CHECK(text.find('\n') == std::string::npos);
  }
  world->barrier();
}

TEST_CASE("the grid's communicators hold the right ranks in the right order") {
  MpiSession session = MpiSession::start(detect_launch());
  const int ranks = session.size();
  for (int tp = 1; tp <= ranks; ++tp) {
    for (int sp = 1; tp * sp <= ranks; ++sp) {
      if (ranks % (tp * sp) != 0) continue;
      const GridShape shape = solve_grid(tp, sp, 0, ranks);
      const Grid grid = make_grid(session, shape);
      const auto members = [&](Communicator& communicator) {
        std::vector<int> world_ranks(static_cast<std::size_t>(communicator.size()));
        const int mine = grid.world->rank();
        communicator.all_gather(&mine, sizeof mine, world_ranks.data());
        return world_ranks;
      };
      std::vector<int> world, group, along_tp, along_sp;
      for (int r = 0; r < ranks; ++r) world.push_back(r);
      for (int s = 0; s < sp; ++s) {
        for (int t = 0; t < tp; ++t) group.push_back((grid.place.dp * sp + s) * tp + t);
        along_sp.push_back((grid.place.dp * sp + s) * tp + grid.place.tp);
      }
      for (int t = 0; t < tp; ++t) along_tp.push_back((grid.place.dp * sp + grid.place.sp) * tp + t);
      CHECK(members(*grid.world) == world);
      CHECK(members(*grid.group) == group);
      CHECK(members(*grid.tp) == along_tp);
      CHECK(members(*grid.sp) == along_sp);
      CHECK(grid.group->rank() == grid.place.sp * tp + grid.place.tp);
      CHECK(grid.is_group_leader() == (grid.group->rank() == 0));
    }
  }
}
