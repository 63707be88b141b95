#pragma once
/// Sums over the members of a group; see Backend::reduce_in_order.

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include <pecan/core/tensor.hpp>

#include <pecan/device/backend.hpp>

namespace pecan::kernels {

void reduce_in_order(cudaStream_t stream,
                     DType dtype,
                     device::Reduction reduction,
                     const device::MemberPieces& pieces,
                     std::byte* output,
                     std::int64_t num_elements);

}  // namespace pecan::kernels
