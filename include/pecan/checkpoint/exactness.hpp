#pragma once
/// Whether a state that was (or would be) restored is that of one step, and what it means if not.
/// Pure.

#include <cstdint>
#include <optional>
#include <string>

#include <pecan/core/ids.hpp>
#include <pecan/core/state_catalog.hpp>

#include <pecan/checkpoint/manifest.hpp>
#include <pecan/checkpoint/recovery.hpp>

namespace pecan::checkpoint {

struct Exactness {
  Step step;                    ///< that the state is of
  std::int64_t experts = 0;     ///< of all layers
  std::int64_t older = 0;       ///< of which some role group is from before
  std::int64_t most_steps = 0;  ///< that the oldest of them is older
  [[nodiscard]] bool exact() const { return older == 0; }
  bool operator==(const Exactness&) const = default;
};

/// Of a recovery.
[[nodiscard]] Exactness exactness_of(const RestorePlan& plan, const StateCatalog& catalog);
/// Of a recovery from a checkpoint, by the copies that it counts on.
[[nodiscard]] Exactness exactness_of(const Manifest& manifest);

/// One line: "exact: ..." or "mixed: ...", and what that means. `plt`: proportion of lost tokens of
/// this recovery, if it is known.
[[nodiscard]] std::string describe(const Exactness& exactness, std::optional<double> plt);

}  // namespace pecan::checkpoint
