#pragma once
/// Devices, streams, events and memory; a CPU stream runs everything at once, in the caller.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <pecan/core/tensor.hpp>

namespace pecan::device {

enum class DeviceKind : std::uint8_t { kCpu, kCuda };

/// A place that computes. Value type.
struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int ordinal = 0;
  bool operator==(const Device&) const = default;
};
/// The host CPU.
[[nodiscard]] inline Device cpu() {
  return {};
}

/// A point in a stream's order. On the CPU every event is complete when recorded.
class Event {
 public:
  [[nodiscard]] bool complete() const { return true; }
  void wait() const {}
};

/// In-order queue of work. Move-only. The CPU's executes each operation before it returns.
class Stream {
 public:
  explicit Stream(Device device) : device_(device) {}
  Stream(Stream&&) noexcept = default;
  Stream& operator=(Stream&&) noexcept = default;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  [[nodiscard]] Device device() const { return device_; }
  [[nodiscard]] Event record() { return {}; }
  void wait(const Event& /*event*/) {}
  void synchronize() {}

 private:
  Device device_;
};

inline constexpr std::size_t kBufferAlignment = 64;

/// Owned device memory, 64-byte aligned, zeroed on the CPU. Move-only; empty after a move.
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
  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};

/// Host memory that a device can copy to while computing; plain memory on the CPU backend.
class PinnedBuffer : public Buffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t num_bytes) : Buffer(cpu(), num_bytes) {}
};

}  // namespace pecan::device
