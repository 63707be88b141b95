#pragma once
/// What a device other than the host CPU must be able to do; implemented by a library that is
/// loaded at run time, so that no program needs a driver to start.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include <pecan/core/error.hpp>
#include <pecan/core/tensor.hpp>

#include <pecan/device/communicator.hpp>
#include <pecan/device/device.hpp>

namespace pecan::device {

/// What a device says of itself.
struct DeviceProperties {
  std::string name;
  std::int64_t address = 0;  ///< on the host's bus: the same in every process
  int compute_major = 0;     ///< compute capability
  int multiprocessors = 0;
  std::size_t shared_bytes = 0;  ///< of a block at most
};

enum class Reduction : std::uint8_t { kSum, kMax, kMin };

/// Pieces of equal length, one of each member of a group, in ascending order of the members.
struct MemberPieces {
  const std::byte* own = nullptr;
  const std::byte* others = nullptr;  ///< of members 0, 1, ... without this one
  std::size_t stride = 0;             ///< in bytes, from one of the others to the next
  int member = 0;                     ///< that `own` is of
  int num_members = 1;
};

/// Calls of one runtime on the devices numbered from 0. A failed call throws DeviceError with the
/// runtime's own words, but for those that give something back: they are made by destructors, and
/// log. Streams and events are opaque. Safe to call from any thread.
class Backend {
 public:
  Backend() = default;
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  /// Number of devices that can be used, or why there is none.
  [[nodiscard]] virtual Result<int> count_devices() = 0;
  [[nodiscard]] virtual DeviceProperties properties(int ordinal) = 0;

  /// Memory that is not cleared. DeviceError naming the size if there is none left. May wait for
  /// everything that the device does: never called inside of a step.
  [[nodiscard]] virtual std::byte* allocate(int ordinal, std::size_t num_bytes) = 0;
  virtual void free(int ordinal, std::byte* memory) noexcept = 0;
  /// Allocations made so far, in all, and handles that bring device memory of their own: tests see
  /// by it that a step makes none.
  [[nodiscard]] virtual std::int64_t num_allocations() = 0;
  /// Locks host memory, which the caller owns, so that copies of it go on by themselves.
  virtual void register_host(int ordinal, std::byte* memory, std::size_t num_bytes) = 0;
  virtual void unregister_host(int ordinal, std::byte* memory) noexcept = 0;

  [[nodiscard]] virtual void* create_stream(int ordinal) = 0;
  /// Makes what matrix products on the stream need, which is else made at the first.
  virtual void prepare_products(int ordinal, void* stream) = 0;
  virtual void destroy_stream(int ordinal, void* stream) noexcept = 0;
  virtual void synchronize(int ordinal, void* stream) = 0;
  [[nodiscard]] virtual void* create_event(int ordinal) = 0;
  virtual void destroy_event(int ordinal, void* event) noexcept = 0;
  virtual void record(int ordinal, void* event, void* stream) = 0;
  virtual void stream_wait(int ordinal, void* stream, void* event) = 0;
  [[nodiscard]] virtual bool query(int ordinal, void* event) = 0;
  virtual void synchronize_event(int ordinal, void* event) = 0;

  /// In the stream's order. Host memory that is not registered has been read when upload returns.
  virtual void upload(int ordinal,
                      void* stream,
                      const std::byte* host,
                      std::byte* memory,
                      std::size_t num_bytes) = 0;
  virtual void download(int ordinal,
                        void* stream,
                        const std::byte* memory,
                        std::byte* host,
                        std::size_t num_bytes) = 0;

  /// Within one device, in the stream's order; the two do not overlap.
  virtual void copy(
      int ordinal, void* stream, const std::byte* from, std::byte* to, std::size_t num_bytes) = 0;

  /// output[i] = pieces of member 0 [i] op of member 1 [i] op ..., from left to right, in the
  /// element type (bf16: in f32, rounded once; integers wrap round; a NaN wins every maximum and
  /// minimum), in the stream's order. `output` may be `own`. u8 is not summed.
  virtual void reduce_in_order(int ordinal,
                               void* stream,
                               DType dtype,
                               Reduction reduction,
                               const MemberPieces& pieces,
                               std::byte* output,
                               std::int64_t num_elements) = 0;

  /// To be passed on to all members of a communicator, which one of them makes it for.
  [[nodiscard]] virtual CommunicatorId new_communicator_id() = 0;
  /// Begins to make member `rank` of `size`, one on a device; see Communicator::ready. CommError if
  /// that cannot be.
  [[nodiscard]] virtual std::unique_ptr<Communicator> make_communicator(int ordinal,
                                                                        const CommunicatorId& id,
                                                                        int size,
                                                                        int rank) = 0;

  /// The table of kernels, which the layer of operators defines and casts this to.
  [[nodiscard]] virtual const void* operators() = 0;
};

/// The first function that a library of kernels exports under kBackendSymbol: its backend, which
/// lives as long as the process, or null if `build` (build_name()) is not the library's own.
using BackendEntry = Backend* (*)(const char* build);
inline constexpr const char* kBackendSymbol = "pecan_cuda_backend";
/// Program and library exchange C++ objects: both must come from one build.
[[nodiscard]] std::string build_name();

/// Sets in the environment, where it does not say otherwise, what CUDA's libraries read there. For
/// main(), before there are threads.
void prepare_environment();

/// Loads libpecan_cuda.so, once a process, and gives CUDA device `ordinal`; or says in a sentence
/// why there is none. It is looked for at $PECAN_CUDA_LIBRARY if that is set, else beside the
/// program, in ../lib from there, and where the system's loader looks.
[[nodiscard]] Result<Device> open_cuda(int ordinal);

}  // namespace pecan::device
