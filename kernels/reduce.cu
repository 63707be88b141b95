#include "kernels/operators.hpp"
#include "kernels/reduce.cuh"

namespace pecan::kernels {
namespace {

template <typename F, typename Combine>
double reduce(Context& ctx, const ConstTensorView& x) {
  double result = 0;
  if (x.num_elements() == 0) return result;
  with_storage_type(x.dtype, [&]<typename T>(T) {
    Scratch scratch(ctx);
    double* on_device = scratch.take<double>(1);
    reduce_to<F, Combine>(ctx, data_of<T>(x), x.num_elements(), on_device);
    fetch(ctx, on_device, 1, &result);
  });
  return result;
}

}  // namespace

double sum(Context& ctx, ConstTensorView x) {
  return reduce<Value, Plus>(ctx, x);
}

void sum_of_squares(Context& ctx, ConstTensorView x, TensorView sum_1) {
  if (x.num_elements() == 0) return fill(ctx, 0, sum_1);
  with_float_type(x.dtype, [&]<typename T>(T) {
    reduce_to<Square, Plus>(ctx, data_of<T>(x), x.num_elements(), data_of<double>(sum_1));
  });
}

std::int64_t count_non_finite(Context& ctx, ConstTensorView x) {
  return std::int64_t(reduce<NonFinite, Plus>(ctx, x));
}

double max_abs(Context& ctx, ConstTensorView x) {
  return reduce<Magnitude, Larger>(ctx, x);
}

}  // namespace pecan::kernels
