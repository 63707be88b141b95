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
    for (std::int64_t i = begin; i < end; ++i) to[i] = To(from[i]);
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
      break;
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
  if (x.dtype == DType::kF32) return cast_as<float, double>(ctx, x, y);
  cast_as<double, float>(ctx, x, y);
}

void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y) {
  with_float_type(y.dtype, [&]<typename T>(T) {
    const T* left = a.as<T>().data();
    const T* right = b.as<T>().data();
    T* sum = y.as<T>().data();
    parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) sum[i] = left[i] + right[i];
    });
  });
}

void axpy(Context& ctx, double alpha, ConstTensorView x, TensorView y) {
  with_float_type(y.dtype, [&]<typename T>(T) {
    const T* from = x.as<T>().data();
    T* to = y.as<T>().data();
    parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) to[i] += T(alpha) * from[i];
    });
  });
}

void scale(Context& ctx, double alpha, TensorView y) {
  with_float_type(y.dtype, [&]<typename T>(T) {
    T* data = y.as<T>().data();
    parallel_ranges(ctx, y.num_elements(), [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) data[i] *= T(alpha);
    });
  });
}

}  // namespace pecan::ops::cpu
