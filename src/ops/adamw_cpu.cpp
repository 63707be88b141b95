#include <cmath>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {
namespace {

/// With root = sqrt(1 - beta2^n), sqrt(v / (1 - beta2^n)) + eps is (sqrt(v) + eps root) / root, so
/// that an element costs one division.
template <typename T>
detail::AdamWFactors<T> factors_of(const AdamWOptions& options) {
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
                  const AdamWOptions& options,
                  ConstTensorView g,
                  TensorView p,
                  TensorView m,
                  TensorView v,
                  TensorView rounded_p) {
  const detail::ExactKernels& kernels = detail::exact_kernels();
  with_float_type(p.dtype, [&]<typename T>(T) {
    const auto factors = factors_of<T>(options);
    const T* gradient = g.as<T>().data();
    T* parameter = p.as<T>().data();
    T* first = m.as<T>().data();
    T* second = v.as<T>().data();
    detail::Bf16Bits* rounded = rounded_p.data == nullptr ? nullptr : stored<BFloat16>(rounded_p);
    parallel_ranges(ctx, p.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      if constexpr (std::is_same_v<T, float>) {
        kernels.adamw_f32(factors,
                          gradient + begin,
                          parameter + begin,
                          first + begin,
                          second + begin,
                          rounded == nullptr ? nullptr : rounded + begin,
                          end - begin);
      } else {
        kernels.adamw_f64(factors,
                          gradient + begin,
                          parameter + begin,
                          first + begin,
                          second + begin,
                          end - begin);
      }
    });
  });
}

}  // namespace pecan::ops::cpu
