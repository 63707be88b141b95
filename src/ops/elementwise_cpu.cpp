#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {
namespace {

template <typename T>
void fill_as(Context& ctx, double value, const TensorView& y) {
  T* data = y.as<T>().data();
  parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
    std::fill(data + begin, data + end, T(value));
  });
}

/// In pieces large enough for memset not to read what it overwrites.
void zero(Context& ctx, const TensorView& y) {
  constexpr std::int64_t kPiece = 1 << 20;
  const auto bytes = std::int64_t(y.num_bytes());
  parallel_for(ctx, (bytes + kPiece - 1) / kPiece, bytes, [&](std::int64_t piece) {
    std::memset(y.data + piece * kPiece, 0, std::size_t(std::min(kPiece, bytes - piece * kPiece)));
  });
}

template <typename From, typename To>
void cast_as(Context& ctx, const ConstTensorView& x, const TensorView& y) {
  const From* from = x.as<From>().data();
  To* to = y.as<To>().data();
  parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<From, BFloat16> && std::is_same_v<To, float>) {
      kernels_of<From>().widen(stored<From>(x) + begin, to + begin, end - begin);
    } else if constexpr (std::is_same_v<From, float> && std::is_same_v<To, BFloat16>) {
      kernels_of<To>().narrow(from + begin, stored<To>(y) + begin, end - begin);
    } else {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) to[i] = To(MathOf<From>(from[i]));
    }
  });
}

}  // namespace

void fill(Context& ctx, double value, TensorView y) {
  if (value == 0 && !std::signbit(value)) return zero(ctx, y);
  switch (y.dtype) {
    case DType::kF32:
      return fill_as<float>(ctx, value, y);
    case DType::kF64:
      return fill_as<double>(ctx, value, y);
    case DType::kI64:
      return fill_as<std::int64_t>(ctx, value, y);
    case DType::kI32:
      return fill_as<std::int32_t>(ctx, value, y);
    case DType::kU8:
      return fill_as<std::uint8_t>(ctx, value, y);
    case DType::kBF16:
      return fill_as<BFloat16>(ctx, value, y);
  }
}

void copy(Context& ctx, ConstTensorView x, TensorView y) {
  if (x.data == y.data) return;
  parallel_ranges(ctx, std::int64_t(x.num_bytes()), [&](std::int64_t begin, std::int64_t end) {
    std::memcpy(y.data + begin, x.data + begin, std::size_t(end - begin));
  });
}

void cast(Context& ctx, ConstTensorView x, TensorView y) {
  if (x.dtype == y.dtype) return copy(ctx, x, y);
  with_storage_type(x.dtype, [&]<typename From>(From) {
    with_storage_type(y.dtype, [&]<typename To>(To) { cast_as<From, To>(ctx, x, y); });
  });
}

void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y) {
  with_storage_type(y.dtype, [&]<typename T>(T) {
    const auto* left = stored<T>(a);
    const auto* right = stored<T>(b);
    auto* sum = stored<T>(y);
    parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      kernels_of<T>().add(left + begin, right + begin, sum + begin, end - begin);
    });
  });
}

void axpy(Context& ctx, double alpha, ConstTensorView x, TensorView y) {
  with_storage_type(y.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    auto* to = stored<T>(y);
    if (x.dtype == y.dtype) {
      const auto* from = stored<T>(x);
      parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
        kernels_of<T>().axpy(M(alpha), from + begin, to + begin, end - begin);
      });
    } else {
      const M* from = x.as<M>().data();
      parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
        kernels_of<T>().axpy_wide(M(alpha), from + begin, to + begin, end - begin);
      });
    }
  });
}

void scale(Context& ctx, double alpha, TensorView y) {
  with_storage_type(y.dtype, [&]<typename T>(T) {
    auto* data = stored<T>(y);
    parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
      kernels_of<T>().scale(MathOf<T>(alpha), data + begin, end - begin);
    });
  });
}

}  // namespace pecan::ops::cpu
