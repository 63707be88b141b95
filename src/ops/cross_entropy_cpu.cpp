#include <algorithm>
#include <cmath>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {
namespace {

template <typename T>
double mask_of(const ConstTensorView& mask_T, std::int64_t t) {
  return mask_T.data == nullptr ? 1.0 : double(mask_T.as<T>()[std::size_t(t)]);
}

/// -log(probability of the label).
double loss_of(detail::ExpSum known, double label_logit) {
  return std::log(known.sum) - (label_logit - known.largest);
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
      const detail::ExpSum known =
          kernels_of<T>().exp_sum(stored<T>(logits_TV) + t * columns, vocab_size);
      loss[t] = mask * loss_of(known, double(row[labels[t]]));
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
      const double label_logit = double(row[labels[t]]);
      const detail::ExpSum known = kernels_of<T>().softmax_and_gradient(
          stored<T>(logits_TV) + t * columns, vocab_size, labels[t], scale * mask);
      loss[t] = mask * loss_of(known, label_logit);
      std::fill_n(row + vocab_size, columns - vocab_size, T(M(0)));
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
      max[t] = kernels_of<T>().largest(stored<T>(logits_TV) + t * columns, shard.count);
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
      sums[t] =
          kernels_of<T>().exp_sum_below(stored<T>(logits_TV) + t * columns, shard.count, max[t]);
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
      kernels_of<T>().softmax_gradient(stored<T>(logits_TV) + t * columns,
                                       shard.count,
                                       labels[t] - shard.first,
                                       {max[t], sums[t]},
                                       scale * mask);
      std::fill_n(row + shard.count, columns - shard.count, T(M(0)));
    });
  });
}

}  // namespace pecan::ops::cpu
