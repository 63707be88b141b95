/// Rows of logits of StorageKernels; part of vector_kernels.inl, whose max_of and exp_sum it uses.

#include "ops/vector_bf16.inl"

namespace pecan::ops::detail {
namespace {

/// Logits that are looked at together: both passes over them find them in the L1 cache.
constexpr std::int64_t kLogits = 512;

inline double smaller(double a, double b) {
  return a < b ? a : b;
}

/// Logits [begin, begin + count) as numbers to compute with; `room` holds them if need be.
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

/// What is taken from logits before the exponential: of -inf alone, which give zeros, nothing.
inline double shift_of(double largest) {
  return largest == -__builtin_inf() ? 0 : largest;
}

/// Adds a block of logits to `known`, of which exp(logit - its largest) go to `out`.
template <typename M>
inline void add_block(const M* logits, std::int64_t count, M* out, ExpSum& known) {
  const double largest = double(max_of(logits, count));
  if (largest > known.largest) {
    if (known.sum != 0) known.sum *= exp_of(known.largest - largest);
    known.largest = largest;
  }
  known.sum += exp_sum(logits, out, count, M(1), M(shift_of(known.largest)));
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
ExpSum row_exp_sum(const T* row, std::int64_t n) {
  ExpSum known{-__builtin_inf(), 0};
  for (std::int64_t v = 0; v < n; v += kLogits) {
    const std::int64_t count = n - v < kLogits ? n - v : kLogits;
    M room[kLogits], exponentials[kLogits];
    add_block(logits_at(row + v, count, room), count, exponentials, known);
  }
  return known;
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

/// Each exponential is computed once, below the largest logit up to its block, and stays in the
/// logit's place until the row's largest is known.
template <typename T>
ExpSum in_place_gradient(T* row, std::int64_t n, std::int64_t label, double scale) {
  constexpr std::int64_t kMaxBlocks = 512;
  double shifts[kMaxBlocks];
  const std::int64_t least = (n + kMaxBlocks - 1) / kMaxBlocks;
  const std::int64_t block = least < kLogits ? kLogits : least;
  ExpSum known{-__builtin_inf(), 0};
  for (std::int64_t v = 0; v < n; v += block) {
    add_block(row + v, n - v < block ? n - v : block, row + v, known);
    shifts[v / block] = shift_of(known.largest);
  }
  const double factor = scale / known.sum;
  const double largest = shift_of(known.largest);
  for (std::int64_t v = 0; v < n; v += block) {
    const std::int64_t count = n - v < block ? n - v : block;
    const double below = exp_of(smaller(shifts[v / block] - largest, 0));
    const bool has_label = label >= v && label < v + count;
    // Before it is rounded: next to a probability of almost 1 little is left.
    const double at_label = has_label ? double(row[label]) * below - known.sum : 0;
    scale_by(T(factor * below), row + v, count);
    if (has_label) row[label] = T(factor * at_label);
  }
  return known;
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
