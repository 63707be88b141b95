#include <mutex>
#include <string>
#include <vector>

#include <pecan/parallel/gradients.hpp>

#include "support/catch.hpp"

using namespace pecan;
using namespace pecan::parallel;

namespace {

constexpr int kNumExperts = 4;
constexpr int kKvGroups = 2;
constexpr int kMicroBatches = 3;
constexpr int kLastStage = 3;

std::vector<ParamSpec> specs() {
  using enum TensorSplit;
  std::vector<ParamSpec> all{
      {.name = "tied",
       .shape = Shape{13, 3},
       .padded_rows = 16,
       .split = kRows,
       .first_stage = 0,
       .last_stage = kLastStage},
      {.name = "uncut",
       .shape = Shape{5},
       .padded_rows = 5,
       .replica_gradient = ReplicaGradient::kWhole,
       .first_stage = 1,
       .last_stage = 1},
      {.name = "norm",
       .shape = Shape{6},
       .padded_rows = 6,
       .replica_gradient = ReplicaGradient::kPartial,
       .first_stage = 1,
       .last_stage = 1},
      {.name = "keys",
       .shape = Shape{8, 6},
       .padded_rows = 8,
       .split = kRows,
       .num_parts = kKvGroups,
       .replica_gradient = ReplicaGradient::kPartial,
       .first_stage = 2,
       .last_stage = 2},
  };
  for (std::int32_t e = 0; e < kNumExperts; ++e) {
    for (int stage = 1; stage <= 3; ++stage) {
      const LayerId layer{stage - 1};
      const std::string name = std::to_string(stage) + "." + std::to_string(e);
      all.push_back({.name = "up" + name,
                     .shape = Shape{8, 3},
                     .padded_rows = 8,
                     .layer = layer,
                     .expert = ExpertId{e},
                     .split = kRows,
                     .first_stage = stage,
                     .last_stage = stage});
      all.push_back({.name = "bias" + name,
                     .shape = Shape{3},
                     .padded_rows = 3,
                     .layer = layer,
                     .expert = ExpertId{e},
                     .first_stage = stage,
                     .last_stage = stage});
    }
  }
  return all;
}

/// A gradient that tells who computed it: small integers, whose sums are exact in any order. Ranks
/// that compute all of an uncut gradient compute the same.
double gradient_of(
    const ParamSpec& spec, const MeshShape& mesh, Rank rank, int micro, std::int64_t element) {
  const MeshPosition at = position_of(mesh, rank);
  const bool alike = spec.replica_gradient == ReplicaGradient::kWhole;
  const int who = !alike ? rank.value : spec.is_expert() ? at.edp * mesh.ep + at.ep : at.dp;
  return double((who * 31 + micro * 7 + element * 5 + std::int64_t(spec.name.size())) % 101);
}

/// What the sum over all ranks that compute some of it must be.
double expected_sum(const ParamSpec& spec,
                    const MeshShape& mesh,
                    Rank mine,
                    std::int64_t row,
                    std::int64_t element) {
  const MeshPosition me = position_of(mesh, mine);
  double sum = 0;
  for (int r = 0; r < mesh.world; ++r) {
    const MeshPosition at = position_of(mesh, Rank{r});
    bool adds;
    if (spec.is_expert()) {
      adds = at.ep == me.ep && at.etp == me.etp;
    } else if (spec.num_parts > 0) {
      const std::int64_t part_rows = spec.shape[0] / spec.num_parts;
      const auto first = part_of(spec, at.tp, mesh.tp).offset[0];
      const auto count = part_of(spec, at.tp, mesh.tp).extent[0];
      adds = row >= first && row < first + count && part_rows > 0;
    } else if (spec.replica_gradient == ReplicaGradient::kPartial) {
      adds = true;
    } else {
      adds = at.tp == me.tp;
    }
    for (int micro = 0; adds && micro < kMicroBatches; ++micro)
      sum += gradient_of(spec, mesh, Rank{r}, micro, element);
  }
  return sum;
}

template <typename F>
void for_elements(const Param& param, const RowRange& rows, F visit) {
  const std::int64_t width = param.spec.shape.num_dims() > 1 ? param.spec.shape[1] : 1;
  for (std::int64_t row = rows.first; row < rows.first + rows.count; ++row) {
    const std::int64_t global_row = param.block.offset[0] + row;
    if (row >= param.block.extent[0]) continue;  // padding
    for (std::int64_t column = 0; column < width; ++column)
      visit(global_row, global_row * width + column, (row - rows.first) * width + column);
  }
}

struct Case {
  MeshShape mesh;
  Sharding sharding;
  Overlap overlap;
};

void exchange_body(const Case& what, comm::Group& world, std::vector<std::string>& failures) {
  device::Stream stream{device::cpu()};
  device::Arena workspace;
  Context ctx{device::cpu(), stream, workspace, 1};
  const int kv_replicas = std::max(1, what.mesh.tp / kKvGroups);
  MeshGroups groups = make_groups(what.mesh, world, kv_replicas);
  ParamSet params(
      device::cpu(), specs(), kNumExperts, what.mesh, world.rank(), DType::kF64, what.sharding);
  GradientExchange exchange(params, groups, what.overlap);
  if (what.overlap == Overlap::kOn) ctx.background = &exchange;
  for (int step = 0; step < 2; ++step) {
    exchange.begin_step(ctx);
    for (int micro = 0; micro < kMicroBatches; ++micro) {
      exchange.begin_micro_batch(micro + 1 < kMicroBatches ? MicroBatch::kMoreFollow
                                                           : MicroBatch::kLast);
      for (int stage = kLastStage; stage >= 0; --stage) {
        exchange.before_backward(ctx, stage);
        for (Param& param : params.params()) {
          if (param.spec.first_stage != stage) continue;
          const auto grad = param.grad.row_major().as<double>();
          for_elements(param,
                       {0, param.grad.row_major().shape[0]},
                       [&](std::int64_t, std::int64_t global, std::int64_t local) {
                         grad[std::size_t(local)] +=
                             gradient_of(param.spec, what.mesh, world.rank(), micro, global);
                       });
        }
        ctx.advance();
        exchange.after_backward(ctx, stage);
      }
    }
    exchange.finish(ctx);
    for (const Param& param : params.params()) {
      if (param.owned.count == 0) continue;
      const auto sums = param.owned_grad.row_major().as<double>();
      for_elements(
          param, param.owned, [&](std::int64_t row, std::int64_t global, std::int64_t local) {
            const double expected = expected_sum(param.spec, what.mesh, world.rank(), row, global);
            if (sums[std::size_t(local)] != expected) {
              failures.push_back(fmt::format("rank {} step {} {}[{}]: {} instead of {}",
                                             world.rank(),
                                             step,
                                             param.spec.name,
                                             global,
                                             sums[std::size_t(local)],
                                             expected));
            }
          });
    }
  }

  // Each owner writes what names the element; all who hold it must read it after a gather.
  const auto value_of = [](const ParamSpec& spec, std::int64_t element) {
    return double(spec.name.size()) * 1000 + double(element);
  };
  for (Param& param : params.params()) {
    if (param.owned.count == 0) continue;
    const auto owned = param.owned_weight.row_major().as<double>();
    for_elements(param, param.owned, [&](std::int64_t, std::int64_t global, std::int64_t local) {
      owned[std::size_t(local)] = value_of(param.spec, global);
    });
  }
  WeightGather gather(params, groups, what.overlap);
  gather.start(ctx);
  for (int stage = 0; stage <= kLastStage; ++stage) {
    gather.advance();
    gather.before_forward(ctx, stage);
    for (const Param& param : params.params()) {
      if (param.spec.first_stage != stage) continue;
      const auto weight = param.weight.row_major().as<double>();
      for_elements(param,
                   {0, param.weight.row_major().shape[0]},
                   [&](std::int64_t, std::int64_t global, std::int64_t local) {
                     if (weight[std::size_t(local)] != value_of(param.spec, global))
                       failures.push_back(fmt::format("gathered {}", param.spec.name));
                   });
    }
  }
  gather.finish();

  // In a sum over the world each element stands once.
  std::int64_t counted = 0;
  for (const Bucket& bucket : params.buckets()) {
    if (!params.counts(bucket)) continue;
    for (const Param& param : params.params()) {
      if (&params.buckets()[0] + (&bucket - &params.buckets()[0]) != &bucket) continue;
      const TensorView share = params.summed_share(bucket);
      const auto* first = share.data;
      const auto* memory = param.owned_grad.memory();
      if (param.owned.count > 0 && memory >= first && memory < first + share.num_bytes())
        counted += param.owned_block().extent.num_elements();
    }
  }
  world
      .all_reduce(
          ctx, view_of(std::span(&counted, 1)), comm::ReduceOp::kSum, {comm::Purpose::kTest})
      .wait();
  std::int64_t expected = 0;
  for (const ParamSpec& spec : specs()) expected += spec.shape.num_elements();
  if (counted != expected)
    failures.push_back(fmt::format("{} elements are counted instead of {}", counted, expected));
}

}  // namespace

TEST_CASE("gradients are summed over all who computed them, weights reach all who hold them",
          "[parallel]") {
  const std::vector<MeshShape> meshes{
      {.world = 1},
      {.world = 4, .tp = 1, .dp = 4, .etp = 1, .ep = 2, .edp = 2},
      {.world = 4, .tp = 2, .dp = 2, .etp = 1, .ep = 4, .edp = 1},
      {.world = 4, .tp = 4, .dp = 1, .etp = 2, .ep = 1, .edp = 2},
      {.world = 8, .tp = 4, .dp = 2, .etp = 2, .ep = 2, .edp = 2},
  };
  for (const MeshShape& mesh : meshes) {
    for (const Sharding sharding : {Sharding::kNone, Sharding::kOptimizer, Sharding::kGradients}) {
      for (const Overlap overlap : {Overlap::kOff, Overlap::kOn}) {
        CAPTURE(mesh.world, mesh.tp, mesh.ep, mesh.etp, int(sharding), int(overlap));
        std::mutex mutex;
        std::vector<std::string> failures;
        comm::run_thread_group(mesh.world, [&](comm::Group& world) {
          std::vector<std::string> mine;
          exchange_body({mesh, sharding, overlap}, world, mine);
          const std::lock_guard lock(mutex);
          failures.insert(failures.end(), mine.begin(), mine.end());
        });
        CHECK(failures == std::vector<std::string>{});
      }
    }
  }
}

TEST_CASE("the scale of a micro-batch's loss makes plain sums the mean of the step", "[parallel]") {
  CHECK(gradient_scale({.world = 8, .tp = 2, .dp = 4, .etp = 1, .ep = 8, .edp = 1}, 3) ==
        Approx(1.0 / 12));
}
