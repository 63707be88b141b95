#include <algorithm>
#include <cstring>

#include <pecan/parallel/params.hpp>

namespace pecan::parallel {
namespace {

std::size_t aligned_elements(std::int64_t elements, DType dtype) {
  const std::size_t step = device::kBufferAlignment / size_of(dtype);
  return (std::size_t(elements) + step - 1) / step * step;
}

bool holds(const ParamSpec& spec, int num_experts, const MeshShape& mesh, Rank rank) {
  return !spec.is_expert() ||
         expert_position(spec.expert, num_experts, mesh) == position_of(mesh, rank).ep;
}

}  // namespace

Shape ParamSpec::padded_shape() const {
  Shape padded = shape;
  padded[0] = padded_rows;
  return padded;
}

int expert_position(ExpertId expert, int num_experts, const MeshShape& mesh) {
  PECAN_EXPECTS(expert.value >= 0 && expert.value < num_experts && num_experts % mesh.ep == 0);
  return expert.value / (num_experts / mesh.ep);
}

std::vector<StateBlock> place(const ParamSpec& spec, int num_experts, const MeshShape& mesh) {
  if (spec.is_expert()) {
    return {{Block::whole(spec.shape),
             expert_holders(mesh, expert_position(spec.expert, num_experts, mesh))}};
  }
  std::vector<Rank> all;
  for (int r = 0; r < mesh.world; ++r) all.push_back(Rank{r});
  return {{Block::whole(spec.shape), std::move(all)}};
}

ParamSet::ParamSet(device::Device device,
                   const std::vector<ParamSpec>& specs,
                   int num_experts,
                   const MeshShape& mesh,
                   Rank rank,
                   DType dtype)
    : dtype_(dtype) {
  std::size_t used = 0;
  for (const bool expert : {false, true}) {
    FlatRange& range = expert ? expert_ : dense_;
    range.first = used;
    for (const ParamSpec& spec : specs) {
      if (spec.is_expert() != expert || !holds(spec, num_experts, mesh, rank)) continue;
      params_.push_back({.spec = spec, .first = used});
      used += aligned_elements(spec.padded_shape().num_elements(), dtype);
    }
    range.count = used - range.first;
  }
  master_ = device::Buffer(device, used * size_of(master_dtype()));
  grads_ = device::Buffer(device, used * size_of(master_dtype()));
  if (dtype != master_dtype()) weights_ = device::Buffer(device, used * size_of(dtype));
  for (Param& param : params_) {
    param.master = storage_in(master_, param);
    param.grad = storage_in(grads_, param);
    param.weight = param.master;
    if (weights_.size() > 0 && param.spec.computed_in == ComputedIn::kModelType) {
      param.weight = {
          weights_.data() + param.first * size_of(dtype), dtype, param.spec.padded_shape()};
    }
  }
}

std::size_t ParamSet::plan_elements(const std::vector<ParamSpec>& specs,
                                    int num_experts,
                                    const MeshShape& mesh,
                                    Rank rank,
                                    DType dtype) {
  std::size_t used = 0;
  for (const ParamSpec& spec : specs) {
    if (holds(spec, num_experts, mesh, rank))
      used += aligned_elements(spec.padded_shape().num_elements(), dtype);
  }
  return used;
}

void ParamSet::zero_grads() {
  if (grads_.size() > 0) std::memset(grads_.data(), 0, grads_.size());
}

Param& ParamSet::at(std::string_view name) {
  const auto it =
      std::ranges::find_if(params_, [&](const Param& param) { return param.spec.name == name; });
  PECAN_VALIDATE(it != params_.end(), InternalError, "this rank does not hold parameter {}", name);
  return *it;
}

TensorView ParamSet::flat_grads(FlatRange range) const {
  return {grads_.data() + range.first * size_of(master_dtype()),
          master_dtype(),
          Shape{std::int64_t(range.count)}};
}

device::ParamStorage ParamSet::storage_in(const device::Buffer& flat, const Param& param) const {
  return {flat.data() + param.first * size_of(master_dtype()),
          master_dtype(),
          param.spec.padded_shape()};
}

StorageBinding::StorageBinding(const StateCatalog& catalog, Rank rank)
    : catalog_(catalog), rank_(rank), bound_(catalog.items.size()) {}

void StorageBinding::bind(std::string_view path,
                          const device::ParamStorage& storage,
                          const Shape& offset) {
  const auto it = std::ranges::find_if(catalog_.items,
                                       [&](const StateItem& item) { return item.path() == path; });
  PECAN_VALIDATE(
      it != catalog_.items.end(), InternalError, "{} does not stand in the catalog", path);
  PECAN_VALIDATE(
      it->dtype == storage.dtype(), InternalError, "{} is bound to another element type", path);
  bound_[std::size_t(it - catalog_.items.begin())].push_back({storage, offset});
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

void StorageBinding::copy_out(ItemIndex item,
                              const Block& block,
                              std::span<std::byte> destination) const {
  const auto [bound, local] = locate(item, block);
  bound->storage.copy_out(local, destination);
}

void StorageBinding::copy_in(ItemIndex item,
                             const Block& block,
                             std::span<const std::byte> source) {
  const auto [bound, local] = locate(item, block);
  bound->storage.copy_in(local, source);
}

}  // namespace pecan::parallel
