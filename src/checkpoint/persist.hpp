#pragma once
/// From the snapshot to durable files, and from all ranks' files to a committed checkpoint.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>
#include <pecan/core/state_catalog.hpp>

#include <pecan/checkpoint/manifest.hpp>
#include <pecan/checkpoint/plan.hpp>

#include "checkpoint/snapshot.hpp"

namespace pecan::checkpoint {

/// "step-00000120.partial": where a checkpoint is written before it is committed.
[[nodiscard]] std::string partial_directory_name(Step step);

/// Writes what `plan` takes of the snapshot into this rank's shards and then its index, in the
/// partial directory below `root`; all is durable on success. Returns the payload bytes. Any thread; not collective.
Result<std::int64_t> write_part(FileSystem& fs,
                                const std::string& root,
                                const StateCatalog& catalog,
                                const SavePlan& plan,
                                const Snapshot& snapshot,
                                Version version,
                                Rank rank);

/// Commits what all ranks have written: merges their indices into `header` (complete but for
/// copies, files and blocks), with the copies of `previous` where nothing new was written, and
/// renames the directory. `permitted` is asked last; its failure stops the commit. On failure the
/// checkpoint does not exist. Rank 0, any thread. Errors: kCorrupt where the indices are not the
/// plan's.
Result<Manifest> commit_checkpoint(FileSystem& fs,
                                   const std::string& root,
                                   const StateCatalog& catalog,
                                   const SavePlan& plan,
                                   Manifest header,
                                   const std::vector<UnitCopy>& previous,
                                   const std::function<Status()>& permitted);

}  // namespace pecan::checkpoint
