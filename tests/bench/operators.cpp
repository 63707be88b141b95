/// Operators of one training step of configuration A (docs/performance.md), as Google Benchmarks:
///   build/bench/bin/bench-operators [--benchmark_filter=attention]
/// The first argument of each is the number of threads, attention's others are sequence and head
/// dim; GFLOP/s and GB/s are counters.
/// Products are to be seen beside the machine's rate, attention counts the pairs that are seen.

#include <cmath>
#include <cstdlib>
#include <vector>

#include <benchmark/benchmark.h>

#include <pecan/device/context.hpp>

#include <pecan/ops/adamw.hpp>
#include <pecan/ops/attention.hpp>
#include <pecan/ops/cross_entropy.hpp>
#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/layer_norm.hpp>
#include <pecan/ops/matmul.hpp>
#include <pecan/ops/permute.hpp>
#include <pecan/ops/reduce.hpp>
#include <pecan/ops/rms_norm.hpp>
#include <pecan/ops/router.hpp>
#include <pecan/ops/swiglu.hpp>

namespace pecan::bench {
namespace {

constexpr std::int64_t kTokens = 2048, kHidden = 256, kVocab = 8192;

class Machine {
 public:
  explicit Machine(int threads)
      : workspace_(device::cpu(), std::size_t(256) << 20U), threads_(threads) {}
  Context context() { return {device::cpu(), stream_, workspace_, threads_}; }

 private:
  device::Stream stream_{device::cpu()};
  device::Arena workspace_;
  int threads_;
};

/// Memory of a tensor, filled with numbers of the order of 1.
class Tensor {
 public:
  Tensor(DType dtype, const Shape& shape, double scale = 1)
      : buffer_(device::cpu(), std::size_t(shape.num_elements()) * size_of(dtype)),
        view_{buffer_.data(), dtype, shape} {
    std::uint32_t state = 12345;
    const auto next = [&] {
      state = state * 1664525U + 1013904223U;
      return scale * (double(state >> 8U) / double(1U << 23U) - 1);
    };
    const std::int64_t n = shape.num_elements();
    for (std::int64_t i = 0; i < n; ++i) {
      switch (dtype) {
        case DType::kF32:
          view_.as<float>()[std::size_t(i)] = float(next());
          break;
        case DType::kBF16:
          view_.as<BFloat16>()[std::size_t(i)] = BFloat16(float(next()));
          break;
        case DType::kF64:
          view_.as<double>()[std::size_t(i)] = next();
          break;
        case DType::kI32:
          view_.as<std::int32_t>()[std::size_t(i)] = std::int32_t(state % 997);
          static_cast<void>(next());
          break;
        default:
          break;
      }
    }
  }
  [[nodiscard]] const TensorView& view() const { return view_; }

 private:
  device::Buffer buffer_;
  TensorView view_;
};

void count(benchmark::State& state, double flops, double bytes) {
  const double runs = double(state.iterations());
  if (flops > 0)
    state.counters["GFLOP/s"] = benchmark::Counter(runs * flops / 1e9, benchmark::Counter::kIsRate);
  if (bytes > 0)
    state.counters["GB/s"] = benchmark::Counter(runs * bytes / 1e9, benchmark::Counter::kIsRate);
}

struct Product {
  const char* name;
  std::int64_t tokens, inputs, outputs;
};

template <DType kType>
void matmul(benchmark::State& state, const Product& p, int which) {
  Machine machine(int(state.range(0)));
  Context ctx = machine.context();
  const Tensor x(kType, {p.tokens, p.inputs}), y(kType, {p.tokens, p.outputs});
  const Tensor w(kType, {p.outputs, p.inputs}, 0.02);
  const Tensor dw(DType::kF32, {p.outputs, p.inputs});
  const ops::ParamStorage weight(w.view().data, kType, w.view().shape);
  const ops::ParamStorage gradient(dw.view().data, DType::kF32, w.view().shape);
  for (auto _ : state) {
    if (which == 0) ops::matmul_forward(ctx, x.view(), weight, y.view());
    if (which == 1)
      ops::matmul_backward_input(ctx, y.view(), weight, x.view(), ops::Accumulate::kOverwrite);
    if (which == 2) ops::matmul_backward_weight(ctx, y.view(), x.view(), gradient);
  }
  count(state, 2.0 * double(p.tokens) * double(p.inputs) * double(p.outputs), 0);
}

template <DType kType, bool kBackward>
void attention(benchmark::State& state) {
  Machine machine(int(state.range(0)));
  Context ctx = machine.context();
  const std::int64_t sequence = state.range(1), dim = state.range(2);
  const ops::AttentionShape shape{kTokens / sequence, sequence, 8, 8, dim};
  const Shape rows{kTokens, 8, dim};
  const Tensor q(kType, rows), k(kType, rows), v(kType, rows), out(kType, rows);
  const Tensor dout(kType, rows), dq(kType, rows), dk(kType, rows), dv(kType, rows);
  const Tensor lse(DType::kF32, {shape.batch, 8, sequence});
  ops::attention_forward(ctx, shape, {}, q.view(), k.view(), v.view(), out.view(), lse.view());
  for (auto _ : state) {
    if constexpr (kBackward) {
      ops::attention_backward(ctx,
                              shape,
                              {},
                              dout.view(),
                              q.view(),
                              k.view(),
                              v.view(),
                              out.view(),
                              lse.view(),
                              dq.view(),
                              dk.view(),
                              dv.view());
    } else {
      ops::attention_forward(ctx, shape, {}, q.view(), k.view(), v.view(), out.view(), lse.view());
    }
  }
  // Of the pairs of query and key that are seen.
  const double pairs = double(kTokens) * double(sequence + 1) / 2 * 8 * double(dim);
  count(state, (kBackward ? 10 : 4) * pairs, 0);
}

template <DType kType>
void cross_entropy(benchmark::State& state) {
  Machine machine(int(state.range(0)));
  Context ctx = machine.context();
  const Tensor logits(kType, {kTokens, kVocab}), labels(DType::kI32, {kTokens});
  const Tensor loss(DType::kF64, {kTokens});
  for (auto _ : state)
    ops::cross_entropy_forward_backward(
        ctx, logits.view(), kVocab, labels.view(), {}, 1, loss.view());
  count(state, 0, 2.0 * double(logits.view().num_bytes()));
}

template <DType kType, bool kBackward>
void swiglu(benchmark::State& state) {
  Machine machine(int(state.range(0)));
  Context ctx = machine.context();
  const Shape shape{2 * kTokens, 512};
  const Tensor gate(kType, shape), up(kType, shape), h(kType, shape);
  for (auto _ : state) {
    if constexpr (kBackward) {
      ops::swiglu_backward(ctx, h.view(), gate.view(), up.view(), gate.view(), up.view());
    } else {
      ops::swiglu_forward(ctx, gate.view(), up.view(), h.view());
    }
  }
  count(state, 0, (kBackward ? 5.0 : 3.0) * double(h.view().num_bytes()));
}

template <DType kType, bool kBackward>
void rms_norm(benchmark::State& state) {
  Machine machine(int(state.range(0)));
  Context ctx = machine.context();
  const Tensor x(kType, {kTokens, kHidden}), y(kType, {kTokens, kHidden});
  const Tensor dx(kType, {kTokens, kHidden});
  const Tensor weight(DType::kF32, {kHidden}), inverse(DType::kF32, {kTokens});
  const Tensor dweight(DType::kF32, {kHidden});
  ops::rms_norm_forward(ctx, x.view(), weight.view(), 1e-6, y.view(), inverse.view());
  for (auto _ : state) {
    if constexpr (kBackward) {
      ops::rms_norm_backward(ctx,
                             y.view(),
                             x.view(),
                             weight.view(),
                             inverse.view(),
                             dx.view(),
                             ops::Accumulate::kAdd,
                             dweight.view());
    } else {
      ops::rms_norm_forward(ctx, x.view(), weight.view(), 1e-6, y.view(), inverse.view());
    }
  }
  count(state, 0, (kBackward ? 4.0 : 2.0) * double(x.view().num_bytes()));
}

void adamw(benchmark::State& state) {
  Machine machine(int(state.range(0)));
  Context ctx = machine.context();
  const Shape shape{std::int64_t(1) << 24};
  const Tensor g(DType::kF32, shape), p(DType::kF32, shape), m(DType::kF32, shape);
  const Tensor v(DType::kF32, shape, 1e-3);
  ops::AdamWOptions options;
  options.lr = 1e-3;
  options.update_count = 10;
  for (float& value : v.view().as<float>()) value = std::abs(value);
  for (auto _ : state) ops::adamw_update(ctx, options, g.view(), p.view(), m.view(), v.view());
  count(state, 0, 28.0 * double(shape.num_elements()));
}

void sum_of_squares(benchmark::State& state) {
  Machine machine(int(state.range(0)));
  Context ctx = machine.context();
  const Tensor x(DType::kF32, {std::int64_t(1) << 24});
  for (auto _ : state) benchmark::DoNotOptimize(ops::sum_of_squares(ctx, x.view()));
  count(state, 0, double(x.view().num_bytes()));
}

constexpr Product kProducts[] = {{"qkvo", kTokens, kHidden, kHidden},
                                 {"expert_up", 512, kHidden, 512},
                                 {"expert_down", 512, 512, kHidden},
                                 {"head", kTokens, kHidden, kVocab},
                                 {"gpt125m_ffn", kTokens, 768, 3072},
                                 {"few_tokens", 16, kHidden, 1024},
                                 {"router", kTokens, kHidden, 8}};

void register_all() {
  const auto threads = [](auto* b) { return b->Arg(1)->Arg(2)->UseRealTime(); };
  for (const Product& p : kProducts) {
    constexpr const char* kWhich[] = {"forward", "backward_input", "backward_weight"};
    for (int which = 0; which < 3; ++which) {
      const std::string name = std::string("/") + p.name + "/" + kWhich[which];
      threads(benchmark::RegisterBenchmark(
          ("matmul_f32" + name).c_str(), matmul<DType::kF32>, p, which));
      threads(benchmark::RegisterBenchmark(
          ("matmul_bf16" + name).c_str(), matmul<DType::kBF16>, p, which));
    }
  }
  const auto sequences = [](auto* b) {
    return b->ArgsProduct({{1, 2}, {256, 2048}, {32, 64, 128}})->UseRealTime();
  };
  sequences(benchmark::RegisterBenchmark("attention_f32/forward", attention<DType::kF32, false>));
  sequences(benchmark::RegisterBenchmark("attention_f32/backward", attention<DType::kF32, true>));
  sequences(benchmark::RegisterBenchmark("attention_bf16/forward", attention<DType::kBF16, false>));
  sequences(benchmark::RegisterBenchmark("attention_bf16/backward", attention<DType::kBF16, true>));
  threads(benchmark::RegisterBenchmark("cross_entropy_f32", cross_entropy<DType::kF32>));
  threads(benchmark::RegisterBenchmark("cross_entropy_bf16", cross_entropy<DType::kBF16>));
  threads(benchmark::RegisterBenchmark("swiglu_f32/forward", swiglu<DType::kF32, false>));
  threads(benchmark::RegisterBenchmark("swiglu_f32/backward", swiglu<DType::kF32, true>));
  threads(benchmark::RegisterBenchmark("swiglu_bf16/forward", swiglu<DType::kBF16, false>));
  threads(benchmark::RegisterBenchmark("swiglu_bf16/backward", swiglu<DType::kBF16, true>));
  threads(benchmark::RegisterBenchmark("rms_norm_f32/forward", rms_norm<DType::kF32, false>));
  threads(benchmark::RegisterBenchmark("rms_norm_f32/backward", rms_norm<DType::kF32, true>));
  threads(benchmark::RegisterBenchmark("adamw", adamw));
  threads(benchmark::RegisterBenchmark("sum_of_squares", sum_of_squares));
}

}  // namespace
}  // namespace pecan::bench

int main(int argc, char** argv) {
  pecan::bench::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
