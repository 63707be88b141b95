#pragma once
/// Between the residual stream, whose tokens sequence parallelism shares out over the ranks of a
/// tensor-parallel group, and the whole micro-batch that its matrices work on.

#include <pecan/core/tensor.hpp>

#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::parallel {

/// Whether the residual stream of a micro-batch is shared out over tp.
enum class SequenceParallel : std::uint8_t { kOff, kOn };

/// Which way an exchange belongs to.
enum class Pass : std::uint8_t { kForward, kBackward };

/// Legend: T tokens of a micro-batch, t = T / tp of them with sequence parallelism, else T. Rank r
/// holds tokens [r t, (r + 1) t). All calls are collective over tp.
/// Source: Korthikanti et al., "Reducing activation recomputation" (arXiv 2205.05198), section
/// 4.2.2. Differs from the paper: tokens of the flattened micro-batch are shared out, not positions
/// of each sequence.
class StreamExchange {
 public:
  /// `tp` outlives the object.
  StreamExchange(comm::Group& tp, SequenceParallel sequence_parallel)
      : tp_(tp), shares_(sequence_parallel == SequenceParallel::kOn && tp.size() > 1) {}
  [[nodiscard]] comm::Group& tp() const { return tp_; }
  /// Whether t < T, so that whole micro-batches need memory of their own.
  [[nodiscard]] bool shares() const { return shares_; }
  /// This rank's rows of a whole micro-batch.
  [[nodiscard]] TensorView own_rows(TensorView whole_TH) const;
  [[nodiscard]] ConstTensorView own_rows(ConstTensorView whole_TH) const;
  /// All rows of the stream: gathered into `whole_TH` where it is shared out, else own_tH itself.
  [[nodiscard]] ConstTensorView gather(
      Context& ctx, ConstTensorView own_tH, TensorView whole_TH, LayerId layer, Pass pass) const;
  /// Where to compute a part that reduce() then sums: `whole_TH` where the stream is shared out,
  /// else own_tH.
  [[nodiscard]] TensorView part(TensorView own_tH, TensorView whole_TH) const {
    return shares_ ? whole_TH : own_tH;
  }
  /// Sums the ranks' parts, of which each rank keeps its rows: own_tH = sum of part(own_tH,
  /// whole_TH).
  void reduce(Context& ctx, TensorView own_tH, TensorView whole_TH, LayerId layer, Pass pass) const;

 private:
  [[nodiscard]] std::vector<std::int64_t> counts(std::int64_t own_elements) const {
    return std::vector<std::int64_t>(std::size_t(tp_.size()), own_elements);
  }
  comm::Group& tp_;
  bool shares_;
};

}  // namespace pecan::parallel
