#include <mutex>
#include <vector>

#include <pecan/parallel/gradients.hpp>

#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::parallel;

TEST_CASE("dense gradients are summed over dp, experts' over edp only, each counted once in a norm",
          "[parallel]") {
  // EP 2 x EDP 2: ranks 0 and 2 share experts 0, 1; ranks 1 and 3 share experts 2, 3.
  const MeshShape mesh{.world = 4, .tp = 1, .dp = 4, .etp = 1, .ep = 2, .edp = 2};
  std::vector<ParamSpec> specs{{.name = "dense", .shape = Shape{2}, .padded_rows = 2}};
  for (std::int32_t e = 0; e < 4; ++e) {
    specs.push_back({.name = "expert" + std::to_string(e),
                     .shape = Shape{2},
                     .padded_rows = 2,
                     .layer = LayerId{0},
                     .expert = ExpertId{e}});
  }
  std::vector<float> dense(4), expert(4);
  std::vector<int> counted(2, 0);
  std::mutex mutex;
  comm::run_thread_group(4, [&](comm::Group& world) {
    device::Stream stream{device::cpu()};
    device::Arena workspace;
    Context ctx{device::cpu(), stream, workspace, 1};
    MeshGroups groups = make_groups(mesh, world);
    ParamSet params(device::cpu(), specs, 4, mesh, world.rank(), DType::kF32);
    const int r = world.rank().value;
    for (Param& param : params.params()) {
      for (float& g : param.grad.row_major().as<float>()) g = float(1 << r);
    }
    exchange_gradients(ctx, params, groups);
    const std::lock_guard lock(mutex);
    dense[std::size_t(r)] = params.params()[0].grad.row_major().as<float>()[1];
    expert[std::size_t(r)] = params.params()[1].grad.row_major().as<float>()[1];
    counted[0] += counts_dense(mesh, world.rank()) ? 1 : 0;
    counted[1] += counts_experts(mesh, world.rank()) ? 1 : 0;
  });
  CHECK(dense == std::vector<float>{15, 15, 15, 15});
  CHECK(expert == std::vector<float>{5, 10, 5, 10});
  CHECK(counted[0] == 1);
  CHECK(counted[1] == 2);  // one rank for each half of the experts
  CHECK(gradient_scale(mesh, 3) == Approx(1.0 / 12));
}
