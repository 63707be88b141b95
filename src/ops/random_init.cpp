#include <pecan/ops/random_init.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"
#include "ops/cuda.hpp"
#include "ops/timed.hpp"

namespace pecan::ops {

using detail::Checks;
using detail::moves;
using detail::Timed;
using device::DeviceKind;

void init_normal(Context& ctx,
                 const ParamStorage& block_storage,
                 const Shape& global_shape,
                 const Shape& offset,
                 std::uint64_t seed,
                 std::uint64_t stream,
                 double std_dev) {
  const Checks check("init_normal");
  const Timed timed(ctx, check, [&] { return moves(block_storage); });
  check.floating("the parameter", block_storage.dtype());
  check.is_true(Block{offset, block_storage.shape()}.fits(global_shape),
                "the block does not lie inside the parameter");
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::init_normal(ctx, block_storage, global_shape, offset, seed, stream, std_dev);
    case DeviceKind::kCuda:
      return cuda::init_normal(ctx, block_storage, global_shape, offset, seed, stream, std_dev);
  }
  check.refuse(ctx.device);
}

void init_constant(Context& ctx, const ParamStorage& storage, double value) {
  const Checks check("init_constant");
  const Timed timed(ctx, check, [&] { return moves(storage); });
  check.floating("the parameter", storage.dtype());
  switch (ctx.device.kind) {
    case DeviceKind::kCpu:
      return cpu::init_constant(ctx, storage, value);
    case DeviceKind::kCuda:
      return cuda::init_constant(ctx, storage, value);
  }
  check.refuse(ctx.device);
}

}  // namespace pecan::ops
