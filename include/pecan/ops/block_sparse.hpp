#pragma once
/// Products with a block-sparse matrix, such as the hidden activations of all experts of a layer:
/// one matrix H of R rows and E F columns, of which a row is non-zero in the F columns of its own
/// expert alone. Legend: E groups, R rows, F columns of a group, I the width of what H is
/// multiplied with.
///
/// H has R rows of F elements in memory, those of its non-zero blocks, so that no row is padded;
/// rows of a group follow one another. Weights share dtype and shape, and are row-major. The
/// scratch is that of plan_matmul, on devices none. Results are those of grouped_matmul.hpp but for
/// rounding.
///
/// Source: Gale et al., "MegaBlocks" (arXiv 2211.15841), sections 4 and 5. Differs from the paper:
/// the last block of a group is as high as it has rows, instead of padded, and a weight has a
/// matrix of its own, [out, in], so that both gradients of weights walk H by columns.

#include <cstdint>
#include <span>
#include <vector>

#include <pecan/ops/types.hpp>

namespace pecan::ops {

/// Which blocks of H are non-zero, in the orders in which products walk them. Made once for all
/// products of a layer, on the host; products on a device read a copy there. Value type.
class BlockTopology {
 public:
  /// Edge of a block; the last ones of a group may be smaller.
  static constexpr std::int64_t kBlock = 128;
  /// Rows or columns [first, first + count): rows of R, columns of their group's F.
  struct Range {
    std::int32_t group = 0;
    std::int64_t first = 0;
    std::int64_t count = 0;
    bool operator==(const Range&) const = default;
  };
  /// The arrays below, in the memory of a device.
  struct Arrays {
    const Range* row_blocks = nullptr;
    const Range* column_blocks = nullptr;
    const std::int32_t* row_offsets = nullptr;
    const std::int32_t* row_indices = nullptr;
    const std::int32_t* column_indices = nullptr;
    const std::int32_t* column_offsets = nullptr;
    const std::int32_t* transposed = nullptr;
  };

  BlockTopology() = default;
  /// `counts_E`, none negative: rows of each group, which may have none; F = width.
  BlockTopology(std::span<const std::int64_t> counts_E, std::int64_t width);
  [[nodiscard]] std::span<const std::int64_t> counts() const { return counts_E_; }
  [[nodiscard]] std::int64_t num_rows() const { return num_rows_; }
  [[nodiscard]] std::int64_t width() const { return width_; }
  [[nodiscard]] std::span<const Range> row_blocks() const { return row_blocks_; }
  [[nodiscard]] std::span<const Range> column_blocks() const { return column_blocks_; }
  /// Blocks [row_offsets()[i], row_offsets()[i + 1]) are those of row block i, columns ascending.
  [[nodiscard]] std::span<const std::int32_t> row_offsets() const { return row_offsets_; }
  /// Row block and column block of each block.
  [[nodiscard]] std::span<const std::int32_t> row_indices() const { return row_indices_; }
  [[nodiscard]] std::span<const std::int32_t> column_indices() const { return column_indices_; }
  /// transposed()[column_offsets()[j]], ... up to column_offsets()[j + 1], are the blocks of column
  /// block j, rows ascending.
  [[nodiscard]] std::span<const std::int32_t> column_offsets() const { return column_offsets_; }
  [[nodiscard]] std::span<const std::int32_t> transposed() const { return transposed_; }

  /// Bytes of a copy on a device, at most, of `groups` groups with `rows` rows together. Pure.
  [[nodiscard]] static std::int64_t max_device_bytes(std::int64_t rows,
                                                     std::int64_t groups,
                                                     std::int64_t width);
  /// Copies the arrays to `memory` (u8, max_device_bytes, on the context's device), which stays as
  /// it is while products read it. Enqueued on the context's stream. Nothing on the CPU, whose
  /// products read the host's. ShapeError if the memory is too small.
  void upload(Context& ctx, const TensorView& memory);
  /// Null before upload, and on the CPU.
  [[nodiscard]] const Arrays& on_device() const { return on_device_; }

 private:
  std::vector<std::int64_t> counts_E_;
  std::int64_t num_rows_ = 0, width_ = 0;
  std::vector<Range> row_blocks_, column_blocks_;
  std::vector<std::int32_t> row_offsets_, row_indices_, column_indices_;
  std::vector<std::int32_t> column_offsets_, transposed_;
  Arrays on_device_;
};

/// How a weight is multiplied with: W of shape [F, I] and [I, F], whichever side F is on.
enum class WeightForm : std::uint8_t { kFirstIsF, kLastIsF };

/// SDD: the non-zero blocks of H = X W', dense times dense. x_RI; weights [F, I] (H = x w^T) or [I,
/// F] (H = x w). Cost: 2 R I F flops.
void block_sparse_sdd(Context& ctx,
                      const BlockTopology& topology,
                      ConstTensorView x_RI,
                      std::span<const ParamStorage> w_E,
                      WeightForm form,
                      TensorView h_RF);

/// DSD: y_RI (+)= H W', sparse times dense; weights [F, I] (H w) or [I, F] (H w^T).
void block_sparse_dsd(Context& ctx,
                      const BlockTopology& topology,
                      ConstTensorView h_RF,
                      std::span<const ParamStorage> w_E,
                      WeightForm form,
                      TensorView y_RI,
                      Accumulate accumulate);

/// DSD with the transposed H, dw_FI += H^T x, or DDS, dw_IF += x^T H: gradients of weights, in the
/// master type. A dw without memory (ParamStorage{}) is left out.
void block_sparse_backward_weight(Context& ctx,
                                  const BlockTopology& topology,
                                  ConstTensorView h_RF,
                                  ConstTensorView x_RI,
                                  std::span<const ParamStorage> dw_E,
                                  WeightForm form);

}  // namespace pecan::ops
