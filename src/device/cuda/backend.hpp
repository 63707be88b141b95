#pragma once
/// The CUDA runtime as a Backend.

#include <pecan/device/backend.hpp>

namespace pecan::device::cuda {

/// The process's one backend, over the CUDA runtime that this code is linked to. `operators` is
/// what Backend::operators() gives, and outlives the process's last call.
[[nodiscard]] Backend& make_backend(const void* operators);

}  // namespace pecan::device::cuda
