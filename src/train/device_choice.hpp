#pragma once
/// Where a run computes.

#include <pecan/config/config.hpp>

#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/train/placement.hpp>

namespace pecan::train {

/// The device that `choice` asks for, of one kind on all ranks: those of a host take the GPUs that
/// they see in turn. kAuto takes the CPU where a rank sees none, and rank 0 logs why. Throws
/// NotConfigured for kCuda then, with the same reason. Collective over `world`.
[[nodiscard]] device::Device choose_device(Context& host,
                                           comm::Group& world,
                                           config::DeviceChoice choice,
                                           const Placement& placement);

}  // namespace pecan::train
