#include "checkpoint/request.hpp"

#include <algorithm>
#include <utility>

#include "checkpoint/segment.hpp"
#include "checkpoint/snapshot.hpp"
#include "checkpoint/triple_buffer.hpp"

namespace pecan::checkpoint {
namespace {

/// Work that planning memory may take, in planned writes.
constexpr std::size_t kMaxPlannedWrites = 4'000'000;

/// Largest bytes and blocks of each rank over the plans that it has seen.
struct Largest {
  std::vector<std::size_t> bytes;
  std::vector<std::size_t> blocks;

  void add(const StateCatalog& catalog, const SavePlan& plan) {
    std::vector<std::size_t> plan_bytes(plan.rank_bytes.size());
    std::vector<std::size_t> plan_blocks(plan.rank_bytes.size());
    for (const PlannedWrite& write : plan.writes) {
      const auto rank = std::size_t(write.writer.value);
      plan_bytes[rank] += snapshot_bytes(catalog, write);
      ++plan_blocks[rank];
    }
    bytes.resize(plan_bytes.size());
    blocks.resize(plan_bytes.size());
    for (std::size_t r = 0; r < bytes.size(); ++r) {
      bytes[r] = std::max(bytes[r], plan_bytes[r]);
      blocks[r] = std::max(blocks[r], plan_blocks[r]);
    }
  }
};

bool has_memory_level(const config::CheckpointConfig& config) {
  return !config.non_persistent_save_interval.never();
}

/// Snapshots from one that goes to storage to the next.
std::int64_t snapshots_a_checkpoint(const config::CheckpointConfig& config) {
  const config::Interval& memory = config.non_persistent_save_interval;
  if (memory.steps <= 0 || config.save_interval.steps <= 0) return has_memory_level(config) ? 2 : 1;
  return std::max<std::int64_t>(1, config.save_interval.steps / memory.steps);
}

/// Selections of a whole rotation, or as many as the work allows.
void add_rotation(const StateCatalog& catalog,
                  const config::CheckpointConfig& config,
                  const ExpertGrid& grid,
                  const SelectionSettings& settings,
                  Largest& largest) {
  const std::int64_t ratio = snapshots_a_checkpoint(config);
  Rotation rotation(grid, settings, settings.policy, ratio);
  std::size_t work = 0;
  for (std::int64_t i = 0; i < rotation.size() && (i < 2 * ratio || work < kMaxPlannedWrites);
       ++i) {
    const SavePlan plan = plan_levels(catalog, settings, rotation.next()).snapshot;
    largest.add(catalog, plan);
    work += plan.writes.size();
  }
}

/// For each expert-parallel rank, a selection of which as much as possible falls on it.
void add_extremes(const StateCatalog& catalog,
                  const ExpertGrid& grid,
                  const SelectionSettings& settings,
                  Largest& largest) {
  for (int rank = 0; rank < grid.ep_size; ++rank) {
    std::vector<UnitIndex> units;
    for (int layer = 0; layer < grid.num_layers; ++layer) {
      for (int i = 0; i < settings.memory.experts; ++i) {
        units.push_back(
            grid.unit(layer, (rank * (grid.num_experts / grid.ep_size) + i) % grid.num_experts));
      }
    }
    std::ranges::sort(units);
    largest.add(catalog, plan_save(catalog, partial_request(settings, std::move(units))));
  }
}

}  // namespace

Rotation::Rotation(const ExpertGrid& grid,
                   const SelectionSettings& settings,
                   SelectFunction policy,
                   std::int64_t snapshots_a_checkpoint)
    : grid_(grid),
      policy_(policy),
      ratio_(snapshots_a_checkpoint),
      memory_{SelectionHistory::uniform(grid, settings.memory.experts, Step{0}), settings.memory},
      storage_{SelectionHistory::uniform(grid, settings.storage.experts, Step{0}),
               settings.storage} {}

std::int64_t Rotation::size() const {
  const int experts = storage_.budget.experts;
  return experts > 0 ? (grid_.num_experts + experts - 1) / experts * ratio_ : 1;
}

LevelSelection Rotation::next() {
  const bool to_storage = num_snapshots_ % ratio_ == 0;
  const Step step{++num_snapshots_};
  LevelSelection selection = select_levels(
      grid_, policy_, memory_, storage_, to_storage ? ForStorage::kYes : ForStorage::kNo, step);
  memory_.history.saved(selection.snapshot, step);
  if (to_storage) storage_.history.saved(selection.persist, step);
  return selection;
}

SelectionSettings selection_settings(const config::CheckpointConfig& config,
                                     const ExpertGrid& grid,
                                     const ExpertBudget& budget) {
  const auto experts_of = [&](int in_force, int configured) {
    const int experts = budget.checkpoint > 0 ? in_force : configured;
    return experts > 0 ? std::min(experts, grid.num_experts) : grid.num_experts;
  };
  SelectionSettings settings;
  settings.policy = selection_policy(config.pec.selection);
  settings.storage.experts = experts_of(budget.checkpoint, config.pec.experts_per_checkpoint);
  settings.memory.experts =
      std::max(settings.storage.experts,
               experts_of(budget.snapshot,
                          config.pec.experts_per_snapshot > 0 ? config.pec.experts_per_snapshot
                                                              : settings.storage.experts));
  for (SelectionBudget* level : {&settings.storage, &settings.memory}) {
    level->max_age = config.pec.max_expert_age;
    // `auto` finds its limit by what fits into a checkpoint; the others need none.
    if (level->max_age == 0 && settings.policy == select_load_aware)
      level->max_age = default_max_age(grid.num_experts, level->experts);
  }
  settings.always_saved = always_saved_groups(config.pec.always_saved);
  settings.sharding = config.pec.sharding;
  return settings;
}

SaveRequest full_request(const ExpertGrid& grid,
                         const SelectionSettings& settings,
                         int first_budget,
                         Step step) {
  SaveRequest request = partial_request(settings, select_full(grid, {}, {}, step));
  if (!settings.partial(grid)) return request;
  if (settings.policy == select_sequential) {
    request.slots = rotation_slots(grid, settings.policy, settings.storage, first_budget, step);
  } else {
    // What comes next follows tokens that are not there yet: a file an expert.
    for (int unit = 0; unit < grid.num_units(); ++unit) request.slots.push_back(unit);
  }
  return request;
}

SaveRequest partial_request(const SelectionSettings& settings, std::vector<UnitIndex> units) {
  return {std::move(units), settings.always_saved, {}, settings.sharding};
}

LevelPlans plan_levels(const StateCatalog& catalog,
                       const SelectionSettings& settings,
                       const LevelSelection& selection) {
  if (selection.persist.empty())
    return {plan_save(catalog, partial_request(settings, selection.snapshot)), {}};
  LevelPlans plans;
  plans.persist = plan_save(catalog, partial_request(settings, selection.persist));
  plans.snapshot =
      extend_plan(catalog, plans.persist, partial_request(settings, selection.snapshot));
  return plans;
}

std::uint64_t memory_dir_bytes(const SnapshotMemory& memory) {
  if (memory.num_buffers == 1) return 0;
  return Segment::file_bytes(memory.first, memory.max_blocks) +
         std::uint64_t(memory.num_buffers - 1) *
             Segment::file_bytes(memory.others, memory.max_blocks);
}

std::vector<SnapshotMemory> plan_snapshot_memory(const StateCatalog& catalog,
                                                 const config::CheckpointConfig& config,
                                                 const ExpertBudget& budget,
                                                 bool has_full) {
  const ExpertGrid grid = expert_grid(catalog, always_saved_groups(config.pec.always_saved));
  const SelectionSettings settings = selection_settings(config, grid, budget);
  Largest full;
  Largest partial;
  full.add(catalog,
           plan_save(catalog, full_request(grid, settings, settings.storage.experts, Step{0})));
  if (settings.memory.experts >= grid.num_experts) {
    partial = full;
  } else {
    if (config.pec.selection == "sequential")
      add_rotation(catalog, config, grid, settings, partial);
    // After failures even a rotation meets selections that it does not come by itself.
    add_extremes(catalog, grid, settings, partial);
  }
  std::vector<SnapshotMemory> memory;
  for (std::size_t r = 0; r < full.bytes.size(); ++r) {
    const bool only_partial = has_full && settings.partial(grid);
    memory.push_back(
        {.num_buffers = has_memory_level(config) ? TripleBuffer::kMaxBuffers : 1,
         .first = only_partial ? partial.bytes[r] : std::max(full.bytes[r], partial.bytes[r]),
         .others = partial.bytes[r],
         .max_blocks =
             only_partial ? partial.blocks[r] : std::max(full.blocks[r], partial.blocks[r])});
  }
  return memory;
}

}  // namespace pecan::checkpoint
