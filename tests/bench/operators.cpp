/// Operators of one training step of configuration A (docs/performance.md), as Google Benchmarks:
///   build/bench/bin/bench-operators [--benchmark_filter=attention]
/// The first argument of each is the number of threads, attention's others are sequence and head
/// dim; GFLOP/s and GB/s are counters.
/// Products are to be seen beside the machine's rate, attention counts the pairs that are seen.

#include <cmath>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <pecan/device/context.hpp>

#include <pecan/ops/adamw.hpp>
#include <pecan/ops/attention.hpp>
#include <pecan/ops/bias.hpp>
#include <pecan/ops/cross_entropy.hpp>
#include <pecan/ops/elementwise.hpp>
#include <pecan/ops/embedding.hpp>
#include <pecan/ops/gelu.hpp>
#include <pecan/ops/layer_norm.hpp>
#include <pecan/ops/matmul.hpp>
#include <pecan/ops/permute.hpp>
#include <pecan/ops/reduce.hpp>
#include <pecan/ops/rms_norm.hpp>
#include <pecan/ops/rope.hpp>
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

/// Memory of a tensor, filled with numbers of the order of 1; copies share it, as the closures of
/// benchmarks hold their tensors.
class Tensor {
 public:
  Tensor(DType dtype, const Shape& shape, double scale = 1)
      : buffer_(std::make_shared<device::Buffer>(
            device::cpu(), std::size_t(shape.num_elements()) * size_of(dtype))),
        view_{buffer_->data(), dtype, shape} {
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
  std::shared_ptr<device::Buffer> buffer_;
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
  const Tensor dgate(kType, shape), dup(kType, shape);
  for (auto _ : state) {
    if constexpr (kBackward) {
      ops::swiglu_backward(ctx, h.view(), gate.view(), up.view(), dgate.view(), dup.view());
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

/// What a benchmark repeats, and the bytes that it moves.
struct Repeated {
  std::function<void(Context&)> body;
  double bytes;
};

template <typename Make>
void register_repeated(const std::string& name, Make make) {
  const auto run = [make](benchmark::State& state) {
    Machine machine(int(state.range(0)));
    Context ctx = machine.context();
    const Repeated repeated = make();
    for (auto _ : state) repeated.body(ctx);
    count(state, 0, repeated.bytes);
  };
  benchmark::RegisterBenchmark(name.c_str(), run)->Arg(1)->Arg(2)->UseRealTime();
}

void register_elementwise(const std::string& suffix, DType type) {
  const Shape shape{kTokens, 4 * kHidden};
  const double bytes = double(shape.num_elements()) * double(size_of(type));
  register_repeated("add" + suffix, [=]() -> Repeated {
    const Tensor a(type, shape), b(type, shape), y(type, shape);
    return {[=](Context& ctx) { ops::add(ctx, a.view(), b.view(), y.view()); }, 3 * bytes};
  });
  register_repeated("axpy" + suffix, [=]() -> Repeated {
    const Tensor x(type, shape), y(type, shape);
    return {[=](Context& ctx) { ops::axpy(ctx, 1e-3, x.view(), y.view()); }, 3 * bytes};
  });
  register_repeated("copy" + suffix, [=]() -> Repeated {
    const Tensor x(type, shape), y(type, shape);
    return {[=](Context& ctx) { ops::copy(ctx, x.view(), y.view()); }, 2 * bytes};
  });
  register_repeated("count_non_finite" + suffix, [=]() -> Repeated {
    const Tensor x(type, shape);
    return {[=](Context& ctx) { benchmark::DoNotOptimize(ops::count_non_finite(ctx, x.view())); },
            bytes};
  });
  register_repeated("add_bias" + suffix, [=]() -> Repeated {
    const Tensor b(type, {shape[1]}), y(type, shape);
    return {[=](Context& ctx) { ops::add_bias(ctx, b.view(), y.view()); }, 2 * bytes};
  });
  register_repeated("bias_backward" + suffix, [=]() -> Repeated {
    const Tensor dy(type, shape), db(DType::kF32, {shape[1]});
    return {[=](Context& ctx) { ops::bias_backward(ctx, dy.view(), db.view()); }, bytes};
  });
  register_repeated("gelu" + suffix + "/forward", [=]() -> Repeated {
    const Tensor x(type, shape), h(type, shape);
    return {[=](Context& ctx) { ops::gelu_forward(ctx, x.view(), h.view()); }, 2 * bytes};
  });
  register_repeated("gelu" + suffix + "/backward", [=]() -> Repeated {
    const Tensor dh(type, shape), x(type, shape), dx(type, shape);
    return {[=](Context& ctx) { ops::gelu_backward(ctx, dh.view(), x.view(), dx.view()); },
            3 * bytes};
  });
  register_repeated("rope" + suffix, [=]() -> Repeated {
    const Tensor table(DType::kF32, {256, 32}), x(type, {kTokens, 8, 32});
    Machine machine(1);
    Context first = machine.context();
    ops::rope_table(first, 10000, table.view());
    return {[=](Context& ctx) { ops::rope_forward(ctx, table.view(), {}, x.view()); },
            2 * double(x.view().num_bytes())};
  });
}

void register_rows(const std::string& suffix, DType type) {
  constexpr std::int64_t kExperts = 8, kChoices = 2;
  const Shape shape{kTokens, kHidden};
  const double bytes = double(shape.num_elements()) * double(size_of(type));
  register_repeated("layer_norm" + suffix + "/forward", [=]() -> Repeated {
    const Tensor x(type, shape), y(type, shape), w(DType::kF32, {kHidden}),
        b(DType::kF32, {kHidden});
    const Tensor mean(DType::kF32, {kTokens}), rstd(DType::kF32, {kTokens});
    return {[=](Context& ctx) {
              ops::layer_norm_forward(
                  ctx, x.view(), w.view(), b.view(), 1e-5, y.view(), mean.view(), rstd.view());
            },
            2 * bytes};
  });
  register_repeated("layer_norm" + suffix + "/backward", [=]() -> Repeated {
    const Tensor dy(type, shape), x(type, shape), dx(type, shape), w(DType::kF32, {kHidden});
    const Tensor mean(DType::kF32, {kTokens}), rstd(DType::kF32, {kTokens}, 1e-3);
    const Tensor dw(DType::kF32, {kHidden}), db(DType::kF32, {kHidden});
    return {[=](Context& ctx) {
              ops::layer_norm_backward(ctx,
                                       dy.view(),
                                       x.view(),
                                       w.view(),
                                       mean.view(),
                                       rstd.view(),
                                       dx.view(),
                                       ops::Accumulate::kOverwrite,
                                       dw.view(),
                                       db.view());
            },
            3 * bytes};
  });
  register_repeated("embedding" + suffix + "/forward", [=]() -> Repeated {
    const Tensor tokens(DType::kI32, {kTokens}), w(type, {kVocab, kHidden}), y(type, shape);
    return {[=](Context& ctx) {
              const ops::ParamStorage table(w.view().data, type, w.view().shape);
              ops::embedding_forward(
                  ctx, tokens.view(), table, ops::VocabShard::whole(kVocab), y.view());
            },
            2 * bytes};
  });
  register_repeated("embedding" + suffix + "/backward", [=]() -> Repeated {
    const Tensor tokens(DType::kI32, {kTokens}), dy(type, shape),
        dw(DType::kF32, {kVocab, kHidden});
    return {[=](Context& ctx) {
              const ops::ParamStorage table(dw.view().data, DType::kF32, dw.view().shape);
              ops::embedding_backward(
                  ctx, dy.view(), tokens.view(), ops::VocabShard::whole(kVocab), table);
            },
            bytes + 8 * double(shape.num_elements())};
  });
  // A router's choices and the rows that they send.
  const auto routed = [=](auto&& make) {
    return [=]() -> Repeated {
      const Tensor ids(DType::kI32, {kTokens, kChoices});
      for (std::int64_t i = 0; i < kTokens * kChoices; ++i) {
        ids.view().as<std::int32_t>()[std::size_t(i)] =
            std::int32_t((i * 5 + i / kChoices * 3) % kExperts);
      }
      const Tensor order(DType::kI32, {kTokens * kChoices});
      const Tensor positions(DType::kI32, {kTokens, kChoices});
      std::vector<std::int64_t> counts(kExperts);
      Machine machine(1);
      Context ctx = machine.context();
      ops::permute_plan(
          ctx, ids.view(), view_of(std::span(counts)), order.view(), positions.view());
      return make(order, positions);
    };
  };
  const Shape wide{kTokens * kChoices, kHidden};
  register_repeated(
      "permute" + suffix + "/forward", routed([=](const Tensor& order, const Tensor&) -> Repeated {
        const Tensor x(type, shape), rows(type, wide);
        return {
            [=](Context& ctx) { ops::permute_forward(ctx, x.view(), order.view(), rows.view()); },
            4 * bytes};
      }));
  register_repeated(
      "permute" + suffix + "/backward",
      routed([=](const Tensor&, const Tensor& positions) -> Repeated {
        const Tensor drows(type, wide), dx(type, shape);
        return {[=](Context& ctx) {
                  ops::permute_backward(
                      ctx, drows.view(), positions.view(), dx.view(), ops::Accumulate::kOverwrite);
                },
                3 * bytes};
      }));
  register_repeated("unpermute" + suffix + "/forward",
                    routed([=](const Tensor&, const Tensor& positions) -> Repeated {
                      const Tensor rows(type, wide), y(type, shape);
                      const Tensor weights(DType::kF32, {kTokens, kChoices});
                      return {[=](Context& ctx) {
                                ops::unpermute_forward(ctx,
                                                       rows.view(),
                                                       positions.view(),
                                                       weights.view(),
                                                       y.view(),
                                                       ops::Accumulate::kAdd);
                              },
                              4 * bytes};
                    }));
  register_repeated("unpermute" + suffix + "/backward",
                    routed([=](const Tensor&, const Tensor& positions) -> Repeated {
                      const Tensor rows(type, wide), drows(type, wide), dy(type, shape);
                      const Tensor weights(DType::kF32, {kTokens, kChoices});
                      const Tensor dweights(DType::kF32, {kTokens, kChoices});
                      return {[=](Context& ctx) {
                                ops::unpermute_backward(ctx,
                                                        dy.view(),
                                                        rows.view(),
                                                        positions.view(),
                                                        weights.view(),
                                                        drows.view(),
                                                        dweights.view());
                              },
                              5 * bytes};
                    }));
}

/// Bytes are those of the logits: what bounds a router is its logarithms and choices.
void register_router() {
  constexpr std::int64_t kExperts = 8, kChoices = 2;
  const Shape per_expert{kTokens, kExperts}, per_choice{kTokens, kChoices};
  const ops::BalanceGroups groups{0, kTokens};
  register_repeated("router/forward", [=]() -> Repeated {
    const Tensor logits(DType::kF32, per_expert), probs(DType::kF32, per_expert);
    const Tensor ids(DType::kI32, per_choice), weights(DType::kF32, per_choice);
    return {[=](Context& ctx) {
              ops::router_forward(
                  ctx, {}, logits.view(), {}, ids.view(), weights.view(), probs.view());
            },
            double(logits.view().num_bytes())};
  });
  register_repeated("router/losses_and_backward", [=]() -> Repeated {
    const Tensor logits(DType::kF32, per_expert), probs(DType::kF32, per_expert);
    const Tensor ids(DType::kI32, per_choice), weights(DType::kF32, per_choice);
    const Tensor dweights(DType::kF32, per_choice), dlogits(DType::kF32, per_expert);
    const Tensor counts(DType::kI64, {1, kExperts});
    Machine machine(1);
    Context first = machine.context();
    ops::router_forward(first, {}, logits.view(), {}, ids.view(), weights.view(), probs.view());
    return {[=](Context& ctx) {
              ops::router_counts(
                  ctx, {}, logits.view(), probs.view(), ids.view(), groups, counts.view());
              benchmark::DoNotOptimize(ops::router_losses(
                  ctx, logits.view(), probs.view(), counts.view(), groups, {1e-5, 1e-6}));
              ops::router_backward(ctx,
                                   {},
                                   logits.view(),
                                   probs.view(),
                                   ids.view(),
                                   weights.view(),
                                   dweights.view(),
                                   counts.view(),
                                   groups,
                                   1e-5,
                                   1e-6,
                                   dlogits.view());
            },
            double(logits.view().num_bytes())};
  });
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
      const std::string name = fmt::format("/{}/{}", p.name, kWhich[which]);
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
  threads(benchmark::RegisterBenchmark("rms_norm_bf16/forward", rms_norm<DType::kBF16, false>));
  threads(benchmark::RegisterBenchmark("rms_norm_bf16/backward", rms_norm<DType::kBF16, true>));
  threads(benchmark::RegisterBenchmark("adamw", adamw));
  threads(benchmark::RegisterBenchmark("sum_of_squares", sum_of_squares));
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const std::string suffix = fmt::format("_{}", name_of(type));
    register_elementwise(suffix, type);
    register_rows(suffix, type);
  }
  register_repeated("cast_f32_to_bf16", []() -> Repeated {
    const Tensor x(DType::kF32, {kTokens, 4 * kHidden}), y(DType::kBF16, {kTokens, 4 * kHidden});
    return {[=](Context& ctx) { ops::cast(ctx, x.view(), y.view()); },
            6 * double(x.view().num_elements())};
  });
  register_repeated("cast_bf16_to_f32", []() -> Repeated {
    const Tensor x(DType::kBF16, {kTokens, 4 * kHidden}), y(DType::kF32, {kTokens, 4 * kHidden});
    return {[=](Context& ctx) { ops::cast(ctx, x.view(), y.view()); },
            6 * double(x.view().num_elements())};
  });
  register_router();
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
