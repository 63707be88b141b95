#pragma once
/// Where a run computes.

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include <pecan/config/config.hpp>

#include <pecan/device/backend.hpp>
#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/train/placement.hpp>

namespace pecan::train {

/// The device that a rank has found.
struct FoundDevice {
  std::int64_t exists = 0;
  std::int64_t host = 0;     ///< equal for ranks of one host
  std::int64_t address = 0;  ///< on its bus
  bool operator==(const FoundDevice&) const = default;
};

/// Names two ranks that have found the same device; empty if each has one of its own. Pure.
[[nodiscard]] std::string describe_shared_device(std::span<const FoundDevice> of_ranks);

/// What a run needs and this device has not; empty: nothing. Pure.
using DeviceLacks = std::function<std::string(const device::DeviceProperties&)>;

/// The device that `choice` asks for, of one kind on all ranks: those of a host take the GPUs that
/// they see in turn. kAuto takes the CPU where a rank has none of its own, or where `lacks` (may be
/// none) says what its own device has no kernels for, and rank 0 logs why.
/// Throws NotConfigured for kCuda then, with the same reason. Collective over `world`.
[[nodiscard]] device::Device choose_device(Context& host,
                                           comm::Group& world,
                                           config::DeviceChoice choice,
                                           const Placement& placement,
                                           const DeviceLacks& lacks = {});

}  // namespace pecan::train
