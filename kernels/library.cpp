/// What the library of kernels shows: its backend, over the runtime that it is linked to, with the
/// table of its operators.

#include <string_view>

#include <pecan/device/backend.hpp>

#include "device/cuda/backend.hpp"
#include "kernels/operators.hpp"
#include "kernels/reduce_pieces.hpp"
#include "ops/cuda.hpp"

namespace pecan::kernels {
namespace {

constexpr ops::cuda::Table kTable{
    .adamw_update = adamw_update,
    .add = add,
    .add_bias = add_bias,
    .attention_backward = attention_backward,
    .attention_forward = attention_forward,
    .axpy = axpy,
    .bias_backward = bias_backward,
    .block_sparse_backward_weight = block_sparse_backward_weight,
    .block_sparse_dsd = block_sparse_dsd,
    .block_sparse_sdd = block_sparse_sdd,
    .cast = cast,
    .copy = copy,
    .count_non_finite = count_non_finite,
    .cross_entropy_backward = cross_entropy_backward,
    .cross_entropy_forward = cross_entropy_forward,
    .cross_entropy_forward_backward = cross_entropy_forward_backward,
    .cross_entropy_from_sums = cross_entropy_from_sums,
    .cross_entropy_max = cross_entropy_max,
    .cross_entropy_sums = cross_entropy_sums,
    .default_vectors_update = default_vectors_update,
    .default_weights_backward = default_weights_backward,
    .default_weights_forward = default_weights_forward,
    .drop_over_capacity = drop_over_capacity,
    .embedding_backward = embedding_backward,
    .embedding_forward = embedding_forward,
    .expert_output_sums = expert_output_sums,
    .fill = fill,
    .gelu_backward = gelu_backward,
    .gelu_forward = gelu_forward,
    .grouped_matmul_backward_input = grouped_matmul_backward_input,
    .grouped_matmul_backward_weight = grouped_matmul_backward_weight,
    .grouped_matmul_forward = grouped_matmul_forward,
    .layer_norm_backward = layer_norm_backward,
    .layer_norm_forward = layer_norm_forward,
    .matmul_backward_input = matmul_backward_input,
    .matmul_backward_weight = matmul_backward_weight,
    .matmul_forward = matmul_forward,
    .max_abs = max_abs,
    .permute_backward = permute_backward,
    .permute_forward = permute_forward,
    .permute_plan = permute_plan,
    .rms_norm_backward = rms_norm_backward,
    .rms_norm_forward = rms_norm_forward,
    .rope_backward = rope_backward,
    .rope_forward = rope_forward,
    .router_backward = router_backward,
    .router_counts = router_counts,
    .router_forward = router_forward,
    .router_losses = router_losses,
    .scale = scale,
    .sum = sum,
    .sum_of_squares = sum_of_squares,
    .swiglu_backward = swiglu_backward,
    .swiglu_forward = swiglu_forward,
    .unpermute_backward = unpermute_backward,
    .unpermute_forward = unpermute_forward,
};

}  // namespace
}  // namespace pecan::kernels

extern "C" __attribute__((visibility("default"))) pecan::device::Backend* pecan_cuda_backend(
    const char* build) {
  if (build != pecan::device::build_name()) return nullptr;
  return &pecan::device::cuda::make_backend(
      {.operators = &pecan::kernels::kTable, .reduce_in_order = pecan::kernels::reduce_in_order});
}
