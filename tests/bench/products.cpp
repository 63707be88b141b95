/// Products of this project's own kernels beside those of oneDNN, in alternation, on the shapes of
/// training (docs/adr/0016):
///   build/bench/bin/bench-products [threads] [rounds]
/// Prints the medians in GFLOP/s as a Markdown table. oneDNN's bf16 products are those for sizes
/// that are given when they run, as a layer of experts needs them. The last column of bf16 is what
/// weights in panel order could save: the time in which panels of the weights are packed, as a part
/// of that of the product by the kernels before oneDNN.

#include "ops/products.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include <dnnl.hpp>
#include <fmt/format.h>
#include <omp.h>

namespace pecan::bench {
namespace {

using dnnl::memory;
using ops::Accumulate;
using ops::detail::Matrix;
using ops::detail::Multiplier;
using ops::detail::Product;
using ops::detail::TileKernels;
using ops::detail::Transpose;

enum class Pass { kForward, kInput, kWeight };

struct Shape3 {
  std::string name;
  std::vector<std::int64_t> counts;  ///< rows of each group
  std::int64_t inputs, outputs;
};

/// Memory of both types for one shape.
struct Operands {
  explicit Operands(const Shape3& shape)
      : rows(std::accumulate(shape.counts.begin(), shape.counts.end(), std::int64_t{0})),
        x(std::size_t(rows * shape.inputs), 0.5F),
        y(std::size_t(rows * shape.outputs), 0.25F),
        w(shape.counts.size() * std::size_t(shape.inputs * shape.outputs), 0.125F),
        dw(w.size()),
        x16(x.size(), BFloat16(0.5F)),
        y16(y.size(), BFloat16(0.25F)),
        w16(w.size(), BFloat16(0.125F)) {}
  std::int64_t rows;
  std::vector<float> x, y, w, dw;
  std::vector<BFloat16> x16, y16, w16;
};

template <typename T>
Product product_of(const Shape3& shape,
                   Pass pass,
                   std::size_t group,
                   std::int64_t first,
                   T* x,
                   T* y,
                   T* w,
                   float* dw) {
  const std::int64_t I = shape.inputs, O = shape.outputs, count = shape.counts[group];
  x += first * I;
  y += first * O;
  w += std::int64_t(group) * I * O;
  dw += std::int64_t(group) * I * O;
  if (pass == Pass::kForward)
    return {count, O, I, {x, I}, {w, I, Transpose::kYes}, Accumulate::kOverwrite, {y, O}};
  if (pass == Pass::kInput) return {count, I, O, {y, O}, {w, I}, Accumulate::kOverwrite, {x, I}};
  return {O, I, count, {y, O, Transpose::kYes}, {x, I}, Accumulate::kAdd, {dw, I}};
}

template <typename T>
void for_each_product(const Shape3& shape,
                      Pass pass,
                      Operands& o,
                      const std::function<void(const Product&)>& body) {
  std::int64_t first = 0;
  for (std::size_t e = 0; e < shape.counts.size(); first += shape.counts[e++]) {
    if constexpr (sizeof(T) == 4) {
      body(product_of(shape, pass, e, first, o.x.data(), o.y.data(), o.w.data(), o.dw.data()));
    } else {
      body(
          product_of(shape, pass, e, first, o.x16.data(), o.y16.data(), o.w16.data(), o.dw.data()));
    }
  }
}

template <typename T>
void own(const TileKernels& kernels, int threads, const Shape3& shape, Pass pass, Operands& o) {
  alignas(64) static std::byte scratch[8 * Multiplier::kScratchBytes];
  std::vector<Product> products;
  for_each_product<T>(shape, pass, o, [&](const Product& p) { products.push_back(p); });
  const DType type = sizeof(T) == 4 ? DType::kF32 : DType::kBF16;
  Multiplier(kernels, type, pass == Pass::kWeight ? DType::kF32 : type)
      .multiply(
          threads,
          std::int64_t(products.size()),
          [&](std::int64_t e) { return products[std::size_t(e)]; },
          scratch);
}

/// Packs the panels of the right factors once for every 512 rows, as the products do, and leaves
/// them.
template <typename T>
void pack_panels(
    const TileKernels& kernels, int threads, const Shape3& shape, Pass pass, Operands& o) {
  using namespace ops::detail;
  constexpr std::int64_t kBlockRows = 512;
  std::vector<Product> products;
  for_each_product<T>(shape, pass, o, [&](const Product& p) { products.push_back(p); });
  const std::int64_t depth_of_panel = kPanelUnits * kernels.elements_per_unit;
#pragma omp parallel num_threads(threads)
  {
    alignas(64) std::array<Unit, std::size_t(kPanelColumns * kPanelUnits)> panel;
    std::int64_t task = 0;
    for (const Product& product : products) {
      const auto* const from = static_cast<const std::byte*>(product.b.data);
      const bool turned = product.b.transpose == Transpose::kYes;
      for (std::int64_t i = 0; i < product.m; i += kBlockRows) {
        for (std::int64_t j = 0; j < product.n; j += kPanelColumns) {
          if (task++ % threads != omp_get_thread_num()) continue;
          for (std::int64_t p = 0; p < product.k; p += depth_of_panel) {
            const std::int64_t at = turned ? j * product.b.stride + p : p * product.b.stride + j;
            kernels.pack_panel(turned ? Contiguous::kAlongUnits : Contiguous::kAcrossUnits,
                               from + at * std::int64_t(sizeof(T)),
                               product.b.stride,
                               std::min(depth_of_panel, product.k - p),
                               std::min(kPanelColumns, product.n - j),
                               panel.data());
          }
        }
      }
    }
  }
}

void sgemm(const Shape3& shape, Pass pass, Operands& o) {
  for_each_product<float>(shape, pass, o, [](const Product& p) {
    dnnl_sgemm(p.a.transpose == Transpose::kYes ? 'T' : 'N',
               p.b.transpose == Transpose::kYes ? 'T' : 'N',
               p.m,
               p.n,
               p.k,
               1.0F,
               static_cast<const float*>(p.a.data),
               p.a.stride,
               static_cast<const float*>(p.b.data),
               p.b.stride,
               p.accumulate == Accumulate::kAdd ? 1.0F : 0.0F,
               static_cast<float*>(p.c.data),
               p.c.stride);
  });
}

/// oneDNN's bf16 products, compiled once for each kind.
class OneDnn {
 public:
  void run(const Shape3& shape, Pass pass, Operands& o) {
    const auto result = pass == Pass::kWeight ? memory::data_type::f32 : memory::data_type::bf16;
    for_each_product<BFloat16>(shape, pass, o, [&](const Product& p) {
      const auto strides = [](const auto& x) {
        return x.transpose == Transpose::kYes ? memory::dims{1, x.stride}
                                              : memory::dims{x.stride, 1};
      };
      const memory::desc a({p.m, p.k}, memory::data_type::bf16, strides(p.a));
      const memory::desc b({p.k, p.n}, memory::data_type::bf16, strides(p.b));
      const memory::desc c({p.m, p.n}, result, strides(p.c));
      dnnl::matmul& matmul = compiled(p, result);
      const auto operand = [&](const memory::desc& desc, const void* data) {
        return memory(desc, engine_, const_cast<void*>(data));
      };
      matmul.execute(stream_,
                     {{DNNL_ARG_SRC, operand(a, p.a.data)},
                      {DNNL_ARG_WEIGHTS, operand(b, p.b.data)},
                      {DNNL_ARG_DST, operand(c, p.c.data)}});
    });
    stream_.wait();
  }

 private:
  dnnl::matmul& compiled(const Product& p, memory::data_type result) {
    const std::vector<int> key{int(p.a.transpose), int(p.b.transpose), int(p.accumulate)};
    const auto found = compiled_.find(key);
    if (found != compiled_.end()) return found->second;
    dnnl::primitive_attr attributes;
    if (p.accumulate == Accumulate::kAdd) {
      dnnl::post_ops post_ops;
      post_ops.append_sum(1.0F);
      attributes.set_post_ops(post_ops);
    }
    const auto any = [](memory::data_type type, Transpose transpose) {
      constexpr auto kAny = DNNL_RUNTIME_DIM_VAL;
      return memory::desc(
          {kAny, kAny},
          type,
          transpose == Transpose::kYes ? memory::dims{1, kAny} : memory::dims{kAny, 1});
    };
    const dnnl::matmul::desc desc(any(memory::data_type::bf16, p.a.transpose),
                                  any(memory::data_type::bf16, p.b.transpose),
                                  any(result, Transpose::kNo));
    return compiled_.emplace(key, dnnl::matmul({desc, attributes, engine_})).first->second;
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::map<std::vector<int>, dnnl::matmul> compiled_;
};

struct Variant {
  std::string name;
  std::function<void()> run;
  std::vector<double> seconds;
};

/// Medians of rounds in which each variant runs in turn for some milliseconds.
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
    repeats.push_back(std::max(1, int(4e-3 / seconds_of(variant, 1))));
  }
  for (int round = 0; round < rounds; ++round)
    for (std::size_t v = 0; v < variants.size(); ++v)
      variants[v].seconds.push_back(seconds_of(variants[v], repeats[v]));
}

void run(int threads, int rounds) {
  omp_set_num_threads(threads);
  const auto even = [](std::size_t groups, std::int64_t rows) {
    return std::vector<std::int64_t>(groups, rows);
  };
  std::vector<std::int64_t> skewed{3968, 128, 0, 0, 0, 0, 0, 0};
  const std::vector<Shape3> shapes{{"qkv 2048 x 256 -> 768", even(1, 2048), 256, 768},
                                   {"out 2048 x 256 -> 256", even(1, 2048), 256, 256},
                                   {"8 experts x 512, 256 -> 512", even(8, 512), 256, 512},
                                   {"8 experts x 512, 512 -> 256", even(8, 512), 512, 256},
                                   {"8 experts, one has 97 %, 256 -> 512", skewed, 256, 512},
                                   {"64 experts x 64, 256 -> 512", even(64, 64), 256, 512},
                                   {"64 experts x 16, 256 -> 512", even(64, 16), 256, 512},
                                   {"dense 4096, 256 -> 512", even(1, 4096), 256, 512},
                                   {"head 512 x 256 -> 8192", even(1, 512), 256, 8192},
                                   {"router 2048 x 256 -> 8", even(1, 2048), 256, 8},
                                   {"2048 x 768 -> 3072", even(1, 2048), 768, 3072}};
  OneDnn onednn;
  for (const bool bf16 : {false, true}) {
    bool first = true;
    for (const Shape3& shape : shapes) {
      Operands operands(shape);
      for (const Pass pass : {Pass::kForward, Pass::kInput, Pass::kWeight}) {
        std::vector<Variant> variants;
        const auto kernels =
            bf16 ? ops::detail::bf16_tile_kernels() : ops::detail::f32_tile_kernels();
        for (const TileKernels* table : kernels) {
          variants.push_back({table->name,
                              [&, table] {
                                if (bf16) {
                                  own<BFloat16>(*table, threads, shape, pass, operands);
                                } else {
                                  own<float>(*table, threads, shape, pass, operands);
                                }
                              },
                              {}});
        }
        if (bf16) {
          variants.push_back({"oneDNN", [&] { onednn.run(shape, pass, operands); }, {}});
        } else {
          variants.push_back({"dnnl_sgemm", [&] { sgemm(shape, pass, operands); }, {}});
        }
        const bool packs = bf16 && pass != Pass::kWeight;
        if (packs) {
          variants.push_back(
              {"panels",
               [&] { pack_panels<BFloat16>(*kernels.back(), threads, shape, pass, operands); },
               {}});
        }
        measure(variants, rounds);
        if (first) {
          fmt::print("\n| {} threads | |", threads);
          for (const Variant& variant : variants) fmt::print(" {} |", variant.name);
          fmt::print("\n| --- | --- |");
          for (std::size_t v = 0; v < variants.size(); ++v) fmt::print(" ---: |");
          fmt::print("\n");
          first = false;
        }
        constexpr const char* kPasses[] = {"forward", "input", "weight"};
        fmt::print("| {} | {} |", shape.name, kPasses[int(pass)]);
        std::vector<double> medians;
        for (Variant& variant : variants) {
          auto& all = variant.seconds;
          std::nth_element(all.begin(), all.begin() + std::ptrdiff_t(all.size() / 2), all.end());
          medians.push_back(all[all.size() / 2]);
        }
        const double flops = 2.0 * double(operands.rows * shape.inputs * shape.outputs);
        for (std::size_t v = 0; v < variants.size() - (packs ? 1 : 0); ++v)
          fmt::print(" {:.0f} |", flops / medians[v] / 1e9);
        if (packs) fmt::print(" {:.0f} % |", 100 * medians.back() / medians[kernels.size() - 1]);
        fmt::print("\n");
        std::fflush(stdout);
      }
    }
  }
}

}  // namespace
}  // namespace pecan::bench

int main(int argc, char** argv) {
  pecan::bench::run(argc > 1 ? std::atoi(argv[1]) : 1, argc > 2 ? std::atoi(argv[2]) : 5);
}
