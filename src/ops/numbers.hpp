#pragma once
/// What an operator tells the host at once.

#include <array>
#include <cstddef>
#include <span>

#include <pecan/device/copy.hpp>

namespace pecan::ops::detail {

/// kCount numbers for an operator to write, in memory of its device, and then for the host to read.
template <std::size_t kCount>
class Numbers {
 public:
  explicit Numbers(Context& ctx) : ctx_(ctx), scope_(ctx.workspace) {
    const Shape shape{std::int64_t(kCount)};
    view_ = ctx.device.kind == device::DeviceKind::kCpu
                ? view_of(std::span(here_))
                : ctx.workspace.allocate(DType::kF64, shape);
  }
  [[nodiscard]] TensorView view() const { return view_; }
  /// Waits for the operator.
  [[nodiscard]] const std::array<double, kCount>& read() {
    if (ctx_.device.kind == device::DeviceKind::kCpu) return here_;
    device::download(ctx_.stream, view_, view_of(std::span(here_)));
    ctx_.stream.synchronize();
    return here_;
  }

 private:
  Context& ctx_;
  device::ArenaScope scope_;
  std::array<double, kCount> here_{};
  TensorView view_;
};

}  // namespace pecan::ops::detail
