#include <pecan/ops/swiglu.hpp>

#include "ops/op_test.hpp"
#include "ops/reference.hpp"

namespace pecan::test {

TEST_CASE("swiglu: forward and gradients agree with the reference", "[any device]") {
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    for (const Shape& shape :
         {Shape{0, 3}, Shape{1, 1}, Shape{7, 9}, Shape{63, 65}, Shape{300, 257}}) {
      INFO(shape.to_string());
      const std::int64_t count = shape.num_elements();
      Values gate = random_values(count, 1);
      for (double& g : gate) g *= 8;
      gate = stored(dtype, gate);
      const Values up = stored(dtype, random_values(count, 2));
      const Values dh = stored(dtype, random_values(count, 3));
      Values h(gate.size()), dgate(gate.size()), dup(gate.size());
      for (std::size_t i = 0; i < gate.size(); ++i) {
        const double sigmoid = 1 / (1 + std::exp(-gate[i]));
        h[i] = reference::silu(gate[i]) * up[i];
        dup[i] = dh[i] * reference::silu(gate[i]);
        dgate[i] = dh[i] * up[i] * sigmoid * (1 + gate[i] * (1 - sigmoid));
      }
      Guarded gate_tensor(dtype, shape, gate);
      Guarded up_tensor(dtype, shape, up);
      Guarded h_tensor(dtype, shape);
      ops::swiglu_forward(ctx, gate_tensor, up_tensor, h_tensor);
      check_close(h_tensor.values(), h, tolerance(dtype, 4));
      Guarded dgate_tensor(dtype, shape);
      Guarded dup_tensor(dtype, shape);
      Guarded dh_tensor(dtype, shape, dh);
      ops::swiglu_backward(ctx, dh_tensor, gate_tensor, up_tensor, dgate_tensor, dup_tensor);
      check_close(dgate_tensor.values(), dgate, tolerance(dtype, 4));
      check_close(dup_tensor.values(), dup, tolerance(dtype, 4));
      // In place of the inputs: the same bits.
      ops::swiglu_backward(ctx, dh_tensor, gate_tensor, up_tensor, gate_tensor, up_tensor);
      CHECK(gate_tensor.values() == dgate_tensor.values());
      CHECK(up_tensor.values() == dup_tensor.values());
    }
  });
}

TEST_CASE("swiglu: gradients agree with central differences", "[any device]") {
  OpContext ctx;
  Values gate = random_values(15, 1);
  Values up = random_values(15, 2);
  const Values dh = random_values(15, 3);
  const Shape shape{3, 5};
  const auto loss = [&] {
    Guarded h(DType::kF64, shape);
    ops::swiglu_forward(ctx, Guarded(DType::kF64, shape, gate), Guarded(DType::kF64, shape, up), h);
    return dot(h.values(), dh);
  };
  Guarded dgate(DType::kF64, shape);
  Guarded dup(DType::kF64, shape);
  ops::swiglu_backward(ctx,
                       Guarded(DType::kF64, shape, dh),
                       Guarded(DType::kF64, shape, gate),
                       Guarded(DType::kF64, shape, up),
                       dgate,
                       dup);
  check_gradient(gate, dgate.values(), loss);
  check_gradient(up, dup.values(), loss);
}

TEST_CASE("swiglu: far arguments saturate without NaN", "[any device]") {
  OpContext ctx;
  const Values gate{-1e4, -100, -88.5, 0, 88.5, 100, 1e4};
  Guarded h(DType::kF32, {7});
  Guarded ones(DType::kF32, {7}, Values(7, 1.0));
  ops::swiglu_forward(ctx, Guarded(DType::kF32, {7}, gate), ones, h);
  const Values expected{0, 0, 0, 0, 88.5, 100, 1e4};
  const Values observed = h.values();
  for (std::size_t i = 0; i < gate.size(); ++i) CHECK(std::abs(observed[i] - expected[i]) < 1e-30);
}

}  // namespace pecan::test
