#pragma once
/// What every kind of group must do, as one body for all of them.

#include <cstdint>
#include <string>
#include <vector>

#include <pecan/device/device.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::comm::test {

struct Conformance {
  std::vector<std::string> failures;  ///< sentences; Catch assertions are not for several threads
  std::uint64_t digest = 0;           ///< of all results of this member, in order
};

/// Runs every collective over all members of `group` on tensors of `device`, against oracles that
/// each member computes alone. Of a profiled group `profile` takes the spans.
[[nodiscard]] Conformance check_conformance(Group& group,
                                            ProfileTrack* profile = nullptr,
                                            device::Device device = device::cpu());

}  // namespace pecan::comm::test
