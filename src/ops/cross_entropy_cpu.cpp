#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"
#include "ops/vector_kernels.hpp"

namespace pecan::ops::cpu {
namespace {

template <typename T>
double mask_of(const ConstTensorView& mask_T, std::int64_t t) {
  return mask_T.data == nullptr ? 1.0 : double(mask_T.as<T>()[std::size_t(t)]);
}

constexpr std::int64_t kPiece = 512;

/// A row of logits in pieces, as numbers to compute with.
template <typename T, typename M, typename Body>
void for_each_piece(const T* row, std::int64_t vocab_size, Body&& body) {
  for (std::int64_t v = 0; v < vocab_size; v += kPiece) {
    const std::int64_t count = std::min(kPiece, vocab_size - v);
    if constexpr (std::is_same_v<T, M>) {
      body(row + v, v, count);
    } else {
      M wide[kPiece];
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) wide[i] = M(row[v + i]);
      body(wide, v, count);
    }
  }
}

/// Largest logit of a row and the sum of exp(logit - largest).
template <typename M>
struct Total {
  M largest;
  double sum;
};
template <typename T, typename M = MathOf<T>>
Total<M> total_of(const T* row, std::int64_t vocab_size) {
  const auto& kernels = detail::vector_kernels<M>();
  Total<M> total{-std::numeric_limits<M>::infinity(), 0};
  for_each_piece<T, M>(row, vocab_size, [&](const M* piece, std::int64_t, std::int64_t count) {
    total.largest = std::max(total.largest, kernels.max(piece, count));
  });
  for_each_piece<T, M>(row, vocab_size, [&](const M* piece, std::int64_t, std::int64_t count) {
    M exponentials[kPiece];
    total.sum += kernels.exp_sum(piece, exponentials, count, M(1), total.largest);
  });
  return total;
}

}  // namespace

void cross_entropy_forward(Context& ctx,
                           ConstTensorView logits_TV,
                           std::int64_t vocab_size,
                           ConstTensorView labels_T,
                           ConstTensorView mask_T,
                           TensorView loss_T) {
  with_storage_type(logits_TV.dtype, [&]<typename T>(T) {
    const std::int64_t columns = logits_TV.shape[1];
    const std::int32_t* labels = labels_T.as<std::int32_t>().data();
    double* loss = loss_T.as<double>().data();
    parallel_for(ctx, logits_TV.shape[0], logits_TV.num_elements(), [&](std::int64_t t) {
      const double mask = mask_of<T>(mask_T, t);
      loss[t] = 0;
      if (mask == 0) return;
      const T* row = logits_TV.as<T>().data() + t * columns;
      const auto [largest, sum] = total_of(row, vocab_size);
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
  with_storage_type(logits_TV.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const auto& kernels = detail::vector_kernels<M>();
    const std::int64_t columns = logits_TV.shape[1];
    const std::int32_t* labels = labels_T.as<std::int32_t>().data();
    double* loss = loss_T.as<double>().data();
    parallel_for(ctx, logits_TV.shape[0], logits_TV.num_elements(), [&](std::int64_t t) {
      T* row = logits_TV.as<T>().data() + t * columns;
      const double mask = mask_of<T>(mask_T, t);
      loss[t] = 0;
      if (mask == 0) {
        std::fill_n(row, columns, T(M(0)));
        return;
      }
      const auto [largest, sum] = total_of<T>(row, vocab_size);
      const M shift = largest;
      const std::int64_t label = labels[t];
      loss[t] = mask * (std::log(sum) - (double(row[label]) - double(largest)));
      const M factor = M(scale * mask / sum);
      for_each_piece<T, M>(
          row, vocab_size, [&](const M* piece, std::int64_t v, std::int64_t count) {
            M exponentials[kPiece];
            kernels.exp_sum(piece, exponentials, count, M(1), shift);
            // Before it is rounded: next to a probability of almost 1 little is left.
            if (label >= v && label < v + count) exponentials[label - v] -= M(sum);
#pragma omp simd
            for (std::int64_t i = 0; i < count; ++i) row[v + i] = T(factor * exponentials[i]);
          });
      std::fill_n(row + vocab_size, columns - vocab_size, T(M(0)));
    });
  });
}

}  // namespace pecan::ops::cpu
