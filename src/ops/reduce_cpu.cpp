#include <algorithm>
#include <array>
#include <cmath>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {
namespace {

/// Reduces blocks of fixed size by block(begin, end), many at a time, and combines them in
/// ascending order.
template <typename Value, typename BlockFn, typename Combine>
Value reduce_blocks(const Context& ctx, std::int64_t count, BlockFn&& block, Combine&& combine) {
  constexpr std::int64_t kBlock = 1 << 12;
  constexpr std::int64_t kBlocksAtOnce = 256;
  std::array<Value, kBlocksAtOnce> values{};
  Value total{};
  for (std::int64_t start = 0; start < count; start += kBlock * kBlocksAtOnce) {
    const std::int64_t left = count - start;
    const std::int64_t blocks = std::min(kBlocksAtOnce, (left + kBlock - 1) / kBlock);
    parallel_for(ctx, blocks, left, [&](std::int64_t b) {
      const std::int64_t begin = start + b * kBlock;
      values[std::size_t(b)] = block(begin, std::min(count, begin + kBlock));
    });
    for (std::int64_t b = 0; b < blocks; ++b) total = combine(total, values[std::size_t(b)]);
  }
  return total;
}

constexpr auto kPlus = [](auto a, auto b) { return a + b; };

}  // namespace

double sum(Context& ctx, ConstTensorView x) {
  double result = 0;
  with_float_type(x.dtype, [&]<typename T>(T) {
    const T* data = x.as<T>().data();
    const auto block = [&](std::int64_t begin, std::int64_t end) {
      return kernels_of<T>().sum(data + begin, end - begin);
    };
    result = reduce_blocks<double>(ctx, x.num_elements(), block, kPlus);
  });
  return result;
}

void sum_of_squares(Context& ctx, ConstTensorView x, TensorView sum_1) {
  with_float_type(x.dtype, [&]<typename T>(T) {
    const T* data = x.as<T>().data();
    const auto block = [&](std::int64_t begin, std::int64_t end) {
      return kernels_of<T>().sum_of_squares(data + begin, end - begin);
    };
    sum_1.as<double>()[0] = reduce_blocks<double>(ctx, x.num_elements(), block, kPlus);
  });
}

std::int64_t count_non_finite(Context& ctx, ConstTensorView x) {
  std::int64_t result = 0;
  with_storage_type(x.dtype, [&]<typename T>(T) {
    const auto* data = stored<T>(x);
    const auto block = [&](std::int64_t begin, std::int64_t end) {
      return kernels_of<T>().count_non_finite(data + begin, end - begin);
    };
    result = reduce_blocks<std::int64_t>(ctx, x.num_elements(), block, kPlus);
  });
  return result;
}

double max_abs(Context& ctx, ConstTensorView x) {
  double result = 0;
  with_float_type(x.dtype, [&]<typename T>(T) {
    const T* data = x.as<T>().data();
    const auto block = [&](std::int64_t begin, std::int64_t end) {
      T largest = 0;
      for (std::int64_t i = begin; i < end; ++i) {
        const T magnitude = std::abs(data[i]);
        largest = magnitude > largest ? magnitude : largest;
      }
      return double(largest);
    };
    result = reduce_blocks<double>(
        ctx, x.num_elements(), block, [](double a, double b) { return std::max(a, b); });
  });
  return result;
}

}  // namespace pecan::ops::cpu
