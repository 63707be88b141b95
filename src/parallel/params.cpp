#include <algorithm>

#include <pecan/ops/elementwise.hpp>

#include <pecan/parallel/params.hpp>

namespace pecan::parallel {
namespace {

/// Rows of `storage`, which is row-major.
device::ParamStorage rows_of(const device::ParamStorage& storage, RowRange rows) {
  Shape shape = storage.shape();
  const std::int64_t width = shape[0] > 0 ? shape.num_elements() / shape[0] : 0;
  shape[0] = rows.count;
  return {storage.memory() + std::size_t(rows.first * width) * size_of(storage.dtype()),
          storage.dtype(),
          shape};
}

TensorView bytes_of(const device::Buffer& buffer) {
  return {buffer.data(), DType::kU8, Shape{std::int64_t(buffer.size())}};
}

DType weight_dtype(const Bucket& bucket, DType dtype) {
  return bucket.computed_in == ComputedIn::kMasterType ? master_of(dtype) : dtype;
}

/// Whether gradients wait for their sum in one of the two places of layers' turns.
bool takes_turns(const Bucket& bucket, Sharding sharding) {
  return sharding == Sharding::kGradients && bucket.first_stage == bucket.last_stage;
}

}  // namespace

Shape Param::owned_offset() const {
  Shape offset = block.offset;
  offset[0] += owned.first;
  return offset;
}

Block Param::owned_block() const {
  Block rows{owned_offset(), block.extent};
  rows.extent[0] = std::clamp<std::int64_t>(block.extent[0] - owned.first, 0, owned.count);
  return rows;
}

MemoryLayout plan_state_memory(const ParamLayout& layout,
                               Sharding sharding,
                               const MeshPosition& position,
                               DType dtype) {
  MemoryLayout memory;
  const std::size_t master_size = size_of(master_of(dtype));
  std::size_t weight_bytes = 0, masters = 0, grads = 0, owned = 0;
  std::size_t turn_size = 0;
  std::vector<std::size_t> used_in_stage;
  for (const Bucket& bucket : layout.buckets) {
    const std::size_t share =
        std::size_t(bucket.share_counts[std::size_t(bucket.expert ? position.edp : position.dp)]);
    const std::size_t kept = sharding == Sharding::kNone ? bucket.range.count : share;
    BucketMemory& at = memory.buckets.emplace_back();
    at.weight_byte = weight_bytes;
    at.master = masters;
    at.owned = owned;
    weight_bytes += bucket.range.count * size_of(weight_dtype(bucket, dtype));
    if (bucket.computed_in == ComputedIn::kModelType) masters += kept;
    owned += kept;
    if (takes_turns(bucket, sharding)) {
      used_in_stage.resize(std::max(used_in_stage.size(), std::size_t(bucket.first_stage) + 1));
      std::size_t& used = used_in_stage[std::size_t(bucket.first_stage)];
      at.grad = used;
      used += bucket.range.count;
      turn_size = std::max(turn_size, used);
    } else {
      at.grad = grads;
      grads += bucket.range.count;
    }
  }
  for (std::size_t b = 0; b < layout.buckets.size(); ++b) {
    const Bucket& bucket = layout.buckets[b];
    if (!takes_turns(bucket, sharding)) continue;
    memory.buckets[b].grad += grads + (bucket.first_stage % 2 == 0 ? 0 : turn_size);
  }
  memory.bytes.weights = weight_bytes;
  memory.bytes.masters = masters * master_size;
  memory.bytes.gradients = (grads + 2 * turn_size) * master_size;
  if (sharding == Sharding::kGradients) memory.bytes.gradients += owned * master_size;
  memory.bytes.moment = owned * master_size;
  return memory;
}

ParamSet::ParamSet(device::Device device,
                   const std::vector<ParamSpec>& specs,
                   int num_experts,
                   const MeshShape& mesh,
                   Rank rank,
                   DType dtype,
                   Sharding sharding)
    : dtype_(dtype),
      sharding_(sharding),
      mesh_(mesh),
      position_(position_of(mesh, rank)),
      layout_(plan_layout(specs, num_experts, mesh, position_, dtype)),
      memory_(plan_state_memory(layout_, sharding, position_, dtype)) {
  const std::size_t summed_bytes = sharding == Sharding::kGradients ? memory_.bytes.moment : 0;
  weights_ = device::Buffer(device, memory_.bytes.weights);
  masters_ = device::Buffer(device, memory_.bytes.masters);
  grads_ = device::Buffer(device, memory_.bytes.gradients - summed_bytes);
  summed_ = device::Buffer(device, summed_bytes);
  const std::size_t master_size = size_of(master_dtype());
  for (const ParamPart& part : layout_.parts) {
    const Bucket& bucket = layout_.buckets[part.bucket];
    const BucketMemory& at = memory_.buckets[part.bucket];
    const std::size_t in_bucket = part.first - bucket.range.first;
    const DType stored = weight_dtype(bucket, dtype);
    Param& param = params_.emplace_back();
    param.spec = specs[part.spec];
    if (bucket.replicas == Replicas::kKv) kv_replicas_ = mesh.tp / param.spec.num_parts;
    param.block = part.block;
    param.weight = {
        weights_.data() + at.weight_byte + in_bucket * size_of(stored), stored, part.shape};
    param.grad = {grads_.data() + (at.grad + in_bucket) * master_size, master_dtype(), part.shape};
    const bool whole = sharding == Sharding::kNone;
    const int data = data_position(bucket);
    param.owned = whole ? RowRange{0, part.shape[0]} : part.shares[std::size_t(data)];
    const std::int64_t width = part.shape[0] > 0 ? part.shape.num_elements() / part.shape[0] : 0;
    const std::size_t first_row = in_bucket + std::size_t(param.owned.first * width);
    const std::size_t in_owned =
        whole || param.owned.count == 0 ? first_row : first_row - bucket.share_first(data);
    param.owned_first = at.owned + (param.owned.count == 0 ? 0 : in_owned);
    param.owned_weight = rows_of(param.weight, param.owned);
    const Shape& owned_shape = param.owned_weight.shape();
    param.owned_grad = sharding == Sharding::kGradients ? storage_in(summed_, param)
                                                        : rows_of(param.grad, param.owned);
    param.master = param.owned_weight;
    if (bucket.computed_in == ComputedIn::kModelType) {
      param.master = {
          masters_.data() + (at.master + (param.owned.count == 0 ? 0 : in_owned)) * master_size,
          master_dtype(),
          owned_shape};
    }
  }
}

void ParamSet::zero(Context& ctx) {
  for (const device::Buffer* buffer : {&weights_, &masters_}) ops::fill(ctx, 0, bytes_of(*buffer));
}

void ParamSet::zero_grads(Context& ctx) {
  for (const device::Buffer* buffer : {&grads_, &summed_}) ops::fill(ctx, 0, bytes_of(*buffer));
}

void ParamSet::zero_grads(Context& ctx, const Bucket& bucket) {
  ops::fill(ctx, 0, grads(bucket));
}

Param& ParamSet::at(std::string_view name) {
  const auto it =
      std::ranges::find_if(params_, [&](const Param& param) { return param.spec.name == name; });
  PECAN_VALIDATE(it != params_.end(), InternalError, "this rank does not hold parameter {}", name);
  return *it;
}

const BucketMemory& ParamSet::memory_of(const Bucket& bucket) const {
  return memory_.buckets[std::size_t(&bucket - layout_.buckets.data())];
}

TensorView ParamSet::master_view(std::byte* memory, std::size_t first, std::int64_t count) const {
  return {memory + first * size_of(master_dtype()), master_dtype(), Shape{count}};
}

TensorView ParamSet::weights(const Bucket& bucket) const {
  return {weights_.data() + memory_of(bucket).weight_byte,
          weight_dtype(bucket, dtype_),
          Shape{std::int64_t(bucket.range.count)}};
}

TensorView ParamSet::weight_share(const Bucket& bucket) const {
  const int data = data_position(bucket);
  return weights(bucket).rows(std::int64_t(bucket.share_first(data)),
                              bucket.share_counts[std::size_t(data)]);
}

TensorView ParamSet::grads(const Bucket& bucket) const {
  return master_view(grads_.data(), memory_of(bucket).grad, std::int64_t(bucket.range.count));
}

TensorView ParamSet::grad_share(const Bucket& bucket) const {
  const int data = data_position(bucket);
  return grads(bucket).rows(std::int64_t(bucket.share_first(data)),
                            bucket.share_counts[std::size_t(data)]);
}

TensorView ParamSet::summed_share(const Bucket& bucket) const {
  if (sharding_ != Sharding::kGradients) return grad_share(bucket);
  return master_view(summed_.data(),
                     memory_of(bucket).owned,
                     bucket.share_counts[std::size_t(data_position(bucket))]);
}

bool ParamSet::counts(const Bucket& bucket) const {
  switch (bucket.replicas) {
    case Replicas::kNone:
      return true;
    case Replicas::kTp:
      return position_.tp == 0;
    case Replicas::kKv:
      return position_.tp % kv_replicas_ == 0;
    case Replicas::kEtp:
      return position_.etp == 0;
  }
  throw InternalError("an unknown kind of replicas");
}

std::size_t ParamSet::num_owned() const {
  return memory_.bytes.moment / size_of(master_dtype());
}

device::ParamStorage ParamSet::storage_in(const device::Buffer& flat, const Param& param) const {
  return {flat.data() + param.owned_first * size_of(master_dtype()),
          master_dtype(),
          param.owned_weight.shape()};
}

}  // namespace pecan::parallel
