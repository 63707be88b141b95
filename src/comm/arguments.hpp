#pragma once
/// What collectives are given, checked and cut into the members' pieces; alike for all groups.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <pecan/core/tensor.hpp>

#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::comm {

/// The members' pieces of a packed buffer.
class Pieces {
 public:
  Pieces(std::span<const std::int64_t> counts, DType dtype) {
    for (const std::int64_t count : counts) {
      offsets_.push_back(offsets_.back() + std::size_t(count) * size_of(dtype));
    }
  }
  template <typename Byte>
  [[nodiscard]] std::span<Byte> of(Byte* packed, int member) const {
    const auto m = std::size_t(member);
    if (packed == nullptr) return {};
    return {packed + offsets_[m], offsets_[m + 1] - offsets_[m]};
  }

 private:
  std::vector<std::size_t> offsets_ = {0};
};

/// An all_reduce of less is one exchange of the whole: latency counts more than bytes.
inline constexpr std::size_t kSmallAllReduceBytes = 4096;
/// The elements that each member reduces for all in a larger one.
[[nodiscard]] std::vector<std::int64_t> all_reduce_counts(std::int64_t num_elements,
                                                          int group_size);

// ShapeError where `group` cannot do the collective of that name with these arguments.
void validate_view(const ConstTensorView& view, std::string_view name);
void validate_member(const Group& group, Rank member, std::string_view name);
void validate_all_reduce(const TensorView& inout, ReduceOp op, std::string_view name);
void validate_reduce_scatter_v(const Group& group,
                               const ConstTensorView& input,
                               std::span<const std::int64_t> counts,
                               const TensorView& output,
                               ReduceOp op,
                               std::string_view name);
void validate_all_gather_v(const Group& group,
                           const ConstTensorView& input,
                           std::span<const std::int64_t> counts,
                           const TensorView& output,
                           std::string_view name);
void validate_all_to_all_v(const Group& group,
                           const ConstTensorView& input,
                           std::span<const std::int64_t> send_counts,
                           const TensorView& output,
                           std::span<const std::int64_t> receive_counts,
                           std::string_view name);

}  // namespace pecan::comm
