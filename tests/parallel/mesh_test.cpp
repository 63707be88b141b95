#include <set>

#include <pecan/parallel/mesh.hpp>

#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::parallel;

namespace {

config::ParallelConfig sizes(int tp, int ep, int etp) {
  config::ParallelConfig config;
  config.tensor_model_parallel_size = tp;
  config.expert_model_parallel_size = ep;
  config.expert_tensor_parallel_size = etp;
  return config;
}

}  // namespace

TEST_CASE("Megatron's examples of 16 ranks", "[parallel]") {
  const MeshShape folded = plan_mesh(sizes(2, 8, 1), 16);
  CHECK(folded.dp == 8);
  CHECK(folded.edp == 2);
  const MeshShape tensor = plan_mesh(sizes(2, 4, 2), 16);
  CHECK(tensor.dp == 8);
  CHECK(tensor.edp == 2);
}

TEST_CASE("both grids number every rank once, tp and etp fastest", "[parallel]") {
  for (const int world : {1, 2, 4, 6, 8, 12}) {
    for (int tp = 1; tp <= world; ++tp) {
      for (int etp = 1; etp <= world; ++etp) {
        for (int ep = 1; ep <= world; ++ep) {
          if (world % tp != 0 || world % (etp * ep) != 0) continue;
          const MeshShape mesh = plan_mesh(sizes(tp, ep, etp), world);
          REQUIRE(mesh.tp * mesh.dp == world);
          REQUIRE(mesh.etp * mesh.ep * mesh.edp == world);
          for (int r = 0; r < world; ++r) {
            const MeshPosition at = position_of(mesh, Rank{r});
            REQUIRE(at.tp + mesh.tp * at.dp == r);
            REQUIRE(at.etp + mesh.etp * (at.ep + mesh.ep * at.edp) == r);
          }
        }
      }
    }
  }
}

TEST_CASE("a world that does not divide is refused with what to start instead", "[parallel]") {
  CHECK_THROWS_AS(plan_mesh(sizes(1, 4, 1), 6), ConfigError);
  CHECK_THROWS_AS(plan_mesh(sizes(4, 1, 1), 6), ConfigError);
  CHECK_THROWS_WITH(plan_mesh(sizes(1, 4, 1), 6), Catch::Contains("multiple of 4 ranks"));
}

TEST_CASE("experts have one holder an expert replica", "[parallel]") {
  const MeshShape mesh = plan_mesh(sizes(1, 2, 1), 4);
  CHECK(expert_holders(mesh, 0) == std::vector<Rank>{Rank{0}, Rank{2}});
  CHECK(expert_holders(mesh, 1) == std::vector<Rank>{Rank{1}, Rank{3}});
}
