#include <pecan/ops/gelu.hpp>

#include "ops/op_test.hpp"
#include "ops/reference.hpp"
#include "ops/vector_kernels.hpp"

namespace pecan::test {
namespace {

/// Derivative of reference::gelu, by the product rule; tanh' = 1 / cosh^2 keeps its digits far out.
double gelu_slope(double x) {
  const double c = std::sqrt(2 / std::acos(-1.0));
  const double u = c * (x + 0.044715 * x * x * x);
  return 0.5 * (1 + std::tanh(u)) +
         0.5 * x * c * (1 + 3 * 0.044715 * x * x) / (std::cosh(u) * std::cosh(u));
}

}  // namespace

TEST_CASE("gelu: forward and gradient agree with the reference", "[any device]") {
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    for (const Shape& shape :
         {Shape{0, 3}, Shape{1, 1}, Shape{7, 9}, Shape{63, 65}, Shape{300, 257}}) {
      INFO(shape.to_string());
      const std::int64_t count = shape.num_elements();
      Values x = random_values(count, 1);
      for (double& value : x) value *= 6;
      x = stored(dtype, x);
      const Values dh = stored(dtype, random_values(count, 2));
      Values h, dx;
      for (std::size_t i = 0; i < x.size(); ++i) {
        h.push_back(reference::gelu(x[i]));
        dx.push_back(dh[i] * gelu_slope(x[i]));
      }
      Guarded x_tensor(dtype, shape, x), dh_tensor(dtype, shape, dh);
      Guarded h_tensor(dtype, shape), dx_tensor(dtype, shape);
      ops::gelu_forward(ctx, x_tensor, h_tensor);
      check_close(h_tensor.values(), h, tolerance(dtype, 4));
      ops::gelu_backward(ctx, dh_tensor, x_tensor, dx_tensor);
      check_close(dx_tensor.values(), dx, tolerance(dtype, 4));
      // In place of an input: the same bits.
      Guarded over_x(dtype, shape, x), forward_over_x(dtype, shape, x);
      ops::gelu_forward(ctx, forward_over_x, forward_over_x);
      CHECK(forward_over_x.values() == h_tensor.values());
      ops::gelu_backward(ctx, dh_tensor, over_x, over_x);
      CHECK(over_x.values() == dx_tensor.values());
      ops::gelu_backward(ctx, dh_tensor, x_tensor, dh_tensor);
      CHECK(dh_tensor.values() == dx_tensor.values());
    }
  });
}

TEST_CASE("gelu: the gradient agrees with central differences", "[any device]") {
  OpContext ctx;
  Values x = random_values(15, 1);
  for (double& value : x) value *= 3;
  const Values dh = random_values(15, 2);
  const Shape shape{3, 5};
  Guarded dx(DType::kF64, shape);
  ops::gelu_backward(ctx, Guarded(DType::kF64, shape, dh), Guarded(DType::kF64, shape, x), dx);
  check_gradient(x, dx.values(), [&] {
    Guarded h(DType::kF64, shape);
    ops::gelu_forward(ctx, Guarded(DType::kF64, shape, x), h);
    return dot(h.values(), dh);
  });
}

TEST_CASE("gelu: far arguments saturate, NaN stays, in every instruction set") {
  const std::vector<float> x{-1e30F, -100, -30, 0, 30, 100, 1e30F};
  const std::vector<float> expected{0, 0, 0, 0, 30, 100, 1e30F};
  for (const auto isa :
       {ops::detail::Isa::kBaseline, ops::detail::Isa::kAvx2, ops::detail::Isa::kAvx512}) {
    if (!ops::detail::supports(isa)) continue;
    const auto& kernels = ops::detail::isa_kernels(isa).of_f32;
    for (std::size_t i = 0; i < x.size(); ++i) {
      // Enough of each for the vector loop and its tail.
      const std::vector<float> same(19, x[i]), ones(19, 1.0F);
      std::vector<float> h(19), dx(19);
      kernels.gelu(same.data(), h.data(), 19);
      kernels.gelu_backward(ones.data(), same.data(), dx.data(), 19);
      for (std::size_t j = 0; j < h.size(); ++j) {
        CHECK(std::abs(h[j] - expected[i]) < 1e-30F);
        CHECK(std::abs(dx[j] - (x[i] > 0 ? 1.0F : x[i] < 0 ? 0.0F : 0.5F)) < 1e-30F);
      }
    }
    const std::vector<float> nan(19, std::nanf(""));
    std::vector<float> h(19);
    kernels.gelu(nan.data(), h.data(), 19);
    for (const float value : h) CHECK(std::isnan(value));
  }
}

}  // namespace pecan::test
