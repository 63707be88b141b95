#pragma once
/// Which sample goes where. The data position of a run is the number of samples consumed, and
/// nothing else.

#include <cstdint>

namespace pecan::data {

/// Deals consecutive samples: each micro-step takes micro_batch_size * data_parallel_size of them,
/// each data-parallel rank a contiguous share. So the samples of a global batch do not depend on
/// the layout, only their placement does.
struct Sampler {
  int micro_batch_size = 1;
  int global_batch_size = 1;  ///< a multiple of micro_batch_size * data_parallel_size
  int data_parallel_size = 1;

  /// Micro-steps of a global batch.
  [[nodiscard]] constexpr int num_micro_steps() const {
    return global_batch_size / (micro_batch_size * data_parallel_size);
  }
  /// Sample for `row` of micro-step `micro` on data-parallel rank `rank`, after `consumed_samples`.
  [[nodiscard]] constexpr std::int64_t sample_index(std::int64_t consumed_samples,
                                                    int micro,
                                                    int rank,
                                                    int row) const {
    return consumed_samples + (std::int64_t{micro} * data_parallel_size + rank) * micro_batch_size +
           row;
  }
};

}  // namespace pecan::data
