#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include <pecan/checkpoint/checkpointer.hpp>

#include "checkpoint/exchange.hpp"
#include "checkpoint/scan.hpp"

namespace pecan::checkpoint {
namespace {

/// The checkpoint as it was written, or empty and why it is not there. Rank 0.
std::vector<std::string> read_back(FileSystem& fs,
                                   const std::string& root,
                                   Version version,
                                   const SaveRecord& record) {
  const Result<StoredCheckpoint> stored =
      load_checkpoint(fs, root, step_directory_name(version.step));
  if (stored.ok() && stored.value().manifest.version == version && record.committed)
    return {to_json(stored.value().manifest), ""};
  return {"",
          fmt::format("the state of step {} could not be written to {}: {}; what was committed "
                      "before stays valid: see that there is space, and go on with "
                      "--resume-from-failure",
                      version.step,
                      root,
                      !record.failure.empty() ? record.failure
                      : stored.ok()           ? "another checkpoint of this step is there"
                                              : stored.status().message)};
}

}  // namespace

FullSave save_full(FileSystem& fs,
                   const std::string& run_directory,
                   const config::CheckpointConfig& config,
                   const StateCatalog& catalog,
                   StateBinding& binding,
                   const RunIdentity& identity,
                   const std::vector<std::string>& node_of_rank,
                   const ExpertBudget& budget,
                   const StepFacts& facts,
                   Context& ctx,
                   comm::Group& world) {
  Exchange exchange(ctx, world);
  config::CheckpointConfig storage_only = config;
  storage_only.non_persistent_save_interval = {};
  storage_only.async_save = false;
  Checkpointer writer(fs,
                      run_directory,
                      storage_only,
                      catalog,
                      binding,
                      world.rank(),
                      // Without a manifest to stand on everything is written.
                      CheckpointerStart{.identity = identity,
                                        .budget = budget,
                                        .memory = plan_snapshot_memory(
                                            catalog, storage_only, budget, /*has_full=*/false),
                                        .node_of_rank = node_of_rank,
                                        .keep_memory = true,
                                        .routed = facts.routed});
  static_cast<void>(writer.save_now(facts));
  for (std::vector<std::int64_t> busy{1}; busy[0] != 0;) {
    const Vote mine = writer.vote();
    std::vector<std::int64_t> vote(mine.begin(), mine.end());
    exchange.reduce(vote, comm::ReduceOp::kMin);
    Vote reduced;
    std::ranges::copy(vote, reduced.begin());
    writer.observe(reduced);
    busy[0] = writer.busy() ? 1 : 0;
    exchange.reduce(busy, comm::ReduceOp::kMax);
    std::this_thread::sleep_for(std::chrono::milliseconds(busy[0]));
  }
  const std::vector<SaveRecord> records = writer.take_records();
  FullSave saved;
  if (!records.empty()) saved.record = records.back();
  const Version version{identity.incarnation, facts.step};
  const std::string root = run_directory + "/checkpoints";
  const std::vector<std::string> text =
      exchange.from_root([&] { return read_back(fs, root, version, saved.record); });
  if (text[0].empty()) {
    saved.status = Status::failure(StatusCode::kIo, text[1]);
  } else {
    saved.manifest = parse_manifest(text[0]).value();
  }
  return saved;
}

}  // namespace pecan::checkpoint
