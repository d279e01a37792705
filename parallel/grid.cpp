#include "parallel/grid.hpp"

#include <cstdint>

#include "parallel/mpi_session.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

GridPlace place_of(const GridShape& shape, int world_rank) {
  TESSERA_CHECK(world_rank >= 0 && world_rank < shape.ranks());
  return {world_rank % shape.tp, world_rank / shape.tp % shape.sp, world_rank / (shape.tp * shape.sp)};
}

int world_rank_of(const GridShape& shape, const GridPlace& place) {
  return (place.dp * shape.sp + place.sp) * shape.tp + place.tp;
}

GridShape solve_grid(int tp, int sp, int dp, int world_size) {
  if (tp < 1 || sp < 1 || dp < 0) {
    throw UsageError("--tp {} --sp {} --dp {}: tp and sp are at least 1, and so is dp where it is given", tp,
                     sp, dp);
  }
  const std::int64_t group = std::int64_t{tp} * sp;
  if (dp == 0) {
    if (group > world_size || world_size % group != 0) {
      throw UsageError(
          "--tp {} x --sp {} = {} does not divide the number of ranks, {}: change them or mpirun -np", tp, sp,
          group, world_size);
    }
    return {tp, sp, static_cast<int>(world_size / group)};
  }
  // Each factor is below 2^31: group itself is exact, and is compared before it is multiplied again.
  if (group > world_size || group * dp != world_size) {
    throw UsageError(
        "--tp {} x --sp {} x --dp {} must equal the number of ranks, {}: change them or mpirun -np", tp, sp,
        dp, world_size);
  }
  return {tp, sp, dp};
}

Grid make_grid(MpiSession& session, const GridShape& shape) {
  TESSERA_CHECK(shape.ranks() == session.size());
  const int rank = session.rank();
  Grid grid;
  grid.shape = shape;
  grid.place = place_of(shape, rank);
  const auto [tp, sp, dp] = grid.place;
  grid.world = session.world();
  // Colours name the ranks that stay together; the key (world rank) keeps their order.
  grid.group = session.split(dp, rank);
  grid.tp = session.split(dp * shape.sp + sp, rank);
  grid.sp = session.split(dp * shape.tp + tp, rank);
  return grid;
}

}  // namespace tessera
