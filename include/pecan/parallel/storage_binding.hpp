#pragma once
/// How a checkpoint reads and writes parameters: StateBinding over ParamStorages.

#include <string_view>
#include <utility>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/device/param_storage.hpp>

namespace pecan::parallel {

/// StateBinding over ParamStorages: each item that this rank holds a block of is bound once.
class StorageBinding : public StateBinding {
 public:
  StorageBinding(const StateCatalog& catalog, Rank rank);
  /// `storage` holds the block at `offset` of the item with this path; its memory outlives the
  /// binding.
  void bind(std::string_view path, const device::ParamStorage& storage, const Shape& offset);
  /// InternalError naming an item that this rank holds and nobody bound.
  void validate() const;
  void copy_out(ItemIndex item,
                const Block& block,
                std::span<std::byte> destination) const override;
  void copy_in(ItemIndex item, const Block& block, std::span<const std::byte> source) override;

 private:
  struct Bound {
    device::ParamStorage storage;
    Shape offset;
  };
  [[nodiscard]] std::pair<const Bound*, Block> locate(ItemIndex item, const Block& block) const;
  const StateCatalog& catalog_;
  Rank rank_;
  std::vector<std::vector<Bound>> bound_;  ///< by item
};

}  // namespace pecan::parallel
