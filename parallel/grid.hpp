// The process grid. World = dp × sp × tp with tp fastest: world rank = (dp·SP + sp)·TP + tp.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.hpp"

namespace tessera {

struct GridShape {
  int tp = 1;
  int sp = 1;
  int dp = 1;
  int ranks() const { return tp * sp * dp; }
};

// Also where a rank stands: its index along each axis.
struct GridPlace {
  int tp = 0;
  int sp = 0;
  int dp = 0;
};

GridPlace place_of(const GridShape& shape, int world_rank);
int world_rank_of(const GridShape& shape, const GridPlace& place);

// dp = 0 asks for as many replicas as the ranks allow. UsageError names tp, sp, dp and the number of ranks.
GridShape solve_grid(int tp, int sp, int dp, int world_size);

// The communicators of one rank. `group` holds the tp·sp ranks that share one replica of the model (rank in
// it: sp·TP + tp), `tp` those with the same sp and dp, `sp` those with the same tp and dp.
struct Grid {
  GridShape shape;
  GridPlace place;
  std::unique_ptr<Communicator> world;
  std::unique_ptr<Communicator> group;
  std::unique_ptr<Communicator> tp;
  std::unique_ptr<Communicator> sp;

  bool is_group_leader() const { return place.tp == 0 && place.sp == 0; }
};

}  // namespace tessera
