/// The products of a layer's experts, in the three ways of moe.expert_compute, beside one dense
/// product of as many flops, in alternation (docs/performance.md):
///   build/bench/bin/bench-experts [threads] [rounds] [rows an expert] [hidden] [expert ffn]
/// Prints as a Markdown table the rate of forward and both gradients of one matrix an expert, in
/// GFLOP/s of medians, and medians of the rounds' ratios. The dense product has one matrix for all
/// rows; the wide one has the rows of one expert and all matrices side by side, [256 -> 512 E]: the
/// same flops, and as many bytes of weights as the experts have. Loads: balanced; natural, rows
/// log-normal with sigma 0.5, as a balanced router leaves them in a micro-batch; extreme, one
/// expert has 90 % of the rows.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <pecan/core/philox.hpp>

#include <pecan/ops/block_sparse.hpp>
#include <pecan/ops/grouped_matmul.hpp>
#include <pecan/ops/matmul.hpp>

namespace pecan::bench {
namespace {

using ops::Accumulate;
using ops::ParamStorage;
using Counts = std::vector<std::int64_t>;

struct Options {
  int threads = 2;
  int rounds = 5;
  std::int64_t rows_per_expert = 64;
  std::int64_t inputs = 256;
  std::int64_t outputs = 512;
};

/// Shares in proportion to `weights`, in all `rows`.
Counts dealt(const std::vector<double>& weights, std::int64_t rows) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  Counts counts;
  double before = 0;
  std::int64_t given = 0;
  for (const double weight : weights) {
    before += weight;
    const auto end = std::int64_t(std::lround(before / sum * double(rows)));
    counts.push_back(end - given);
    given = end;
  }
  return counts;
}

std::vector<std::pair<std::string, Counts>> loads(std::int64_t experts, std::int64_t rows) {
  const auto size = std::size_t(experts);
  std::vector<double> even(size, 1.0), natural, extreme(size);
  for (std::uint64_t e = 0; e < std::uint64_t(experts); ++e)
    natural.push_back(std::exp(0.5 * philox_normal(1, 2, e)));
  std::ranges::fill(extreme, 0.1 / double(experts - 1));
  extreme[std::size_t(experts) / 2] = 0.9;
  return {{"balanced", dealt(even, rows)},
          {"natural", dealt(natural, rows)},
          {"extreme", dealt(extreme, rows)}};
}

/// Zero-initialised memory of `count` matrices [O, I] and of rows.
class Operands {
 public:
  Operands(DType dtype, std::int64_t experts, const Options& options)
      : options_(options),
        rows_(experts * options.rows_per_expert),
        x_(device::cpu(), bytes(dtype, rows_ * options.inputs)),
        y_(device::cpu(), bytes(dtype, rows_ * options.outputs)),
        dx_(device::cpu(), bytes(dtype, rows_ * options.inputs)),
        dy_(device::cpu(), bytes(dtype, rows_ * options.outputs)),
        w_(device::cpu(), bytes(dtype, experts * options.inputs * options.outputs)),
        dw_(device::cpu(), bytes(master_of(dtype), experts * options.inputs * options.outputs)),
        x(x_.data(), dtype, Shape{rows_, options.inputs}),
        y(y_.data(), dtype, Shape{rows_, options.outputs}),
        dx(dx_.data(), dtype, Shape{rows_, options.inputs}),
        dy(dy_.data(), dtype, Shape{rows_, options.outputs}),
        weights(matrices(w_, dtype, experts)),
        grads(matrices(dw_, master_of(dtype), experts)),
        wide_y(y_.data(), dtype, Shape{options.rows_per_expert, experts * options.outputs}),
        wide_dy(dy_.data(), dtype, wide_y.shape),
        wide_weight(w_.data(), dtype, Shape{experts * options.outputs, options.inputs}),
        wide_grad(dw_.data(), master_of(dtype), wide_weight.shape()) {
    // Numbers of ordinary size: sums are finite, and nothing is denormal. No product reads what
    // another has written.
    for (const TensorView& values : {x, dy, TensorView{w_.data(), dtype, Shape{elements(dtype)}}}) {
      for (std::int64_t i = 0; i < values.num_elements(); ++i) {
        const double value = double((i * 2654435761U >> 8U) % 1000U) / 1000 - 0.5;
        if (dtype == DType::kBF16) {
          values.as<BFloat16>()[std::size_t(i)] = BFloat16(value);
        } else {
          values.as<float>()[std::size_t(i)] = float(value);
        }
      }
    }
  }
  [[nodiscard]] double flops() const {
    return 3 * 2.0 * double(rows_) * double(options_.inputs) * double(options_.outputs);
  }

 private:
  static std::size_t bytes(DType dtype, std::int64_t count) {
    return std::size_t(count) * size_of(dtype);
  }
  [[nodiscard]] std::int64_t elements(DType dtype) const {
    return std::int64_t(w_.size() / size_of(dtype));
  }
  [[nodiscard]] std::vector<ParamStorage> matrices(const device::Buffer& memory,
                                                   DType dtype,
                                                   std::int64_t count) const {
    std::vector<ParamStorage> all;
    const Shape shape{options_.outputs, options_.inputs};
    for (std::int64_t e = 0; e < count; ++e) {
      all.emplace_back(
          memory.data() + std::size_t(e) * bytes(dtype, shape.num_elements()), dtype, shape);
    }
    return all;
  }

  const Options& options_;
  std::int64_t rows_;
  device::Buffer x_, y_, dx_, dy_, w_, dw_;

 public:
  TensorView x, y, dx, dy;
  std::vector<ParamStorage> weights, grads;
  TensorView wide_y, wide_dy;
  ParamStorage wide_weight, wide_grad;
};

void grouped(Context& ctx, const Counts& counts, Operands& o) {
  ops::grouped_matmul_forward(ctx, counts, o.x, o.weights, o.y);
  ops::grouped_matmul_backward_weight(ctx, counts, o.dy, o.x, o.grads);
  ops::grouped_matmul_backward_input(ctx, counts, o.dy, o.weights, o.dx, Accumulate::kOverwrite);
}

void block_sparse(Context& ctx, const Counts& counts, Operands& o) {
  using enum ops::WeightForm;
  const ops::BlockTopology topology(counts, o.y.shape[1]);
  ops::block_sparse_sdd(ctx, topology, o.x, o.weights, kFirstIsF, o.y);
  ops::block_sparse_backward_weight(ctx, topology, o.dy, o.x, o.grads, kFirstIsF);
  ops::block_sparse_dsd(ctx, topology, o.dy, o.weights, kFirstIsF, o.dx, Accumulate::kOverwrite);
}

/// One expert after the other; with all rows in one count, the dense product.
void loop(Context& ctx, const Counts& counts, Operands& o) {
  std::int64_t first = 0;
  for (std::size_t e = 0; e < counts.size(); first += counts[e++]) {
    if (counts[e] == 0) continue;
    const TensorView x = o.x.rows(first, counts[e]), dy = o.dy.rows(first, counts[e]);
    ops::matmul_forward(ctx, x, o.weights[e], o.y.rows(first, counts[e]));
    ops::matmul_backward_weight(ctx, dy, x, o.grads[e]);
    ops::matmul_backward_input(
        ctx, dy, o.weights[e], o.dx.rows(first, counts[e]), Accumulate::kOverwrite);
  }
}

/// Rows of one expert through the matrices of all.
void wide(Context& ctx, Operands& o) {
  const std::int64_t rows = o.wide_y.shape[0];
  const TensorView x = o.x.rows(0, rows), dx = o.dx.rows(0, rows);
  ops::matmul_forward(ctx, x, o.wide_weight, o.wide_y);
  ops::matmul_backward_weight(ctx, o.wide_dy, x, o.wide_grad);
  ops::matmul_backward_input(ctx, o.wide_dy, o.wide_weight, dx, Accumulate::kOverwrite);
}

struct Variant {
  std::function<void()> run;
  std::vector<double> seconds;  ///< of one run, by round
};

/// Rounds in which each variant runs in turn for some milliseconds.
void measure(std::vector<Variant>& variants, int rounds) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_of = [](const Variant& variant, int repeats) {
    const auto start = Clock::now();
    for (int i = 0; i < repeats; ++i) variant.run();
    return std::chrono::duration<double>(Clock::now() - start).count() / repeats;
  };
  std::vector<int> repeats;
  for (Variant& variant : variants) {
    variant.run();
    repeats.push_back(std::max(1, int(1e-2 / seconds_of(variant, 1))));
  }
  for (int round = 0; round < rounds; ++round)
    for (std::size_t v = 0; v < variants.size(); ++v)
      variants[v].seconds.push_back(seconds_of(variants[v], repeats[v]));
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Median of the rounds' ratios of times.
double ratio(const Variant& variant, const Variant& other) {
  std::vector<double> ratios;
  for (std::size_t round = 0; round < variant.seconds.size(); ++round)
    ratios.push_back(variant.seconds[round] / other.seconds[round]);
  return median(std::move(ratios));
}

void run(const Options& options) {
  device::Stream stream(device::cpu());
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    device::Arena measured;
    Context plan{device::cpu(), stream, measured, options.threads};
    ops::plan_matmul(plan, dtype);
    device::Arena workspace(device::cpu(), measured.high_water());
    Context ctx{device::cpu(), stream, workspace, options.threads};
    fmt::print(
        "\n{}, {} threads, {} rows an expert, {} -> {}\n\n"
        "| experts | load | dense | wide | grouped | block-sparse | loop | grouped/dense | "
        "grouped/wide | grouped, time over balanced |\n"
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        name_of(dtype),
        options.threads,
        options.rows_per_expert,
        options.inputs,
        options.outputs);
    for (const std::int64_t experts : {8, 16, 32, 64, 128}) {
      const std::int64_t rows = experts * options.rows_per_expert;
      Operands o(dtype, experts, options);
      const Counts all{rows};
      const auto loaded = loads(experts, rows);
      std::vector<Variant> variants{{[&] { loop(ctx, all, o); }, {}}, {[&] { wide(ctx, o); }, {}}};
      for (const auto& [name, counts] : loaded) {
        variants.push_back({[&] { grouped(ctx, counts, o); }, {}});
        variants.push_back({[&] { block_sparse(ctx, counts, o); }, {}});
        variants.push_back({[&] { loop(ctx, counts, o); }, {}});
      }
      measure(variants, options.rounds);
      const auto rate = [&](const Variant& variant) {
        return o.flops() / median(variant.seconds) / 1e9;
      };
      for (std::size_t load = 0; load < loaded.size(); ++load) {
        const Variant* const of_load = &variants[2 + 3 * load];
        fmt::print(
            "| {} | {} | {:.0f} | {:.0f} | {:.0f} | {:.0f} | {:.0f} | {:.2f} | {:.2f} | "
            "{:.2f} |\n",
            experts,
            loaded[load].first,
            rate(variants[0]),
            rate(variants[1]),
            rate(of_load[0]),
            rate(of_load[1]),
            rate(of_load[2]),
            ratio(variants[0], of_load[0]),
            ratio(variants[1], of_load[0]),
            ratio(of_load[0], variants[2]));
      }
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace pecan::bench

int main(int argc, char** argv) {
  pecan::bench::Options options;
  if (argc > 1) options.threads = std::atoi(argv[1]);
  if (argc > 2) options.rounds = std::atoi(argv[2]);
  if (argc > 3) options.rows_per_expert = std::atoll(argv[3]);
  if (argc > 4) options.inputs = std::atoll(argv[4]);
  if (argc > 5) options.outputs = std::atoll(argv[5]);
  pecan::bench::run(options);
}
