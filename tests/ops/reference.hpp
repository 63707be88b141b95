#pragma once
/// Readable references in double: loops in the order of the formulas.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace pecan::reference {

using Values = std::vector<double>;
using Index = std::size_t;

/// c[m, n] = a[m, k] b[k, n], where a and b are given by element functions.
template <typename A, typename B>
Values product(Index m, Index n, Index k, A&& a, B&& b) {
  Values c(m * n);
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) {
      for (Index p = 0; p < k; ++p) c[i * n + j] += a(i, p) * b(p, j);
    }
  }
  return c;
}

inline Values rms_norm(const Values& x, const Values& w, double eps) {
  const Index width = w.size();
  Values y(x.size());
  for (Index row = 0; row < x.size() / width; ++row) {
    // Wider than what is compared with it: a sum in this order has larger errors in double.
    long double mean = 0;
    for (Index h = 0; h < width; ++h)
      mean += static_cast<long double>(x[row * width + h]) * x[row * width + h] / double(width);
    for (Index h = 0; h < width; ++h)
      y[row * width + h] = x[row * width + h] / std::sqrt(double(mean) + eps) * w[h];
  }
  return y;
}

inline Values layer_norm(const Values& x, const Values& w, const Values& b, double eps) {
  const Index width = w.size();
  Values y(x.size());
  for (Index row = 0; row < x.size() / width; ++row) {
    double mean = 0, variance = 0;
    for (Index h = 0; h < width; ++h) mean += x[row * width + h] / double(width);
    for (Index h = 0; h < width; ++h)
      variance += (x[row * width + h] - mean) * (x[row * width + h] - mean) / double(width);
    for (Index h = 0; h < width; ++h) {
      y[row * width + h] = (x[row * width + h] - mean) / std::sqrt(variance + eps) * w[h] + b[h];
    }
  }
  return y;
}

inline double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

inline double silu(double x) {
  return x / (1 + std::exp(-x));
}

/// -log softmax(row)[label] over the first `vocab` columns.
inline double cross_entropy(const double* row, Index vocab, Index label) {
  const double largest = *std::max_element(row, row + vocab);
  double sum = 0;
  for (Index v = 0; v < vocab; ++v) sum += std::exp(row[v] - largest);
  return std::log(sum) + largest - row[label];
}

inline Values softmax(const double* row, Index count) {
  const double largest = *std::max_element(row, row + count);
  Values p(count);
  double sum = 0;
  for (Index i = 0; i < count; ++i) sum += p[i] = std::exp(row[i] - largest);
  for (double& value : p) value /= sum;
  return p;
}

struct Attention {
  Values out;  ///< [T, N, D]
  Values lse;  ///< [B, N, S]
};

inline Attention attention(Index batch,
                           Index sequence,
                           Index heads,
                           Index groups,
                           Index dim,
                           const Values& q,
                           const Values& k,
                           const Values& v,
                           const Values& document_start = {}) {
  Attention result{Values(q.size()), Values(batch * heads * sequence)};
  for (Index b = 0; b < batch; ++b) {
    for (Index n = 0; n < heads; ++n) {
      const Index g = n / (heads / groups);
      for (Index i = 0; i < sequence; ++i) {
        const Index start = document_start.empty() ? 0 : Index(document_start[b * sequence + i]);
        Values scores(i + 1, -std::numeric_limits<double>::infinity());
        for (Index j = start; j <= i; ++j) {
          scores[j] = 0;
          for (Index d = 0; d < dim; ++d) {
            scores[j] += q[((b * sequence + i) * heads + n) * dim + d] *
                         k[((b * sequence + j) * groups + g) * dim + d];
          }
          scores[j] /= std::sqrt(double(dim));
        }
        const Values p = softmax(scores.data(), i + 1);
        for (Index j = 0; j <= i; ++j) {
          for (Index d = 0; d < dim; ++d) {
            result.out[((b * sequence + i) * heads + n) * dim + d] +=
                p[j] * v[((b * sequence + j) * groups + g) * dim + d];
          }
        }
        result.lse[(b * heads + n) * sequence + i] = scores[i] - std::log(p[i]);
      }
    }
  }
  return result;
}

}  // namespace pecan::reference
