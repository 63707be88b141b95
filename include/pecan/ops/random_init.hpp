#pragma once
/// Initial values of parameters: the same elements under every layout.

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Fills `block_storage`, the block at `offset` of a parameter of `global_shape`, with N(0,
/// std_dev): the element at row-major index i of the whole parameter is std_dev *
/// philox_normal(seed, stream, i), rounded once.
void init_normal(Context& ctx,
                 const ParamStorage& block_storage,
                 const Shape& global_shape,
                 const Shape& offset,
                 std::uint64_t seed,
                 std::uint64_t stream,
                 double std_dev);

/// Fills every element with `value`.
void init_constant(Context& ctx, const ParamStorage& storage, double value);

}  // namespace pecan::ops
