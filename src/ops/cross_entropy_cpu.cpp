#include <algorithm>
#include <cmath>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"
#include "ops/vector_kernels.hpp"

namespace pecan::ops::cpu {
namespace {

template <typename T>
double mask_of(const ConstTensorView& mask_T, std::int64_t t) {
  return mask_T.data == nullptr ? 1.0 : double(mask_T.as<T>()[std::size_t(t)]);
}

}  // namespace

void cross_entropy_forward(Context& ctx,
                           ConstTensorView logits_TV,
                           std::int64_t vocab_size,
                           ConstTensorView labels_T,
                           ConstTensorView mask_T,
                           TensorView loss_T) {
  with_float_type(logits_TV.dtype, [&]<typename T>(T) {
    constexpr std::int64_t kPiece = 512;
    const auto& kernels = detail::vector_kernels<T>();
    const std::int64_t columns = logits_TV.shape[1];
    const std::int32_t* labels = labels_T.as<std::int32_t>().data();
    double* loss = loss_T.as<double>().data();
    parallel_for(ctx, logits_TV.shape[0], logits_TV.num_elements(), [&](std::int64_t t) {
      const double mask = mask_of<T>(mask_T, t);
      loss[t] = 0;
      if (mask == 0) return;
      const T* row = logits_TV.as<T>().data() + t * columns;
      const T largest = kernels.max(row, vocab_size);
      double sum = 0;
      T piece[kPiece];
      for (std::int64_t v = 0; v < vocab_size; v += kPiece) {
        sum += kernels.exp_sum(row + v, piece, std::min(kPiece, vocab_size - v), T(1), largest);
      }
      loss[t] = mask * (std::log(sum) - (double(row[labels[t]]) - double(largest)));
    });
  });
}

void cross_entropy_forward_backward(Context& ctx,
                                    TensorView logits_TV,
                                    std::int64_t vocab_size,
                                    ConstTensorView labels_T,
                                    ConstTensorView mask_T,
                                    double scale,
                                    TensorView loss_T) {
  with_float_type(logits_TV.dtype, [&]<typename T>(T) {
    const auto& kernels = detail::vector_kernels<T>();
    const std::int64_t columns = logits_TV.shape[1];
    const std::int32_t* labels = labels_T.as<std::int32_t>().data();
    double* loss = loss_T.as<double>().data();
    parallel_for(ctx, logits_TV.shape[0], logits_TV.num_elements(), [&](std::int64_t t) {
      T* row = logits_TV.as<T>().data() + t * columns;
      const double mask = mask_of<T>(mask_T, t);
      loss[t] = 0;
      if (mask == 0) {
        std::fill_n(row, columns, T(0));
        return;
      }
      const T largest = kernels.max(row, vocab_size);
      const double label_logit = double(row[labels[t]]);
      const double sum = kernels.exp_sum(row, row, vocab_size, T(1), largest);
      loss[t] = mask * (std::log(sum) - (label_logit - double(largest)));
      const T factor = T(scale * mask / sum);
#pragma omp simd
      for (std::int64_t v = 0; v < vocab_size; ++v) row[v] *= factor;
      row[labels[t]] -= T(scale * mask);
      std::fill_n(row + vocab_size, columns - vocab_size, T(0));
    });
  });
}

}  // namespace pecan::ops::cpu
