#include "kernels/elementwise.cuh"
#include "kernels/operators.hpp"
#include "kernels/permute.cuh"

namespace pecan::kernels {

void permute_plan(Context& ctx,
                  ConstTensorView topk_ids_TK,
                  TensorView counts_E,
                  TensorView order_P,
                  TensorView positions_TK) {
  const Index slots = topk_ids_TK.num_elements();
  const int num_experts = int(counts_E.shape[0]);
  if (slots == 0) return fill(ctx, 0, counts_E);
  const unsigned chunks = blocks_of(slots, kChunk);
  const std::size_t bin_bytes = (std::size_t(num_experts) + 1) * sizeof(std::int32_t);
  const std::int32_t* ids = data_of<std::int32_t>(topk_ids_TK);
  Scratch scratch(ctx);
  auto* counts = scratch.take<std::int32_t>((num_experts + 1) * Index(chunks));
  launch(count_kernel, chunks, kChunk, bin_bytes, stream_of(ctx), ids, slots, num_experts, counts);
  launch(scan_kernel,
         1U,
         kScanThreads,
         0,
         stream_of(ctx),
         counts,
         Index(chunks),
         num_experts,
         data_of<std::int64_t>(counts_E));
  launch(rank_kernel,
         chunks,
         kChunk,
         bin_bytes * (kChunk / kWarp),
         stream_of(ctx),
         ids,
         slots,
         num_experts,
         static_cast<const std::int32_t*>(counts),
         data_of<std::int32_t>(order_P),
         data_of<std::int32_t>(positions_TK));
}

void permute_forward(Context& ctx,
                     ConstTensorView x_TH,
                     ConstTensorView order_P,
                     TensorView rows_PH) {
  with_storage_type(x_TH.dtype, [&]<typename T>(T) {
    const Index rows = rows_PH.shape[0], slots = order_P.shape[0];
    if (rows == 0) return;
    const Index k = slots / x_TH.shape[0];
    const Index row_bytes = x_TH.shape[1] * Index(sizeof(T));
    const auto gather = [&]<typename Unit>(Unit) {
      launch(gather_kernel<Unit>,
             blocks_of(rows, 1),
             kMoveThreads,
             0,
             stream_of(ctx),
             data_of<Unit>(x_TH),
             data_of<std::int32_t>(order_P),
             slots,
             k,
             row_bytes / Index(sizeof(Unit)),
             data_of<Unit>(rows_PH));
    };
    if (row_bytes % Index(sizeof(uint4)) == 0 && are_aligned(x_TH.data, rows_PH.data)) {
      gather(uint4{});
    } else {
      gather(T{});
    }
  });
}

namespace {

void sum_rows(const Context& ctx,
              const ConstTensorView& rows_PH,
              const ConstTensorView& positions_TK,
              const ConstTensorView& weights_TK,
              const TensorView& y_TH,
              ops::Accumulate accumulate) {
  with_storage_type(y_TH.dtype, [&]<typename T>(T) {
    launch(sum_rows_kernel<T>,
           blocks_of(y_TH.shape[0], 1),
           kMoveThreads,
           0,
           stream_of(ctx),
           data_of<T>(rows_PH),
           data_of<std::int32_t>(positions_TK),
           data_of<MathOf<T>>(weights_TK),
           rows_PH.shape[0],
           positions_TK.shape[1],
           y_TH.shape[1],
           accumulate == ops::Accumulate::kAdd,
           data_of<T>(y_TH));
  });
}

}  // namespace

void permute_backward(Context& ctx,
                      ConstTensorView drows_PH,
                      ConstTensorView positions_TK,
                      TensorView dx_TH,
                      ops::Accumulate accumulate) {
  sum_rows(ctx, drows_PH, positions_TK, {}, dx_TH, accumulate);
}

void unpermute_forward(Context& ctx,
                       ConstTensorView rows_PH,
                       ConstTensorView positions_TK,
                       ConstTensorView weights_TK,
                       TensorView y_TH,
                       ops::Accumulate accumulate) {
  sum_rows(ctx, rows_PH, positions_TK, weights_TK, y_TH, accumulate);
}

void unpermute_backward(Context& ctx,
                        ConstTensorView dy_TH,
                        ConstTensorView rows_PH,
                        ConstTensorView positions_TK,
                        ConstTensorView weights_TK,
                        TensorView drows_PH,
                        TensorView dweights_TK) {
  with_storage_type(dy_TH.dtype, [&]<typename T>(T) {
    launch(unpermute_backward_kernel<T>,
           blocks_of(positions_TK.num_elements(), 1),
           kMoveThreads,
           0,
           stream_of(ctx),
           data_of<T>(dy_TH),
           data_of<T>(rows_PH),
           data_of<std::int32_t>(positions_TK),
           data_of<MathOf<T>>(weights_TK),
           rows_PH.shape[0],
           positions_TK.shape[1],
           dy_TH.shape[1],
           data_of<T>(drows_PH),
           data_of<MathOf<T>>(dweights_TK));
  });
}

}  // namespace pecan::kernels
