#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include <pecan/ops/elementwise.hpp>

#include <pecan/train/state.hpp>

namespace pecan::train {
namespace {

using parallel::ParamSpec;

constexpr const char* kUpdateCount = "update_count";
constexpr const char* kAbsorbedMoments = "absorbed_moments";
constexpr const char* kAbsorbedDerived = "absorbed_weight";
constexpr const char* kNonExpert = "non_expert";
constexpr const char* kExpertBias = "expert_bias";
constexpr const char* kDefaultVector = "default_vector";

/// The role that holds a parameter itself: where forward computes in bf16, weights are rounded from
/// the master and stand in no checkpoint.
struct ParameterRole {
  const char* dataset;
  const char* absorbed;  ///< counter of the token slots that it holds
  Role role;
  RoleGroup group;
};
ParameterRole parameter_role(DType dtype) {
  if (dtype == master_of(dtype)) {
    return {"weight", "absorbed_weight", Role::kWeight, RoleGroup::kWeight};
  }
  return {"master", "absorbed_master", Role::kMaster, RoleGroup::kMaster};
}

std::string router_name(LayerId layer) {
  return model::layer_name(layer) + ".mlp.gate";
}

/// Layers with experts, in order.
std::vector<LayerId> moe_layers(const model::ModelDims& dims) {
  std::vector<LayerId> layers;
  for (std::size_t i = 0; i < dims.is_moe.size(); ++i) {
    if (dims.is_moe[i]) layers.push_back(LayerId{std::int32_t(i)});
  }
  return layers;
}

std::vector<Rank> all_ranks(int world) {
  std::vector<Rank> ranks;
  for (int r = 0; r < world; ++r) ranks.push_back(Rank{r});
  return ranks;
}

/// Storage of i64 values in memory of the trainer.
device::ParamStorage storage_of(std::int64_t* values, std::int64_t count) {
  return {reinterpret_cast<std::byte*>(values), DType::kI64, Shape{count}};
}

}  // namespace

StateCatalog plan_catalog(const model::ModelDims& dims,
                          DerivedWeights derived_weights,
                          const std::vector<ParamSpec>& specs,
                          const parallel::MeshShape& mesh,
                          parallel::Sharding sharding) {
  StateCatalog catalog;
  catalog.world_size = mesh.world;
  catalog.num_moe_layers = dims.num_moe_layers();
  catalog.num_experts = int(dims.num_experts);
  catalog.units.push_back({kNonExpert, kNoLayer, ExpertId{-1}});
  std::map<std::pair<LayerId, ExpertId>, UnitIndex> unit_of;
  for (const LayerId layer : moe_layers(dims)) {
    for (std::int32_t e = 0; e < dims.num_experts; ++e) {
      unit_of[{layer, ExpertId{e}}] = UnitIndex{std::int32_t(catalog.units.size())};
      catalog.units.push_back({fmt::format("layers.{}.experts.{}", layer, e), layer, ExpertId{e}});
    }
  }

  const ParameterRole parameter = parameter_role(dims.dtype);
  const bool save_derived =
      derived_weights == DerivedWeights::kSaved && dims.dtype != dims.master_dtype();
  const auto placed = parallel::place(specs, int(dims.num_experts), mesh, sharding, dims.dtype);
  for (std::size_t s = 0; s < specs.size(); ++s) {
    const ParamSpec& spec = specs[s];
    const UnitIndex unit = spec.is_expert() ? unit_of.at({spec.layer, spec.expert}) : UnitIndex{0};
    const auto add = [&](const char* dataset, Role role, RoleGroup group, DType dtype) {
      catalog.items.push_back({.name = spec.name,
                               .dataset = dataset,
                               .unit = unit,
                               .role = role,
                               .group = group,
                               .mutated_in = MutatedIn::kUpdate,
                               .global_shape = spec.shape,
                               .dtype = dtype,
                               .blocks = placed[s]});
    };
    const DType master = dims.master_dtype();
    add(parameter.dataset, parameter.role, parameter.group, master);
    add("exp_avg", Role::kExpAvg, RoleGroup::kMoments, master);
    add("exp_avg_sq", Role::kExpAvgSq, RoleGroup::kMoments, master);
    if (save_derived && spec.is_expert() && spec.computed_in == parallel::ComputedIn::kModelType) {
      add("weight", Role::kWeight, RoleGroup::kWeight, dims.dtype);
      catalog.items.back().derived = true;
    }
  }

  const auto add_counter = [&](std::string name,
                               const char* dataset,
                               UnitIndex unit,
                               Role role,
                               RoleGroup group,
                               MutatedIn mutated_in,
                               std::int64_t count,
                               std::vector<Rank> holders) {
    const Shape shape{count};
    catalog.items.push_back({.name = std::move(name),
                             .dataset = dataset,
                             .unit = unit,
                             .role = role,
                             .group = group,
                             .mutated_in = mutated_in,
                             .global_shape = shape,
                             .dtype = DType::kI64,
                             .blocks = {{Block::whole(shape), std::move(holders)}}});
  };
  const std::vector<Rank> everyone = all_ranks(mesh.world);
  add_counter(kNonExpert,
              kUpdateCount,
              UnitIndex{0},
              Role::kUpdateCount,
              RoleGroup::kMoments,
              MutatedIn::kUpdate,
              1,
              everyone);
  for (const LayerId layer : moe_layers(dims)) {
    for (const char* table : {"routed", "lost_weight", "lost_moments", "lost_any"}) {
      add_counter(router_name(layer),
                  table,
                  UnitIndex{0},
                  Role::kCounter,
                  RoleGroup::kJob,
                  MutatedIn::kForward,
                  dims.num_experts,
                  everyone);
    }
    if (dims.expert_bias) {
      const Shape shape{dims.num_experts};
      catalog.items.push_back({.name = router_name(layer),
                               .dataset = kExpertBias,
                               .unit = UnitIndex{0},
                               .role = Role::kCounter,
                               .group = RoleGroup::kJob,
                               .mutated_in = MutatedIn::kUpdate,
                               .global_shape = shape,
                               .dtype = dims.master_dtype(),
                               .blocks = {{Block::whole(shape), everyone}}});
    }
    for (std::int32_t e = 0; e < dims.num_experts; ++e) {
      const UnitIndex unit = unit_of.at({layer, ExpertId{e}});
      const std::string name = model::expert_name(layer, ExpertId{e});
      const std::vector<Rank> holders = parallel::expert_holders(
          mesh, parallel::expert_position(ExpertId{e}, int(dims.num_experts), mesh));
      add_counter(name,
                  kUpdateCount,
                  unit,
                  Role::kUpdateCount,
                  RoleGroup::kMoments,
                  MutatedIn::kUpdate,
                  1,
                  holders);
      add_counter(name,
                  parameter.absorbed,
                  unit,
                  Role::kAbsorbed,
                  parameter.group,
                  MutatedIn::kForward,
                  1,
                  holders);
      if (save_derived) {
        add_counter(name,
                    kAbsorbedDerived,
                    unit,
                    Role::kAbsorbed,
                    RoleGroup::kWeight,
                    MutatedIn::kForward,
                    1,
                    holders);
        catalog.items.back().derived = true;
      }
      add_counter(name,
                  kAbsorbedMoments,
                  unit,
                  Role::kAbsorbed,
                  RoleGroup::kMoments,
                  MutatedIn::kForward,
                  1,
                  holders);
      if (dims.default_vectors) {
        const Shape shape{dims.hidden};
        catalog.items.push_back({.name = name,
                                 .dataset = kDefaultVector,
                                 .unit = unit,
                                 .role = Role::kDefaultVector,
                                 .group = RoleGroup::kDefaultVector,
                                 .mutated_in = MutatedIn::kForward,
                                 .global_shape = shape,
                                 .dtype = dims.master_dtype(),
                                 .blocks = {{Block::whole(shape), holders}}});
      }
    }
  }
  catalog.validate();
  return catalog;
}

TrainState::TrainState(Context& ctx, const TrainPlan& plan, Rank rank)
    : plan_(plan),
      rank_(rank),
      params_(ctx.device,
              plan.specs,
              int(plan.dims.num_experts),
              plan.mesh,
              rank,
              plan.dims.dtype,
              plan.sharding),
      optimizer_(ctx.device, params_),
      binding_(std::make_unique<parallel::StorageBinding>(plan.catalog, rank, ctx.stream)) {
  using parallel::Memory;
  if (ctx.device.kind != device::DeviceKind::kCpu) {
    params_.zero(ctx);
    optimizer_.zero(ctx);
  }
  const std::vector<LayerId> layers = moe_layers(plan.dims);
  const std::size_t num_experts = std::size_t(plan.dims.num_experts);
  for (auto* table : {&routed_, &lost_weight_, &lost_moments_, &lost_any_})
    table->assign(layers.size() * num_experts, 0);

  const ParameterRole parameter = parameter_role(plan.dims.dtype);
  const bool saves_derived = std::ranges::any_of(plan.catalog.items, &StateItem::derived);
  const Shape origin{0};
  for (const parallel::Param& param : params_.params()) {
    if (param.owned_block().extent.num_elements() == 0) continue;
    const Shape offset = param.owned_offset();
    binding_->bind(
        param.spec.name + "/" + parameter.dataset, param.master, offset, Memory::kDevice);
    if (saves_derived && param.is_derived() && param.spec.is_expert())
      binding_->bind(param.spec.name + "/weight", param.owned_weight, offset, Memory::kDevice);
    binding_->bind(
        param.spec.name + "/exp_avg", optimizer_.exp_avg(param), offset, Memory::kDevice);
    binding_->bind(
        param.spec.name + "/exp_avg_sq", optimizer_.exp_avg_sq(param), offset, Memory::kDevice);
  }
  for (optim::UnitUpdates& unit : optimizer_.units()) {
    const std::string name =
        unit.expert.value < 0 ? kNonExpert : model::expert_name(unit.layer, unit.expert);
    binding_->bind(name + "/" + kUpdateCount, storage_of(&unit.count, 1), origin, Memory::kHost);
  }
  const int position = parallel::position_of(plan.mesh, rank).ep;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::pair<const char*, std::vector<std::int64_t>*> tables[] = {
        {"routed", &routed_},
        {"lost_weight", &lost_weight_},
        {"lost_moments", &lost_moments_},
        {"lost_any", &lost_any_}};
    for (const auto& [dataset, table] : tables) {
      binding_->bind(router_name(layers[l]) + "/" + dataset,
                     storage_of(table->data() + l * num_experts, std::int64_t(num_experts)),
                     origin,
                     Memory::kHost);
    }
    for (int e = 0; e < int(num_experts); ++e) {
      if (parallel::expert_position(ExpertId{e}, int(num_experts), plan.mesh) == position) {
        experts_.push_back({int(l), e});
      }
    }
  }
  for (ExpertCounters& expert : experts_) {
    const std::string name =
        model::expert_name(layers[std::size_t(expert.moe_layer)], ExpertId{expert.expert});
    binding_->bind(name + "/" + parameter.absorbed,
                   storage_of(&expert.absorbed_weight, 1),
                   origin,
                   Memory::kHost);
    if (saves_derived)
      binding_->bind(name + "/" + kAbsorbedDerived,
                     storage_of(&expert.absorbed_derived, 1),
                     origin,
                     Memory::kHost);
    binding_->bind(name + "/" + kAbsorbedMoments,
                   storage_of(&expert.absorbed_moments, 1),
                   origin,
                   Memory::kHost);
  }
  if (!keeps_state_in_model(plan.dims)) binding_->validate();
}

bool TrainState::keeps_state_in_model(const model::ModelDims& dims) {
  return dims.expert_bias || dims.default_vectors;
}

void TrainState::bind_model(model::Transformer& model) {
  using parallel::Memory;
  const std::vector<LayerId> layers = moe_layers(plan_.dims);
  const auto bind = [&](const std::string& path, const TensorView& values, Memory memory) {
    binding_->bind(path, {values.data, values.dtype, values.shape}, Shape{0}, memory);
  };
  for (std::size_t l = 0; l < layers.size() && plan_.dims.expert_bias; ++l) {
    bind(router_name(layers[l]) + "/" + kExpertBias,
         model.moe_layer(int(l)).expert_bias(),
         Memory::kHost);
  }
  for (const ExpertCounters& expert : experts_) {
    if (!plan_.dims.default_vectors) break;
    const TensorView vectors_EH = model.moe_layer(expert.moe_layer).default_vectors()->vectors_EH();
    bind(model::expert_name(layers[std::size_t(expert.moe_layer)], ExpertId{expert.expert}) + "/" +
             kDefaultVector,
         vectors_EH.rows(expert.expert, 1).reshaped({plan_.dims.hidden}),
         Memory::kDevice);
  }
  binding_->validate();
}

void TrainState::count_tokens(std::span<const std::int64_t> slots) {
  PECAN_EXPECTS(slots.size() == routed_.size());
  for (std::size_t i = 0; i < slots.size(); ++i) routed_[i] += slots[i];
  for (ExpertCounters& expert : experts_) {
    const std::int64_t routed =
        slots[std::size_t(expert.moe_layer * plan_.dims.num_experts + expert.expert)];
    expert.absorbed_weight += routed;
    expert.absorbed_derived += routed;
    expert.absorbed_moments += routed;
  }
}

WeightRestore TrainState::restore_weights(Context& ctx, const checkpoint::RestorePlan& plan) {
  std::map<UnitIndex, checkpoint::Version> master_of_unit;
  std::map<std::pair<LayerId, ExpertId>, UnitIndex> newer;
  for (const checkpoint::UnitRestore& restore : plan.restores) {
    if (restore.group == RoleGroup::kMaster) master_of_unit[restore.unit] = restore.version;
  }
  for (const checkpoint::UnitRestore& restore : plan.restores) {
    const auto master = master_of_unit.find(restore.unit);
    if (restore.group != RoleGroup::kWeight || master == master_of_unit.end()) continue;
    const StateUnit& unit = plan_.catalog.units[std::size_t(restore.unit.value)];
    if (restore.version > master->second) newer.insert({{unit.layer, unit.expert}, restore.unit});
  }
  for (const parallel::Param& param : params_.params()) {
    if (!param.is_derived()) continue;
    if (newer.contains({param.spec.layer, param.spec.expert})) {
      ops::cast(ctx, param.owned_weight.flat(), param.master.flat());
    } else {
      ops::cast(ctx, param.master.flat(), param.owned_weight.flat());
    }
  }
  const std::vector<LayerId> layers = moe_layers(plan_.dims);
  for (ExpertCounters& expert : experts_) {
    const bool from_weight =
        newer.contains({layers[std::size_t(expert.moe_layer)], ExpertId{expert.expert}});
    (from_weight ? expert.absorbed_weight : expert.absorbed_derived) =
        from_weight ? expert.absorbed_derived : expert.absorbed_weight;
  }
  return {int(newer.size())};
}

LossReport TrainState::account_for_losses(Context& ctx,
                                          comm::Group& world,
                                          const config::Config& config) {
  // Experts live on some ranks only: each one's counters travel from the first that holds it.
  const std::size_t size = routed_.size();
  std::vector<std::int64_t> absorbed(2 * size, 0);
  const parallel::MeshPosition position = parallel::position_of(plan_.mesh, rank_);
  if (position.edp == 0 && position.etp == 0) {
    for (const ExpertCounters& expert : experts_) {
      const std::size_t at = std::size_t(expert.moe_layer * plan_.dims.num_experts + expert.expert);
      absorbed[at] = expert.absorbed_weight;
      absorbed[size + at] = expert.absorbed_moments;
    }
  }
  world
      .all_reduce(
          ctx, view_of(std::span(absorbed)), comm::ReduceOp::kSum, {comm::Purpose::kRecovery})
      .wait();

  LossReport report;
  report.lost_slots.assign(std::size_t(plan_.catalog.num_moe_layers), 0);
  for (std::size_t i = 0; i < size; ++i) {
    const std::int64_t lost_weight = routed_[i] - absorbed[i];
    const std::int64_t lost_moments = routed_[i] - absorbed[size + i];
    const std::int64_t now =
        std::max(lost_weight - lost_weight_[i], lost_moments - lost_moments_[i]);
    PECAN_VALIDATE(now >= 0,
                   CorruptionError,
                   "expert counter {} absorbed more token slots than were routed",
                   i);
    lost_weight_[i] = lost_weight;
    lost_moments_[i] = lost_moments;
    lost_any_[i] += now;
    report.lost_slots[i / std::size_t(plan_.dims.num_experts)] += now;
  }
  const double slots_a_step = double(config.training.global_batch_size) *
                              double(config.training.seq_length) * double(plan_.dims.topk);
  const double planned = slots_a_step * double(config.training.train_iters);
  report.plt = plt(planned);
  if (size > 0) {
    const double layers = double(plan_.catalog.num_moe_layers);
    const auto total = [](const std::vector<std::int64_t>& table) {
      return double(std::accumulate(table.begin(), table.end(), std::int64_t{0}));
    };
    report.plt_weights = total(lost_weight_) / (layers * planned);
    report.plt_now = total(report.lost_slots) / (layers * planned);
    const double so_far = total(routed_);
    report.plt_so_far = so_far > 0 ? total(lost_any_) / so_far : 0;
  }
  return report;
}

double TrainState::plt(double planned_slots) const {
  if (lost_any_.empty() || planned_slots <= 0) return 0;
  const double lost = double(std::accumulate(lost_any_.begin(), lost_any_.end(), std::int64_t{0}));
  return lost / (double(plan_.catalog.num_moe_layers) * planned_slots);
}

}  // namespace pecan::train
