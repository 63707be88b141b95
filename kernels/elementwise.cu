#include <cmath>
#include <cstring>

#include "kernels/elementwise.cuh"
#include "kernels/operators.hpp"

namespace pecan::kernels {
namespace {

struct Same {
  template <typename M>
  __device__ M operator()(M x) const {
    return x;
  }
};
struct Sum {
  template <typename M>
  __device__ M operator()(M a, M b) const {
    return a + b;
  }
};
template <typename M>
struct Axpy {
  M alpha;
  __device__ M operator()(M x, M y) const { return y + alpha * x; }
};
template <typename M>
struct Scale {
  M alpha;
  __device__ M operator()(M y) const { return alpha * y; }
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
  check(cudaMemcpyAsync(y.data, x.data, x.num_bytes(), cudaMemcpyDeviceToDevice, stream_of(ctx)),
        "cudaMemcpyAsync");
}

void cast(Context& ctx, ConstTensorView x, TensorView y) {
  if (x.dtype == y.dtype) return copy(ctx, x, y);
  with_storage_type(x.dtype, [&]<typename From>(From) {
    with_storage_type(y.dtype, [&]<typename To>(To) {
      map_1(ctx, Same{}, y.num_elements(), data_of<From>(x), data_of<To>(y));
    });
  });
}

void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y) {
  with_storage_type(y.dtype, [&]<typename T>(T) {
    map_2(ctx, Sum{}, y.num_elements(), data_of<T>(a), data_of<T>(b), data_of<T>(y));
  });
}

void axpy(Context& ctx, double alpha, ConstTensorView x, TensorView y) {
  with_storage_type(y.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    const auto add_of = [&]<typename X>(X) {
      map_2(ctx, Axpy<M>{M(alpha)}, y.num_elements(), data_of<X>(x), data_of<T>(y), data_of<T>(y));
    };
    if (x.dtype == y.dtype) {
      add_of(T{});
    } else {
      add_of(M{});
    }
  });
}

void scale(Context& ctx, double alpha, TensorView y) {
  with_storage_type(y.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    map_1(ctx, Scale<M>{M(alpha)}, y.num_elements(), data_of<T>(y), data_of<T>(y));
  });
}

}  // namespace pecan::kernels
