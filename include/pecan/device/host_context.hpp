#pragma once
/// What is computed and exchanged on the host while a run computes on a device.

#include <pecan/device/context.hpp>

namespace pecan::device {

/// A context of the CPU beside `ctx`, for numbers that the host has: `ctx` itself where that is of
/// the CPU. Refers to `ctx`, which outlives it.
class HostContext {
 public:
  explicit HostContext(Context& ctx)
      : beside_{cpu(), stream_, no_workspace_, ctx.threads},
        context_(ctx.device.kind == DeviceKind::kCpu ? ctx : beside_) {}
  HostContext(const HostContext&) = delete;
  HostContext& operator=(const HostContext&) = delete;
  [[nodiscard]] Context& get() { return context_; }

 private:
  Stream stream_{cpu()};
  Arena no_workspace_;
  Context beside_;
  Context& context_;
};

}  // namespace pecan::device
