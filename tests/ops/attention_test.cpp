#include <array>
#include <optional>

#include <pecan/ops/attention.hpp>

#include "ops/attention_kernels.hpp"
#include "ops/op_test.hpp"
#include "ops/reference.hpp"

namespace pecan::test {
namespace {

struct Problem {
  ops::AttentionShape shape;
  Values q, k, v, dout;
  Values document_start = {};  ///< of each token; empty: none
};

/// Documents of pseudo-random lengths, some of one token.
Values random_documents(const ops::AttentionShape& shape) {
  const Values draws = random_values(shape.batch * shape.sequence, 9);
  Values starts;
  for (std::int64_t t = 0; t < shape.batch * shape.sequence; ++t) {
    const std::int64_t position = t % shape.sequence;
    const bool starts_here =
        position == 0 || draws[std::size_t(t)] > 0.9 || (position > 0 && position < 4);
    starts.push_back(starts_here ? double(position) : starts.back());
  }
  return starts;
}

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

/// Whether the test's device goes through it in little time: the emulation looks at every access.
/// What is left has three tiles of keys and of queries, and every cut of the head dim.
bool is_small_enough(const ops::AttentionShape& shape) {
  return test_device() == device::cpu() || shape.batch * shape.sequence * shape.heads <= 300;
}

struct Outcome {
  Values out, lse, dq, dk, dv;
  bool operator==(const Outcome&) const = default;
};

/// The instruction sets that this machine runs.
std::vector<ops::detail::Isa> known_isas() {
  using ops::detail::Isa;
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (ops::detail::supports(isa)) isas.push_back(isa);
  }
  return isas;
}

/// `read_out`: what backward reads instead of the forward's out.
Outcome run(const Problem& problem,
            DType dtype,
            int threads,
            device::Background* background = nullptr,
            const ops::detail::IsaAttention& kernels = ops::detail::isa_attention(),
            const Values* read_out = nullptr) {
  OpContext ctx(threads, 8 << 20);
  ctx.set_background(background);
  const ops::AttentionShape& s = problem.shape;
  const Shape q_shape{s.batch * s.sequence, s.heads, s.head_dim};
  const Shape k_shape{s.batch * s.sequence, s.kv_groups, s.head_dim};
  Guarded q(dtype, q_shape, problem.q), k(dtype, k_shape, problem.k), v(dtype, k_shape, problem.v);
  Guarded out(dtype, q_shape), lse(master_of(dtype), {s.batch, s.heads, s.sequence});
  std::optional<Guarded> documents;
  ConstTensorView document_start;
  if (!problem.document_start.empty()) {
    document_start =
        documents.emplace(DType::kI32, Shape{s.batch * s.sequence}, problem.document_start);
  }
  const bool widest = &kernels == &ops::detail::isa_attention();
  if (widest) {
    ops::attention_forward(ctx, s, document_start, q, k, v, out, lse);
  } else {
    ops::cpu::attention_forward(ctx, kernels, s, document_start, q, k, v, out, lse);
  }
  Guarded read(dtype, q_shape, read_out == nullptr ? out.values() : *read_out);
  Guarded dout(dtype, q_shape, problem.dout), dq(dtype, q_shape), dk(dtype, k_shape),
      dv(dtype, k_shape);
  if (widest) {
    ops::attention_backward(ctx, s, document_start, dout, q, k, v, read, lse, dq, dk, dv);
  } else {
    ops::cpu::attention_backward(
        ctx, kernels, s, document_start, dout, q, k, v, read, lse, dq, dk, dv);
  }
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
                              problem.v,
                              problem.document_start);
}

}  // namespace

TEST_CASE("attention: forward agrees with the reference across tile edges and groupings",
          "[any device]") {
  const ops::AttentionShape shapes[] = {{0, 5, 2, 1, 4},
                                        {1, 0, 2, 1, 4},
                                        {1, 1, 1, 1, 1},
                                        {2, 7, 4, 2, 5},
                                        {1, 63, 2, 2, 8},
                                        {2, 64, 2, 1, 8},
                                        {1, 65, 3, 1, 16},
                                        {1, 129, 2, 1, 8},
                                        {1, 200, 1, 1, 3},
                                        {1, 37, 1, 1, 132},
                                        {2, 256, 4, 2, 32}};
  for (const ops::AttentionShape& shape : shapes) {
    if (!is_small_enough(shape)) continue;
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

TEST_CASE("attention: a head whose gradients take more shared memory than there is is refused",
          "[.small shared memory]") {
  // (2 R + 64) (W s + 16) + R (34 m + 32 s + 36), see kernels/attention.cuh, of 99 KiB.
  const Problem wide = make_problem({1, 3, 1, 1, 256});
  CHECK_THROWS_WITH(run(wide, DType::kF32, 1),
                    Catch::Contains("head_dim of 256 in f32 take 142720 bytes") &&
                        Catch::Contains("the device has 101376, enough for a head_dim of 128"));
  CHECK_THROWS_WITH(run(wide, DType::kBF16, 1), Catch::Contains("take 116480 bytes"));
  // Where all of 227 KiB are there, too: there are no kernels for wider ones.
  CHECK_THROWS_WITH(run(make_problem({1, 3, 1, 1, 257}), DType::kBF16, 1),
                    Catch::Contains("a head_dim of 257 has no CUDA kernels, which take up to 256"));
  const Problem fits = make_problem({1, 3, 1, 1, 128});
  check_close(run(fits, DType::kF32, 1).out, expected(fits).out, tolerance(DType::kF32, 3));
}

TEST_CASE("attention: documents see nothing of each other, and bf16 rounds its results once",
          "[any device]") {
  std::vector<ops::AttentionShape> shapes{
      {2, 7, 4, 2, 5}, {1, 65, 2, 1, 8}, {1, 140, 2, 1, 16}, {2, 300, 2, 1, 16}};
  // Heads that blocks of a device share, up to the widest.
  if (test_device() != device::cpu()) {
    shapes.push_back({1, 37, 1, 1, 132});
    shapes.push_back({1, 9, 2, 1, 256});
  }
  for (const ops::AttentionShape& shape : shapes) {
    if (!is_small_enough(shape)) continue;
    for (const bool documents : {false, true}) {
      for_each_storage_kind([&](DType dtype, int threads) {
        INFO("S " << shape.sequence << " documents " << documents);
        Problem problem = make_problem(shape);
        if (documents) problem.document_start = random_documents(shape);
        for (Values* values : {&problem.q, &problem.k, &problem.v, &problem.dout})
          *values = stored(dtype, *values);
        const reference::Attention exact = expected(problem);
        const Outcome observed = run(problem, dtype, threads);
        check_close(observed.out, exact.out, tolerance(dtype, shape.sequence));
        check_close(observed.lse, exact.lse, tolerance(master_of(dtype), shape.head_dim));
        // The gradients in f64 are checked against differences; here the other types against them.
        const Outcome wide = run(problem, DType::kF64, 1);
        Tolerance limit = tolerance(dtype, 4 * std::max(shape.sequence, shape.head_dim));
        // The gradients of bf16 read an out that was rounded already, and sum its errors.
        // Tensor cores are given the weights and their gradients rounded as well.
        const double roundings = test_device() == device::cpu() ? 2 : 4;
        if (dtype == DType::kBF16) limit = {4 * limit.nmse, roundings * limit.max_error};
        check_close(observed.dq, wide.dq, limit);
        check_close(observed.dk, wide.dk, limit);
        check_close(observed.dv, wide.dv, limit);
      });
    }
  }
}

TEST_CASE("attention: tensors that begin anywhere", "[any device]") {
  // Elements of which 16 bytes make a vector, one element behind an aligned address: each tensor
  // alone, and all of them.
  const Problem problem = make_problem({1, 7, 2, 1, 8});
  const Shape q_shape{7, 2, 8}, k_shape{7, 1, 8};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Outcome aligned = run(problem, dtype, 1);
    for (const unsigned moved : {1U, 2U, 4U, 8U, 15U}) {
      INFO("dtype " << name_of(dtype) << ", moved " << moved);
      OpContext ctx(1, 8 << 20);
      const auto behind = [&](Guarded& tensor, bool one, const Shape& shape) {
        return TensorView{tensor.view().data + (one ? size_of(dtype) : 0), dtype, shape};
      };
      const auto one_more = [&](const Values& values, bool one) {
        Values all(values);
        all.insert(one ? all.begin() : all.end(), 0.0);
        return all;
      };
      const bool q_moves = (moved & 1U) != 0, k_moves = (moved & 2U) != 0;
      const bool v_moves = (moved & 4U) != 0, dout_moves = (moved & 8U) != 0;
      const Shape more_q{7 * 2 * 8 + 1}, more_k{7 * 8 + 1};
      Guarded q(dtype, more_q, one_more(problem.q, q_moves));
      Guarded k(dtype, more_k, one_more(problem.k, k_moves));
      Guarded v(dtype, more_k, one_more(problem.v, v_moves));
      Guarded dout(dtype, more_q, one_more(problem.dout, dout_moves));
      Guarded out(dtype, q_shape), lse(DType::kF32, {1, 2, 7});
      Guarded dq(dtype, q_shape), dk(dtype, k_shape), dv(dtype, k_shape);
      const TensorView q_TND = behind(q, q_moves, q_shape), k_TGD = behind(k, k_moves, k_shape),
                       v_TGD = behind(v, v_moves, k_shape);
      ops::attention_forward(ctx, problem.shape, {}, q_TND, k_TGD, v_TGD, out, lse);
      const TensorView dout_TND = behind(dout, dout_moves, q_shape);
      ops::attention_backward(
          ctx, problem.shape, {}, dout_TND, q_TND, k_TGD, v_TGD, out, lse, dq, dk, dv);
      CHECK(Outcome{out.values(), lse.values(), dq.values(), dk.values(), dv.values()} == aligned);
    }
  }
}

TEST_CASE("attention: a document that starts after its token is refused") {
  Problem problem = make_problem({1, 3, 1, 1, 2});
  for (const Values& starts : {Values{0, 0, 3}, Values{0, -1, 0}, Values{1, 1, 1}}) {
    problem.document_start = starts;
    CHECK_THROWS_AS(run(problem, DType::kF32, 1), ShapeError);
  }
}

TEST_CASE("attention: gradients agree with central differences", "[any device]") {
  Problem problem = make_problem({2, 5, 4, 2, 3});
  SECTION("without documents") {}
  SECTION("with documents") {
    problem.document_start = {0, 0, 2, 3, 3, 0, 1, 1, 1, 4};
  }
  const Outcome observed = run(problem, DType::kF64, 1);
  const auto loss = [&] { return dot(expected(problem).out, problem.dout); };
  check_gradient(problem.q, observed.dq, loss);
  check_gradient(problem.k, observed.dk, loss);
  check_gradient(problem.v, observed.dv, loss);
}

TEST_CASE("attention: gradients across tiles agree with the reference in both dtypes",
          "[any device]") {
  // Directional differences of the reference along each input: one number a tensor, over all tiles.
  for (const ops::AttentionShape& shape : {ops::AttentionShape{1, 64, 2, 1, 4},
                                           {1, 65, 2, 1, 4},
                                           {1, 129, 2, 2, 4},
                                           {2, 193, 2, 1, 8},
                                           {1, 130, 6, 2, 40},
                                           {1, 37, 6, 2, 40},
                                           {1, 37, 1, 1, 132}}) {
    if (!is_small_enough(shape)) continue;
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

TEST_CASE("attention: later tokens change nothing before them, large scores do not overflow",
          "[any device]") {
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

TEST_CASE("attention: every instruction set is right at odd sequences and head dims") {
  constexpr std::int64_t kSequences[] = {1, 7, 33, 65, 130};
  constexpr std::int64_t kDims[] = {1, 8, 24, 32, 40, 64, 80, 128};
  std::int64_t number = 0;
  for (const std::int64_t sequence : kSequences) {
    for (const std::int64_t dim : kDims) {
      // Heads and documents take turns, so that each meets many sizes.
      const std::int64_t batch =
          sequence < 8 ? 3 : 1;  // so that a root mean square means something
      const ops::AttentionShape shape{
          batch, sequence, number % 3 + 1, number % 3 == 1 ? 2 : 1, dim};
      for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
        Problem problem = make_problem(shape);
        if (number % 2 == 1) problem.document_start = random_documents(shape);
        for (Values* values : {&problem.q, &problem.k, &problem.v, &problem.dout})
          *values = stored(dtype, *values);
        const reference::Attention exact = expected(problem);
        for (const ops::detail::Isa isa : known_isas()) {
          INFO("instruction set " << int(isa) << " dtype " << name_of(dtype) << " S " << sequence
                                  << " N " << shape.heads << " G " << shape.kv_groups << " D "
                                  << dim);
          const Outcome observed = run(problem, dtype, 1, nullptr, ops::detail::isa_attention(isa));
          check_close(observed.out, exact.out, tolerance(dtype, sequence));
          check_close(observed.lse, exact.lse, tolerance(master_of(dtype), dim));
          // Against f64 that reads the same out, rounded as it is.
          const Outcome wide = run(problem,
                                   DType::kF64,
                                   1,
                                   nullptr,
                                   ops::detail::isa_attention(ops::detail::Isa::kBaseline),
                                   &observed.out);
          // The gradient of each score is itself a sum over the head dim.
          const Tolerance limit = tolerance(dtype, 4 * std::max(sequence, dim));
          check_close(observed.dv, wide.dv, limit);
          if (sequence == 1) {
            // One key has probability 1 and its score no gradient: what is left is rounding.
            for (const Values* gradient : {&observed.dq, &observed.dk}) {
              for (const double value : *gradient)
                CHECK(std::abs(value) <= 8 * tolerance(master_of(dtype), dim).max_error);
            }
            continue;
          }
          check_close(observed.dq, wide.dq, limit);
          check_close(observed.dk, wide.dk, limit);
        }
      }
      ++number;
    }
  }
}

TEST_CASE("attention: results do not depend on threads and repeat bit by bit", "[any device]") {
  // Groups enough for every thread, and so few that their queries are cut into slices.
  for (const ops::AttentionShape& shape : {ops::AttentionShape{2, 130, 4, 2, 16},
                                           {3, 130, 6, 3, 24},
                                           {1, 257, 3, 1, 40},
                                           {1, 70, 4, 2, 16}}) {
    if (!is_small_enough(shape)) continue;
    for (const bool documents : {false, true}) {
      Problem problem = make_problem(shape);
      if (documents) problem.document_start = random_documents(shape);
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        const Outcome one = run(problem, dtype, 1);
        const int most_threads = test_device() == device::cpu() ? 3 : 1;
        for (int threads = 1; threads <= most_threads; ++threads) {
          INFO("B " << shape.batch << " threads " << threads << " documents " << documents);
          CHECK(run(problem, dtype, threads) == one);
        }
      }
    }
  }
}

TEST_CASE("attention: the plan takes exactly what the run takes") {
  const Problem problem = make_problem({1, 130, 2, 1, 8});
  for_each_storage_kind([&](DType dtype, int threads) {
    device::Stream stream(device::cpu());
    device::Arena measured;
    Context plan{device::cpu(), stream, measured, threads};
    ops::plan_attention(plan, problem.shape, dtype);
    CHECK(measured.used() == 0);
    device::Arena served(device::cpu(), measured.high_water());
    Context ctx{device::cpu(), stream, served, threads};
    const Shape q_shape{130, 2, 8}, k_shape{130, 1, 8};
    Guarded q(dtype, q_shape, problem.q), k(dtype, k_shape, problem.k),
        v(dtype, k_shape, problem.v);
    Guarded out(dtype, q_shape), lse(master_of(dtype), {1, 2, 130});
    Guarded dq(dtype, q_shape), dk(dtype, k_shape), dv(dtype, k_shape);
    ops::attention_forward(ctx, problem.shape, {}, q, k, v, out, lse);
    ops::attention_backward(ctx,
                            problem.shape,
                            {},
                            Guarded(dtype, q_shape, problem.dout),
                            q,
                            k,
                            v,
                            out,
                            lse,
                            dq,
                            dk,
                            dv);
    CHECK(served.high_water() == measured.high_water());
  });
}

TEST_CASE("attention: the background is given a moment after tiles and at the end") {
  // Two query tiles of each of four heads, which two threads share out.
  const ops::AttentionShape shape{1, 65, 4, 2, 8};
  const Problem problem = make_problem(shape);
  const Outcome alone = run(problem, DType::kF32, 1);
  for (const auto& [threads, expected] : {std::pair{1, 2 * (2 * 4 + 1)}, {2, 2}}) {
    CountingBackground background;
    const Outcome outcome = run(problem, DType::kF32, threads, &background);
    CHECK(background.count == expected);
    CHECK(outcome.out == alone.out);
    CHECK(outcome.dq == alone.dq);
  }
}

}  // namespace pecan::test
