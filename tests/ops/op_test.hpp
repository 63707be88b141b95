#pragma once
/// What the operator tests share: guarded tensors, a context, comparison with a reference, central
/// differences.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <pecan/device/context.hpp>
#include <pecan/device/param_storage.hpp>

#include <pecan/ops/types.hpp>

#include "support/catch.hpp"
#include "support/test_device.hpp"
#include "support/tolerance.hpp"

namespace pecan::test {

using Values = std::vector<double>;

/// Pseudo-random numbers in [-1, 1), equal for equal seeds; rounded to f32, so that both dtypes
/// hold them exactly.
inline Values random_values(std::int64_t count, std::uint64_t seed) {
  Values values(static_cast<std::size_t>(count));
  std::uint64_t state = seed * 0x9E3779B97F4A7C15U + 1;
  for (double& value : values) {
    state += 0x9E3779B97F4A7C15U;
    std::uint64_t z = state;
    z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
    z ^= z >> 31U;
    value = double(float(double(z >> 11U) * 0x1p-52 - 1));
  }
  return values;
}

/// Of all contexts and tensors of a test.
inline device::Stream& test_stream() {
  static device::Stream stream(test_device());
  return stream;
}

/// An owned tensor with guard bytes on both sides, poisoned with NaN (integers: -1) until written.
/// It is on the test's device when it is given to an operator, and on the host when it is looked
/// at.
class Guarded {
 public:
  Guarded(DType dtype, const Shape& shape) : dtype_(dtype), shape_(shape) {
    const std::size_t count = std::size_t(shape.num_elements()) * size_of(dtype);
    memory_.assign((count + 2 * kGuard + 7) / 8, kPattern);
    std::memset(host_bytes() + kGuard, 0xFF, count);
    if (test_device() != device::cpu()) on_device_ = device::Buffer(test_device(), count);
  }
  Guarded(DType dtype, const Shape& shape, const Values& values) : Guarded(dtype, shape) {
    REQUIRE(std::int64_t(values.size()) == shape.num_elements());
    for (std::size_t i = 0; i < values.size(); ++i) {
      switch (dtype) {
        case DType::kF32:
          on_host().as<float>()[i] = float(values[i]);
          break;
        case DType::kF64:
          on_host().as<double>()[i] = values[i];
          break;
        case DType::kBF16:
          on_host().as<BFloat16>()[i] = BFloat16(values[i]);
          break;
        case DType::kI32:
          on_host().as<std::int32_t>()[i] = std::int32_t(values[i]);
          break;
        default:
          on_host().as<std::int64_t>()[i] = std::int64_t(values[i]);
      }
    }
  }
  /// The guards must be untouched.
  ~Guarded() { CHECK(intact()); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  /// For operators. The host's elements are from now on those of the device.
  [[nodiscard]] TensorView view() {
    if (on_device_.size() == 0) return {host_bytes() + kGuard, dtype_, shape_};
    const TensorView on_device{on_device_.data(), dtype_, shape_};
    if (!device_is_newer_) device::upload(test_stream(), on_host(), on_device);
    device_is_newer_ = true;
    return on_device;
  }
  /// For reading and writing by the test itself.
  [[nodiscard]] TensorView on_host() {
    const TensorView elements{host_bytes() + kGuard, dtype_, shape_};
    if (device_is_newer_) {
      device::download(test_stream(), {on_device_.data(), dtype_, shape_}, elements);
      test_stream().synchronize();
    }
    device_is_newer_ = false;
    return elements;
  }
  operator TensorView() { return view(); }       // NOLINT: tests pass them to operators
  operator ConstTensorView() { return view(); }  // NOLINT
  [[nodiscard]] ops::ParamStorage storage() { return {view().data, dtype_, shape_}; }
  [[nodiscard]] Values values() {
    const TensorView found = on_host();
    Values values(static_cast<std::size_t>(shape_.num_elements()));
    for (std::size_t i = 0; i < values.size(); ++i) {
      switch (dtype_) {
        case DType::kF32:
          values[i] = double(found.as<float>()[i]);
          break;
        case DType::kF64:
          values[i] = found.as<double>()[i];
          break;
        case DType::kBF16:
          values[i] = double(found.as<BFloat16>()[i]);
          break;
        case DType::kI32:
          values[i] = double(found.as<std::int32_t>()[i]);
          break;
        default:
          values[i] = double(found.as<std::int64_t>()[i]);
      }
    }
    return values;
  }

 private:
  static constexpr std::size_t kGuard = 64;
  static constexpr std::uint64_t kPattern = 0xA5A5A5A5A5A5A5A5U;
  std::byte* host_bytes() { return reinterpret_cast<std::byte*>(memory_.data()); }
  [[nodiscard]] bool intact() {
    const std::size_t end = kGuard + on_host().num_bytes();
    for (std::size_t i = 0; i < memory_.size() * 8; ++i) {
      if ((i < kGuard || i >= end) && host_bytes()[i] != std::byte{0xA5}) return false;
    }
    return true;
  }
  DType dtype_;
  Shape shape_;
  std::vector<std::uint64_t> memory_;
  device::Buffer on_device_;  ///< without guards: the checks of the emulation know its ends
  bool device_is_newer_ = false;
};

/// Scratch that operators take on a CUDA device, whatever the test.
inline constexpr std::size_t kDeviceWorkspace = 8 << 20;

/// A context of the test's device, with its own workspace.
class OpContext {
 public:
  explicit OpContext(int threads = 1, std::size_t workspace_bytes = 0)
      : workspace_(test_device(),
                   test_device() == device::cpu() ? workspace_bytes : kDeviceWorkspace),
        context_{test_device(), test_stream(), workspace_, threads} {}
  operator Context&() { return context_; }  // NOLINT
  [[nodiscard]] device::Arena& workspace() { return workspace_; }
  void set_background(device::Background* background) { context_.background = background; }

 private:
  device::Arena workspace_;
  Context context_;
};

/// Counts the moments that it is given.
class CountingBackground : public device::Background {
 public:
  void advance() override { ++count; }
  int count = 0;
};

/// Of the host, which matter on the CPU alone.
inline std::vector<int> thread_counts() {
  if (test_device() != device::cpu()) return {1};
  return {1, 2};
}

/// Calls body(dtype, threads) for each combination to be tested.
inline void for_each_kind(const std::function<void(DType, int)>& body) {
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    for (const int threads : thread_counts()) {
      INFO("dtype " << name_of(dtype) << ", threads " << threads);
      body(dtype, threads);
    }
  }
}

/// The same for operators that also take bf16.
inline void for_each_storage_kind(const std::function<void(DType, int)>& body) {
  for_each_kind(body);
  for (const int threads : thread_counts()) {
    INFO("dtype bf16, threads " << threads);
    body(DType::kBF16, threads);
  }
}

/// The values that a tensor of `dtype` holds of these.
inline Values stored(DType dtype, const Values& values) {
  return Guarded(dtype, {std::int64_t(values.size())}, values).values();
}

inline void check_close(const Values& observed, const Values& reference, Tolerance limit) {
  REQUIRE(observed.size() == reference.size());
  double squares = 0;
  double error_squares = 0;
  for (std::size_t i = 0; i < observed.size(); ++i) {
    squares += reference[i] * reference[i];
    error_squares += (observed[i] - reference[i]) * (observed[i] - reference[i]);
  }
  if (squares == 0) {
    CHECK(error_squares == 0);
    return;
  }
  const double rms = std::sqrt(squares / double(observed.size()));
  double worst = 0;
  for (std::size_t i = 0; i < observed.size(); ++i) {
    const double error =
        std::abs(observed[i] - reference[i]) / std::max(rms, std::abs(reference[i]));
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
  }
  INFO("nmse " << error_squares / squares << " of " << limit.nmse << ", max error " << worst
               << " of " << limit.max_error);
  CHECK(error_squares / squares <= limit.nmse);
  CHECK(worst <= limit.max_error);
}

/// Compares `gradient` with central differences of `loss`, which reads `x`; double precision
/// throughout.
inline void check_gradient(Values& x,
                           const Values& gradient,
                           const std::function<double()>& loss,
                           double relative = 1e-7) {
  REQUIRE(gradient.size() == x.size());
  constexpr double kStep = 1e-4;
  Values numeric(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i];
    // Fourth-order differences: their truncation error stays far below the tolerance.
    const auto at = [&](double offset) {
      x[i] = kept + offset;
      return loss();
    };
    numeric[i] = (8 * (at(kStep) - at(-kStep)) - (at(2 * kStep) - at(-2 * kStep))) / (12 * kStep);
    x[i] = kept;
  }
  check_close(gradient, numeric, {relative * relative, 10 * relative});
}

inline double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace pecan::test
