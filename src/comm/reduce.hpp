#pragma once
/// The arithmetic of reductions: one order for every kind of group.

#include <cstddef>
#include <cstdint>
#include <span>

#include <pecan/core/tensor.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::comm {

/// ShapeError if elements of `dtype` cannot be combined by `op`.
void validate_reducible(DType dtype, ReduceOp op);

/// output[i] = pieces[0][i] op pieces[1][i] op ..., from left to right, in the element type
/// (integers wrap round; a NaN wins every maximum and minimum). Each piece has `num_elements`, 1
/// piece or more; output may be one of the pieces, and otherwise overlaps none. Deterministic.
/// Cost: reads every piece once, writes output once.
void reduce_in_order(DType dtype,
                     ReduceOp op,
                     std::span<const std::byte* const> pieces,
                     std::byte* output,
                     std::int64_t num_elements);

}  // namespace pecan::comm
