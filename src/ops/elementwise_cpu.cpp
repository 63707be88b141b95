#include <algorithm>
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

template <typename From, typename To>
void cast_as(Context& ctx, const ConstTensorView& x, const TensorView& y) {
  const From* from = x.as<From>().data();
  To* to = y.as<To>().data();
  parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) to[i] = To(MathOf<From>(from[i]));
  });
}

}  // namespace

void fill(Context& ctx, double value, TensorView y) {
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
    using M = MathOf<T>;
    const T* left = a.as<T>().data();
    const T* right = b.as<T>().data();
    T* sum = y.as<T>().data();
    parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) sum[i] = T(M(left[i]) + M(right[i]));
    });
  });
}

void axpy(Context& ctx, double alpha, ConstTensorView x, TensorView y) {
  with_storage_type(y.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const auto add_from = [&]<typename From>(From) {
      const From* from = x.as<From>().data();
      T* to = y.as<T>().data();
      parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
        for (std::int64_t i = begin; i < end; ++i) to[i] = T(M(to[i]) + M(alpha) * M(from[i]));
      });
    };
    if (x.dtype == y.dtype) {
      add_from(T{});
    } else {
      add_from(M{});
    }
  });
}

void scale(Context& ctx, double alpha, TensorView y) {
  with_storage_type(y.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    T* data = y.as<T>().data();
    parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) data[i] = T(M(data[i]) * M(alpha));
    });
  });
}

}  // namespace pecan::ops::cpu
