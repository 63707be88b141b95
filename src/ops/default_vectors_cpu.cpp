#include <algorithm>
#include <vector>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {

void default_weights_forward(Context& ctx,
                             double scale,
                             ConstTensorView probs_TE,
                             ConstTensorView ids_TK,
                             TensorView weights_TE) {
  with_float_type(probs_TE.dtype, [&]<typename T>(T) {
    const std::int64_t num_experts = probs_TE.shape[1], k = ids_TK.shape[1];
    const T* all_probs = probs_TE.as<T>().data();
    const std::int32_t* all_ids = ids_TK.as<std::int32_t>().data();
    T* all_weights = weights_TE.as<T>().data();
    parallel_for(ctx, probs_TE.shape[0], probs_TE.num_elements(), [&](std::int64_t t) {
      const T* probs = all_probs + t * num_experts;
      T* weights = all_weights + t * num_experts;
      for (std::int64_t e = 0; e < num_experts; ++e) weights[e] = T(scale * double(probs[e]));
      for (const std::int32_t id : std::span(all_ids + t * k, std::size_t(k))) {
        if (id >= 0) weights[id] = 0;
      }
    });
  });
}

void default_weights_backward(Context& ctx,
                              double scale,
                              ConstTensorView probs_TE,
                              ConstTensorView ids_TK,
                              ConstTensorView dweights_TE,
                              TensorView dlogits_TE) {
  with_float_type(probs_TE.dtype, [&]<typename T>(T) {
    const std::int64_t num_experts = probs_TE.shape[1], k = ids_TK.shape[1];
    const T* all_probs = probs_TE.as<T>().data();
    const T* all_dweights = dweights_TE.as<T>().data();
    const std::int32_t* all_ids = ids_TK.as<std::int32_t>().data();
    T* all_dlogits = dlogits_TE.as<T>().data();
    parallel_for(ctx, probs_TE.shape[0], 4 * probs_TE.num_elements(), [&](std::int64_t t) {
      const T* probs = all_probs + t * num_experts;
      const T* dweights = all_dweights + t * num_experts;
      T* dlogits = all_dlogits + t * num_experts;
      const std::span ids(all_ids + t * k, std::size_t(k));
      const auto dprob = [&](std::int64_t e) {
        return std::ranges::find(ids, e) == ids.end() ? scale * double(dweights[e]) : 0.0;
      };
      double mean = 0;
      for (std::int64_t e = 0; e < num_experts; ++e) mean += double(probs[e]) * dprob(e);
      for (std::int64_t e = 0; e < num_experts; ++e)
        dlogits[e] = T(double(dlogits[e]) + double(probs[e]) * (dprob(e) - mean));
    });
  });
}

void expert_output_sums(Context& ctx,
                        ConstTensorView rows_SH,
                        ConstTensorView order_P,
                        ConstTensorView ids_TK,
                        ConstTensorView weights_TK,
                        TensorView sums_EC,
                        Accumulate accumulate) {
  const std::int64_t num_experts = sums_EC.shape[0];
  const std::int32_t* order = order_P.as<std::int32_t>().data();
  const std::int32_t* ids = ids_TK.as<std::int32_t>().data();
  // Rows [first[e], first[e + 1]) are those of expert e.
  std::vector<std::int64_t> first(std::size_t(num_experts) + 1, 0);
  for (std::int64_t row = 0; row < rows_SH.shape[0]; ++row)
    ++first[std::size_t(ids[order[row]]) + 1];
  for (std::size_t e = 0; e < std::size_t(num_experts); ++e) first[e + 1] += first[e];
  with_storage_type(rows_SH.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    constexpr std::int64_t kStrip = detail::kSumColumns;
    const std::int64_t width = rows_SH.shape[1];
    const T* rows = rows_SH.as<T>().data();
    const M* weights = weights_TK.as<M>().data();
    M* sums = sums_EC.as<M>().data();
    const auto store = [&](M& to, double sum) {
      to = accumulate == Accumulate::kAdd ? M(double(to) + sum) : M(sum);
    };
    const std::int64_t strips = width / kStrip + 1;  // the last one has the weights, too
    const std::int64_t work = 2 * rows_SH.num_elements();
    parallel_for(ctx, num_experts * strips, work, [&](std::int64_t task) {
      const std::int64_t e = task / strips, begin = task % strips * kStrip;
      const std::int64_t count = std::min(kStrip, width - begin);
      double columns[kStrip] = {};
      double weight_sum = 0;
      for (std::int64_t row = first[std::size_t(e)]; row < first[std::size_t(e) + 1]; ++row) {
        const double weight = double(weights[order[row]]);
        const T* from = rows + row * width + begin;
        for (std::int64_t i = 0; i < count; ++i) columns[i] += weight * double(from[i]);
        weight_sum += weight;
      }
      M* to = sums + e * (width + 1);
      for (std::int64_t i = 0; i < count; ++i) store(to[begin + i], columns[i]);
      if (begin + kStrip > width) store(to[width], weight_sum);
    });
  });
}

void default_vectors_update(Context& ctx,
                            double beta,
                            ConstTensorView sums_EC,
                            TensorView vectors_EH) {
  with_float_type(vectors_EH.dtype, [&]<typename T>(T) {
    const std::int64_t width = vectors_EH.shape[1];
    const T* all_sums = sums_EC.as<T>().data();
    T* vectors = vectors_EH.as<T>().data();
    parallel_for(ctx, vectors_EH.shape[0], vectors_EH.num_elements(), [&](std::int64_t e) {
      const T* sums = all_sums + e * (width + 1);
      if (sums[width] == 0) return;
      const double share = (1 - beta) / double(sums[width]);
      T* vector = vectors + e * width;
      for (std::int64_t i = 0; i < width; ++i)
        vector[i] = T(beta * double(vector[i]) + share * double(sums[i]));
    });
  });
}

}  // namespace pecan::ops::cpu
