#pragma once
/// Where a run computes.

#include <pecan/config/config.hpp>

#include <pecan/device/device.hpp>

namespace pecan::train {

/// The device that `choice` asks for on this host. kAuto takes the CPU where no GPU can train, and
/// logs why. Throws NotConfigured for kCuda then, with the same reason.
[[nodiscard]] device::Device choose_device(config::DeviceChoice choice);

}  // namespace pecan::train
