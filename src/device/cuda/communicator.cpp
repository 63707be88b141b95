#include "device/cuda/communicator.hpp"

#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <pecan/core/error.hpp>
#include <pecan/core/log.hpp>

#include "device/cuda/check.hpp"
#include "device/cuda/stream.hpp"

namespace pecan::device::cuda {
namespace {

using Clock = std::chrono::steady_clock;

void check(ncclResult_t code, std::string_view call) {
  PECAN_VALIDATE(code == ncclSuccess || code == ncclInProgress,
                 CommError,
                 "{} failed: {} (code {}; {})",
                 call,
                 ncclGetErrorString(code),
                 int(code),
                 ncclGetLastError(nullptr));
}

/// The first that keeps to the order in which a host begins collectives of several communicators;
/// see prepare_environment().
constexpr int kOldestNccl = NCCL_VERSION(2, 26, 0);

void refuse_old_library() {
  int version = 0;
  check(ncclGetVersion(&version), "ncclGetVersion");
  PECAN_VALIDATE(version >= kOldestNccl,
                 CommError,
                 "NCCL of version code {} is older than 2.26, of which several communicators on "
                 "one device may wait for each other for ever; install a newer libnccl.so.2",
                 version);
}

/// Calls never block: what takes longer is in progress, and asked after until it is done. So one
/// thread can always end what another waits for.
class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(int ordinal, const CommunicatorId& id, int size, int rank) : ordinal_(ordinal) {
    ncclUniqueId unique{};
    static_assert(sizeof unique.internal == sizeof id.bytes);
    std::memcpy(unique.internal, id.bytes.data(), id.bytes.size());
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    check(ncclCommInitRankConfig(&communicator_, size, unique, rank, &config),
          "ncclCommInitRankConfig");
  }

  ~NcclCommunicator() override {
    // Of the last messages the other members may still need something.
    constexpr std::chrono::seconds kPatience{10};
    if (communicator_ == nullptr) return;
    if (cudaSetDevice(ordinal_) == cudaSuccess &&
        is_over(ncclCommFinalize(communicator_), Clock::now() + kPatience)) {
      const ncclResult_t code = ncclCommDestroy(communicator_);
      if (code != ncclSuccess)
        PECAN_LOG(kWarn, "[comm] ncclCommDestroy failed: {}", ncclGetErrorString(code));
      return;
    }
    PECAN_LOG(kWarn, "[comm] a communicator is given up with messages under way");
    abort();
  }

  bool ready() override {
    const std::scoped_lock lock(mutex_);
    return state("ncclCommInitRankConfig") == ncclSuccess;
  }

  void exchange(void* stream, std::span<const DeviceMessage> messages) override {
    if (messages.empty()) return;
    const std::scoped_lock lock(mutex_);
    refuse_aborted();
    cuda::check(cudaSetDevice(ordinal_), "cudaSetDevice");
    const cudaStream_t queue = static_cast<StreamState*>(stream)->stream;
    check(ncclGroupStart(), "ncclGroupStart");
    ncclResult_t failed = ncclSuccess;
    for (const DeviceMessage& message : messages) {
      const bool sends = message.direction == DeviceMessage::Direction::kSend;
      const ncclResult_t code = sends ? ncclSend(message.memory,
                                                 message.num_bytes,
                                                 ncclUint8,
                                                 message.peer,
                                                 communicator_,
                                                 queue)
                                      : ncclRecv(message.memory,
                                                 message.num_bytes,
                                                 ncclUint8,
                                                 message.peer,
                                                 communicator_,
                                                 queue);
      if (code != ncclSuccess && code != ncclInProgress && failed == ncclSuccess) failed = code;
    }
    const ncclResult_t ended = ncclGroupEnd();  // also where a message was refused
    check(failed, "ncclSend or ncclRecv");
    check(ended, "ncclGroupEnd");
    // Nothing is in the stream before.
    while (state("ncclGroupEnd") == ncclInProgress) std::this_thread::yield();
  }

  std::optional<std::string> failure() override {
    // Whoever holds it is told by itself, and may do so until this thread aborts.
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return {};
    if (communicator_ == nullptr) return "it was aborted";
    ncclResult_t found = ncclSuccess;
    const ncclResult_t code = ncclCommGetAsyncError(communicator_, &found);
    if (code != ncclSuccess) found = code;
    return found == ncclSuccess || found == ncclInProgress ? "" : ncclGetErrorString(found);
  }

  void abort() noexcept override {
    aborting_ = true;  // ends an exchange() that holds the lock
    const std::scoped_lock lock(mutex_);
    if (communicator_ == nullptr) return;
    (void)cudaSetDevice(ordinal_);
    const ncclResult_t code = ncclCommAbort(std::exchange(communicator_, nullptr));
    if (code != ncclSuccess && code != ncclInProgress)
      PECAN_LOG(kWarn, "[comm] ncclCommAbort failed: {}", ncclGetErrorString(code));
  }

 private:
  void refuse_aborted() const {
    PECAN_VALIDATE(!aborting_ && communicator_ != nullptr, CommError, "NCCL was aborted");
  }

  /// ncclSuccess or ncclInProgress; CommError for any other and after abort().
  ncclResult_t state(std::string_view call) {
    refuse_aborted();
    ncclResult_t found = ncclSuccess;
    check(ncclCommGetAsyncError(communicator_, &found), "ncclCommGetAsyncError");
    check(found, call);
    return found;
  }

  bool is_over(ncclResult_t code, Clock::time_point limit) {
    while (code == ncclInProgress && Clock::now() < limit) {
      std::this_thread::yield();
      if (ncclCommGetAsyncError(communicator_, &code) != ncclSuccess) return false;
    }
    return code == ncclSuccess;
  }

  const int ordinal_;
  std::mutex mutex_;
  std::atomic<bool> aborting_ = false;
  ncclComm_t communicator_ = nullptr;  ///< null after abort()
};

}  // namespace

CommunicatorId new_communicator_id() {
  ncclUniqueId unique{};
  check(ncclGetUniqueId(&unique), "ncclGetUniqueId");
  CommunicatorId id;
  std::memcpy(id.bytes.data(), unique.internal, id.bytes.size());
  return id;
}

std::unique_ptr<Communicator> make_communicator(int ordinal,
                                                const CommunicatorId& id,
                                                int size,
                                                int rank) {
  refuse_old_library();
  return std::make_unique<NcclCommunicator>(ordinal, id, size, rank);
}

}  // namespace pecan::device::cuda
