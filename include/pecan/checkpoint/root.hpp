#pragma once
/// The first checkpoint of a run whose state was made elsewhere: upcycled or imported.

#include <string>

#include <pecan/core/file_system.hpp>
#include <pecan/core/state_catalog.hpp>

#include <pecan/config/config.hpp>

#include <pecan/checkpoint/manifest.hpp>

namespace pecan::checkpoint {

/// Writes all state of `catalog` as the checkpoint of step 0 of a new run, from which a job of any
/// layout of the same model continues with ResumeMode::kFromFailure. The ranks of `catalog` are
/// parts of the state, each made by binding.copy_out and made durable before the next, so that
/// memory is that of the largest part. `expert_parallel`: the layout that the run will have, by
/// which experts are dealt to files as its selection will supersede them. Returns the manifest.
/// Throws CheckpointError where the directory holds a run, or cannot be written; what an earlier
/// call left unfinished is replaced. Not collective: one process.
Manifest write_root(FileSystem& fs,
                    const std::string& run_directory,
                    const config::CheckpointConfig& config,
                    const StateCatalog& catalog,
                    const StateBinding& binding,
                    int expert_parallel,
                    const std::string& extra_json);

/// CheckpointError if the directory holds a run, of which checkpoints or metrics are the sign.
/// `advice` is what to do instead.
void refuse_used_directory(FileSystem& fs,
                           const std::string& run_directory,
                           const std::string& advice);

}  // namespace pecan::checkpoint
