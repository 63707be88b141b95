#include <cmath>

#include <pecan/ops/kernel_plan.hpp>

#include "kernels/attention.cuh"
#include "kernels/operators.hpp"

namespace pecan::kernels {
namespace {

/// How a head of `dim` columns is cut.
struct HeadCut {
  int slices;  ///< of 32 columns that a block sums up
  int parts;   ///< blocks that share the columns
};

HeadCut cut_of(Index dim) {
  if (dim <= kWarp) return {1, 1};
  if (dim <= 2 * kWarp) return {2, 1};
  return {4, dim <= 4 * kWarp ? 1 : 2};
}

/// As the plan of a run tells before; the forward pass takes less, but is of no use alone.
void refuse_without_kernels(const Context& ctx, Index dim, DType dtype) {
  int most = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, ctx.device.ordinal),
        "cudaDeviceGetAttribute");
  const std::string missing =
      ops::describe_missing_attention(dim, dtype, static_cast<std::size_t>(most));
  PECAN_VALIDATE(missing.empty(), ShapeError, "{}", missing);
}

/// What is planned is what a block takes.
template <typename T, typename Memory>
constexpr bool is_as_planned() {
  constexpr DType kDType = std::is_same_v<T, Bf16>    ? DType::kBF16
                           : std::is_same_v<T, float> ? DType::kF32
                                                      : DType::kF64;
  for (const int width : {32, 64, 128, 256}) {
    if (Memory::bytes(2, width) != ops::attention_shared_bytes(width, kDType)) return false;
  }
  return true;
}

template <typename Body>
void with_slices(int slices, Body&& body) {
  switch (slices) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    default:
      return body(std::integral_constant<int, 4>{});
  }
}

/// Whether every row of these tensors begins at a multiple of 16 bytes.
bool is_packed(Index dim, DType dtype, std::initializer_list<const std::byte*> tensors) {
  constexpr std::uintptr_t kBytes = 16;
  if (std::uintptr_t(dim) * size_of(dtype) % kBytes != 0) return false;
  for (const std::byte* data : tensors) {
    if (reinterpret_cast<std::uintptr_t>(data) % kBytes != 0) return false;
  }
  return true;
}

/// Blocks over all positions of `heads` heads.
template <int kBlockRows>
dim3 grid_of(const AttentionCall& call, Index heads) {
  const Index tiles = (call.shape.sequence + kBlockRows - 1) / kBlockRows;
  return blocks_of(call.shape.batch * heads * tiles * call.parts, 1);
}

AttentionCall call_of(const ops::AttentionShape& shape,
                      const HeadCut& cut,
                      ConstTensorView document_start_T,
                      bool packed) {
  return {.shape = shape,
          .document_start_T = data_of<std::int32_t>(document_start_T),
          .width = cut.parts * cut.slices * kWarp,
          .parts = cut.parts,
          .packed = packed};
}

double scale_of(const ops::AttentionShape& shape) {
  return 1 / std::sqrt(double(shape.head_dim));
}

}  // namespace

void attention_forward(Context& ctx,
                       const ops::AttentionShape& shape,
                       ConstTensorView document_start_T,
                       ConstTensorView q_TND,
                       ConstTensorView k_TGD,
                       ConstTensorView v_TGD,
                       TensorView out_TND,
                       TensorView lse_BNS) {
  refuse_without_kernels(ctx, shape.head_dim, q_TND.dtype);
  const HeadCut cut = cut_of(shape.head_dim);
  const AttentionCall call =
      call_of(shape,
              cut,
              document_start_T,
              is_packed(shape.head_dim, q_TND.dtype, {q_TND.data, k_TGD.data, v_TGD.data}));
  with_storage_type(q_TND.dtype, [&]<typename T>(T) {
    with_slices(cut.slices, [&](auto slices) {
      using M = MathOf<T>;
      using Memory = AttentionMemory<TilesOf<T, slices()>>;
      launch(attention_forward_kernel<T, slices()>,
             grid_of<Memory::kBlockRows>(call, shape.heads),
             kTileThreads,
             Memory::bytes(1, call.width),
             stream_of(ctx),
             call,
             M(scale_of(shape)),
             data_of<T>(q_TND),
             data_of<T>(k_TGD),
             data_of<T>(v_TGD),
             data_of<T>(out_TND),
             data_of<M>(lse_BNS));
    });
  });
}

void attention_backward(Context& ctx,
                        const ops::AttentionShape& shape,
                        ConstTensorView document_start_T,
                        ConstTensorView dout_TND,
                        ConstTensorView q_TND,
                        ConstTensorView k_TGD,
                        ConstTensorView v_TGD,
                        ConstTensorView out_TND,
                        ConstTensorView lse_BNS,
                        TensorView dq_TND,
                        TensorView dk_TGD,
                        TensorView dv_TGD) {
  refuse_without_kernels(ctx, shape.head_dim, q_TND.dtype);
  const HeadCut cut = cut_of(shape.head_dim);
  const AttentionCall call = call_of(
      shape,
      cut,
      document_start_T,
      is_packed(shape.head_dim, q_TND.dtype, {dout_TND.data, q_TND.data, k_TGD.data, v_TGD.data}));
  with_storage_type(q_TND.dtype, [&]<typename T>(T) {
    using M = MathOf<T>;
    Scratch scratch(ctx);
    const Index rows = lse_BNS.num_elements();
    M* const delta = scratch.take<M>(rows);
    launch(attention_delta_kernel<T>,
           blocks_of(rows, kTileWarps),
           kTileThreads,
           0,
           stream_of(ctx),
           call,
           data_of<T>(dout_TND),
           data_of<T>(out_TND),
           delta);
    with_slices(cut.slices, [&](auto slices) {
      using Memory = AttentionMemory<TilesOf<T, slices()>>;
      static_assert(is_as_planned<T, Memory>());
      const auto start = [&](auto kernel, Index heads, auto*... results) {
        launch(kernel,
               grid_of<Memory::kBlockRows>(call, heads),
               kTileThreads,
               Memory::bytes(2, call.width),
               stream_of(ctx),
               call,
               M(scale_of(shape)),
               data_of<T>(dout_TND),
               data_of<T>(q_TND),
               data_of<T>(k_TGD),
               data_of<T>(v_TGD),
               data_of<M>(lse_BNS),
               delta,
               results...);
      };
      start(attention_dq_kernel<T, slices()>, shape.heads, data_of<T>(dq_TND));
      start(attention_dkv_kernel<T, slices()>,
            shape.kv_groups,
            data_of<T>(dk_TGD),
            data_of<T>(dv_TGD));
    });
  });
}

}  // namespace pecan::kernels
