#pragma once
/// NumPy's legacy RandomState, as far as Megatron's data order needs it.

#include <cstdint>
#include <random>
#include <span>
#include <utility>

namespace pecan::data {

/// Same numbers as numpy.random.RandomState(seed). (std::shuffle and std::uniform_int_distribution
/// differ, also between standard libraries.)
class NumpyRandomState {
 public:
  explicit NumpyRandomState(std::uint32_t seed) : generator_(seed) {}

  /// Uniform in 0..max, by masked rejection.
  std::uint64_t interval(std::uint64_t max) {
    std::uint64_t mask = max;
    for (int shift = 1; shift < 64; shift *= 2) mask |= mask >> shift;
    while (true) {
      std::uint64_t draw = generator_();
      if (max > 0xffff'ffff) draw = draw << 32 | generator_();
      draw &= mask;
      if (draw <= max) return draw;
    }
  }
  template <typename T>
  void shuffle(std::span<T> values) {
    for (std::size_t i = values.size(); i-- > 1;) std::swap(values[i], values[interval(i)]);
  }

 private:
  std::mt19937 generator_;
};

}  // namespace pecan::data
