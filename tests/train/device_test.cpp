#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <pecan/device/copy.hpp>

#include <pecan/parallel/gradients.hpp>

#include <pecan/train/state.hpp>

#include "support/test_device.hpp"
#include "train/batches.hpp"
#include "train/device_choice.hpp"
#include "train/lab.hpp"

namespace pecan::train {
namespace {

using test::kVocab;
using test::Lab;

std::int64_t num_allocations(device::Device where) {
  return where.backend == nullptr ? 0 : where.backend->num_allocations();
}

/// A model of one rank on a device, and what it needs to train.
class OnDevice {
 public:
  OnDevice(device::Device where, const config::Config& config)
      : config_(config),
        plan_(make_plan(config, kVocab, 1)),
        sizes_(model::plan_memory(plan_.dims, 1, where.kind)),
        workspace_(where, sizes_.workspace_bytes),
        arena_(where, sizes_.activation_bytes),
        stream_(where),
        ctx_{where, stream_, workspace_, 1},
        host_(comm::make_self_group()),
        between_devices_(where == device::cpu() ? nullptr : comm::make_device_group(*host_, where)),
        world_(between_devices_ ? *between_devices_ : *host_),
        state_(ctx_, plan_, Rank{0}),
        groups_(parallel::make_groups(plan_.mesh, world_, 1)),
        exchange_(state_.params(), groups_, parallel::Overlap::kOff),
        activations_(model::Activations::plan(plan_.dims, arena_)),
        model_(ctx_, plan_.dims, state_.params(), groups_, activations_, {&exchange_}),
        batch_(where, plan_.dims) {
    stream_.prepare_products();
    if (TrainState::keeps_state_in_model(plan_.dims)) state_.bind_model(model_);
    model::initialise(ctx_, state_.params(), 3);
  }

  /// The mean loss of the step.
  double step(std::int64_t number) {
    const double loss = pass(number);
    update();
    return loss;
  }

  /// Forward and backward.
  double pass(std::int64_t number) {
    std::vector<std::int32_t> tokens(std::size_t(plan_.dims.tokens())), labels(tokens.size());
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      tokens[t] = std::int32_t((std::int64_t(t) * 7 + number) % kVocab);
      labels[t] = std::int32_t((std::int64_t(t) * 7 + number + 7) % kVocab);
    }
    model_.begin_step(ctx_);
    exchange_.begin_step(ctx_);
    exchange_.begin_micro_batch(parallel::MicroBatch::kLast);
    const std::span<const std::int32_t> ids(tokens), next(labels);
    const model::Batch batch{const_view_of(ids), const_view_of(next), {}};
    const double loss = model_.forward_backward(ctx_, batch_.of(ctx_, batch), 1).loss_sum;
    exchange_.finish(ctx_);
    return loss / double(plan_.dims.tokens());
  }

  void update() { state_.optimizer().update(ctx_, config_.optimizer, config_.optimizer.lr, 1); }

  [[nodiscard]] std::vector<std::int64_t> sent_counts() const {
    const auto counts = model_.expert_counts(0);
    return {counts.begin(), counts.end()};
  }
  [[nodiscard]] const TrainPlan& plan() const { return plan_; }
  [[nodiscard]] const device::Arena& workspace() const { return workspace_; }
  [[nodiscard]] Context& ctx() { return ctx_; }
  [[nodiscard]] TrainState& state() { return state_; }

 private:
  config::Config config_;
  TrainPlan plan_;
  model::MemoryPlan sizes_;
  device::Arena workspace_, arena_;
  device::Stream stream_;
  Context ctx_;
  std::unique_ptr<comm::Group> host_, between_devices_;
  comm::Group& world_;
  TrainState state_;
  parallel::MeshGroups groups_;
  parallel::GradientExchange exchange_;
  model::Activations activations_;
  model::Transformer model_;
  DeviceBatch batch_;
};

std::size_t state_bytes(const TrainPlan& plan) {
  std::size_t num_bytes = 0;
  for (const StateItem& item : plan.catalog.items)
    num_bytes += std::size_t(item.global_shape.num_elements()) * size_of(item.dtype);
  return num_bytes;
}

/// All items one after another, as of the last begin_copies().
void copy_all(TrainState& state, const TrainPlan& plan, std::span<std::byte> to) {
  for (std::size_t i = 0; i < plan.catalog.items.size(); ++i) {
    const StateItem& item = plan.catalog.items[i];
    for (const StateBlock& part : item.blocks) {
      const std::size_t num_bytes =
          std::size_t(part.block.extent.num_elements()) * size_of(item.dtype);
      state.binding().copy_out(ItemIndex{std::int32_t(i)}, part.block, to.first(num_bytes));
      to = to.subspan(num_bytes);
    }
  }
  state.binding().finish_copies();
}

std::vector<std::byte> contents(TrainState& state, const TrainPlan& plan) {
  std::vector<std::byte> all(state_bytes(plan));
  state.binding().begin_copies();
  copy_all(state, plan, all);
  return all;
}

}  // namespace

TEST_CASE("ranks that find the same device are named", "[train]") {
  const FoundDevice first{1, 7, 0x100}, second{1, 7, 0x200}, elsewhere{1, 8, 0x100};
  CHECK(describe_shared_device({}).empty());
  CHECK(describe_shared_device(std::vector{first, second, elsewhere}).empty());
  CHECK_THAT(describe_shared_device(std::vector{first, elsewhere, second, first}),
             Catch::Contains("ranks 0 and 3 are on one host"));
}

TEST_CASE("two ranks on one GPU train on the CPU, or are refused", "[any device]") {
  if (test::test_device() == device::cpu()) return;
  const auto chosen = [](config::DeviceChoice choice, bool on_one_host) {
    std::vector<device::Device> of_rank(2);
    comm::run_thread_group(2, [&](comm::Group& world) {
      device::Stream stream{device::cpu()};
      device::Arena no_workspace;
      Context host{device::cpu(), stream, no_workspace};
      const std::int32_t rank = world.rank().value;
      const Placement placement{.host = on_one_host ? 0 : rank, .ranks_here = 2};
      of_rank[std::size_t(rank)] = choose_device(host, world, choice, placement);
    });
    return of_rank;
  };
  using config::DeviceChoice;
  const std::vector<device::Device> on_gpus(2, test::test_device()), on_cpus(2, device::cpu());
  CHECK(chosen(DeviceChoice::kAuto, true) == on_cpus);
  CHECK(chosen(DeviceChoice::kAuto, false) == on_gpus);
  CHECK(chosen(DeviceChoice::kCuda, false) == on_gpus);
  CHECK_THROWS_AS(chosen(DeviceChoice::kCuda, true), NotConfigured);
}

TEST_CASE("a device that lacks what one rank needs is no device for any", "[any device]") {
  if (test::test_device() == device::cpu()) return;
  const auto chosen = [](config::DeviceChoice choice, std::int32_t poor_rank) {
    std::vector<device::Device> of_rank(2);
    comm::run_thread_group(2, [&](comm::Group& world) {
      device::Stream stream{device::cpu()};
      device::Arena no_workspace;
      Context host{device::cpu(), stream, no_workspace};
      const std::int32_t rank = world.rank().value;
      const Placement placement{.host = rank, .ranks_here = 1};
      of_rank[std::size_t(rank)] =
          choose_device(host, world, choice, placement, [&](const device::DeviceProperties& found) {
            return rank == poor_rank ? fmt::format("{} bytes are too few", found.shared_bytes) : "";
          });
    });
    return of_rank;
  };
  using config::DeviceChoice;
  const std::vector<device::Device> on_gpus(2, test::test_device()), on_cpus(2, device::cpu());
  CHECK(chosen(DeviceChoice::kAuto, 1) == on_cpus);
  CHECK(chosen(DeviceChoice::kAuto, 2) == on_gpus);
  CHECK_THROWS_WITH(
      chosen(DeviceChoice::kCuda, 1),
      Catch::Contains("training.device=cuda, but 232448 bytes are too few; use auto"));
}

TEST_CASE("a device trains like the CPU, and allocates nothing in a step", "[any device]") {
  Lab lab;
  for (const std::vector<std::string>& settings : std::vector<std::vector<std::string>>{
           {},
           {"moe.moe_router_score_function=sigmoid",
            "moe.moe_router_enable_expert_bias=true",
            "moe.moe_expert_capacity_factor=1.5",
            "moe.moe_shared_expert_intermediate_size=8"},
           {"moe.moe_router_pre_softmax=true", "moe.default_vectors.enabled=true"}}) {
    std::vector<std::string> all{"parallel.expert_model_parallel_size=1"};
    all.insert(all.end(), settings.begin(), settings.end());
    const config::Config config = lab.config(all);
    OnDevice here(test::test_device(), config), there(device::cpu(), config);
    CHECK(contents(here.state(), here.plan()) == contents(there.state(), there.plan()));
    const std::int64_t before = num_allocations(test::test_device());
    CHECK(std::abs(here.step(0) - there.step(0)) < 1e-6);
    for (std::int64_t step = 1; step < 4; ++step) {
      CHECK(std::abs(here.step(step) - there.step(step)) < 1e-4);
      CHECK(here.sent_counts() == there.sent_counts());
    }
    CHECK(num_allocations(test::test_device()) == before);
    CHECK(here.workspace().high_water() <= here.workspace().capacity());
  }
}

TEST_CASE("a snapshot of a device is the state at its begin, while the next step computes",
          "[any device]") {
  Lab lab;
  OnDevice here(test::test_device(), lab.config({"parallel.expert_model_parallel_size=1"}));
  (void)here.step(0);
  const std::vector<std::byte> expected = contents(here.state(), here.plan());
  const device::PinnedBuffer memory(test::test_device(), expected.size());
  here.update();
  const std::vector<std::byte> later = contents(here.state(), here.plan());
  REQUIRE(later != expected);
  here.state().binding().begin_copies();
  std::thread copier([&] { copy_all(here.state(), here.plan(), memory.bytes()); });
  (void)here.pass(1);
  copier.join();  // (A)
  here.update();
  CHECK(std::ranges::equal(memory.bytes(), later));
  CHECK(contents(here.state(), here.plan()) != later);
}

}  // namespace pecan::train
