#include "comm/arguments.hpp"

#include <functional>
#include <numeric>

#include <pecan/core/error.hpp>

#include "comm/reduce.hpp"

namespace pecan::comm {
namespace {

void validate_apart(const ConstTensorView& a, const ConstTensorView& b, std::string_view name) {
  const std::less<const std::byte*> before;
  PECAN_VALIDATE(a.num_bytes() == 0 || b.num_bytes() == 0 ||
                     !before(a.data, b.data + b.num_bytes()) ||
                     !before(b.data, a.data + a.num_bytes()),
                 ShapeError,
                 "input and output of {} overlap; give it another output",
                 name);
}

void validate_pair(const ConstTensorView& input, const TensorView& output, std::string_view name) {
  validate_view(input, name);
  validate_view(output, name);
  PECAN_VALIDATE(input.dtype == output.dtype,
                 ShapeError,
                 "{} from {} to {}: both must have one element type",
                 name,
                 name_of(input.dtype),
                 name_of(output.dtype));
}

void validate_elements(const ConstTensorView& view,
                       std::int64_t expected,
                       std::string_view name,
                       std::string_view what) {
  PECAN_VALIDATE(view.num_elements() == expected,
                 ShapeError,
                 "the {} of {} has {} elements, but its counts say {}",
                 what,
                 name,
                 view.num_elements(),
                 expected);
}

/// Returns the sum of `counts`, one for each of `size` members.
std::int64_t validated_sum(std::span<const std::int64_t> counts, int size, std::string_view name) {
  PECAN_VALIDATE(counts.size() == std::size_t(size),
                 ShapeError,
                 "{} was given {} counts for {} members: it needs one each",
                 name,
                 counts.size(),
                 size);
  for (const std::int64_t count : counts) {
    PECAN_VALIDATE(count >= 0,
                   ShapeError,
                   "{} was given a count of {}: counts are never negative",
                   name,
                   count);
  }
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

}  // namespace

std::vector<std::int64_t> all_reduce_counts(std::int64_t num_elements, int group_size) {
  std::vector<std::int64_t> counts(std::size_t(group_size), num_elements / group_size);
  for (std::int64_t rest = num_elements % group_size; rest > 0; --rest) {
    ++counts[std::size_t(rest - 1)];
  }
  return counts;
}

void validate_view(const ConstTensorView& view, std::string_view name) {
  PECAN_VALIDATE(view.data != nullptr || view.num_elements() == 0,
                 ShapeError,
                 "{} was given {} {} without memory: is its arena only measuring?",
                 name,
                 name_of(view.dtype),
                 view.shape.to_string());
}

void validate_member(const Group& group, Rank member, std::string_view name) {
  PECAN_VALIDATE(member.value >= 0 && member.value < group.size(),
                 ShapeError,
                 "{} names rank {}, but the group has ranks 0 to {}",
                 name,
                 member,
                 group.size() - 1);
}

void validate_all_reduce(const TensorView& inout, ReduceOp op, std::string_view name) {
  validate_view(inout, name);
  validate_reducible(inout.dtype, op);
}

void validate_reduce_scatter_v(const Group& group,
                               const ConstTensorView& input,
                               std::span<const std::int64_t> counts,
                               const TensorView& output,
                               ReduceOp op,
                               std::string_view name) {
  validate_pair(input, output, name);
  validate_reducible(input.dtype, op);
  validate_elements(input, validated_sum(counts, group.size(), name), name, "input");
  validate_elements(output, counts[std::size_t(group.rank().value)], name, "output");
  if (output.data != Pieces(counts, input.dtype).of(input.data, group.rank().value).data()) {
    validate_apart(input, output, name);
  }
}

void validate_all_gather_v(const Group& group,
                           const ConstTensorView& input,
                           std::span<const std::int64_t> counts,
                           const TensorView& output,
                           std::string_view name) {
  validate_pair(input, output, name);
  validate_elements(output, validated_sum(counts, group.size(), name), name, "output");
  validate_elements(input, counts[std::size_t(group.rank().value)], name, "input");
  if (input.data != Pieces(counts, input.dtype).of(output.data, group.rank().value).data()) {
    validate_apart(input, output, name);
  }
}

void validate_all_to_all_v(const Group& group,
                           const ConstTensorView& input,
                           std::span<const std::int64_t> send_counts,
                           const TensorView& output,
                           std::span<const std::int64_t> receive_counts,
                           std::string_view name) {
  validate_pair(input, output, name);
  validate_elements(input, validated_sum(send_counts, group.size(), name), name, "input");
  validate_elements(output, validated_sum(receive_counts, group.size(), name), name, "output");
  validate_apart(input, output, name);
  const auto own = std::size_t(group.rank().value);
  PECAN_VALIDATE(send_counts[own] == receive_counts[own],
                 ShapeError,
                 "{} sends {} elements to this rank itself, which expects {}",
                 name,
                 send_counts[own],
                 receive_counts[own]);
}

}  // namespace pecan::comm
