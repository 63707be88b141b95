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
    {{0, 0, 530, 7}, 200, 33},
    {{17, 64, 33, 0, 5}, 260, 96},
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
    const BlockTopology topology(case_.counts, case_.width);
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

TEST_CASE("block_sparse: SDD, DSD and gradients of weights agree with the reference") {
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    for (const Case& of : kCases) {
      for (const WeightForm form : {WeightForm::kFirstIsF, WeightForm::kLastIsF}) {
        INFO(name_of(dtype) << ", F " << of.width << " I " << of.dense << ", groups "
                            << of.counts.size() << ", form " << int(form));
        Problem problem(dtype, of, form);
        const Results one = problem.run(1);
        problem.check_reference(one);
        CHECK(problem.run(1) == one);
        CHECK(problem.run(3) == one);
      }
    }
  }
}

TEST_CASE("block_sparse: a weight gradient without memory is left out, what does not fit refused") {
  OpContext ctx(1, kProductScratch);
  const BlockTopology topology(Counts{2, 3, 1}, 5);
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

}  // namespace pecan::test
