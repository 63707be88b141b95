#include <cstdlib>
#include <string_view>

#include <cuda_runtime_api.h>

#include <pecan/core/error.hpp>

namespace pecan::cuda::detail {
namespace {

bool waits_for_each_kernel() {
  static const bool waits = [] {
    const char* text = std::getenv("PECAN_SYNC_LAUNCHES");
    return text != nullptr && std::string_view(text) == "1";
  }();
  return waits;
}

}  // namespace

void check_launch(cudaError_t launched, const cudaLaunchConfig_t& config) {
  if (launched == cudaSuccess && waits_for_each_kernel()) {
    launched = cudaStreamSynchronize(config.stream);
  }
  if (launched == cudaSuccess) return;
  const dim3 grid = config.gridDim;
  const dim3 block = config.blockDim;
  throw DeviceError(fmt::format(
      "a kernel with grid {}x{}x{}, block {}x{}x{} and {} bytes of dynamic shared memory "
      "failed: {} ({})",
      grid.x,
      grid.y,
      grid.z,
      block.x,
      block.y,
      block.z,
      config.dynamicSmemBytes,
      cudaGetErrorString(launched),
      cudaGetErrorName(launched)));
}

}  // namespace pecan::cuda::detail
