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

template <typename T, typename M = MathOf<T>>
M largest_of(const T* row, std::int64_t vocab_size) {
  M largest = -std::numeric_limits<M>::infinity();
  for_each_piece<T, M>(row, vocab_size, [&](const M* piece, std::int64_t, std::int64_t count) {
    largest = std::max(largest, detail::vector_kernels<M>().max(piece, count));
  });
  return largest;
}

/// The sum of exp(logit - largest).
template <typename T, typename M = MathOf<T>>
double sum_of(const T* row, std::int64_t vocab_size, M largest) {
  double sum = 0;
  for_each_piece<T, M>(row, vocab_size, [&](const M* piece, std::int64_t, std::int64_t count) {
    M exponentials[kPiece];
    sum += detail::vector_kernels<M>().exp_sum(piece, exponentials, count, M(1), largest);
  });
  return sum;
}

/// Replaces a row by its gradient, times `scale`; a `label` outside [0, vocab_size) is in another
/// row.
template <typename T, typename M = MathOf<T>>
void make_gradient(T* row,
                   std::int64_t vocab_size,
                   std::int64_t columns,
                   std::int64_t label,
                   M largest,
                   double sum,
                   double scale) {
  const M factor = M(scale / sum);
  for_each_piece<T, M>(row, vocab_size, [&](const M* piece, std::int64_t v, std::int64_t count) {
    M exponentials[kPiece];
    detail::vector_kernels<M>().exp_sum(piece, exponentials, count, M(1), largest);
    // Before it is rounded: next to a probability of almost 1 little is left.
    if (label >= v && label < v + count) exponentials[label - v] -= M(sum);
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) row[v + i] = T(factor * exponentials[i]);
  });
  std::fill_n(row + vocab_size, columns - vocab_size, T(M(0)));
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
      const auto largest = largest_of(row, vocab_size);
      const double sum = sum_of(row, vocab_size, largest);
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
      const M largest = largest_of(row, vocab_size);
      const double sum = sum_of(row, vocab_size, largest);
      loss[t] = mask * (std::log(sum) - (double(row[labels[t]]) - double(largest)));
      make_gradient(row, vocab_size, columns, labels[t], largest, sum, scale * mask);
    });
  });
}

void cross_entropy_max(Context& ctx,
                       ConstTensorView logits_TV,
                       VocabShard shard,
                       TensorView max_T) {
  with_storage_type(logits_TV.dtype, [&]<typename T>(T) {
    const std::int64_t columns = logits_TV.shape[1];
    double* max = max_T.as<double>().data();
    parallel_for(ctx, logits_TV.shape[0], logits_TV.num_elements(), [&](std::int64_t t) {
      max[t] = double(largest_of(logits_TV.as<T>().data() + t * columns, shard.count));
    });
  });
}

void cross_entropy_sums(Context& ctx,
                        ConstTensorView logits_TV,
                        VocabShard shard,
                        ConstTensorView labels_T,
                        ConstTensorView mask_T,
                        ConstTensorView max_T,
                        TensorView sums_2T) {
  with_storage_type(logits_TV.dtype, [&]<typename T>(T) {
    const std::int64_t tokens = logits_TV.shape[0];
    const std::int64_t columns = logits_TV.shape[1];
    const std::int32_t* labels = labels_T.as<std::int32_t>().data();
    const double* max = max_T.as<double>().data();
    double* sums = sums_2T.as<double>().data();
    parallel_for(ctx, tokens, logits_TV.num_elements(), [&](std::int64_t t) {
      sums[t] = sums[tokens + t] = 0;
      if (mask_of<T>(mask_T, t) == 0) return;
      const T* row = logits_TV.as<T>().data() + t * columns;
      sums[t] = sum_of(row, shard.count, MathOf<T>(max[t]));
      if (shard.holds(labels[t])) {
        sums[tokens + t] = double(row[labels[t] - shard.first]) - max[t];
      }
    });
  });
}

void cross_entropy_from_sums(Context& ctx,
                             ConstTensorView sums_2T,
                             ConstTensorView mask_T,
                             TensorView loss_T) {
  with_storage_type(mask_T.data == nullptr ? DType::kF64 : mask_T.dtype, [&]<typename T>(T) {
    const std::int64_t tokens = loss_T.shape[0];
    const double* sums = sums_2T.as<double>().data();
    double* loss = loss_T.as<double>().data();
    parallel_for(ctx, tokens, 16 * tokens, [&](std::int64_t t) {
      const double mask = mask_of<T>(mask_T, t);
      loss[t] = mask == 0 ? 0 : mask * (std::log(sums[t]) - sums[tokens + t]);
    });
  });
}

void cross_entropy_backward(Context& ctx,
                            TensorView logits_TV,
                            VocabShard shard,
                            ConstTensorView labels_T,
                            ConstTensorView mask_T,
                            ConstTensorView max_T,
                            ConstTensorView sums_2T,
                            double scale) {
  with_storage_type(logits_TV.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const std::int64_t columns = logits_TV.shape[1];
    const std::int32_t* labels = labels_T.as<std::int32_t>().data();
    const double* max = max_T.as<double>().data();
    const double* sums = sums_2T.as<double>().data();
    parallel_for(ctx, logits_TV.shape[0], logits_TV.num_elements(), [&](std::int64_t t) {
      T* row = logits_TV.as<T>().data() + t * columns;
      const double mask = mask_of<T>(mask_T, t);
      if (mask == 0) {
        std::fill_n(row, columns, T(M(0)));
        return;
      }
      make_gradient(
          row, shard.count, columns, labels[t] - shard.first, M(max[t]), sums[t], scale * mask);
    });
  });
}

}  // namespace pecan::ops::cpu
