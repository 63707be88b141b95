#include "kernels/adamw.cuh"

#include <cmath>

#include "kernels/operators.hpp"

namespace pecan::kernels {
namespace {

/// With root = sqrt(1 - beta2^n), sqrt(v / (1 - beta2^n)) + eps is (sqrt(v) + eps root) / root, so
/// that an element costs one division.
AdamWFactors factors_of(const ops::AdamWOptions& options) {
  const double count = double(options.update_count);
  const double root = std::sqrt(1 - std::pow(options.beta2, count));
  return {.grad_scale = float(options.grad_scale),
          .keep = float(1 - options.lr * options.weight_decay),
          .beta1 = float(options.beta1),
          .beta2 = float(options.beta2),
          .rest1 = float(1 - options.beta1),
          .rest2 = float(1 - options.beta2),
          .step = float(options.lr * root / (1 - std::pow(options.beta1, count))),
          .eps = float(options.eps * root)};
}

}  // namespace

void adamw_update(Context& ctx,
                  const ops::AdamWOptions& options,
                  ConstTensorView g,
                  TensorView p,
                  TensorView m,
                  TensorView v,
                  TensorView rounded_p) {
  require_f32("adamw_update", p.dtype);
  const Index count = p.num_elements();
  launch(adamw_kernel,
         blocks_of(count, kMapThreads * kLanes),
         kMapThreads,
         0,
         stream_of(ctx),
         factors_of(options),
         count,
         are_aligned(g.data, p.data, m.data, v.data, rounded_p.data),
         data_of<float>(g),
         data_of<float>(p),
         data_of<float>(m),
         data_of<float>(v),
         data_of<Bf16>(rounded_p));
}

}  // namespace pecan::kernels
