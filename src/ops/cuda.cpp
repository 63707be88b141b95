#include "ops/cuda.hpp"

#include <pecan/ops/elementwise.hpp>

namespace pecan::ops::cuda {
namespace {

/// Has the host make the elements of `tensor` by make(context, host tensor).
template <typename Make>
void make_on_host(Context& ctx, const TensorView& tensor, Make&& make) {
  device::Buffer memory(device::cpu(), tensor.num_bytes());
  const TensorView host{memory.data(), tensor.dtype, tensor.shape};
  device::Stream at_once(device::cpu());
  device::Arena no_workspace;
  Context on_cpu{device::cpu(), at_once, no_workspace, ctx.threads};
  make(on_cpu, host);
  device::upload(ctx.stream, host, tensor);
  ctx.stream.synchronize();
}

}  // namespace

void init_normal(Context& ctx,
                 const ParamStorage& block_storage,
                 const Shape& global_shape,
                 const Shape& offset,
                 std::uint64_t seed,
                 std::uint64_t stream,
                 double std_dev) {
  make_on_host(ctx, block_storage.flat(), [&](Context& on_cpu, const TensorView& host) {
    const ParamStorage stored(host.data,
                              host.dtype,
                              block_storage.shape(),
                              block_storage.order(),
                              block_storage.panel_rows());
    cpu::init_normal(on_cpu, stored, global_shape, offset, seed, stream, std_dev);
  });
}

void init_constant(Context& ctx, const ParamStorage& storage, double value) {
  fill(ctx, value, storage.flat());
}

void rope_table(Context& ctx, double rotary_base, TensorView table_SD) {
  make_on_host(ctx, table_SD, [&](Context& on_cpu, const TensorView& host) {
    cpu::rope_table(on_cpu, rotary_base, host);
  });
}

}  // namespace pecan::ops::cuda
