#include <cstring>
#include <new>
#include <utility>

#include <pecan/core/error.hpp>

#include <pecan/device/device.hpp>

namespace pecan::device {

Buffer::Buffer(Device device, std::size_t num_bytes) : num_bytes_(num_bytes) {
  PECAN_VALIDATE(
      device.kind == DeviceKind::kCpu,
      DeviceError,
      "a buffer of {} bytes on CUDA device {} cannot be made: this build computes on the "
      "CPU only; set training.device to cpu",
      num_bytes,
      device.ordinal);
  if (num_bytes == 0) return;
  data_ = static_cast<std::byte*>(
      ::operator new (num_bytes, std::align_val_t{kBufferAlignment}, std::nothrow));
  PECAN_VALIDATE(data_ != nullptr,
                 DeviceError,
                 "no memory for a buffer of {} bytes on the CPU; use fewer ranks on this host or a "
                 "smaller model or micro-batch",
                 num_bytes);
  std::memset(data_, 0, num_bytes);
}

Buffer::~Buffer() {
  ::operator delete (data_, std::align_val_t{kBufferAlignment});
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  Buffer taken(std::move(other));  // a self-move comes back through the swap
  std::swap(data_, taken.data_);
  std::swap(num_bytes_, taken.num_bytes_);
  return *this;
}

}  // namespace pecan::device
