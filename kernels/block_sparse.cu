#include <algorithm>
#include <span>

#include "kernels/block_sparse.cuh"
#include "kernels/operators.hpp"

namespace pecan::kernels {
namespace {

using ops::ParamStorage;
using ops::WeightForm;
using Weights = std::span<const ParamStorage>;

/// Blocks [begin, end).
struct Blocks {
  int begin, end;
  [[nodiscard]] int count() const { return end - begin; }
};

/// Those of groups [first, last), which follow one another.
Blocks blocks_of_groups(std::span<const BlockTopology::Range> blocks, int first, int last) {
  const auto begin_of = [&](int group) {
    return int(std::ranges::lower_bound(blocks, group, {}, &BlockTopology::Range::group) -
               blocks.begin());
  };
  return {begin_of(first), begin_of(last)};
}

/// Calls body(matrices, rows of blocks, columns of blocks) for as many groups at a time as a launch
/// has matrices for.
template <typename Element, typename Body>
void for_each_launch(const BlockTopology& topology, Weights w_E, Body&& body) {
  const int groups = int(w_E.size());
  for (int first = 0; first < groups; first += GroupMatrices<Element>::kMost) {
    GroupMatrices<Element> matrices{.first = first, .of = {}};
    const int last = std::min(groups, first + GroupMatrices<Element>::kMost);
    for (int group = first; group < last; ++group)
      matrices.of[group - first] = reinterpret_cast<Element*>(w_E[std::size_t(group)].memory());
    body(matrices,
         blocks_of_groups(topology.row_blocks(), first, last),
         blocks_of_groups(topology.column_blocks(), first, last));
  }
}

int to_int(Index extent) {
  PECAN_VALIDATE(extent <= std::numeric_limits<int>::max(),
                 ShapeError,
                 "a matrix of {} columns is more than block-sparse products take",
                 extent);
  return int(extent);
}

SparseCall call_of(const BlockTopology& topology,
                   const ConstTensorView& h_RF,
                   const ConstTensorView& x_RI,
                   Weights w_E) {
  constexpr std::uintptr_t kBytes = 16;
  const auto is_aligned = [](const std::byte* data) {
    return reinterpret_cast<std::uintptr_t>(data) % kBytes == 0;
  };
  const Index dense = x_RI.shape[1], pack = Index(kBytes / size_of(h_RF.dtype));
  const bool packed =
      topology.width() % pack == 0 && dense % pack == 0 && is_aligned(h_RF.data) &&
      is_aligned(x_RI.data) &&
      std::ranges::all_of(w_E, [&](const ParamStorage& w) { return is_aligned(w.memory()); });
  return {topology.on_device(), to_int(topology.width()), to_int(dense), 0, packed};
}

/// Calls body(form) for a form that the compiler knows.
template <typename Body>
void with_form(WeightForm form, Body&& body) {
  switch (form) {
    case WeightForm::kFirstIsF:
      return body(std::integral_constant<WeightForm, WeightForm::kFirstIsF>{});
    case WeightForm::kLastIsF:
      return body(std::integral_constant<WeightForm, WeightForm::kLastIsF>{});
  }
}

/// Blocks of a launch over `lines` rows or columns of blocks, by the columns of the dense matrix.
template <typename T>
unsigned grid_of(int lines, Index dense) {
  using Tile = SparseTile<T>;
  return blocks_of(Index(lines) * Tile::kCuts * ((dense + Tile::kEdge - 1) / Tile::kEdge), 1);
}

}  // namespace

void block_sparse_sdd(Context& ctx,
                      const BlockTopology& topology,
                      ConstTensorView x_RI,
                      Weights w_E,
                      WeightForm form,
                      TensorView h_RF) {
  SparseCall call = call_of(topology, h_RF, x_RI, w_E);
  with_storage_type(h_RF.dtype, [&]<typename T>(T) {
    constexpr Index kTiles = Index(SparseTile<T>::kCuts) * SparseTile<T>::kCuts;
    with_form(form, [&](auto known) {
      constexpr Summed kWeight =
          known() == WeightForm::kFirstIsF ? Summed::kAlongRows : Summed::kAcrossRows;
      for_each_launch<const T>(topology, w_E, [&](const auto& matrices, Blocks rows, Blocks) {
        const auto offset = [&](int row) { return topology.row_offsets()[std::size_t(row)]; };
        call.first = offset(rows.begin);
        launch(block_sparse_sdd_kernel<T, kWeight>,
               blocks_of((offset(rows.end) - call.first) * kTiles, 1),
               kSparseThreads,
               SparseProduct<T, Summed::kAlongRows, kWeight>::kSharedBytes,
               stream_of(ctx),
               call,
               matrices,
               data_of<T>(x_RI),
               data_of<T>(h_RF));
      });
    });
  });
}

void block_sparse_dsd(Context& ctx,
                      const BlockTopology& topology,
                      ConstTensorView h_RF,
                      Weights w_E,
                      WeightForm form,
                      TensorView y_RI,
                      ops::Accumulate accumulate) {
  SparseCall call = call_of(topology, h_RF, y_RI, w_E);
  with_storage_type(h_RF.dtype, [&]<typename T>(T) {
    with_form(form, [&](auto known) {
      constexpr Summed kWeight =
          known() == WeightForm::kFirstIsF ? Summed::kAcrossRows : Summed::kAlongRows;
      for_each_launch<const T>(topology, w_E, [&](const auto& matrices, Blocks rows, Blocks) {
        call.first = rows.begin;
        launch(block_sparse_dsd_kernel<T, kWeight>,
               grid_of<T>(rows.count(), call.dense),
               kSparseThreads,
               SparseProduct<T, Summed::kAlongRows, kWeight>::kSharedBytes,
               stream_of(ctx),
               call,
               matrices,
               accumulate == ops::Accumulate::kAdd,
               data_of<T>(h_RF),
               data_of<T>(y_RI));
      });
    });
  });
}

void block_sparse_backward_weight(Context& ctx,
                                  const BlockTopology& topology,
                                  ConstTensorView h_RF,
                                  ConstTensorView x_RI,
                                  Weights dw_E,
                                  WeightForm form) {
  SparseCall call = call_of(topology, h_RF, x_RI, dw_E);
  with_storage_type(h_RF.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    with_form(form, [&](auto known) {
      for_each_launch<M>(topology, dw_E, [&](const auto& matrices, Blocks, Blocks columns) {
        call.first = columns.begin;
        launch(block_sparse_weight_kernel<T, known()>,
               grid_of<T>(columns.count(), call.dense),
               kSparseThreads,
               SparseProduct<T, Summed::kAcrossRows, Summed::kAcrossRows>::kSharedBytes,
               stream_of(ctx),
               call,
               matrices,
               data_of<T>(h_RF),
               data_of<T>(x_RI));
      });
    });
  });
}

}  // namespace pecan::kernels
