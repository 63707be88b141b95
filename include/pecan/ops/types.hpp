#pragma once
/// What every operator shares. Legend of shape suffixes: T tokens, H hidden, B sequences, S
/// sequence length, N heads, G key-value groups, D head dim, F ffn, E experts, K choices a token, P
/// = T*K permuted rows, V vocabulary, I inputs, O outputs.
///
/// Unless an operator says otherwise: tensors are contiguous row-major views on ctx.device, all
/// floating tensors of one call share one dtype (f32 or f64), outputs overlap no other tensor,
/// empty tensors are fine and compute nothing, NaN and infinity pass through by IEEE arithmetic,
/// results are ordered on ctx.stream (on the CPU: there on return), and results are bit-exact for
/// fixed inputs and machine type, whatever ctx.threads is. Shapes, dtypes or overlaps that break
/// these rules throw ShapeError; a device that this build does not compute on, and an operator or
/// dtype that has no kernel there, throws NotConfigured.
///
/// On a CUDA device: sums are made in f32 where they are said to be in double and are not returned
/// as one, always in the same order, by the shapes alone; bf16 attention rounds its weights;
/// scratch is taken from ctx.workspace; and values that must lie in a range (ids, labels,
/// positions) are looked at by the kernel, which stops the device, so that the next synchronisation
/// throws DeviceError. Operators that return a number wait for it.

#include <cstdint>

#include <pecan/core/host_device.hpp>
#include <pecan/core/tensor.hpp>

#include <pecan/device/context.hpp>
#include <pecan/device/param_storage.hpp>

namespace pecan::ops {

using device::ParamStorage;

/// Whether an output replaces what its tensor held or is added to it.
enum class Accumulate : std::uint8_t { kOverwrite, kAdd };

/// The part of a vocabulary that a table's first `count` rows, or the first `count` columns of
/// logits, stand for; further ones are padding. A shard may be all padding, wherever it starts.
struct VocabShard {
  std::int64_t first = 0;  ///< entries [first, first + count) of the vocabulary
  std::int64_t count = 0;
  std::int64_t total = 0;  ///< entries of the whole vocabulary, without padding
  [[nodiscard]] static constexpr VocabShard whole(std::int64_t total) { return {0, total, total}; }
  [[nodiscard]] PECAN_HD constexpr bool holds(std::int64_t entry) const {
    return entry >= first && entry < first + count;
  }
};

}  // namespace pecan::ops
