#include <list>
#include <numeric>
#include <set>

#include <pecan/ops/block_sparse.hpp>
#include <pecan/ops/matmul.hpp>

#include "ops/reference.hpp"
#include "ops/weight.hpp"

namespace pecan::test {
namespace {

using ops::Accumulate;
using ops::BlockTopology;
using ops::WeightForm;
using Counts = std::vector<std::int64_t>;

struct Case {
  Counts counts;
  std::int64_t width;  ///< F
  std::int64_t dense;  ///< I
};

const Case kCases[] = {
    {{}, 5, 3},
    {{0, 0}, 5, 3},
    {{1}, 1, 1},
    {{0, 1, 0, 13, 2}, 9, 7},
    {{129, 0, 0, 1}, 128, 48},
    {{0, 0, 331, 7}, 200, 33},
    {{17, 64, 33, 0, 5}, 260, 96},
    {{140, 0, 3}, 40, 290},
    {{300, 4}, 0, 6},
    {{4, 300}, 6, 0},
};

/// One matrix a group, whose memory stays where it is.
class Matrices {
 public:
  Matrices(DType dtype, std::size_t groups, const Shape& shape, std::uint64_t seed) {
    for (std::size_t e = 0; e < groups; ++e) {
      original_.push_back(stored(dtype, random_values(shape.num_elements(), seed + e)));
      memory_.emplace_back(dtype, shape, original_.back());
      storages_.push_back(memory_.back().storage());
    }
  }
  [[nodiscard]] std::span<ops::ParamStorage> storages() { return storages_; }
  [[nodiscard]] const Values& original(std::size_t e) const { return original_[e]; }
  [[nodiscard]] Values values(std::size_t e) {
    return std::next(memory_.begin(), std::ptrdiff_t(e))->values();
  }

 private:
  std::vector<Values> original_;
  std::list<Guarded> memory_;
  std::vector<ops::ParamStorage> storages_;
};

/// A topology, and where the test's device has it.
class Topology {
 public:
  Topology(const Counts& counts, std::int64_t width)
      : topology_(counts, width),
        memory_(test_device(),
                std::size_t(BlockTopology::max_device_bytes(
                    topology_.num_rows(), std::int64_t(counts.size()), width))) {
    OpContext ctx;
    topology_.upload(ctx, {memory_.data(), DType::kU8, {std::int64_t(memory_.size())}});
  }
  operator const BlockTopology&() const { return topology_; }  // NOLINT: given to operators

 private:
  BlockTopology topology_;
  device::Buffer memory_;
};

struct Results {
  Values h, y, y_added;
  std::vector<Values> dw;
  bool operator==(const Results&) const = default;
};

class Problem {
 public:
  Problem(DType dtype, const Case& of, WeightForm form)
      : dtype_(dtype),
        case_(of),
        form_(form),
        rows_(std::accumulate(of.counts.begin(), of.counts.end(), std::int64_t{0})),
        x_(dtype, {rows_, of.dense}, stored(dtype, random_values(rows_ * of.dense, 1))),
        h_(dtype, {rows_, of.width}, stored(dtype, random_values(rows_ * of.width, 2))),
        old_y_(stored(dtype, random_values(rows_ * of.dense, 3))),
        w_(dtype, of.counts.size(), weight_shape(), 10) {}

  Results run(int threads) {
    OpContext ctx(threads, kProductScratch);
    const Topology topology(case_.counts, case_.width);
    Matrices dw = gradients();
    Guarded h(dtype_, {rows_, case_.width}), y(dtype_, {rows_, case_.dense});
    Guarded y_added(dtype_, {rows_, case_.dense}, old_y_);
    ops::block_sparse_sdd(ctx, topology, x_, w_.storages(), form_, h);
    ops::block_sparse_dsd(ctx, topology, h_, w_.storages(), form_, y, Accumulate::kOverwrite);
    ops::block_sparse_dsd(ctx, topology, h_, w_.storages(), form_, y_added, Accumulate::kAdd);
    ops::block_sparse_backward_weight(ctx, topology, h_, x_, dw.storages(), form_);
    Results results{h.values(), y.values(), y_added.values(), {}};
    for (std::size_t e = 0; e < case_.counts.size(); ++e) results.dw.push_back(dw.values(e));
    return results;
  }

  /// In double, in the order of the formulas.
  void check_reference(const Results& results) {
    const auto F = std::size_t(case_.width), I = std::size_t(case_.dense);
    const Values x = x_.values(), sparse = h_.values();
    const bool f_first = form_ == WeightForm::kFirstIsF;
    Values h, y;
    Matrices old_dw = gradients();
    std::size_t first = 0;
    for (std::size_t e = 0; e < case_.counts.size(); ++e) {
      const auto T = std::size_t(case_.counts[e]);
      const Values& w = w_.original(e);
      const auto w_at = [&](auto f, auto i) { return f_first ? w[f * I + i] : w[i * F + f]; };
      const auto x_at = [&](auto t, auto i) { return x[(first + t) * I + i]; };
      const auto h_at = [&](auto t, auto f) { return sparse[(first + t) * F + f]; };
      const Values group_h =
          reference::product(T, F, I, x_at, [&](auto i, auto f) { return w_at(f, i); });
      h.insert(h.end(), group_h.begin(), group_h.end());
      const Values group_y = reference::product(T, I, F, h_at, w_at);
      y.insert(y.end(), group_y.begin(), group_y.end());
      Values dw = f_first ? reference::product(
                                F, I, T, [&](auto f, auto t) { return h_at(t, f); }, x_at)
                          : reference::product(
                                I, F, T, [&](auto i, auto t) { return x_at(t, i); }, h_at);
      for (std::size_t i = 0; i < dw.size(); ++i) dw[i] += old_dw.original(e)[i];
      check_close(results.dw[e], dw, tolerance(master_of(dtype_), case_.counts[e] + 1));
      first += T;
    }
    check_close(results.h, h, tolerance(dtype_, case_.dense));
    check_close(results.y, y, tolerance(dtype_, case_.width));
    for (std::size_t i = 0; i < y.size(); ++i) y[i] += old_y_[i];
    check_close(results.y_added, y, tolerance(dtype_, case_.width + 1));
  }

 private:
  [[nodiscard]] Shape weight_shape() const {
    return form_ == WeightForm::kFirstIsF ? Shape{case_.width, case_.dense}
                                          : Shape{case_.dense, case_.width};
  }
  [[nodiscard]] Matrices gradients() const {
    return {master_of(dtype_), case_.counts.size(), weight_shape(), 50};
  }

  DType dtype_;
  const Case& case_;
  WeightForm form_;
  std::int64_t rows_;
  Guarded x_, h_;
  Values old_y_;
  Matrices w_;
};

}  // namespace

TEST_CASE("block_sparse: the topology has each group's blocks once, by rows and by columns") {
  for (const Case& of : kCases) {
    const BlockTopology topology(of.counts, of.width);
    std::vector<std::int64_t> group_of_row;
    for (std::size_t e = 0; e < of.counts.size(); ++e)
      group_of_row.insert(group_of_row.end(), std::size_t(of.counts[e]), std::int64_t(e));
    // Every element of H that is not zero lies in one block, and no other.
    std::set<std::pair<std::int64_t, std::int64_t>> seen;
    const auto rows = topology.row_blocks(), columns = topology.column_blocks();
    REQUIRE(topology.row_offsets().size() == rows.size() + 1);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      CHECK(rows[i].count <= BlockTopology::kBlock);
      for (auto b = std::size_t(topology.row_offsets()[i]);
           b < std::size_t(topology.row_offsets()[i + 1]);
           ++b) {
        CHECK(topology.row_indices()[b] == std::int32_t(i));
        const BlockTopology::Range& column = columns[std::size_t(topology.column_indices()[b])];
        CHECK(column.count <= BlockTopology::kBlock);
        for (std::int64_t r = rows[i].first; r < rows[i].first + rows[i].count; ++r) {
          CHECK(group_of_row[std::size_t(r)] == column.group);
          for (std::int64_t c = column.first; c < column.first + column.count; ++c)
            CHECK(seen.insert({r, column.group * of.width + c}).second);
        }
      }
    }
    CHECK(std::int64_t(seen.size()) == topology.num_rows() * of.width);
    // The transposed index walks the same blocks, column by column, downwards.
    std::set<std::int32_t> blocks(topology.transposed().begin(), topology.transposed().end());
    CHECK(blocks.size() == topology.row_indices().size());
    REQUIRE(topology.column_offsets().size() == columns.size() + 1);
    for (std::size_t j = 0; j < columns.size(); ++j) {
      std::int32_t above = -1;
      for (std::int32_t at = topology.column_offsets()[j]; at < topology.column_offsets()[j + 1];
           ++at) {
        const auto block = std::size_t(topology.transposed()[std::size_t(at)]);
        CHECK(topology.column_indices()[block] == std::int32_t(j));
        CHECK(topology.row_indices()[block] > above);
        above = topology.row_indices()[block];
      }
    }
  }
}

TEST_CASE("block_sparse: SDD, DSD and gradients of weights agree with the reference",
          "[any device]") {
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    for (const Case& of : kCases) {
      for (const WeightForm form : {WeightForm::kFirstIsF, WeightForm::kLastIsF}) {
        INFO(name_of(dtype) << ", F " << of.width << " I " << of.dense << ", groups "
                            << of.counts.size() << ", form " << int(form));
        Problem problem(dtype, of, form);
        const Results one = problem.run(1);
        problem.check_reference(one);
        const bool on_cpu = test_device() == device::cpu();
        if (on_cpu || form == WeightForm::kFirstIsF) CHECK(problem.run(1) == one);
        if (on_cpu) CHECK(problem.run(3) == one);
      }
    }
  }
}

TEST_CASE("block_sparse: a weight gradient without memory is left out, what does not fit refused",
          "[any device]") {
  OpContext ctx(1, kProductScratch);
  const Topology topology(Counts{2, 3, 1}, 5);
  Guarded x(DType::kF32, {6, 4}, random_values(24, 1));
  Guarded h(DType::kF32, {6, 5}, random_values(30, 2));
  Matrices all(DType::kF32, 3, {5, 4}, 7), some(DType::kF32, 3, {5, 4}, 7);
  const auto backward = [&](std::span<ops::ParamStorage> dw, WeightForm form) {
    ops::block_sparse_backward_weight(ctx, topology, h, x, dw, form);
  };
  backward(all.storages(), WeightForm::kFirstIsF);
  some.storages()[1] = {};
  backward(some.storages(), WeightForm::kFirstIsF);
  CHECK(some.values(0) == all.values(0));
  CHECK(some.values(1) == some.original(1));
  CHECK(some.values(2) == all.values(2));
  CHECK_THROWS_AS(backward(all.storages(), WeightForm::kLastIsF), ShapeError);
  CHECK_THROWS_AS(backward(all.storages().first(2), WeightForm::kFirstIsF), ShapeError);
  Guarded y(DType::kF32, {6, 4});
  CHECK_THROWS_AS(
      ops::block_sparse_dsd(
          ctx, topology, h, some.storages(), WeightForm::kFirstIsF, y, Accumulate::kOverwrite),
      ShapeError);
  CHECK_THROWS_AS(BlockTopology(Counts{-1}, 5), ShapeError);
}

TEST_CASE("block_sparse: more groups than a launch has weights for", "[any device]") {
  Case of{{}, 3, 2};
  for (std::int64_t e = 0; e < 300; ++e) of.counts.push_back(e % 4);
  Problem problem(DType::kF32, of, WeightForm::kFirstIsF);
  problem.check_reference(problem.run(1));
}

TEST_CASE("block_sparse: matrices that begin anywhere", "[any device]") {
  // Rows of 16 bytes and more, which are loaded at once where all of them begin at such a multiple.
  constexpr std::int64_t kRows = 45, kWidth = 16, kDense = 24;
  constexpr int kNone = -1, kAll = 10;
  const Counts counts{5, 0, 40};
  const Topology topology(counts, kWidth);
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    const auto filled = [](DType type, std::int64_t count, std::uint64_t seed) {
      return stored(type, random_values(count, seed));
    };
    // The matrix `number` (or kAll) begins one element later than its memory, and all others with
    // theirs.
    const auto results = [&](int number) {
      OpContext ctx(1, kProductScratch);
      std::list<Guarded> memory;
      const auto matrix = [&](DType type, int own, const Shape& shape) {
        const std::int64_t count = shape.num_elements();
        const std::int64_t shift = own == number || number == kAll ? 1 : 0;
        Values values(std::size_t(count + 1), 0.0);
        std::ranges::copy(filled(type, count, std::uint64_t(own)), values.begin() + shift);
        Guarded& whole = memory.emplace_back(type, Shape{count + 1}, values);
        return TensorView{whole.view().data + std::size_t(shift) * size_of(type), type, shape};
      };
      const DType master = master_of(dtype);
      const TensorView x = matrix(dtype, 0, {kRows, kDense}), h = matrix(dtype, 1, {kRows, kWidth});
      const TensorView made_h = matrix(dtype, 2, {kRows, kWidth});
      const TensorView y = matrix(dtype, 3, {kRows, kDense});
      std::vector<ops::ParamStorage> w, dw;
      for (const int own : {4, 5, 6})
        w.push_back({matrix(dtype, own, {kWidth, kDense}).data, dtype, {kWidth, kDense}});
      for (const int own : {7, 8, 9})
        dw.push_back({matrix(master, own, {kWidth, kDense}).data, master, {kWidth, kDense}});
      ops::block_sparse_sdd(ctx, topology, x, w, WeightForm::kFirstIsF, made_h);
      ops::block_sparse_dsd(ctx, topology, h, w, WeightForm::kFirstIsF, y, Accumulate::kAdd);
      ops::block_sparse_backward_weight(ctx, topology, h, x, dw, WeightForm::kFirstIsF);
      std::vector<Values> found;
      int own = 0;
      for (Guarded& whole : memory) {
        Values values = whole.values();
        // Beside the matrix nothing is written.
        const bool is_shifted = own++ == number || number == kAll;
        const auto spare = is_shifted ? values.begin() : values.end() - 1;
        CHECK(*spare == 0);
        values.erase(spare);
        found.push_back(std::move(values));
      }
      return found;
    };
    const auto aligned = results(kNone);
    for (int number = 0; number <= kAll; ++number) {
      INFO(name_of(dtype) << ", matrix " << number);
      CHECK(results(number) == aligned);
    }
  }
}

TEST_CASE("block_sparse: a device takes a topology of its own alone", "[any device]") {
  OpContext ctx(1, kProductScratch);
  BlockTopology topology(Counts{2, 1}, 5);
  CHECK(topology.on_device().row_blocks == nullptr);
  const auto num_bytes = std::size_t(BlockTopology::max_device_bytes(3, 2, 5));
  device::Buffer memory(test_device(), num_bytes);
  const auto upload = [&](std::size_t bytes) {
    topology.upload(ctx, {memory.data(), DType::kU8, {std::int64_t(bytes)}});
  };
  Guarded x(DType::kF32, {3, 4}, random_values(12, 1)), h(DType::kF32, {3, 5});
  Matrices w(DType::kF32, 2, {5, 4}, 7);
  const auto multiply = [&] {
    ops::block_sparse_sdd(ctx, topology, x, w.storages(), WeightForm::kFirstIsF, h);
  };
  if (test_device() == device::cpu()) {
    upload(0);
    CHECK(topology.on_device().row_blocks == nullptr);
  } else {
    CHECK_THROWS_AS(multiply(), ShapeError);
    CHECK_THROWS_AS(upload(num_bytes - 1), ShapeError);
    upload(num_bytes);  // no group has more blocks than it needs: the bound is what they take
  }
  CHECK_NOTHROW(multiply());
}

}  // namespace pecan::test
