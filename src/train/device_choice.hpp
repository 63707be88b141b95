#pragma once
/// Where a run computes.

#include <pecan/config/config.hpp>

#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::train {

/// The device that `choice` asks for, of one kind on all ranks: those of one host take its GPUs in
/// turn, `rank_here` being this rank's place among them. kAuto takes the CPU where a rank has no
/// GPU to train on, and rank 0 logs why. Throws NotConfigured for kCuda then, with the same reason.
/// Collective over `world`.
[[nodiscard]] device::Device choose_device(Context& host,
                                           comm::Group& world,
                                           config::DeviceChoice choice,
                                           int rank_here);

}  // namespace pecan::train
