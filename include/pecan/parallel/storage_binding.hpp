#pragma once
/// How a checkpoint reads and writes parameters: StateBinding over ParamStorages.

#include <atomic>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/device/device.hpp>
#include <pecan/device/param_storage.hpp>

namespace pecan::parallel {

/// Where a bound storage lies.
enum class Memory : std::uint8_t { kHost, kDevice };

/// StateBinding over ParamStorages: each item that this rank holds a block of is bound once. What a
/// device holds is copied by a stream of its own, so that copies go on while the device computes.
class StorageBinding : public StateBinding {
 public:
  /// `compute` is the stream in which the state changes. Both arguments outlive the binding.
  StorageBinding(const StateCatalog& catalog, Rank rank, device::Stream& compute);
  /// `storage` holds the block at `offset` of the item with this path, in memory of the host or of
  /// the stream's device, which outlives the binding.
  void bind(std::string_view path,
            const device::ParamStorage& storage,
            const Shape& offset,
            Memory memory);
  /// InternalError naming an item that this rank holds and nobody bound.
  void validate() const;
  void begin_copies() const override;
  void copy_out(ItemIndex item,
                const Block& block,
                std::span<std::byte> destination) const override;
  void finish_copies() const override;
  void copy_in(ItemIndex item, const Block& block, std::span<const std::byte> source) override;

 private:
  struct Bound {
    device::ParamStorage storage;
    Shape offset;
    Memory memory;
  };
  [[nodiscard]] std::pair<const Bound*, Block> locate(ItemIndex item, const Block& block) const;
  const StateCatalog& catalog_;
  Rank rank_;
  device::Stream& compute_;
  // Copying out changes nothing that is bound.
  mutable device::Stream copies_;
  mutable device::Event ready_;
  mutable std::atomic<std::int64_t> asked_ = 0;     ///< copies of what a device holds
  mutable std::atomic<std::int64_t> finished_ = 0;  ///< of them, at least
  std::vector<std::vector<Bound>> bound_;           ///< by item
};

}  // namespace pecan::parallel
