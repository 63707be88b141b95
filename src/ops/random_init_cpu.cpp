#include <algorithm>

#include <pecan/core/philox.hpp>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {

void init_normal(Context& ctx,
                 const ParamStorage& block_storage,
                 const Shape& global_shape,
                 const Shape& offset,
                 std::uint64_t seed,
                 std::uint64_t stream,
                 double std_dev) {
  const Shape& shape = block_storage.shape();
  const std::int64_t count = shape.num_elements();
  with_float_type(block_storage.dtype(), [&]<typename T>(T) {
    T* memory = reinterpret_cast<T*>(block_storage.memory());
    // A draw costs as much as dozens of plain element operations.
    parallel_for(ctx, count, 32 * count, [&](std::int64_t logical) {
      std::int64_t rest = logical;
      std::int64_t element = 0;
      std::int64_t stride = 1;
      for (int dim = shape.num_dims() - 1; dim >= 0; --dim) {
        element += (offset[dim] + rest % shape[dim]) * stride;
        rest /= shape[dim];
        stride *= global_shape[dim];
      }
      memory[block_storage.stored_index(logical)] =
          T(std_dev * philox_normal(seed, stream, std::uint64_t(element)));
    });
  });
}

void init_constant(Context& ctx, const ParamStorage& storage, double value) {
  fill(ctx, value, storage.flat());
}

}  // namespace pecan::ops::cpu
