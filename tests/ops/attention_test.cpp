#include <array>

#include <pecan/ops/attention.hpp>

#include "ops/op_test.hpp"
#include "ops/reference.hpp"

namespace pecan::test {
namespace {

struct Problem {
  ops::AttentionShape shape;
  Values q, k, v, dout;
};

Problem make_problem(const ops::AttentionShape& shape) {
  const std::int64_t tokens = shape.batch * shape.sequence;
  const std::int64_t queries = tokens * shape.heads * shape.head_dim;
  const std::int64_t keys = tokens * shape.kv_groups * shape.head_dim;
  Problem problem{shape,
                  random_values(queries, 1),
                  random_values(keys, 2),
                  random_values(keys, 3),
                  random_values(queries, 4)};
  for (double& value : problem.q) value *= 4;  // so that the softmax is far from uniform
  return problem;
}

struct Outcome {
  Values out, lse, dq, dk, dv;
};

Outcome run(const Problem& problem, DType dtype, int threads) {
  CpuContext ctx(threads, 1 << 20);
  const ops::AttentionShape& s = problem.shape;
  const Shape q_shape{s.batch * s.sequence, s.heads, s.head_dim};
  const Shape k_shape{s.batch * s.sequence, s.kv_groups, s.head_dim};
  Guarded q(dtype, q_shape, problem.q), k(dtype, k_shape, problem.k), v(dtype, k_shape, problem.v);
  Guarded out(dtype, q_shape), lse(dtype, {s.batch, s.heads, s.sequence});
  ops::attention_forward(ctx, s, q, k, v, out, lse);
  Guarded dout(dtype, q_shape, problem.dout), dq(dtype, q_shape), dk(dtype, k_shape),
      dv(dtype, k_shape);
  ops::attention_backward(ctx, s, dout, q, k, v, out, lse, dq, dk, dv);
  CHECK(ctx.workspace().used() == 0);
  return {out.values(), lse.values(), dq.values(), dk.values(), dv.values()};
}

reference::Attention expected(const Problem& problem) {
  const ops::AttentionShape& s = problem.shape;
  return reference::attention(std::size_t(s.batch),
                              std::size_t(s.sequence),
                              std::size_t(s.heads),
                              std::size_t(s.kv_groups),
                              std::size_t(s.head_dim),
                              problem.q,
                              problem.k,
                              problem.v);
}

}  // namespace

TEST_CASE("attention: forward agrees with the reference across tile edges and groupings") {
  const ops::AttentionShape shapes[] = {{0, 5, 2, 1, 4},
                                        {1, 0, 2, 1, 4},
                                        {1, 1, 1, 1, 1},
                                        {2, 7, 4, 2, 5},
                                        {1, 63, 2, 2, 8},
                                        {2, 64, 2, 1, 8},
                                        {1, 65, 3, 1, 16},
                                        {1, 129, 2, 1, 8},
                                        {1, 200, 1, 1, 3},
                                        {2, 256, 4, 2, 32}};
  for (const ops::AttentionShape& shape : shapes) {
    const Problem problem = make_problem(shape);
    const reference::Attention exact = expected(problem);
    for_each_kind([&](DType dtype, int threads) {
      INFO("B " << shape.batch << " S " << shape.sequence << " N " << shape.heads << " G "
                << shape.kv_groups << " D " << shape.head_dim);
      const Outcome observed = run(problem, dtype, threads);
      check_close(observed.out, exact.out, tolerance(dtype, shape.sequence));
      check_close(observed.lse, exact.lse, tolerance(dtype, shape.head_dim));
    });
  }
}

TEST_CASE("attention: gradients agree with central differences") {
  Problem problem = make_problem({2, 5, 4, 2, 3});
  const Outcome observed = run(problem, DType::kF64, 1);
  const auto loss = [&] { return dot(expected(problem).out, problem.dout); };
  check_gradient(problem.q, observed.dq, loss);
  check_gradient(problem.k, observed.dk, loss);
  check_gradient(problem.v, observed.dv, loss);
}

TEST_CASE("attention: gradients across tiles agree with the reference in both dtypes") {
  // Directional differences of the reference along each input: one number a tensor, over all tiles.
  for (const ops::AttentionShape& shape : {ops::AttentionShape{1, 64, 2, 1, 4},
                                           {1, 65, 2, 1, 4},
                                           {1, 129, 2, 2, 4},
                                           {2, 193, 2, 1, 8}}) {
    Problem problem = make_problem(shape);
    const Outcome exact = run(problem, DType::kF64, 1);
    const auto along = [&](Values& input, const Values& gradient) {
      const Values direction = random_values(std::int64_t(input.size()), 7);
      const Values kept = input;
      const auto at = [&](double step) {
        for (std::size_t i = 0; i < input.size(); ++i) input[i] = kept[i] + step * direction[i];
        return dot(expected(problem).out, problem.dout);
      };
      constexpr double kStep = 1e-4;
      const double slope =
          (8 * (at(kStep) - at(-kStep)) - (at(2 * kStep) - at(-2 * kStep))) / (12 * kStep);
      input = kept;
      CHECK(dot(gradient, direction) == Approx(slope).epsilon(1e-7));
    };
    along(problem.q, exact.dq);
    along(problem.k, exact.dk);
    along(problem.v, exact.dv);
    for_each_kind([&](DType dtype, int threads) {
      INFO("S " << shape.sequence);
      const Outcome observed = run(problem, dtype, threads);
      check_close(observed.dq, exact.dq, tolerance(dtype, 4 * shape.sequence));
      check_close(observed.dk, exact.dk, tolerance(dtype, 4 * shape.sequence));
      check_close(observed.dv, exact.dv, tolerance(dtype, 4 * shape.sequence));
    });
  }
}

TEST_CASE("attention: later tokens change nothing before them, large scores do not overflow") {
  Problem problem = make_problem({1, 130, 2, 1, 8});
  for (double& value : problem.q) value *= 200;
  const Outcome whole = run(problem, DType::kF32, 1);
  for (std::size_t i = 100 * 8; i < problem.k.size(); ++i) problem.k[i] = problem.v[i] = 1e6;
  const Outcome changed = run(problem, DType::kF32, 1);
  for (std::size_t i = 0; i < 100 * 2 * 8; ++i) {
    CHECK(std::isfinite(whole.out[i]));
    CHECK(whole.out[i] == changed.out[i]);
  }
}

TEST_CASE("attention: results do not depend on threads and repeat bit by bit") {
  const Problem problem = make_problem({2, 130, 4, 2, 16});
  const Outcome one = run(problem, DType::kF32, 1);
  for (const int threads : {1, 2, 3}) {
    const Outcome again = run(problem, DType::kF32, threads);
    CHECK(again.out == one.out);
    CHECK(again.dq == one.dq);
    CHECK(again.dk == one.dk);
    CHECK(again.dv == one.dv);
  }
}

TEST_CASE("attention: the plan takes exactly what the run takes") {
  const Problem problem = make_problem({1, 130, 2, 1, 8});
  for (const int threads : {1, 2}) {
    device::Stream stream(device::cpu());
    device::Arena measured;
    Context plan{device::cpu(), stream, measured, threads};
    ops::plan_attention(plan, problem.shape, DType::kF32);
    CHECK(measured.used() == 0);
    device::Arena served(device::cpu(), measured.high_water());
    Context ctx{device::cpu(), stream, served, threads};
    const Shape q_shape{130, 2, 8}, k_shape{130, 1, 8};
    Guarded q(DType::kF32, q_shape, problem.q), k(DType::kF32, k_shape, problem.k),
        v(DType::kF32, k_shape, problem.v);
    Guarded out(DType::kF32, q_shape), lse(DType::kF32, {1, 2, 130});
    Guarded dq(DType::kF32, q_shape), dk(DType::kF32, k_shape), dv(DType::kF32, k_shape);
    ops::attention_forward(ctx, problem.shape, q, k, v, out, lse);
    ops::attention_backward(ctx,
                            problem.shape,
                            Guarded(DType::kF32, q_shape, problem.dout),
                            q,
                            k,
                            v,
                            out,
                            lse,
                            dq,
                            dk,
                            dv);
    CHECK(served.high_water() == measured.high_water());
  }
}

}  // namespace pecan::test
