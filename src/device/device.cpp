#include <cstring>
#include <new>
#include <utility>

#include <pecan/core/error.hpp>

#include <pecan/device/backend.hpp>
#include <pecan/device/copy.hpp>
#include <pecan/device/device.hpp>

namespace pecan::device {
namespace {

Backend& backend_of(const Device& device, std::string_view wanted) {
  PECAN_VALIDATE(device.backend != nullptr,
                 DeviceError,
                 "{} on CUDA device {} cannot be made: no library of CUDA kernels is loaded; set "
                 "training.device to cpu",
                 wanted,
                 device.ordinal);
  return *device.backend;
}

void validate_alike(std::string_view what, const ConstTensorView& from, const ConstTensorView& to) {
  PECAN_VALIDATE(from.dtype == to.dtype && from.shape == to.shape,
                 ShapeError,
                 "{} of {} {} into {} {}",
                 what,
                 name_of(from.dtype),
                 from.shape.to_string(),
                 name_of(to.dtype),
                 to.shape.to_string());
}

}  // namespace

Event::Event(Device device) : device_(device) {
  if (device.kind == DeviceKind::kCpu) return;
  handle_ = backend_of(device, "an event").create_event(device.ordinal);
}

Event::~Event() {
  if (handle_ != nullptr) device_.backend->destroy_event(device_.ordinal, handle_);
}

Event& Event::operator=(Event&& other) noexcept {
  Event taken(std::move(other));  // a self-move comes back through the swap
  std::swap(device_, taken.device_);
  std::swap(handle_, taken.handle_);
  return *this;
}

bool Event::query() const {
  return device_.backend->query(device_.ordinal, handle_);
}

void Event::synchronize() const {
  device_.backend->synchronize_event(device_.ordinal, handle_);
}

Stream::Stream(Device device) : device_(device) {
  if (device.kind == DeviceKind::kCpu) return;
  handle_ = backend_of(device, "a stream").create_stream(device.ordinal);
}

Stream::~Stream() {
  if (handle_ != nullptr) device_.backend->destroy_stream(device_.ordinal, handle_);
}

Stream& Stream::operator=(Stream&& other) noexcept {
  Stream taken(std::move(other));
  std::swap(device_, taken.device_);
  std::swap(handle_, taken.handle_);
  return *this;
}

void Stream::record_in(Event& event) {
  PECAN_EXPECTS(event.handle_ != nullptr && event.device_ == device_);
  device_.backend->record(device_.ordinal, event.handle_, handle_);
}

void Stream::wait_for(const Event& event) {
  device_.backend->stream_wait(device_.ordinal, handle_, event.handle_);
}

void Stream::prepare_products_here() {
  device_.backend->prepare_products(device_.ordinal, handle_);
}

void Stream::synchronize_all() {
  device_.backend->synchronize(device_.ordinal, handle_);
}

Buffer::Buffer(Device device, std::size_t num_bytes) : device_(device), num_bytes_(num_bytes) {
  if (device.kind == DeviceKind::kCuda) {
    Backend& backend = backend_of(device, fmt::format("a buffer of {} bytes", num_bytes));
    if (num_bytes > 0) data_ = backend.allocate(device.ordinal, num_bytes);
    return;
  }
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
  if (device_.kind == DeviceKind::kCpu) {
    ::operator delete (data_, std::align_val_t{kBufferAlignment});
  } else if (data_ != nullptr) {
    device_.backend->free(device_.ordinal, data_);
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : device_(other.device_),
      data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  Buffer taken(std::move(other));  // a self-move comes back through the swap
  std::swap(device_, taken.device_);
  std::swap(data_, taken.data_);
  std::swap(num_bytes_, taken.num_bytes_);
  return *this;
}

HostRegistration::HostRegistration(Device device, std::span<std::byte> memory) : device_(device) {
  if (device.kind == DeviceKind::kCpu || memory.empty()) return;
  backend_of(device, "locked host memory")
      .register_host(device.ordinal, memory.data(), memory.size());
  memory_ = memory.data();
}

HostRegistration::~HostRegistration() {
  if (memory_ != nullptr) device_.backend->unregister_host(device_.ordinal, memory_);
}

HostRegistration& HostRegistration::operator=(HostRegistration&& other) noexcept {
  HostRegistration taken(std::move(other));
  std::swap(device_, taken.device_);
  std::swap(memory_, taken.memory_);
  return *this;
}

void upload(Stream& stream, ConstTensorView host, TensorView tensor) {
  validate_alike("upload", host, tensor);
  const std::size_t num_bytes = host.num_bytes();
  if (num_bytes == 0) return;
  const Device device = stream.device();
  if (device.kind == DeviceKind::kCpu) {
    std::memcpy(tensor.data, host.data, num_bytes);
  } else {
    device.backend->upload(device.ordinal, stream.handle(), host.data, tensor.data, num_bytes);
  }
}

void download(Stream& stream, ConstTensorView tensor, TensorView host) {
  validate_alike("download", tensor, host);
  const std::size_t num_bytes = host.num_bytes();
  if (num_bytes == 0) return;
  const Device device = stream.device();
  if (device.kind == DeviceKind::kCpu) {
    std::memcpy(host.data, tensor.data, num_bytes);
  } else {
    device.backend->download(device.ordinal, stream.handle(), tensor.data, host.data, num_bytes);
  }
}

void copy(Stream& stream, ConstTensorView from, TensorView to) {
  validate_alike("copy", from, to);
  const std::size_t num_bytes = from.num_bytes();
  if (num_bytes == 0) return;
  const Device device = stream.device();
  if (device.kind == DeviceKind::kCpu) {
    std::memcpy(to.data, from.data, num_bytes);
  } else {
    device.backend->copy(device.ordinal, stream.handle(), from.data, to.data, num_bytes);
  }
}

}  // namespace pecan::device
