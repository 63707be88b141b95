#include "kernels/elementwise.cuh"

#include <cmath>
#include <cstring>

#include "kernels/operators.hpp"

namespace pecan::kernels {
namespace {

struct Same {
  __device__ float operator()(float x) const { return x; }
};
struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Axpy {
  float alpha;
  __device__ float operator()(float x, float y) const { return y + alpha * x; }
};
struct Scale {
  float alpha;
  __device__ float operator()(float y) const { return alpha * y; }
};

template <typename Bits, typename Value>
void fill_with(const Context& ctx, Value value, const TensorView& y) {
  static_assert(sizeof(Bits) == sizeof(Value));
  Bits bits;
  std::memcpy(&bits, &value, sizeof bits);
  const Index count = y.num_elements();
  launch(fill_kernel<Bits>,
         blocks_of(count, kMapThreads),
         kMapThreads,
         0,
         stream_of(ctx),
         count,
         bits,
         data_of<Bits>(y));
}

}  // namespace

void fill(Context& ctx, double value, TensorView y) {
  if (value == 0 && !std::signbit(value)) {
    if (y.num_bytes() == 0) return;
    return check(cudaMemsetAsync(y.data, 0, y.num_bytes(), stream_of(ctx)), "cudaMemsetAsync");
  }
  switch (y.dtype) {
    case DType::kF32:
      return fill_with<std::uint32_t>(ctx, float(value), y);
    case DType::kF64:
      return fill_with<std::uint64_t>(ctx, value, y);
    case DType::kI64:
      return fill_with<std::uint64_t>(ctx, std::int64_t(value), y);
    case DType::kI32:
      return fill_with<std::uint32_t>(ctx, std::int32_t(value), y);
    case DType::kU8:
      return fill_with<std::uint8_t>(ctx, std::uint8_t(value), y);
    case DType::kBF16:
      return fill_with<std::uint16_t>(ctx, BFloat16(value), y);
  }
}

void copy(Context& ctx, ConstTensorView x, TensorView y) {
  if (x.data == y.data || x.num_bytes() == 0) return;
  check(cudaMemcpyAsync(
            y.data, x.data, x.num_bytes(), cudaMemcpyDeviceToDevice, stream_of(ctx)),
        "cudaMemcpyAsync");
}

void cast(Context& ctx, ConstTensorView x, TensorView y) {
  if (x.dtype == y.dtype) return copy(ctx, x, y);
  with_storage_type("cast", x.dtype, [&]<typename From>(From) {
    with_storage_type("cast", y.dtype, [&]<typename To>(To) {
      map_1(ctx, Same{}, y.num_elements(), data_of<From>(x), data_of<To>(y));
    });
  });
}

void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y) {
  with_storage_type("add", y.dtype, [&]<typename T>(T) {
    map_2(ctx, Sum{}, y.num_elements(), data_of<T>(a), data_of<T>(b), data_of<T>(y));
  });
}

void axpy(Context& ctx, double alpha, ConstTensorView x, TensorView y) {
  with_storage_type("axpy", y.dtype, [&]<typename T>(T) {
    with_storage_type("axpy", x.dtype, [&]<typename X>(X) {
      map_2(ctx, Axpy{float(alpha)}, y.num_elements(), data_of<X>(x), data_of<T>(y), data_of<T>(y));
    });
  });
}

void scale(Context& ctx, double alpha, TensorView y) {
  with_storage_type("scale", y.dtype, [&]<typename T>(T) {
    map_1(ctx, Scale{float(alpha)}, y.num_elements(), data_of<T>(y), data_of<T>(y));
  });
}

}  // namespace pecan::kernels
