#include <cmath>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {

void adamw_update(Context& ctx,
                  const AdamWOptions& options,
                  ConstTensorView g,
                  TensorView p,
                  TensorView m,
                  TensorView v) {
  with_float_type(p.dtype, [&]<typename T>(T) {
    const double count = double(options.update_count);
    const double correction1 = 1 - std::pow(options.beta1, count);
    const double correction2 = 1 - std::pow(options.beta2, count);
    const T grad_scale = T(options.grad_scale);
    const T keep = T(1 - options.lr * options.weight_decay);
    const T beta1 = T(options.beta1);
    const T beta2 = T(options.beta2);
    const T rest1 = T(1 - options.beta1);
    const T rest2 = T(1 - options.beta2);
    const T step = T(options.lr / correction1);
    const T root2 = T(std::sqrt(correction2));
    const T eps = T(options.eps);
    const T* gradient = g.as<T>().data();
    T* parameter = p.as<T>().data();
    T* first = m.as<T>().data();
    T* second = v.as<T>().data();
    parallel_ranges(ctx, p.num_elements(), [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) {
        const T scaled = grad_scale * gradient[i];
        const T new_first = beta1 * first[i] + rest1 * scaled;
        const T new_second = beta2 * second[i] + rest2 * (scaled * scaled);
        first[i] = new_first;
        second[i] = new_second;
        parameter[i] =
            keep * parameter[i] - step * (new_first / (std::sqrt(new_second) / root2 + eps));
      }
    });
  });
}

}  // namespace pecan::ops::cpu
