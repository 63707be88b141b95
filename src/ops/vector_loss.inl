/// Rows of logits of StorageKernels; part of vector_kernels.inl, whose max_of and exp_sum it uses.

#include "ops/vector_bf16.inl"

namespace pecan::ops::detail {
namespace {

/// Logits that are looked at together, and converted where they are stored in bf16.
constexpr std::int64_t kLogits = 512;

/// `count` logits as numbers to compute with; `room` holds them if need be.
inline const float* logits_at(const float* row, std::int64_t, float*) {
  return row;
}
inline const double* logits_at(const double* row, std::int64_t, double*) {
  return row;
}
inline const float* logits_at(const Bf16Bits* row, std::int64_t count, float* room) {
  widen(row, room, count);
  return room;
}

template <typename T, typename M = Wide<T>>
double row_largest(const T* row, std::int64_t n) {
  M largest = -M(__builtin_inff());
  for (std::int64_t v = 0; v < n; v += kLogits) {
    const std::int64_t count = n - v < kLogits ? n - v : kLogits;
    M room[kLogits];
    const M found = max_of(logits_at(row + v, count, room), count);
    largest = found > largest ? found : largest;
  }
  return double(largest);
}

template <typename T, typename M = Wide<T>>
double row_exp_sum_below(const T* row, std::int64_t n, double largest) {
  double sum = 0;
  for (std::int64_t v = 0; v < n; v += kLogits) {
    const std::int64_t count = n - v < kLogits ? n - v : kLogits;
    M room[kLogits], exponentials[kLogits];
    sum += exp_sum(logits_at(row + v, count, room), exponentials, count, M(1), M(largest));
  }
  return sum;
}

template <typename T>
ExpSum row_exp_sum(const T* row, std::int64_t n) {
  const double largest = row_largest(row, n);
  return {largest, row_exp_sum_below(row, n, largest)};
}

template <typename T, typename M = Wide<T>>
void softmax_gradient(T* row, std::int64_t n, std::int64_t label, ExpSum known, double scale) {
  const M factor = M(scale / known.sum);
  for (std::int64_t v = 0; v < n; v += kLogits) {
    const std::int64_t count = n - v < kLogits ? n - v : kLogits;
    M room[kLogits], exponentials[kLogits];
    exp_sum(logits_at(row + v, count, room), exponentials, count, M(1), M(known.largest));
    // Before it is rounded: next to a probability of almost 1 little is left.
    if (label >= v && label < v + count) exponentials[label - v] -= M(known.sum);
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) put(row[v + i], factor * exponentials[i]);
  }
}

/// Each exponential is computed once and waits in the logit's place for the sum of all; the bits
/// are those of softmax_gradient.
template <typename T>
ExpSum in_place_gradient(T* row, std::int64_t n, std::int64_t label, double scale) {
  const double largest = row_largest(row, n);
  double sum = 0;
  for (std::int64_t v = 0; v < n; v += kLogits) {
    const std::int64_t count = n - v < kLogits ? n - v : kLogits;
    sum += exp_sum(row + v, row + v, count, T(1), T(largest));
  }
  row[label] -= T(sum);
  scale_by(T(scale / sum), row, n);
  return {largest, sum};
}

inline ExpSum softmax_and_gradient(float* row, std::int64_t n, std::int64_t label, double scale) {
  return in_place_gradient(row, n, label, scale);
}
inline ExpSum softmax_and_gradient(double* row, std::int64_t n, std::int64_t label, double scale) {
  return in_place_gradient(row, n, label, scale);
}
/// bf16 has no room for exponentials: they are computed again.
inline ExpSum softmax_and_gradient(Bf16Bits* row,
                                   std::int64_t n,
                                   std::int64_t label,
                                   double scale) {
  const ExpSum known = row_exp_sum(row, n);
  softmax_gradient(row, n, label, known, scale);
  return known;
}

}  // namespace
}  // namespace pecan::ops::detail
