/// The functions of the CUDA runtime that Pecan calls, on a CPU. NVIDIA's header has their
/// prototypes, so that the compiler compares them.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>
#include <utility>

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <pecan_emulation/execution.hpp>

#include "checker.hpp"
#include "errors.hpp"
#include "memory.hpp"
#include "pageable.hpp"
#include "report.hpp"
#include "scheduler.hpp"

// sm_90 in what it allows; small, so that grids of any size are cheap.
namespace {

constexpr int kNumMultiprocessors = 4;
constexpr int kThreadsPerMultiprocessor = 2048;
constexpr int kMaxThreadsPerBlock = 1024;
constexpr int kBlocksPerMultiprocessor = 32;
constexpr int kSharedBytesPerMultiprocessor = 228 * 1024;
constexpr int kComputeCapabilityMajor = 9;

}  // namespace

namespace pecan::emulation {
namespace {

cudaError_t lost = cudaSuccess;
thread_local cudaError_t last_error = cudaSuccess;

auto& events() {
  static auto* all = new std::set<Event*>;
  return *all;
}

Event* find_event(cudaEvent_t handle) {
  auto* event = reinterpret_cast<Event*>(handle);
  return events().contains(event) ? event : nullptr;
}

bool loses_device(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorIllegalInstruction:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

enum class HostWaits : std::uint8_t { kNo, kYes };

bool fits(cudaMemcpyKind kind, bool to_device, bool from_device) {
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !to_device && !from_device;
    case cudaMemcpyHostToDevice:
      return to_device && !from_device;
    case cudaMemcpyDeviceToHost:
      return !to_device && from_device;
    case cudaMemcpyDeviceToDevice:
      return to_device && from_device;
    case cudaMemcpyDefault:
      return true;
  }
  return false;
}

cudaError_t copy(Stream& stream,
                 void* to,
                 const void* from,
                 std::size_t num_bytes,
                 cudaMemcpyKind kind,
                 HostWaits host_waits) {
  if (num_bytes == 0) return cudaSuccess;
  const bool to_device = is_on_device(to);
  const bool from_device = is_on_device(from);
  if (!fits(kind, to_device, from_device)) {
    report("memory",
           fmt::format("a copy of kind {} from {} memory to {} memory",
                       static_cast<int>(kind),
                       from_device ? "device" : "host",
                       to_device ? "device" : "host"));
    return cudaErrorInvalidValue;
  }
  if (!lies_within(to, num_bytes, "a copy to") || !lies_within(from, num_bytes, "a copy from")) {
    return cudaErrorInvalidValue;
  }
  const std::uint32_t operation = begin_operation(stream, "a copy");
  note_access(from, num_bytes, Access::kRead, operation);
  note_access(to, num_bytes, Access::kWrite, operation);
  std::memmove(to, from, num_bytes);
  // Where the host's side can be paged out, the call returns when it has been copied; unless the
  // device reads it by itself.
  const bool to_pageable = !to_device && find_allocation(to) == nullptr;
  const bool from_pageable = !from_device && find_allocation(from) == nullptr;
  const bool reads_by_itself = settings().reads_pageable && from_pageable && to_device;
  if (reads_by_itself) begin_reading(stream, from, num_bytes);
  if (host_waits == HostWaits::kYes || to_pageable || (from_pageable && !reads_by_itself))
    host_waited_for(stream.clock);
  return cudaSuccess;
}

cudaError_t fill(Stream& stream, void* address, int value, std::size_t num_bytes) {
  if (num_bytes == 0) return cudaSuccess;
  if (find_allocation(address) == nullptr || !lies_within(address, num_bytes, "a fill")) {
    return cudaErrorInvalidValue;
  }
  note_access(address, num_bytes, Access::kWrite, begin_operation(stream, "a fill"));
  std::memset(address, value, num_bytes);
  return cudaSuccess;
}

bool is_pending(const PendingList& pending) {
  return std::any_of(
      pending.begin(), pending.end(), [](const auto& work) { return !work->is_finished(); });
}

/// A query: cudaErrorNotReady as often as asked for, and while other processes are awaited.
cudaError_t query(const PendingList& pending, int& num_not_ready, const Clock& clock) {
  if (is_pending(pending)) return cudaErrorNotReady;
  if (num_not_ready > 0) {
    --num_not_ready;
    return cudaErrorNotReady;
  }
  host_waited_for(clock);
  return cudaSuccess;
}

thread_local int device_of_thread = 0;

/// A function that waits for the whole device, as those that free memory do; then `body()`.
template <typename Body>
cudaError_t device_call(const char* name, Body body) {
  wait_for_all_pending(device_of_thread);
  return api_call(name, [&] {
    host_waited_for(issued_so_far());
    return body();
  });
}

bool is_device(int ordinal) {
  return ordinal >= 0 && ordinal < settings().num_devices;
}

cudaError_t make_event(cudaEvent_t* handle, bool has_timing) {
  auto* event = new Event;
  event->has_timing = has_timing;
  events().insert(event);
  *handle = reinterpret_cast<cudaEvent_t>(event);
  return cudaSuccess;
}

}  // namespace

int chosen_device() {
  return device_of_thread;
}

cudaError_t record_error(cudaError_t error) {
  // No error, although it is said so.
  if (error == cudaSuccess || error == cudaErrorNotReady) return error;
  last_error = error;
  if (loses_device(error)) lose_device(error);
  return error;
}

cudaError_t lost_device() {
  return lost;
}

void lose_device(cudaError_t error) {
  const std::scoped_lock lock(device_mutex());
  if (lost == cudaSuccess) lost = error;
}

void reset_device() {
  const std::scoped_lock lock(device_mutex());
  lost = cudaSuccess;
  last_error = cudaSuccess;
}

}  // namespace pecan::emulation

using namespace pecan::emulation;

#define PECAN_CUDA_API extern "C" __attribute__((visibility("default"))) cudaError_t CUDARTAPI

// Devices, versions and errors.

PECAN_CUDA_API cudaGetDeviceCount(int* count) {
  return api_call(__func__, [&] {
    *count = settings().num_devices;
    return settings().num_devices == 0 ? cudaErrorNoDevice : cudaSuccess;
  });
}
PECAN_CUDA_API cudaSetDevice(int device) {
  return api_call(__func__, [&] {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    device_of_thread = device;
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaGetDevice(int* device) {
  return api_call(__func__, [&] {
    *device = device_of_thread;
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return api_call(__func__, [&] {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    switch (attribute) {
      case cudaDevAttrMultiProcessorCount:
        *value = kNumMultiprocessors;
        break;
      case cudaDevAttrMaxThreadsPerBlock:
        *value = kMaxThreadsPerBlock;
        break;
      case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = kThreadsPerMultiprocessor;
        break;
      case cudaDevAttrWarpSize:
        *value = warpSize;
        break;
      case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = kSharedBytesWithoutAsking;
        break;
      case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = static_cast<int>(settings().shared_bytes);
        break;
      case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = kSharedBytesPerMultiprocessor;
        break;
      case cudaDevAttrComputeCapabilityMajor:
        *value = kComputeCapabilityMajor;
        break;
      case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        break;
      case cudaDevAttrMemoryPoolsSupported:
      case cudaDevAttrUnifiedAddressing:
      case cudaDevAttrCanMapHostMemory:
      case cudaDevAttrHostRegisterSupported:
        *value = 1;
        break;
      case cudaDevAttrPageableMemoryAccess:
        *value = settings().reads_pageable ? 1 : 0;
        break;
      case cudaDevAttrCooperativeLaunch:
        *value = 0;
        break;
      default:
        *value = 0;
        return cudaErrorNotSupported;
    }
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return api_call(__func__, [&] {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    *properties = {};
    std::snprintf(properties->name, sizeof properties->name, "Pecan's CUDA emulation");
    properties->totalGlobalMem = settings().memory_bytes;
    properties->sharedMemPerBlock = kSharedBytesWithoutAsking;
    properties->sharedMemPerBlockOptin = settings().shared_bytes;
    properties->sharedMemPerMultiprocessor = kSharedBytesPerMultiprocessor;
    properties->warpSize = warpSize;
    properties->maxThreadsPerBlock = kMaxThreadsPerBlock;
    properties->maxThreadsPerMultiProcessor = kThreadsPerMultiprocessor;
    properties->multiProcessorCount = kNumMultiprocessors;
    properties->pciBusID = device;  // of one host, all of whose devices every process sees
    properties->major = kComputeCapabilityMajor;
    properties->pageableMemoryAccess = settings().reads_pageable ? 1 : 0;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = kMaxThreadsPerBlock;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 2147483647;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return api_call(__func__, [&] {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaDeviceSynchronize() {
  return device_call(__func__, [] { return cudaSuccess; });
}
PECAN_CUDA_API cudaDeviceReset() {
  wait_for_all_pending(device_of_thread);
  count_call(__func__);
  reset_device();
  return cudaSuccess;
}
PECAN_CUDA_API cudaRuntimeGetVersion(int* version) {
  return api_call(__func__, [&] {
    *version = CUDART_VERSION;
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaDriverGetVersion(int* version) {
  return api_call(__func__, [&] {
    *version = CUDART_VERSION;
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaGetLastError() {
  const cudaError_t error = std::exchange(last_error, cudaSuccess);
  return lost_device() != cudaSuccess ? lost_device() : error;
}
PECAN_CUDA_API cudaPeekAtLastError() {
  return lost_device() != cudaSuccess ? lost_device() : last_error;
}

namespace {

struct ErrorName {
  cudaError_t error;
  const char* name;
  const char* text;
};
constexpr ErrorName kErrorNames[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration,
     "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInsufficientDriver,
     "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress,
     "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources,
     "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {cudaErrorLaunchTimeout, "cudaErrorLaunchTimeout", "the launch timed out and was terminated"},
    {cudaErrorAssert, "cudaErrorAssert", "device-side assert triggered"},
    {cudaErrorHostMemoryAlreadyRegistered,
     "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered,
     "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

const ErrorName& find_name(cudaError_t error) {
  static constexpr ErrorName kOther{
      cudaErrorUnknown, "unrecognized error code", "unrecognized error code"};
  const auto* found = std::find_if(std::begin(kErrorNames),
                                   std::end(kErrorNames),
                                   [&](const ErrorName& name) { return name.error == error; });
  return found == std::end(kErrorNames) ? kOther : *found;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* CUDARTAPI
cudaGetErrorName(cudaError_t error) {
  return find_name(error).name;
}
extern "C" __attribute__((visibility("default"))) const char* CUDARTAPI
cudaGetErrorString(cudaError_t error) {
  return find_name(error).text;
}

// Memory.

PECAN_CUDA_API cudaMalloc(void** address, std::size_t num_bytes) {
  return api_call(__func__, [&] { return allocate(address, num_bytes, Space::kDevice); });
}
PECAN_CUDA_API cudaFree(void* address) {
  return device_call(__func__, [&] { return release(address, Space::kDevice); });
}
PECAN_CUDA_API cudaMallocAsync(void** address, std::size_t num_bytes, cudaStream_t stream) {
  return stream_call(
      __func__, stream, [&](Stream&) { return allocate(address, num_bytes, Space::kDevice); });
}
PECAN_CUDA_API cudaFreeAsync(void* address, cudaStream_t handle) {
  return stream_call(__func__, handle, [&](Stream& stream) {
    if (const Allocation* found = find_allocation(address)) {
      note_access(
          address, found->num_bytes, Access::kWrite, begin_operation(stream, "cudaFreeAsync"));
    }
    return release(address, Space::kDevice);
  });
}
PECAN_CUDA_API cudaMallocHost(void** address, std::size_t num_bytes) {
  return api_call(__func__, [&] { return allocate(address, num_bytes, Space::kPinned); });
}
PECAN_CUDA_API cudaHostAlloc(void** address, std::size_t num_bytes, unsigned) {
  return api_call(__func__, [&] { return allocate(address, num_bytes, Space::kPinned); });
}
PECAN_CUDA_API cudaFreeHost(void* address) {
  return device_call(__func__, [&] { return release(address, Space::kPinned); });
}
PECAN_CUDA_API cudaHostRegister(void* address, std::size_t num_bytes, unsigned) {
  return api_call(__func__, [&] { return register_memory(address, num_bytes); });
}
PECAN_CUDA_API cudaHostUnregister(void* address) {
  return device_call(__func__, [&] { return unregister_memory(address); });
}
PECAN_CUDA_API cudaHostGetDevicePointer(void** device_address, void* address, unsigned) {
  return api_call(__func__, [&] {
    if (find_allocation(address) == nullptr) return cudaErrorInvalidValue;
    *device_address = address;
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaMemGetInfo(std::size_t* num_free, std::size_t* total) {
  return api_call(__func__, [&] {
    *num_free = free_device_bytes();
    *total = settings().memory_bytes;
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  return api_call(__func__, [&] {
    *attributes = {};
    attributes->type = cudaMemoryTypeUnregistered;
    if (const Allocation* found = find_allocation(address)) {
      const bool is_device = found->space == Space::kDevice;
      attributes->type = is_device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
      attributes->devicePointer = const_cast<void*>(address);
      attributes->hostPointer = is_device ? nullptr : const_cast<void*>(address);
    }
    return cudaSuccess;
  });
}

PECAN_CUDA_API cudaMemcpy(void* to, const void* from, std::size_t num_bytes, cudaMemcpyKind kind) {
  return stream_call(__func__, nullptr, [&](Stream& stream) {
    return copy(stream, to, from, num_bytes, kind, HostWaits::kYes);
  });
}
PECAN_CUDA_API cudaMemcpyAsync(
    void* to, const void* from, std::size_t num_bytes, cudaMemcpyKind kind, cudaStream_t handle) {
  return stream_call(__func__, handle, [&](Stream& stream) {
    return copy(stream, to, from, num_bytes, kind, HostWaits::kNo);
  });
}
PECAN_CUDA_API cudaMemcpy2DAsync(void* to,
                                 std::size_t to_pitch,
                                 const void* from,
                                 std::size_t from_pitch,
                                 std::size_t width,
                                 std::size_t height,
                                 cudaMemcpyKind kind,
                                 cudaStream_t handle) {
  return stream_call(__func__, handle, [&](Stream& stream) {
    if (width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
    for (std::size_t row = 0; row < height; ++row) {
      const cudaError_t error = copy(stream,
                                     static_cast<char*>(to) + row * to_pitch,
                                     static_cast<const char*>(from) + row * from_pitch,
                                     width,
                                     kind,
                                     HostWaits::kNo);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaMemset(void* address, int value, std::size_t num_bytes) {
  return stream_call(
      __func__, nullptr, [&](Stream& stream) { return fill(stream, address, value, num_bytes); });
}
PECAN_CUDA_API cudaMemsetAsync(void* address,
                               int value,
                               std::size_t num_bytes,
                               cudaStream_t handle) {
  return stream_call(
      __func__, handle, [&](Stream& stream) { return fill(stream, address, value, num_bytes); });
}

// Streams and events.

PECAN_CUDA_API cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
  return api_call(__func__, [&] {
    if ((flags & ~static_cast<unsigned>(cudaStreamNonBlocking)) != 0) return cudaErrorInvalidValue;
    *handle = create_stream(device_of_thread, (flags & cudaStreamNonBlocking) == 0);
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaStreamCreate(cudaStream_t* handle) {
  return cudaStreamCreateWithFlags(handle, cudaStreamDefault);
}
PECAN_CUDA_API cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int) {
  return cudaStreamCreateWithFlags(handle, flags);
}
PECAN_CUDA_API cudaStreamDestroy(cudaStream_t handle) {
  if (handle == nullptr) return record_error(cudaErrorInvalidResourceHandle);
  // What was issued goes on; the handle is gone.
  wait_for_pending(handle);
  return api_call(__func__, [&] {
    if (find_stream(handle) == nullptr) return cudaErrorInvalidResourceHandle;
    destroy_stream(handle);
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaStreamSynchronize(cudaStream_t handle) {
  return stream_call(__func__, handle, [&](Stream& stream) {
    host_waited_for(stream.clock);
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaStreamQuery(cudaStream_t handle) {
  return api_call(__func__, [&] {
    Stream* stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    return query(stream->pending, stream->num_not_ready, stream->clock);
  });
}
PECAN_CUDA_API cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
  return api_call(__func__, [&] {
    Stream* stream = find_stream(handle);
    const Event* event = find_event(event_handle);
    if (stream == nullptr || event == nullptr) return cudaErrorInvalidResourceHandle;
    // An event that was never recorded is nothing to wait for.
    stream->clock.join(event->clock);
    stream->pending.insert(stream->pending.end(), event->pending.begin(), event->pending.end());
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  return stream_call(__func__, handle, [&](Stream& stream) {
    const ActAs acting(begin_operation(stream, "a host function"));
    function(data);
    return cudaSuccess;
  });
}

PECAN_CUDA_API cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned flags) {
  return api_call(__func__,
                  [&] { return make_event(handle, (flags & cudaEventDisableTiming) == 0); });
}
PECAN_CUDA_API cudaEventCreate(cudaEvent_t* handle) {
  return cudaEventCreateWithFlags(handle, cudaEventDefault);
}
PECAN_CUDA_API cudaEventDestroy(cudaEvent_t handle) {
  return api_call(__func__, [&] {
    Event* event = find_event(handle);
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    events().erase(event);
    delete event;
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
  return api_call(__func__, [&] {
    Event* event = find_event(handle);
    Stream* stream = find_stream(stream_handle);
    if (event == nullptr || stream == nullptr) return cudaErrorInvalidResourceHandle;
    begin_operation(*stream, "cudaEventRecord");
    event->clock = stream->clock;
    event->pending = stream->pending;
    event->num_not_ready = settings().num_not_ready;
    event->is_recorded = true;
    event->time = std::chrono::steady_clock::now();
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaEventSynchronize(cudaEvent_t handle) {
  PendingList pending;
  {
    const std::scoped_lock lock(device_mutex());
    if (const Event* event = find_event(handle)) pending = event->pending;
  }
  for (const auto& work : pending) work->wait();
  return api_call(__func__, [&] {
    const Event* event = find_event(handle);
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    host_waited_for(event->clock);
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaEventQuery(cudaEvent_t handle) {
  return api_call(__func__, [&] {
    Event* event = find_event(handle);
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    return query(event->pending, event->num_not_ready, event->clock);
  });
}
PECAN_CUDA_API cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return api_call(__func__, [&] {
    const Event* first = find_event(start);
    const Event* second = find_event(end);
    if (first == nullptr || second == nullptr || !first->has_timing || !second->has_timing ||
        !first->is_recorded || !second->is_recorded) {
      return cudaErrorInvalidResourceHandle;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(second->time - first->time).count();
    return cudaSuccess;
  });
}

// Kernels.

PECAN_CUDA_API cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return api_call(__func__, [&] {
    switch (attribute) {
      case cudaFuncAttributeMaxDynamicSharedMemorySize:
        if (value < 0 || value > static_cast<int>(settings().shared_bytes) - kStaticSharedBytes) {
          return cudaErrorInvalidValue;
        }
        kernel_attributes(kernel).max_dynamic_bytes = value;
        return cudaSuccess;
      case cudaFuncAttributePreferredSharedMemoryCarveout:
        return cudaSuccess;
      default:
        return cudaErrorNotSupported;
    }
  });
}
PECAN_CUDA_API cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  return api_call(__func__, [&] {
    *attributes = {};
    attributes->maxThreadsPerBlock = kMaxThreadsPerBlock;
    attributes->sharedSizeBytes = kStaticSharedBytes;
    attributes->maxDynamicSharedSizeBytes = kernel_attributes(kernel).max_dynamic_bytes;
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* num_blocks, const void*, int block_size, std::size_t dynamic_bytes, unsigned) {
  return api_call(__func__, [&] {
    if (block_size <= 0 || block_size > kMaxThreadsPerBlock) return cudaErrorInvalidValue;
    const int by_threads = kThreadsPerMultiprocessor / block_size;
    // Each block takes a kibibyte for the system.
    const int by_memory = kSharedBytesPerMultiprocessor / static_cast<int>(dynamic_bytes + 1024);
    *num_blocks = std::min({by_threads, by_memory, kBlocksPerMultiprocessor});
    return cudaSuccess;
  });
}
PECAN_CUDA_API cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* num_blocks,
                                                             const void* kernel,
                                                             int block_size,
                                                             std::size_t dynamic_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
      num_blocks, kernel, block_size, dynamic_bytes, cudaOccupancyDefault);
}
// A pointer without the types of the parameters cannot be called.
PECAN_CUDA_API cudaLaunchKernel(const void*, dim3, dim3, void**, std::size_t, cudaStream_t) {
  return record_error(cudaErrorNotSupported);
}
PECAN_CUDA_API cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  return record_error(cudaErrorNotSupported);
}
