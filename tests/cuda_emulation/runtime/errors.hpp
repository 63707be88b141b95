#pragma once
/// Error codes of the runtime, and how its functions begin and end.

#include <mutex>

#include <cuda_runtime_api.h>

#include "settings.hpp"
#include "streams.hpp"

namespace pecan::emulation {

/// Remembers the error for cudaGetLastError of this thread, and for good if the device is lost by
/// it.
cudaError_t record_error(cudaError_t error);
/// The error after which the device does nothing more, or cudaSuccess.
cudaError_t lost_device();
/// Loses the device: every later call returns the error.
void lose_device(cudaError_t error);

/// A function of the API: may be told to fail, and fails on a lost device; then `body()` under the
/// mutex.
template <typename Body>
cudaError_t api_call(const char* name, Body body) {
  if (const auto code = count_call(name)) return record_error(static_cast<cudaError_t>(*code));
  const std::scoped_lock lock(device_mutex());
  if (const cudaError_t lost = lost_device()) return lost;
  return record_error(body());
}

/// A function that puts work on a stream, after what is pending there: `body(stream)`.
template <typename Body>
cudaError_t stream_call(const char* name, cudaStream_t handle, Body body) {
  wait_for_pending(handle);
  return api_call(name, [&] {
    Stream* stream = find_stream(handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : body(*stream);
  });
}

}  // namespace pecan::emulation
