#pragma once
/// What an operator leaves in the run's profile: its time, and the work it had.

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <span>

#include <pecan/core/profile.hpp>

#include <pecan/ops/types.hpp>

#include "ops/checks.hpp"

namespace pecan::ops::detail {

[[nodiscard]] inline std::int64_t bytes_in(const ConstTensorView& x) {
  return x.data == nullptr ? 0 : std::int64_t(x.num_bytes());
}
[[nodiscard]] inline std::int64_t bytes_in(const ParamStorage& w) {
  return w.shape().num_elements() * std::int64_t(size_of(w.dtype()));
}
/// Work of an operator that memory bounds: each tensor named once is read or written once, one
/// named twice is read and written.
[[nodiscard]] Work moves(const auto&... tensors) {
  return {.flops = 0, .bytes = (bytes_in(tensors) + ... + 0)};
}
/// The same for what is read only if it is added to.
[[nodiscard]] inline std::int64_t bytes_added_to(const ConstTensorView& x, Accumulate accumulate) {
  return accumulate == Accumulate::kAdd ? bytes_in(x) : 0;
}

/// Work of products of groups of rows of x, counts[e] for weights[e], with their weights, which
/// lie between x and y; weights without memory have none.
[[nodiscard]] inline Work products_of_groups(std::span<const std::int64_t> counts,
                                             const ConstTensorView& x,
                                             std::span<const ParamStorage> weights,
                                             const ConstTensorView& y) {
  Work work = moves(x, y);
  for (std::size_t e = 0; e < std::min(counts.size(), weights.size()); ++e) {
    if (weights[e].memory() == nullptr) continue;
    work.bytes += bytes_in(weights[e]);
    work.flops += 2 * counts[e] * weights[e].shape().num_elements();
  }
  work.dtype = x.dtype;
  return work;
}

/// Stands right behind an operator's Checks, whose name it takes, and times the rest of the call.
class Timed : ProfileSpan {
 public:
  /// `work_of()` gives the Work; shapes are not checked yet then.
  template <std::invocable WorkOf>
  Timed(const Context& ctx, const Checks& check, const WorkOf& work_of)
      : ProfileSpan(ctx.profile, {SpanKind::kOperator, check.op()}, work_of) {}
};

}  // namespace pecan::ops::detail
