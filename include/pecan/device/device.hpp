#pragma once
/// Devices, streams, events and memory; a CPU stream runs everything at once, in the caller.

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <pecan/core/tensor.hpp>

namespace pecan::device {

enum class DeviceKind : std::uint8_t { kCpu, kCuda };

class Backend;

/// A place that computes. Value type.
struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int ordinal = 0;
  Backend* backend = nullptr;  ///< of a loaded library, which is never unloaded; the CPU has none
  bool operator==(const Device&) const = default;
};
/// The host CPU.
[[nodiscard]] inline Device cpu() {
  return {};
}

/// A point in a stream's order, reusable. Move-only; empty after a move. On the CPU, and before it
/// is recorded, an event is complete.
class Event {
 public:
  Event() = default;
  explicit Event(Device device);
  ~Event();
  Event(Event&& other) noexcept
      : device_(other.device_), handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  [[nodiscard]] bool complete() const { return handle_ == nullptr || query(); }
  /// Blocks the calling thread.
  void wait() const {
    if (handle_ != nullptr) synchronize();
  }

 private:
  friend class Stream;
  [[nodiscard]] bool query() const;
  void synchronize() const;
  Device device_;
  void* handle_ = nullptr;
};

/// In-order queue of work. Move-only. The CPU's executes each operation before it returns.
class Stream {
 public:
  /// DeviceError if the device is a CUDA device without a backend.
  explicit Stream(Device device);
  /// Waits for what is queued.
  ~Stream();
  Stream(Stream&& other) noexcept
      : device_(other.device_), handle_(std::exchange(other.handle_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  [[nodiscard]] Device device() const { return device_; }
  /// The runtime's own stream; null on the CPU.
  [[nodiscard]] void* handle() const { return handle_; }
  /// Event of all that was queued so far.
  [[nodiscard]] Event record() {
    Event event = handle_ == nullptr ? Event() : Event(device_);
    record(event);
    return event;
  }
  /// The same, without making one; `event` is of this device.
  void record(Event& event) {
    if (handle_ != nullptr) record_in(event);
  }
  /// What is queued from now on starts after the event; the caller does not wait.
  void wait(const Event& event) {
    if (handle_ != nullptr && event.handle_ != nullptr) wait_for(event);
  }
  /// For a stream that computes, before the first step: makes what its matrix products need, which
  /// takes device memory.
  void prepare_products() {
    if (handle_ != nullptr) prepare_products_here();
  }
  /// Blocks the calling thread until all is done; DeviceError if something failed.
  void synchronize() {
    if (handle_ != nullptr) synchronize_all();
  }

 private:
  void record_in(Event& event);
  void wait_for(const Event& event);
  void synchronize_all();
  void prepare_products_here();
  Device device_;
  void* handle_ = nullptr;
};

inline constexpr std::size_t kBufferAlignment = 64;

/// Owned device memory, 64-byte aligned; zeroed on the CPU, not cleared on a CUDA device.
/// Move-only; empty after a move.
class Buffer {
 public:
  Buffer() = default;
  /// Throws DeviceError naming the size if there is no memory.
  Buffer(Device device, std::size_t num_bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return num_bytes_; }
  [[nodiscard]] std::span<std::byte> bytes() const { return {data_, num_bytes_}; }

 private:
  Device device_;
  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};

/// Keeps host memory of somebody else locked, so that `device` can copy from and to it while it
/// computes: shared memory, which survives the process, as well as a Buffer. Move-only; empty after
/// a move. Nothing on the CPU.
class HostRegistration {
 public:
  HostRegistration() = default;
  /// `memory` outlives the registration. DeviceError if it cannot be locked.
  HostRegistration(Device device, std::span<std::byte> memory);
  ~HostRegistration();
  HostRegistration(HostRegistration&& other) noexcept
      : device_(other.device_), memory_(std::exchange(other.memory_, nullptr)) {}
  HostRegistration& operator=(HostRegistration&& other) noexcept;
  HostRegistration(const HostRegistration&) = delete;
  HostRegistration& operator=(const HostRegistration&) = delete;

 private:
  Device device_;
  std::byte* memory_ = nullptr;
};

/// Host memory that a device can copy to while computing; plain memory on the CPU backend.
/// Move-only; empty after a move.
class PinnedBuffer : public Buffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t num_bytes) : PinnedBuffer(cpu(), num_bytes) {}
  PinnedBuffer(Device device, std::size_t num_bytes)
      : Buffer(cpu(), num_bytes), registration_(device, bytes()) {}
  ~PinnedBuffer() = default;
  PinnedBuffer(PinnedBuffer&& other) noexcept = default;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    // What this one held goes with `taken`, whose registration ends before its memory.
    PinnedBuffer taken(std::move(other));
    std::swap<Buffer>(*this, taken);
    std::swap(registration_, taken.registration_);
    return *this;
  }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

 private:
  HostRegistration registration_;
};

/// Copies a host tensor to one of the same type and shape on the stream's device, in the stream's
/// order. Registered host memory must not change until the copy is done; other memory may when
/// upload returns. ShapeError where type or shape differ.
void upload(Stream& stream, ConstTensorView host, TensorView tensor);
/// The other way round. The host may read after the stream was synchronised.
void download(Stream& stream, ConstTensorView tensor, TensorView host);

}  // namespace pecan::device
