#pragma once
/// What configuration and selection ask of one save, and the memory for it. Pure.

#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/checkpoint/checkpointer.hpp>
#include <pecan/checkpoint/plan.hpp>
#include <pecan/checkpoint/select.hpp>

namespace pecan::checkpoint {

/// What selection needs of the configuration, with the K in force.
struct SelectionSettings {
  SelectFunction policy = nullptr;
  SelectionBudget memory;   ///< experts of a snapshot
  SelectionBudget storage;  ///< experts of a checkpoint
  std::vector<RoleGroup> always_saved;
  config::WriteSharding sharding = config::WriteSharding::kAdaptive;
  /// Whether checkpoints after the first full one hold fewer than all experts.
  [[nodiscard]] bool partial(const ExpertGrid& grid) const {
    return storage.experts < grid.num_experts;
  }
};
/// `budget`: K in force; K = 0: as configured.
[[nodiscard]] SelectionSettings selection_settings(const config::CheckpointConfig& config,
                                                   const ExpertGrid& grid,
                                                   const ExpertBudget& budget);

/// The selections that follow a full checkpoint if no save fails, one after the other.
class Rotation {
 public:
  /// Every `snapshots_a_checkpoint`-th of them, the first included, goes to storage. `grid`
  /// outlives the object.
  Rotation(const ExpertGrid& grid,
           const SelectionSettings& settings,
           SelectFunction policy,
           std::int64_t snapshots_a_checkpoint);
  /// Until storage has every expert.
  [[nodiscard]] std::int64_t size() const;
  [[nodiscard]] LevelSelection next();

 private:
  const ExpertGrid& grid_;
  SelectFunction policy_;
  std::int64_t ratio_;
  Level memory_;
  Level storage_;
  std::int64_t num_snapshots_ = 0;
};

/// A full checkpoint at `step`, cut into a file for each checkpoint of the rotation that follows, or
/// for each expert where no rotation is known.
[[nodiscard]] SaveRequest full_request(const ExpertGrid& grid,
                                       const SelectionSettings& settings,
                                       int first_budget,
                                       Step step);
/// A checkpoint or snapshot of `units`.
[[nodiscard]] SaveRequest partial_request(const SelectionSettings& settings,
                                          std::vector<UnitIndex> units);

/// Who copies what of a snapshot, and who writes what of it to storage.
struct LevelPlans {
  SavePlan snapshot;
  SavePlan persist;  ///< a part of it, with the same writers; nothing if it is not for storage
};
[[nodiscard]] LevelPlans plan_levels(const StateCatalog& catalog,
                                     const SelectionSettings& settings,
                                     const LevelSelection& selection);

}  // namespace pecan::checkpoint
