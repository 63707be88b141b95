#pragma once
/// The launchers, one a line of the operators' table; library.cpp fills it.

#include "ops/cuda.hpp"

namespace pecan::kernels {

decltype(ops::cpu::adamw_update) adamw_update;
decltype(ops::cpu::add) add;
decltype(ops::cpu::add_bias) add_bias;
decltype(ops::cpu::attention_backward) attention_backward;
decltype(ops::cpu::attention_forward) attention_forward;
decltype(ops::cpu::axpy) axpy;
decltype(ops::cpu::bias_backward) bias_backward;
decltype(ops::cpu::block_sparse_backward_weight) block_sparse_backward_weight;
decltype(ops::cpu::block_sparse_dsd) block_sparse_dsd;
decltype(ops::cpu::block_sparse_sdd) block_sparse_sdd;
decltype(ops::cpu::cast) cast;
decltype(ops::cpu::copy) copy;
decltype(ops::cpu::count_non_finite) count_non_finite;
decltype(ops::cpu::cross_entropy_backward) cross_entropy_backward;
decltype(ops::cpu::cross_entropy_forward) cross_entropy_forward;
decltype(ops::cpu::cross_entropy_forward_backward) cross_entropy_forward_backward;
decltype(ops::cpu::cross_entropy_from_sums) cross_entropy_from_sums;
decltype(ops::cpu::cross_entropy_max) cross_entropy_max;
decltype(ops::cpu::cross_entropy_sums) cross_entropy_sums;
decltype(ops::cpu::default_vectors_update) default_vectors_update;
decltype(ops::cpu::default_weights_backward) default_weights_backward;
decltype(ops::cpu::default_weights_forward) default_weights_forward;
decltype(ops::cpu::drop_over_capacity) drop_over_capacity;
decltype(ops::cpu::embedding_backward) embedding_backward;
decltype(ops::cpu::embedding_forward) embedding_forward;
decltype(ops::cpu::expert_output_sums) expert_output_sums;
decltype(ops::cpu::fill) fill;
decltype(ops::cpu::gelu_backward) gelu_backward;
decltype(ops::cpu::gelu_forward) gelu_forward;
decltype(ops::cpu::grouped_matmul_backward_input) grouped_matmul_backward_input;
decltype(ops::cpu::grouped_matmul_backward_weight) grouped_matmul_backward_weight;
decltype(ops::cpu::grouped_matmul_forward) grouped_matmul_forward;
decltype(ops::cpu::layer_norm_backward) layer_norm_backward;
decltype(ops::cpu::layer_norm_forward) layer_norm_forward;
decltype(ops::cpu::matmul_backward_input) matmul_backward_input;
decltype(ops::cpu::matmul_backward_weight) matmul_backward_weight;
decltype(ops::cpu::matmul_forward) matmul_forward;
decltype(ops::cpu::max_abs) max_abs;
decltype(ops::cpu::permute_backward) permute_backward;
decltype(ops::cpu::permute_forward) permute_forward;
decltype(ops::cpu::permute_plan) permute_plan;
decltype(ops::cpu::rms_norm_backward) rms_norm_backward;
decltype(ops::cpu::rms_norm_forward) rms_norm_forward;
decltype(ops::cpu::rope_backward) rope_backward;
decltype(ops::cpu::rope_forward) rope_forward;
decltype(ops::cpu::router_backward) router_backward;
decltype(ops::cpu::router_counts) router_counts;
decltype(ops::cpu::router_forward) router_forward;
decltype(ops::cpu::router_losses) router_losses;
decltype(ops::cpu::scale) scale;
decltype(ops::cpu::sum) sum;
decltype(ops::cpu::sum_of_squares) sum_of_squares;
decltype(ops::cpu::swiglu_backward) swiglu_backward;
decltype(ops::cpu::swiglu_forward) swiglu_forward;
decltype(ops::cpu::unpermute_backward) unpermute_backward;
decltype(ops::cpu::unpermute_forward) unpermute_forward;

}  // namespace pecan::kernels
