#pragma once
/// Where a snapshot's bytes lie: memory of the process, or a segment that outlives it.

#include <cstddef>
#include <span>

#include <pecan/core/error.hpp>

#include <pecan/device/device.hpp>

#include <pecan/checkpoint/manifest.hpp>

#include "checkpoint/segment.hpp"

namespace pecan::checkpoint {

class BufferMemory {
 public:
  BufferMemory() = default;
  virtual ~BufferMemory() = default;
  BufferMemory(const BufferMemory&) = delete;
  BufferMemory& operator=(const BufferMemory&) = delete;
  /// At least `num_bytes` for at most `num_blocks` blocks; the content is lost where it grows.
  /// CheckpointError if there is not so much memory.
  virtual std::span<std::byte> reserve(std::size_t num_bytes, std::size_t num_blocks) = 0;
  /// What is in it is about to be overwritten.
  virtual void begin() = 0;
  /// What is in it is whole and may be recovered from.
  virtual Status seal(const Manifest& header, const RankIndex& index) = 0;
  /// Where a sealed snapshot lies, if it outlives the process.
  [[nodiscard]] virtual const Segment* segment() const = 0;
  /// Whether seal() keeps anything, so that callers may spare the index.
  [[nodiscard]] virtual bool outlives_process() const = 0;
  /// Gives up what would outlive the process.
  virtual void remove() = 0;
};

/// Memory of the process, locked for `device`.
class PrivateMemory final : public BufferMemory {
 public:
  explicit PrivateMemory(device::Device device) : device_(device) {}
  std::span<std::byte> reserve(std::size_t num_bytes, std::size_t num_blocks) override {
    static_cast<void>(num_blocks);
    if (num_bytes > buffer_.size()) {
      buffer_ = {};  // before the new one is made: memory may be short for both
      buffer_ = device::PinnedBuffer(device_, num_bytes);
    }
    return buffer_.bytes();
  }
  void begin() override {}
  Status seal(const Manifest& /*header*/, const RankIndex& /*index*/) override { return {}; }
  [[nodiscard]] const Segment* segment() const override { return nullptr; }
  [[nodiscard]] bool outlives_process() const override { return false; }
  void remove() override {}

 private:
  device::Device device_;
  device::PinnedBuffer buffer_;
};

}  // namespace pecan::checkpoint
