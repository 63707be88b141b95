#pragma once
/// The CUDA side of every operator: a table of functions that the library of kernels fills. Same
/// signatures as the CPU side, arguments already checked but for what stands in device memory.

#include <pecan/device/backend.hpp>

#include <pecan/ops/types.hpp>

#include "ops/backends.hpp"
#include "ops/checks.hpp"

namespace pecan::ops::cuda {

/// Null where there is no kernel.
struct Table {
  decltype(&cpu::adamw_update) adamw_update = nullptr;
  decltype(&cpu::add) add = nullptr;
  decltype(&cpu::add_bias) add_bias = nullptr;
  decltype(&cpu::attention_backward) attention_backward = nullptr;
  decltype(&cpu::attention_forward) attention_forward = nullptr;
  decltype(&cpu::axpy) axpy = nullptr;
  decltype(&cpu::bias_backward) bias_backward = nullptr;
  decltype(&cpu::block_sparse_backward_weight) block_sparse_backward_weight = nullptr;
  decltype(&cpu::block_sparse_dsd) block_sparse_dsd = nullptr;
  decltype(&cpu::block_sparse_sdd) block_sparse_sdd = nullptr;
  decltype(&cpu::cast) cast = nullptr;
  decltype(&cpu::copy) copy = nullptr;
  decltype(&cpu::count_non_finite) count_non_finite = nullptr;
  decltype(&cpu::cross_entropy_backward) cross_entropy_backward = nullptr;
  decltype(&cpu::cross_entropy_forward) cross_entropy_forward = nullptr;
  decltype(&cpu::cross_entropy_forward_backward) cross_entropy_forward_backward = nullptr;
  decltype(&cpu::cross_entropy_from_sums) cross_entropy_from_sums = nullptr;
  decltype(&cpu::cross_entropy_max) cross_entropy_max = nullptr;
  decltype(&cpu::cross_entropy_sums) cross_entropy_sums = nullptr;
  decltype(&cpu::default_vectors_update) default_vectors_update = nullptr;
  decltype(&cpu::default_weights_backward) default_weights_backward = nullptr;
  decltype(&cpu::default_weights_forward) default_weights_forward = nullptr;
  decltype(&cpu::drop_over_capacity) drop_over_capacity = nullptr;
  decltype(&cpu::embedding_backward) embedding_backward = nullptr;
  decltype(&cpu::embedding_forward) embedding_forward = nullptr;
  decltype(&cpu::expert_output_sums) expert_output_sums = nullptr;
  decltype(&cpu::fill) fill = nullptr;
  decltype(&cpu::gelu_backward) gelu_backward = nullptr;
  decltype(&cpu::gelu_forward) gelu_forward = nullptr;
  decltype(&cpu::grouped_matmul_backward_input) grouped_matmul_backward_input = nullptr;
  decltype(&cpu::grouped_matmul_backward_weight) grouped_matmul_backward_weight = nullptr;
  decltype(&cpu::grouped_matmul_forward) grouped_matmul_forward = nullptr;
  decltype(&cpu::layer_norm_backward) layer_norm_backward = nullptr;
  decltype(&cpu::layer_norm_forward) layer_norm_forward = nullptr;
  decltype(&cpu::matmul_backward_input) matmul_backward_input = nullptr;
  decltype(&cpu::matmul_backward_weight) matmul_backward_weight = nullptr;
  decltype(&cpu::matmul_forward) matmul_forward = nullptr;
  decltype(&cpu::max_abs) max_abs = nullptr;
  decltype(&cpu::permute_backward) permute_backward = nullptr;
  decltype(&cpu::permute_forward) permute_forward = nullptr;
  decltype(&cpu::permute_plan) permute_plan = nullptr;
  decltype(&cpu::rms_norm_backward) rms_norm_backward = nullptr;
  decltype(&cpu::rms_norm_forward) rms_norm_forward = nullptr;
  decltype(&cpu::rope_backward) rope_backward = nullptr;
  decltype(&cpu::rope_forward) rope_forward = nullptr;
  decltype(&cpu::router_backward) router_backward = nullptr;
  decltype(&cpu::router_counts) router_counts = nullptr;
  decltype(&cpu::router_forward) router_forward = nullptr;
  decltype(&cpu::router_losses) router_losses = nullptr;
  decltype(&cpu::scale) scale = nullptr;
  decltype(&cpu::sum) sum = nullptr;
  decltype(&cpu::sum_of_squares) sum_of_squares = nullptr;
  decltype(&cpu::swiglu_backward) swiglu_backward = nullptr;
  decltype(&cpu::swiglu_forward) swiglu_forward = nullptr;
  decltype(&cpu::unpermute_backward) unpermute_backward = nullptr;
  decltype(&cpu::unpermute_forward) unpermute_forward = nullptr;
};

/// Values of the start are made on the host, so that they are the CPU's bit for bit, and uploaded
/// before the call returns.
decltype(cpu::init_normal) init_normal;
decltype(cpu::init_constant) init_constant;
decltype(cpu::rope_table) rope_table;

/// The function of the context's device. Throws NotConfigured, by `check`, where there is none: no
/// operator runs on the host unasked.
template <typename Function>
[[nodiscard]] Function kernel(const detail::Checks& check,
                              const Context& ctx,
                              Function Table::*member) {
  device::Backend* const backend = ctx.device.backend;
  if (backend == nullptr) check.refuse(ctx.device);
  const Function function = static_cast<const Table*>(backend->operators())->*member;
  if (function == nullptr) check.refuse(ctx.device);
  return function;
}

}  // namespace pecan::ops::cuda
