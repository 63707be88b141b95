#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include <pecan/device/device.hpp>

#include <pecan/parallel/param_layout.hpp>

namespace pecan::parallel {
namespace {

std::int64_t aligned_elements(std::int64_t elements, DType dtype) {
  const std::int64_t step = std::int64_t(device::kBufferAlignment / size_of(dtype));
  return (elements + step - 1) / step * step;
}

/// In how many different parts a parameter lies on `size` ranks.
int num_parts_on(const ParamSpec& spec, int size) {
  if (spec.split == TensorSplit::kNone) return 1;
  return spec.num_parts > 0 ? std::min(spec.num_parts, size) : size;
}

/// The part at `position` of `size` in memory, padding included.
Block padded_part_of(const ParamSpec& spec, int position, int size) {
  Block block = Block::whole(spec.padded_shape());
  if (spec.split == TensorSplit::kNone) return block;
  const int parts = num_parts_on(spec, size);
  const int dim = spec.split == TensorSplit::kRows ? 0 : 1;
  const std::int64_t whole = block.extent[dim];
  PECAN_VALIDATE(whole % parts == 0 && size % parts == 0 &&
                     (spec.num_parts == 0 || spec.num_parts % parts == 0),
                 ShapeError,
                 "{} with {} along dim {} ({} parts) cannot be cut over {} ranks; choose a size "
                 "that divides it",
                 spec.name,
                 whole,
                 dim,
                 spec.num_parts,
                 size);
  block.extent[dim] = whole / parts;
  block.offset[dim] = position / (size / parts) * block.extent[dim];
  return block;
}

Replicas replicas_of(const ParamSpec& spec, int tensor_size) {
  const int parts = num_parts_on(spec, tensor_size);
  if (parts == tensor_size) return Replicas::kNone;
  if (spec.is_expert()) return Replicas::kEtp;
  return parts == 1 ? Replicas::kTp : Replicas::kKv;
}

std::int64_t row_elements(const Shape& shape) {
  return shape[0] > 0 ? shape.num_elements() / shape[0] : 0;
}

/// Cuts `bucket`, which `parts` fill, into `positions` shares at the rows nearest to even ones.
void cut_shares(Bucket& bucket, std::span<ParamPart*> parts, int positions) {
  std::vector<std::size_t> cuts{bucket.range.first};
  const std::size_t end = bucket.range.first + bucket.range.count;
  auto part = parts.begin();
  for (int i = 1; i < positions; ++i) {
    const std::size_t even =
        bucket.range.first + bucket.range.count * std::size_t(i) / std::size_t(positions);
    while (std::next(part) != parts.end() && (*std::next(part))->first <= even) ++part;
    const auto width = std::size_t(row_elements((*part)->shape));
    const auto rows = std::size_t((*part)->shape[0]);
    const std::size_t row =
        std::min(rows, width > 0 ? (even - (*part)->first + width / 2) / width : rows);
    // What fills a parameter up to the alignment goes with its last row.
    const std::size_t after = std::next(part) != parts.end() ? (*std::next(part))->first : end;
    cuts.push_back(row == rows ? after : (*part)->first + row * width);
  }
  cuts.push_back(end);
  for (int i = 0; i < positions; ++i) {
    const std::size_t first = cuts[std::size_t(i)], last = cuts[std::size_t(i) + 1];
    bucket.share_counts.push_back(std::int64_t(last - first));
    for (ParamPart* p : parts) {
      const auto row_at = [&](std::size_t cut) {
        const std::int64_t width = row_elements(p->shape);
        if (width == 0 || cut <= p->first) return std::int64_t{0};
        return std::min(p->shape[0], std::int64_t(cut - p->first) / width);
      };
      p->shares.push_back({row_at(first), row_at(last) - row_at(first)});
    }
  }
}

/// The rows of `part` that are not padding.
Block clipped(Block part, const Shape& true_shape) {
  part.extent[0] = std::clamp<std::int64_t>(true_shape[0] - part.offset[0], 0, part.extent[0]);
  return part;
}

/// For each parameter the one that stands for it in the layout of expert-parallel position 0.
std::vector<std::size_t> representatives(const std::vector<ParamSpec>& specs,
                                         int num_local_experts) {
  std::vector<std::size_t> stands_for(specs.size());
  std::map<std::tuple<LayerId, ExpertId>, int> seen;
  std::map<std::tuple<LayerId, int, int>, std::size_t> first;
  for (std::size_t s = 0; s < specs.size(); ++s) {
    stands_for[s] = s;
    if (!specs[s].is_expert()) continue;
    const int ordinal = seen[{specs[s].layer, specs[s].expert}]++;
    const int local = specs[s].expert.value % num_local_experts;
    stands_for[s] = first.try_emplace({specs[s].layer, local, ordinal}, s).first->second;
  }
  return stands_for;
}

}  // namespace

Shape ParamSpec::padded_shape() const {
  Shape padded = shape;
  padded[0] = padded_rows;
  return padded;
}

std::size_t Bucket::share_first(int position) const {
  return std::size_t(
      std::accumulate(share_counts.begin(), share_counts.begin() + position, std::int64_t{0}));
}

int expert_position(ExpertId expert, int num_experts, const MeshShape& mesh) {
  PECAN_EXPECTS(expert.value >= 0 && expert.value < num_experts && num_experts % mesh.ep == 0);
  return expert.value / (num_experts / mesh.ep);
}

Block part_of(const ParamSpec& spec, int position, int size) {
  return clipped(padded_part_of(spec, position, size), spec.shape);
}

ParamLayout plan_layout(const std::vector<ParamSpec>& specs,
                        int num_experts,
                        const MeshShape& mesh,
                        const MeshPosition& position,
                        DType dtype) {
  ParamLayout layout;
  using Key = std::tuple<bool, int, int, Replicas, ReplicaGradient, ComputedIn>;
  std::map<Key, std::vector<std::size_t>> members;
  for (std::size_t s = 0; s < specs.size(); ++s) {
    const ParamSpec& spec = specs[s];
    if (spec.is_expert() && expert_position(spec.expert, num_experts, mesh) != position.ep)
      continue;
    const Replicas replicas = replicas_of(spec, spec.is_expert() ? mesh.etp : mesh.tp);
    // A key-value group serves the heads of several ranks.
    const ReplicaGradient gradient = replicas == Replicas::kNone ? ReplicaGradient::kWhole
                                     : replicas == Replicas::kKv ? ReplicaGradient::kPartial
                                                                 : spec.replica_gradient;
    const ComputedIn computed_in =
        dtype == master_of(dtype) ? ComputedIn::kMasterType : spec.computed_in;
    members[{spec.is_expert(), spec.first_stage, spec.last_stage, replicas, gradient, computed_in}]
        .push_back(s);
  }
  std::size_t num_parts = 0;
  for (const auto& [key, indices] : members) num_parts += indices.size();
  layout.parts.reserve(num_parts);
  for (const auto& [key, indices] : members) {
    Bucket bucket;
    std::tie(bucket.expert,
             bucket.first_stage,
             bucket.last_stage,
             bucket.replicas,
             bucket.replica_gradient,
             bucket.computed_in) = key;
    bucket.range.first = layout.num_elements;
    std::vector<ParamPart*> parts;
    for (const std::size_t s : indices) {
      const int tensor_position = bucket.expert ? position.etp : position.tp;
      const Block padded =
          padded_part_of(specs[s], tensor_position, bucket.expert ? mesh.etp : mesh.tp);
      layout.parts.push_back({.spec = s,
                              .block = clipped(padded, specs[s].shape),
                              .shape = padded.extent,
                              .bucket = layout.buckets.size(),
                              .first = layout.num_elements});
      parts.push_back(&layout.parts.back());
      layout.num_elements += std::size_t(aligned_elements(padded.extent.num_elements(), dtype));
    }
    bucket.range.count = layout.num_elements - bucket.range.first;
    cut_shares(bucket, parts, bucket.expert ? mesh.edp : mesh.dp);
    layout.buckets.push_back(std::move(bucket));
  }
  return layout;
}

std::vector<std::vector<StateBlock>> place(const std::vector<ParamSpec>& specs,
                                           int num_experts,
                                           const MeshShape& mesh,
                                           Sharding sharding,
                                           DType dtype) {
  std::vector<const ParamPart*> part_of_spec(specs.size());
  ParamLayout layout;
  std::vector<std::size_t> stands_for;
  if (sharding != Sharding::kNone) {
    layout = plan_layout(specs, num_experts, mesh, MeshPosition{}, dtype);
    for (const ParamPart& part : layout.parts) part_of_spec[part.spec] = &part;
    stands_for = representatives(specs, std::max(1, num_experts / mesh.ep));
  }
  std::vector<std::vector<StateBlock>> placed(specs.size());
  for (std::size_t s = 0; s < specs.size(); ++s) {
    const ParamSpec& spec = specs[s];
    const bool expert = spec.is_expert();
    const int tensor_size = expert ? mesh.etp : mesh.tp;
    const int replicas = tensor_size / num_parts_on(spec, tensor_size);
    const int data_size = expert ? mesh.edp : mesh.dp;
    const int ep = expert ? expert_position(spec.expert, num_experts, mesh) : 0;
    const auto rank_at = [&](int data, int tensor) {
      return Rank{((expert ? data * mesh.ep + ep : data) * tensor_size) + tensor};
    };
    for (int first = 0; first < tensor_size; first += replicas) {
      const Block part = part_of(spec, first, tensor_size);
      const auto add = [&](const Block& block, int data_first, int data_last) {
        if (block.extent.num_elements() == 0) return;
        std::vector<Rank> holders;
        for (int d = data_first; d < data_last; ++d) {
          for (int t = first; t < first + replicas; ++t) holders.push_back(rank_at(d, t));
        }
        placed[s].push_back({block, std::move(holders)});
      };
      if (sharding == Sharding::kNone) {
        add(part, 0, data_size);
        continue;
      }
      for (int d = 0; d < data_size; ++d) {
        const RowRange share = part_of_spec[stands_for[s]]->shares[std::size_t(d)];
        Block block = part;
        block.offset[0] += share.first;
        block.extent[0] = std::clamp<std::int64_t>(part.extent[0] - share.first, 0, share.count);
        add(block, d, d + 1);
      }
    }
  }
  return placed;
}

}  // namespace pecan::parallel
