#include <algorithm>

#include <pecan/core/error.hpp>

#include <pecan/device/arena.hpp>

namespace pecan::device {

Arena::Arena(Device device, std::size_t capacity) : memory_(device, capacity), measuring_(false) {}

TensorView Arena::allocate(DType dtype, const Shape& shape) {
  TensorView view{nullptr, dtype, shape};
  const std::size_t taken =
      (view.num_bytes() + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  if (!measuring_) {
    PECAN_VALIDATE(
        taken <= capacity() - used_,
        InternalError,
        "the arena of {} bytes cannot hold {} bytes more for {} {}: {} are in use, so {} "
        "are needed; plan it with the calls that run",
        capacity(),
        taken,
        name_of(dtype),
        shape.to_string(),
        used_,
        used_ + taken);
    view.data = memory_.data() + used_;
  }
  used_ += taken;
  high_water_ = std::max(high_water_, used_);
  return view;
}

void Arena::release(std::size_t mark) {
  PECAN_EXPECTS(mark <= used_);
  used_ = mark;
}

}  // namespace pecan::device
