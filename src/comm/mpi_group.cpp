#include <array>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <memory>
#include <thread>
#include <utility>

#include <mpi.h>

#include <pecan/core/error.hpp>
#include <pecan/core/log.hpp>

#include <pecan/comm/group.hpp>

#include "comm/peer_group.hpp"

namespace pecan::comm {
namespace {

/// The one place that looks at what MPI returns.
void check(int code, std::string_view call) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  throw CommError(fmt::format("{} failed with code {}: {}",
                              call,
                              code,
                              std::string_view(text.data(), std::size_t(length))));
}

class MpiRequest final : public Transport::Request {
 public:
  enum class Direction { kSend, kReceive };
  explicit MpiRequest(Direction direction, std::size_t num_bytes)
      : direction_(direction), num_bytes_(num_bytes) {}
  ~MpiRequest() override {
    if (handle == MPI_REQUEST_NULL) return;
    // Given up after an abort, when the process makes no more progress in MPI until MPI_Abort.
    if (direction_ == Direction::kReceive) MPI_Cancel(&handle);
    MPI_Request_free(&handle);
  }
  bool test() override {
    if (handle == MPI_REQUEST_NULL) return true;
    int complete = 0;
    MPI_Status status{};
    check(MPI_Test(&handle, &complete, &status), "MPI_Test");
    if (complete == 0) return false;
    if (direction_ == Direction::kReceive) {
      int count = 0;
      check(MPI_Get_count(&status, MPI_BYTE, &count), "MPI_Get_count");
      PECAN_VALIDATE(
          std::size_t(count) == num_bytes_,
          CommError,
          "member {} sent {} bytes where {} are expected: the counts of two members differ",
          status.MPI_SOURCE,
          count,
          num_bytes_);
    }
    return true;
  }
  MPI_Request handle = MPI_REQUEST_NULL;

 private:
  Direction direction_;
  std::size_t num_bytes_;
};

/// A communicator of its own.
class MpiTransport final : public Transport {
 public:
  MpiTransport(MPI_Comm communicator, std::shared_ptr<AbortFlag> abort_flag)
      : communicator_(communicator), abort_flag_(std::move(abort_flag)) {
    check(MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check(MPI_Comm_size(communicator_, &size_), "MPI_Comm_size");
    check(MPI_Comm_rank(communicator_, &rank_), "MPI_Comm_rank");
  }
  ~MpiTransport() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    // Freeing is collective: not for a member that leaves alone.
    if (finalized != 0 || abort_flag_->raised() || std::uncaught_exceptions() > 0) return;
    if (MPI_Comm_free(&communicator_) != MPI_SUCCESS) {
      PECAN_LOG(kWarn,
                "[comm] MPI_Comm_free failed; the communicator stays until the process ends");
    }
  }
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] std::unique_ptr<Request> send(std::span<const std::byte> data,
                                              int to,
                                              int tag) override {
    PECAN_EXPECTS(std::this_thread::get_id() == thread_);
    auto request = std::make_unique<MpiRequest>(MpiRequest::Direction::kSend, data.size());
    check(MPI_Isend(
              data.data(), int(data.size()), MPI_BYTE, to, tag, communicator_, &request->handle),
          "MPI_Isend");
    return request;
  }
  [[nodiscard]] std::unique_ptr<Request> receive(std::span<std::byte> data,
                                                 int from,
                                                 int tag) override {
    PECAN_EXPECTS(std::this_thread::get_id() == thread_);
    auto request = std::make_unique<MpiRequest>(MpiRequest::Direction::kReceive, data.size());
    check(MPI_Irecv(
              data.data(), int(data.size()), MPI_BYTE, from, tag, communicator_, &request->handle),
          "MPI_Irecv");
    return request;
  }
  [[nodiscard]] bool is_on_one_node() override {
    MPI_Comm node = MPI_COMM_NULL;
    check(MPI_Comm_split_type(communicator_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node),
          "MPI_Comm_split_type");
    int num_members = 0;
    check(MPI_Comm_size(node, &num_members), "MPI_Comm_size");
    check(MPI_Comm_free(&node), "MPI_Comm_free");
    return num_members == size_;
  }
  [[nodiscard]] std::unique_ptr<Transport> split(std::span<const int> members, int index) override {
    MPI_Comm part = MPI_COMM_NULL;
    check(MPI_Comm_split(communicator_, members.front(), index, &part), "MPI_Comm_split");
    return std::make_unique<MpiTransport>(part, abort_flag_);
  }

 private:
  MPI_Comm communicator_;
  std::shared_ptr<AbortFlag> abort_flag_;  // shared by all groups of the process
  std::thread::id thread_ = std::this_thread::get_id();
  int size_ = 0;
  int rank_ = 0;
};

/// Returns when all processes have called it. MPI_Finalize would wait as well, but in a fence of
/// PMIx: where a process aborts the job meanwhile, PMIx 4.2 ends the fence once for each process
/// that it loses, on which mpirun crashes or hangs.
void wait_for_all() {
  constexpr std::chrono::microseconds kNap{50};
  MPI_Request request = MPI_REQUEST_NULL;
  int complete = 0;
  int code = MPI_Ibarrier(MPI_COMM_WORLD, &request);
  while (code == MPI_SUCCESS && complete == 0) {
    code = MPI_Test(&request, &complete, MPI_STATUS_IGNORE);
    if (complete == 0) std::this_thread::sleep_for(kNap);
  }
  if (code != MPI_SUCCESS) PECAN_LOG(kWarn, "[comm] waiting for all ranks to end failed");
}

}  // namespace

struct MpiEnvironment::State {
  std::shared_ptr<AbortFlag> abort_flag = std::make_shared<AbortFlag>();  // with all groups
  int exceptions_at_start = std::uncaught_exceptions();
};

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) : state_(std::make_unique<State>()) {
  int initialized = 0;
  check(MPI_Initialized(&initialized), "MPI_Initialized");
  PECAN_VALIDATE(initialized == 0,
                 CommError,
                 "MPI is initialised already: a process makes one MpiEnvironment, once");
  // Spinning ranks that outnumber the cores slow each other down a thousandfold.
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  int provided = MPI_THREAD_SINGLE;
  check(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  PECAN_VALIDATE(provided >= MPI_THREAD_FUNNELED,
                 CommError,
                 "this MPI has thread level {}, but level {} (funneled) is needed, since other "
                 "threads write checkpoints; use an MPI built with threads",
                 provided,
                 MPI_THREAD_FUNNELED);
}

MpiEnvironment::~MpiEnvironment() {
  // MPI_Finalize would wait for members that wait for this one.
  if (state_->abort_flag->raised()) {
    PECAN_LOG(kError, "[comm] ending all ranks, since communication was aborted");
    abort(int(ExitCode::kWatchdog));
  }
  if (std::uncaught_exceptions() > state_->exceptions_at_start) {
    PECAN_LOG(kError, "[comm] ending all ranks, since an exception leaves the MPI environment");
    abort(int(ExitCode::kInternal));
  }
  wait_for_all();
  if (MPI_Finalize() != MPI_SUCCESS) PECAN_LOG(kWarn, "[comm] MPI_Finalize failed");
}

std::unique_ptr<Group> MpiEnvironment::world(GroupOptions options) {
  MPI_Comm communicator = MPI_COMM_NULL;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &communicator), "MPI_Comm_dup");
  auto world =
      std::make_unique<PeerGroup>(std::make_unique<MpiTransport>(communicator, state_->abort_flag),
                                  state_->abort_flag,
                                  options);
  world->open_window();
  return world;
}

void MpiEnvironment::abort(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace pecan::comm
