/// The CUDA runtime as a Backend.

#include "device/cuda/backend.hpp"

#include <atomic>
#include <memory>

#include <cuda_runtime_api.h>

#include <pecan/core/error.hpp>
#include <pecan/core/log.hpp>

#include <pecan/device/backend.hpp>

#include "device/cuda/check.hpp"
#include "device/cuda/communicator.hpp"
#include "device/cuda/stream.hpp"

namespace pecan::device::cuda {

void fail(cudaError_t code, std::string_view call) {
  throw DeviceError(fmt::format("{} failed: {} ({}, code {})",
                                call,
                                cudaGetErrorString(code),
                                cudaGetErrorName(code),
                                int(code)));
}

namespace {

void choose(int ordinal) {
  check(cudaSetDevice(ordinal), "cudaSetDevice");
}

/// For destructors: one after another they would say the same of a lost device.
void warn(cudaError_t code, std::string_view call) noexcept {
  if (code == cudaSuccess) return;
  PECAN_LOG(kWarn, "[device] {} failed: {} (code {})", call, cudaGetErrorString(code), int(code));
}

bool reads_pageable_memory(int ordinal) {
  int answer = 0;
  check(cudaDeviceGetAttribute(&answer, cudaDevAttrPageableMemoryAccess, ordinal),
        "cudaDeviceGetAttribute");
  return answer != 0;
}

bool is_registered(const std::byte* memory) {
  cudaPointerAttributes found{};
  check(cudaPointerGetAttributes(&found, memory), "cudaPointerGetAttributes");
  return found.type != cudaMemoryTypeUnregistered;
}

cudaStream_t stream_of(void* stream) {
  return static_cast<StreamState*>(stream)->stream;
}
cudaEvent_t event_of(void* event) {
  return static_cast<cudaEvent_t>(event);
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const Kernels& kernels) : kernels_(kernels) {}

  Result<int> count_devices() override {
    int count = 0;  // the runtime leaves it as it is where there is no driver
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code == cudaErrorInsufficientDriver) {
      int driver = 0;
      (void)cudaDriverGetVersion(&driver);
      return Status::failure(StatusCode::kNotFound,
                             driver == 0 ? std::string("there is no CUDA driver on this machine")
                                         : fmt::format("the CUDA driver supports CUDA {}.{} at "
                                                       "most, this build needs {}.{}; update it",
                                                       driver / 1000,
                                                       driver % 1000 / 10,
                                                       CUDART_VERSION / 1000,
                                                       CUDART_VERSION % 1000 / 10));
    }
    if (code == cudaErrorNoDevice || (code == cudaSuccess && count == 0)) {
      return Status::failure(StatusCode::kNotFound,
                             "the CUDA driver shows no device; is CUDA_VISIBLE_DEVICES empty?");
    }
    if (code != cudaSuccess) {
      return Status::failure(
          StatusCode::kIo,
          fmt::format("the CUDA driver fails: {} (code {})", cudaGetErrorString(code), int(code)));
    }
    return count;
  }

  DeviceProperties properties(int ordinal) override {
    cudaDeviceProp found{};
    check(cudaGetDeviceProperties(&found, ordinal), "cudaGetDeviceProperties");
    return {.name = found.name,
            .address =
                (std::int64_t(found.pciDomainID) << 16) | (found.pciBusID << 8) | found.pciDeviceID,
            .compute_major = found.major,
            .multiprocessors = found.multiProcessorCount,
            .shared_bytes = found.sharedMemPerBlockOptin};
  }

  std::byte* allocate(int ordinal, std::size_t num_bytes) override {
    choose(ordinal);
    void* memory = nullptr;
    const cudaError_t code = cudaMalloc(&memory, num_bytes);
    if (code == cudaErrorMemoryAllocation) {
      std::size_t left = 0, total = 0;
      (void)cudaGetLastError();  // else the next launch would report it
      (void)cudaMemGetInfo(&left, &total);
      throw DeviceError(fmt::format(
          "no memory for a buffer of {} bytes on CUDA device {}, which has {} of {} bytes left; "
          "use a smaller model or micro-batch, or more ranks to share it",
          num_bytes,
          ordinal,
          left,
          total));
    }
    check(code, "cudaMalloc");
    num_allocations_.fetch_add(1, std::memory_order_relaxed);
    return static_cast<std::byte*>(memory);
  }

  void free(int ordinal, std::byte* memory) noexcept override {
    warn(cudaSetDevice(ordinal), "cudaSetDevice");
    warn(cudaFree(memory), "cudaFree");
  }

  std::int64_t num_allocations() override {
    return num_allocations_.load(std::memory_order_relaxed) + BlasHandle::num_made();
  }

  void register_host(int ordinal, std::byte* memory, std::size_t num_bytes) override {
    choose(ordinal);
    check(cudaHostRegister(memory, num_bytes, cudaHostRegisterPortable), "cudaHostRegister");
  }

  void unregister_host(int ordinal, std::byte* memory) noexcept override {
    warn(cudaSetDevice(ordinal), "cudaSetDevice");
    warn(cudaHostUnregister(memory), "cudaHostUnregister");
  }

  void* create_stream(int ordinal) override {
    choose(ordinal);
    auto state = std::make_unique<StreamState>();
    check(cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking),
          "cudaStreamCreateWithFlags");
    return state.release();
  }

  void prepare_products(int ordinal, void* stream) override {
    choose(ordinal);
    (void)static_cast<StreamState*>(stream)->products();
  }

  void destroy_stream(int ordinal, void* stream) noexcept override {
    warn(cudaSetDevice(ordinal), "cudaSetDevice");
    const std::unique_ptr<StreamState> state(static_cast<StreamState*>(stream));
    warn(cudaStreamSynchronize(state->stream), "cudaStreamSynchronize");
    state->blas = {};
    warn(cudaStreamDestroy(state->stream), "cudaStreamDestroy");
  }

  void synchronize(int ordinal, void* stream) override {
    choose(ordinal);
    check(cudaStreamSynchronize(stream_of(stream)), "cudaStreamSynchronize");
  }

  void* create_event(int ordinal) override {
    choose(ordinal);
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    return event;
  }

  void destroy_event(int ordinal, void* event) noexcept override {
    warn(cudaSetDevice(ordinal), "cudaSetDevice");
    warn(cudaEventDestroy(event_of(event)), "cudaEventDestroy");
  }

  void record(int ordinal, void* event, void* stream) override {
    choose(ordinal);
    check(cudaEventRecord(event_of(event), stream_of(stream)), "cudaEventRecord");
  }

  void stream_wait(int ordinal, void* stream, void* event) override {
    choose(ordinal);
    check(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0), "cudaStreamWaitEvent");
  }

  bool query(int ordinal, void* event) override {
    choose(ordinal);
    const cudaError_t code = cudaEventQuery(event_of(event));
    if (code == cudaErrorNotReady) return false;
    check(code, "cudaEventQuery");
    return true;
  }

  void synchronize_event(int ordinal, void* event) override {
    choose(ordinal);
    check(cudaEventSynchronize(event_of(event)), "cudaEventSynchronize");
  }

  void upload(int ordinal,
              void* stream,
              const std::byte* host,
              std::byte* memory,
              std::size_t num_bytes) override {
    choose(ordinal);
    check(cudaMemcpyAsync(memory, host, num_bytes, cudaMemcpyHostToDevice, stream_of(stream)),
          "cudaMemcpyAsync to the device");
    // The runtime stages pageable memory before it returns, but not where the GPU reads it itself.
    if (reads_pageable_memory(ordinal) && !is_registered(host))
      check(cudaStreamSynchronize(stream_of(stream)), "cudaStreamSynchronize");
  }

  void download(int ordinal,
                void* stream,
                const std::byte* memory,
                std::byte* host,
                std::size_t num_bytes) override {
    choose(ordinal);
    check(cudaMemcpyAsync(host, memory, num_bytes, cudaMemcpyDeviceToHost, stream_of(stream)),
          "cudaMemcpyAsync to the host");
  }

  void copy(int ordinal,
            void* stream,
            const std::byte* from,
            std::byte* to,
            std::size_t num_bytes) override {
    choose(ordinal);
    check(cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDeviceToDevice, stream_of(stream)),
          "cudaMemcpyAsync on the device");
  }

  void reduce_in_order(int ordinal,
                       void* stream,
                       DType dtype,
                       Reduction reduction,
                       const MemberPieces& pieces,
                       std::byte* output,
                       std::int64_t num_elements) override {
    choose(ordinal);
    kernels_.reduce_in_order(stream_of(stream), dtype, reduction, pieces, output, num_elements);
  }

  CommunicatorId new_communicator_id() override { return cuda::new_communicator_id(); }

  std::unique_ptr<Communicator> make_communicator(int ordinal,
                                                  const CommunicatorId& id,
                                                  int size,
                                                  int rank) override {
    choose(ordinal);
    return cuda::make_communicator(ordinal, id, size, rank);
  }

  const void* operators() override { return kernels_.operators; }

 private:
  const Kernels kernels_;
  std::atomic<std::int64_t> num_allocations_ = 0;
};

}  // namespace

Backend& make_backend(const Kernels& kernels) {
  static CudaBackend backend(kernels);
  return backend;
}

}  // namespace pecan::device::cuda
