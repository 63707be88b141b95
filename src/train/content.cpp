#include "train/content.hpp"

#include <cstring>

namespace pecan::train {
namespace {

/// The finaliser of SplitMix64: a bijection whose bits all depend on all bits.
constexpr std::uint64_t mix(std::uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  return value ^ (value >> 31);
}

/// Halves of a sum of 64-bit hashes, each of which has room for 2^31 of them.
struct Halves {
  std::int64_t low = 0;
  std::int64_t high = 0;
  void add(std::uint64_t hash) {
    low += std::int64_t(hash & 0xFFFFFFFF);
    high += std::int64_t(hash >> 32);
  }
};

/// Row-major index in `global` of an element of a block, by its row-major index in the block.
std::int64_t global_index(const Shape& global, const Block& block, std::int64_t local) {
  std::int64_t index = 0;
  std::int64_t stride = 1;
  for (int dim = global.num_dims() - 1; dim >= 0; --dim) {
    index += (block.offset[dim] + local % block.extent[dim]) * stride;
    local /= block.extent[dim];
    stride *= global[dim];
  }
  return index;
}

void add_block(const StateItem& item,
               const Block& block,
               std::span<const std::byte> bytes,
               Halves& sum) {
  const std::size_t element_bytes = size_of(item.dtype);
  for (std::int64_t e = 0; e < block.extent.num_elements(); ++e) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, bytes.data() + std::size_t(e) * element_bytes, element_bytes);
    sum.add(mix(mix(std::uint64_t(global_index(item.global_shape, block, e)) + 1) ^ bits));
  }
}

}  // namespace

std::vector<std::uint64_t> content_hashes(Context& ctx,
                                          comm::Group& world,
                                          const StateCatalog& catalog,
                                          const StateBinding& binding) {
  std::vector<std::int64_t> sums(2 * catalog.items.size(), 0);
  std::vector<std::byte> bytes;
  binding.begin_copies();
  for (std::size_t i = 0; i < catalog.items.size(); ++i) {
    const StateItem& item = catalog.items[i];
    Halves sum;
    for (const StateBlock& part : item.blocks) {
      if (part.holders.front() != world.rank()) continue;
      bytes.resize(std::size_t(part.block.extent.num_elements()) * size_of(item.dtype));
      binding.copy_out(ItemIndex{std::int32_t(i)}, part.block, bytes);
      binding.finish_copies();
      add_block(item, part.block, bytes, sum);
    }
    sums[2 * i] = sum.low;
    sums[2 * i + 1] = sum.high;
  }
  world
      .all_reduce(ctx, view_of(std::span(sums)), comm::ReduceOp::kSum, {comm::Purpose::kEvaluation})
      .wait();
  std::vector<std::uint64_t> hashes;
  for (std::size_t i = 0; i < catalog.items.size(); ++i)
    hashes.push_back(mix(mix(std::uint64_t(sums[2 * i])) ^ std::uint64_t(sums[2 * i + 1])));
  return hashes;
}

}  // namespace pecan::train
