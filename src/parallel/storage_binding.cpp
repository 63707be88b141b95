#include <algorithm>

#include <pecan/device/copy.hpp>

#include <pecan/parallel/storage_binding.hpp>

namespace pecan::parallel {

StorageBinding::StorageBinding(const StateCatalog& catalog, Rank rank, device::Stream& compute)
    : catalog_(catalog),
      rank_(rank),
      compute_(compute),
      copies_(compute.device()),
      ready_(compute.device()),
      bound_(catalog.items.size()) {}

void StorageBinding::bind(std::string_view path,
                          const device::ParamStorage& storage,
                          const Shape& offset,
                          Memory memory) {
  const auto it = std::ranges::find_if(catalog_.items,
                                       [&](const StateItem& item) { return item.path() == path; });
  PECAN_VALIDATE(
      it != catalog_.items.end(), InternalError, "{} does not stand in the catalog", path);
  PECAN_VALIDATE(
      it->dtype == storage.dtype(), InternalError, "{} is bound to another element type", path);
  bound_[std::size_t(it - catalog_.items.begin())].push_back({storage, offset, memory});
}

void StorageBinding::validate() const {
  for (std::size_t i = 0; i < bound_.size(); ++i) {
    for (const StateBlock& part : catalog_.items[i].blocks) {
      if (std::ranges::find(part.holders, rank_) != part.holders.end()) {
        (void)locate(ItemIndex{std::int32_t(i)}, part.block);
      }
    }
  }
}

std::pair<const StorageBinding::Bound*, Block> StorageBinding::locate(ItemIndex item,
                                                                      const Block& block) const {
  for (const Bound& bound : bound_[std::size_t(item.value)]) {
    Block local = block;
    bool before = false;
    for (int dim = 0; dim < block.offset.num_dims(); ++dim) {
      before = before || block.offset[dim] < bound.offset[dim];
      local.offset[dim] = block.offset[dim] - bound.offset[dim];
    }
    if (!before && local.fits(bound.storage.shape())) return {&bound, local};
  }
  throw InternalError(fmt::format("rank {} has nothing bound for {} at {}",
                                  rank_,
                                  catalog_.items[std::size_t(item.value)].path(),
                                  block.offset.to_string()));
}

void StorageBinding::begin_copies() const {
  compute_.record(ready_);
  copies_.wait(ready_);
}

void StorageBinding::copy_out(ItemIndex item,
                              const Block& block,
                              std::span<std::byte> destination) const {
  const auto [bound, local] = locate(item, block);
  if (bound->memory == Memory::kHost) return bound->storage.copy_out(local, destination);
  device::download(copies_, bound->storage, local, destination);
  ++asked_;
}

void StorageBinding::finish_copies() const {
  // A thread that has asked for nothing does not wait for the state to be ready.
  const std::int64_t asked = asked_;
  if (finished_ >= asked) return;
  copies_.synchronize();
  for (std::int64_t seen = finished_;
       seen < asked && !finished_.compare_exchange_weak(seen, asked);) {
  }
}

void StorageBinding::copy_in(ItemIndex item,
                             const Block& block,
                             std::span<const std::byte> source) {
  const auto [bound, local] = locate(item, block);
  if (bound->memory == Memory::kHost) return bound->storage.copy_in(local, source);
  // In the order of what computes with it.
  device::upload(compute_, source, bound->storage, local);
}

}  // namespace pecan::parallel
