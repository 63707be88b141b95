#include <algorithm>
#include <memory>

#include <pecan/core/build_info.hpp>

#include <pecan/checkpoint/checkpointer.hpp>
#include <pecan/checkpoint/root.hpp>
#include <pecan/checkpoint/select.hpp>

#include "checkpoint/buffer_memory.hpp"
#include "checkpoint/lineage.hpp"
#include "checkpoint/persist.hpp"
#include "checkpoint/request.hpp"
#include "checkpoint/scan.hpp"
#include "checkpoint/snapshot.hpp"

namespace pecan::checkpoint {
namespace {

void require(const Status& status, const std::string& run_directory) {
  PECAN_VALIDATE(status.ok(),
                 CheckpointError,
                 "the first checkpoint of {} cannot be written: {}; nothing of it counts, so free "
                 "space or choose another directory, and try again",
                 run_directory,
                 status.message);
}

Manifest first_header(const StateCatalog& catalog, int first_budget) {
  Manifest header;
  header.run_id = random_hex();
  header.lineage = {LineageEntry{}};
  header.world_size = catalog.world_size;
  header.model_fingerprint = catalog.model_fingerprint();
  header.full = true;
  header.first_budget = first_budget;
  header.build = build_info().version + " " + build_info().git_id;
  header.units = catalog.units;
  header.ages.resize(catalog.units.size() - 1);
  return header;
}

}  // namespace

void refuse_used_directory(FileSystem& fs,
                           const std::string& run_directory,
                           const std::string& advice) {
  bool used = fs.exists(run_directory + "/metrics.jsonl");
  const Result<std::vector<DirEntry>> entries = fs.list(run_directory + "/checkpoints");
  if (entries.ok()) {
    used = used || std::ranges::any_of(entries.value(), [](const DirEntry& entry) {
             return step_of_directory(entry.name).has_value();
           });
  }
  PECAN_VALIDATE(!used,
                 CheckpointError,
                 "the run directory {} holds an earlier run; {}",
                 run_directory,
                 advice);
}

Manifest write_root(FileSystem& fs,
                    const std::string& run_directory,
                    const config::CheckpointConfig& config,
                    const StateCatalog& catalog,
                    const StateBinding& binding,
                    int expert_parallel,
                    const std::string& extra_json) {
  refuse_used_directory(fs, run_directory, "choose another one");
  const std::string root = run_directory + "/checkpoints";
  const Version version;
  require(fs.create_directories(root), run_directory);
  // A crash must not take the directory while files in it are counted on.
  require(fs.sync_directory(run_directory), run_directory);
  require(fs.sync_directory(parent_of(run_directory)), run_directory);
  const std::string partial = root + "/" + partial_directory_name(version.step);
  if (fs.exists(partial)) require(fs.remove_all(partial), run_directory);

  ExpertGrid grid = expert_grid(catalog, always_saved_groups(config.pec.always_saved));
  grid.ep_size = expert_parallel;
  const SelectionSettings settings = selection_settings(config, grid, {});
  const int first_budget = settings.storage.experts;
  const SavePlan plan =
      plan_save(catalog, full_request(grid, settings, first_budget, version.step));

  Snapshot part(catalog, binding, std::make_unique<PrivateMemory>(device::cpu()));
  std::size_t largest = 0;
  for (int rank = 0; rank < catalog.world_size; ++rank)
    largest = std::max(largest, layout_bytes(lay_out(catalog, plan, Rank{rank})));
  part.reserve(largest, 0);
  for (int rank = 0; rank < catalog.world_size; ++rank) {
    part.lay_out(plan, Rank{rank});
    part.copy(MutatedIn::kForward);
    part.copy(MutatedIn::kUpdate);
    require(write_part(fs, root, catalog, plan, part, version, Rank{rank}).status(), run_directory);
  }
  Manifest header = first_header(catalog, first_budget);
  header.extra_json = extra_json;
  Result<Manifest> manifest =
      commit_checkpoint(fs, root, catalog, plan, std::move(header), {}, [] { return Status{}; });
  require(manifest.status(), run_directory);
  return std::move(manifest).value();
}

}  // namespace pecan::checkpoint
