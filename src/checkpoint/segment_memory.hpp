#pragma once
/// A snapshot buffer in a Segment, which survives the process and is taken over by the next.

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "checkpoint/buffer_memory.hpp"
#include "checkpoint/segment.hpp"

namespace pecan::checkpoint {

class SegmentMemory final : public BufferMemory {
 public:
  /// Locked for `device`.
  SegmentMemory(std::string directory, SegmentName name, device::Device device)
      : directory_(std::move(directory)), name_(std::move(name)), device_(device) {}

  std::span<std::byte> reserve(std::size_t num_bytes, std::size_t num_blocks) override {
    if (!segment_ || num_bytes > segment_->payload().size() || num_blocks > max_blocks_) {
      const bool first = !segment_;
      locked_ = {};
      segment_.reset();  // before the new one is made: memory may be short for both
      if (first) segment_ = Segment::adopt(directory_, name_, num_bytes, num_blocks);
      if (!segment_) segment_.emplace(directory_, name_, num_bytes, num_blocks);
      max_blocks_ = num_blocks;
      locked_ = device::HostRegistration(device_, segment_->payload());
    }
    return segment_->payload();
  }
  void begin() override {
    if (segment_) segment_->begin();
  }
  Status seal(const Manifest& header, const RankIndex& index) override {
    return segment_->commit(header, index);
  }
  [[nodiscard]] const Segment* segment() const override { return segment_ ? &*segment_ : nullptr; }
  [[nodiscard]] bool outlives_process() const override { return true; }
  void remove() override {
    // What stays is listed and removed by pecan-inspect --memory.
    if (segment_) static_cast<void>(segment_->remove());
  }

 private:
  std::string directory_;
  SegmentName name_;
  device::Device device_;
  std::optional<Segment> segment_;
  device::HostRegistration locked_;  ///< of the segment's payload
  std::size_t max_blocks_ = 0;
};

}  // namespace pecan::checkpoint
