#include <cmath>

#include "kernels/adamw.cuh"
#include "kernels/operators.hpp"

namespace pecan::kernels {
namespace {

/// With root = sqrt(1 - beta2^n), sqrt(v / (1 - beta2^n)) + eps is (sqrt(v) + eps root) / root, so
/// that an element costs one division.
template <typename T>
AdamWFactors<T> factors_of(const ops::AdamWOptions& options) {
  const double count = double(options.update_count);
  const double root = std::sqrt(1 - std::pow(options.beta2, count));
  return {.grad_scale = T(options.grad_scale),
          .keep = T(1 - options.lr * options.weight_decay),
          .beta1 = T(options.beta1),
          .beta2 = T(options.beta2),
          .rest1 = T(1 - options.beta1),
          .rest2 = T(1 - options.beta2),
          .step = T(options.lr * root / (1 - std::pow(options.beta1, count))),
          .eps = T(options.eps * root)};
}

}  // namespace

void adamw_update(Context& ctx,
                  const ops::AdamWOptions& options,
                  ConstTensorView g,
                  TensorView p,
                  TensorView m,
                  TensorView v,
                  TensorView rounded_p) {
  with_float_type(p.dtype, [&]<typename T>(T) {
    const Index count = p.num_elements();
    launch(adamw_kernel<T>,
           blocks_of(count, kMapThreads * kLanes),
           kMapThreads,
           0,
           stream_of(ctx),
           factors_of<T>(options),
           count,
           are_aligned(g.data, p.data, m.data, v.data, rounded_p.data),
           data_of<T>(g),
           data_of<T>(p),
           data_of<T>(m),
           data_of<T>(v),
           data_of<Bf16>(rounded_p));
  });
}

}  // namespace pecan::kernels
