/// The part of NCCL that Pecan calls, among processes (or threads) of one machine that share a file
/// below TMPDIR. As on a device a call returns when the work is issued: each communicator has a
/// thread that moves the data, and a stream goes on when that is done.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <nccl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "checker.hpp"
#include "errors.hpp"
#include "memory.hpp"
#include "report.hpp"
#include "streams.hpp"

namespace pecan::emulation {
namespace {

constexpr int kMaxRanks = 16;
constexpr std::size_t kPartBytes = std::size_t{256} << 10;
constexpr std::size_t kMailBytes = std::size_t{64} << 10;

enum class Kind : std::int32_t {
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kBroadcast,
  kReduce,
  kSend,
  kReceive
};

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::kAllReduce:
      return "ncclAllReduce";
    case Kind::kReduceScatter:
      return "ncclReduceScatter";
    case Kind::kAllGather:
      return "ncclAllGather";
    case Kind::kBroadcast:
      return "ncclBroadcast";
    case Kind::kReduce:
      return "ncclReduce";
    case Kind::kSend:
      return "ncclSend";
    case Kind::kReceive:
      return "ncclRecv";
  }
  return "";
}

bool is_point_to_point(Kind kind) {
  return kind == Kind::kSend || kind == Kind::kReceive;
}
bool reduces(Kind kind) {
  return kind == Kind::kAllReduce || kind == Kind::kReduceScatter || kind == Kind::kReduce;
}

/// What a rank takes part in; all must say the same.
struct Announcement {
  Kind kind;
  std::int32_t type;
  std::int32_t reduction;
  std::int32_t root;
  std::uint64_t count;
  bool operator==(const Announcement&) const = default;
};

/// One piece of a message on its way from one rank to another.
struct Mailbox {
  std::atomic<std::uint64_t> num_sent;
  std::atomic<std::uint64_t> num_received;
  std::uint64_t num_bytes;
  std::uint64_t message_bytes;
  char data[kMailBytes];
};

/// The file. It starts as zeros, which is a valid state.
struct SharedState {
  std::atomic<int> num_attached;
  std::atomic<int> num_arrived;
  std::atomic<std::uint32_t> phase;
  std::atomic<int> has_failed;
  std::int32_t devices[kMaxRanks];  ///< of the one host that there is; of those attached
  Announcement announcements[kMaxRanks];
  char parts[kMaxRanks][kPartBytes];
  Mailbox mail[kMaxRanks][kMaxRanks];
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

std::size_t type_bytes(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    default:
      return 0;
  }
}

/// a = a o b, rounded to the type after each rank, as a ring does it.
template <typename T, typename Wide = T>
void reduce_as(void* to, const void* from, std::size_t count, ncclRedOp_t reduction) {
  auto* a = static_cast<T*>(to);
  const auto* b = static_cast<const T*>(from);
  for (std::size_t index = 0; index < count; ++index) {
    const Wide x = static_cast<Wide>(a[index]);
    const Wide y = static_cast<Wide>(b[index]);
    Wide result = static_cast<Wide>(x + y);
    if (reduction == ncclProd) result = static_cast<Wide>(x * y);
    if (reduction == ncclMax) result = x < y ? y : x;
    if (reduction == ncclMin) result = y < x ? y : x;
    a[index] = static_cast<T>(result);
  }
}

void reduce_into(
    void* to, const void* from, std::size_t count, ncclDataType_t type, ncclRedOp_t reduction) {
  switch (type) {
    case ncclInt8:
      return reduce_as<std::int8_t>(to, from, count, reduction);
    case ncclUint8:
      return reduce_as<std::uint8_t>(to, from, count, reduction);
    case ncclInt32:
      return reduce_as<std::int32_t>(to, from, count, reduction);
    case ncclUint32:
      return reduce_as<std::uint32_t>(to, from, count, reduction);
    case ncclInt64:
      return reduce_as<std::int64_t>(to, from, count, reduction);
    case ncclUint64:
      return reduce_as<std::uint64_t>(to, from, count, reduction);
    case ncclFloat16:
      return reduce_as<__half, float>(to, from, count, reduction);
    case ncclBfloat16:
      return reduce_as<__nv_bfloat16, float>(to, from, count, reduction);
    case ncclFloat32:
      return reduce_as<float>(to, from, count, reduction);
    case ncclFloat64:
      return reduce_as<double>(to, from, count, reduction);
    default:
      return;
  }
}

template <typename T, typename Wide = T>
void divide_as(void* values, std::size_t count, int divisor) {
  auto* all = static_cast<T*>(values);
  for (std::size_t index = 0; index < count; ++index) {
    all[index] = static_cast<T>(static_cast<Wide>(all[index]) / static_cast<Wide>(divisor));
  }
}

void divide(void* values, std::size_t count, ncclDataType_t type, int divisor) {
  switch (type) {
    case ncclFloat16:
      return divide_as<__half, float>(values, count, divisor);
    case ncclBfloat16:
      return divide_as<__nv_bfloat16, float>(values, count, divisor);
    case ncclFloat32:
      return divide_as<float>(values, count, divisor);
    case ncclFloat64:
      return divide_as<double>(values, count, divisor);
    case ncclInt32:
      return divide_as<std::int32_t>(values, count, divisor);
    case ncclInt64:
      return divide_as<std::int64_t>(values, count, divisor);
    default:
      return;
  }
}

/// A call, checked and enqueued.
struct Task {
  Kind kind;
  const void* from;
  void* to;
  std::size_t count;
  ncclDataType_t type;
  ncclRedOp_t reduction;
  int root;  ///< or the peer
  ncclComm_t communicator;
  cudaStream_t stream;
};

struct Batch {
  std::vector<Task> tasks;
  PendingList needed;
  std::shared_ptr<PendingWork> work;
};

thread_local int group_depth = 0;
thread_local std::vector<Task> group_tasks;

// As in NCCL that of the process: a communicator that does not block fails in a thread of its own.
struct LastFailure {
  std::mutex mutex;
  std::string text;
};
LastFailure& last_failure() {
  static auto* failure = new LastFailure;
  return *failure;
}
void say(std::string text) {
  const std::scoped_lock lock(last_failure().mutex);
  last_failure().text = std::move(text);
}

// Files whose communicator was never made; nobody else removes them.
struct OpenFiles {
  std::mutex mutex;
  std::set<std::string> paths;
  bool is_watched = false;
};
OpenFiles& open_files() {
  static auto* files = new OpenFiles;
  return *files;
}
void remove_open_files() {
  for (const std::string& path : open_files().paths) unlink(path.c_str());
}

}  // namespace
}  // namespace pecan::emulation

using namespace pecan::emulation;

/// One rank's end of a communicator.
struct ncclComm {
  ncclComm(
      SharedState* shared, std::string path, int device, int rank, int num_ranks, bool blocking)
      : shared_(shared),
        path_(std::move(path)),
        device_(device),
        rank_(rank),
        num_ranks_(num_ranks),
        blocking_(blocking) {}
  ncclComm(const ncclComm&) = delete;
  ncclComm& operator=(const ncclComm&) = delete;
  ~ncclComm() {
    if (worker_.joinable()) {
      {
        const std::scoped_lock lock(mutex_);
        is_closing_ = true;
      }
      changed_.notify_all();
      worker_.join();
    }
    munmap(shared_, sizeof(SharedState));
  }

  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int num_ranks() const { return num_ranks_; }
  [[nodiscard]] ncclResult_t error() const {
    const ncclResult_t own = error_.load();
    if (own != ncclSuccess || !has_joined_.load()) return own;  // join() says what stopped it
    return shared_->has_failed.load() != 0 ? ncclRemoteError : ncclSuccess;
  }
  /// What ncclCommGetAsyncError says: calls of a communicator that does not block are over later.
  [[nodiscard]] ncclResult_t state() {
    if (const ncclResult_t failed = error()) return failed;
    if (!has_joined_.load()) return ncclInProgress;
    if (num_in_progress_ == 0) return ncclSuccess;
    --num_in_progress_;
    return ncclInProgress;
  }
  /// The call that was made goes on for as many queries as settings ask for.
  ncclResult_t begin_call() {
    if (blocking_) return ncclSuccess;
    num_in_progress_ = settings().num_not_ready;
    return num_in_progress_ == 0 ? ncclSuccess : ncclInProgress;
  }
  [[nodiscard]] bool in_progress() const { return !has_joined_.load() || num_in_progress_ > 0; }

  /// Waits for all ranks, or goes on in a thread; then the communicator works.
  bool join_others() {
    if (blocking_ && !join()) return false;
    worker_ = std::thread([this] {
      if (blocking_ || join()) work();
    });
    return true;
  }
  void enqueue(Batch batch) {
    {
      const std::scoped_lock lock(mutex_);
      batches_.push_back(std::move(batch));
    }
    changed_.notify_all();
  }
  void wait_until_idle() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return batches_.empty(); });
  }
  void abort() { fail(ncclRemoteError); }

 private:
  bool join() {
    shared_->devices[rank_] = device_;
    shared_->num_attached.fetch_add(1);
    const bool joined = wait_until([this] { return shared_->num_attached.load() == num_ranks_; }) &&
                        has_device_of_its_own() && meet_others();
    if (rank_ == 0) {
      unlink(path_.c_str());
      const std::scoped_lock lock(open_files().mutex);
      open_files().paths.erase(path_);
    }
    has_joined_ = joined;
    return joined;
  }

  /// NCCL lets no two ranks of a communicator share one, and tells both of them.
  bool has_device_of_its_own() {
    for (int other = 0; other < num_ranks_; ++other) {
      if (other == rank_ || shared_->devices[other] != device_) continue;
      say(fmt::format("Duplicate GPU detected : rank {} and rank {} both on CUDA device {:x}",
                      rank_,
                      other,
                      device_));
      fail(ncclInvalidUsage);
      return false;
    }
    return true;
  }

  void fail(ncclResult_t error) {
    ncclResult_t none = ncclSuccess;
    error_.compare_exchange_strong(none, error);
    shared_->has_failed = 1;
  }

  /// False if the communicator failed, or fails for it takes too long.
  template <typename Condition>
  bool wait_until(Condition condition) {
    constexpr int kSpins = 200;
    const auto limit =
        std::chrono::steady_clock::now() + std::chrono::milliseconds(settings().nccl_timeout_ms);
    for (int attempt = 0; !condition(); ++attempt) {
      if (shared_->has_failed.load() != 0) {
        if (condition()) return true;  // the failure may have come after it
        fail(ncclRemoteError);
        return false;
      }
      if (attempt < kSpins) {
        std::this_thread::yield();
        continue;
      }
      if (std::chrono::steady_clock::now() > limit) {
        fail(ncclRemoteError);
        return false;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return true;
  }

  bool meet_others() {
    const std::uint32_t phase = shared_->phase.load();
    if (shared_->num_arrived.fetch_add(1) + 1 == num_ranks_) {
      shared_->num_arrived = 0;
      shared_->phase.fetch_add(1);
      return true;
    }
    return wait_until([&] { return shared_->phase.load() != phase; });
  }

  void work() {
    while (true) {
      Batch batch;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return is_closing_ || !batches_.empty(); });
        if (batches_.empty()) return;
        batch = batches_.front();
      }
      for (const auto& needed : batch.needed) needed->wait();
      if (error() == ncclSuccess) run(batch.tasks);
      batch.work->finish();
      {
        const std::scoped_lock lock(mutex_);
        batches_.pop_front();
      }
      changed_.notify_all();
    }
  }

  void run(const std::vector<Task>& tasks) {
    std::vector<Transfer> transfers;
    for (const Task& task : tasks) {
      if (is_point_to_point(task.kind)) {
        transfers.push_back({&task, task.count * type_bytes(task.type), 0, false});
      } else if (!run_collective(task)) {
        return;
      }
    }
    run_transfers(transfers);
  }

  bool announce(const Task& task) {
    const bool has_root = task.kind == Kind::kBroadcast || task.kind == Kind::kReduce;
    const Announcement own{task.kind,
                           task.type,
                           reduces(task.kind) ? task.reduction : 0,
                           has_root ? task.root : 0,
                           task.count};
    shared_->announcements[rank_] = own;
    if (!meet_others()) return false;
    for (int other = 0; other < num_ranks_; ++other) {
      const Announcement& theirs = shared_->announcements[other];
      if (theirs == own) continue;
      report("library",
             fmt::format("rank {} is in {} of {} elements of type {}, rank {} in {} of {} elements "
                         "of type {} (reductions {} and {}, roots {} and {})",
                         rank_,
                         name_of(own.kind),
                         own.count,
                         own.type,
                         other,
                         name_of(theirs.kind),
                         theirs.count,
                         theirs.type,
                         own.reduction,
                         theirs.reduction,
                         own.root,
                         theirs.root));
      fail(ncclInvalidUsage);
      return false;
    }
    return true;
  }

  bool run_collective(const Task& task) {
    if (!announce(task)) return false;
    const std::size_t size = type_bytes(task.type);
    const std::size_t total = task.kind == Kind::kReduceScatter
                                  ? task.count * static_cast<std::size_t>(num_ranks_)
                                  : task.count;
    const std::size_t elements_a_part = kPartBytes / size;
    for (std::size_t start = 0; start < total; start += elements_a_part) {
      const std::size_t count = std::min(elements_a_part, total - start);
      if (task.kind != Kind::kBroadcast || rank_ == task.root) {
        std::memcpy(shared_->parts[rank_],
                    static_cast<const char*>(task.from) + start * size,
                    count * size);
      }
      if (!meet_others()) return false;
      take_part(task, start, count);
      // Nobody writes the next part before all have read this one.
      if (!meet_others()) return false;
    }
    return true;
  }

  void take_part(const Task& task, std::size_t start, std::size_t count) {
    const std::size_t size = type_bytes(task.type);
    auto* to = static_cast<char*>(task.to);
    if (task.kind == Kind::kBroadcast) {
      std::memcpy(to + start * size, shared_->parts[task.root], count * size);
    } else if (task.kind == Kind::kAllGather) {
      for (int other = 0; other < num_ranks_; ++other) {
        const std::size_t place = static_cast<std::size_t>(other) * task.count + start;
        std::memcpy(to + place * size, shared_->parts[other], count * size);
      }
    } else if (task.kind != Kind::kReduce || rank_ == task.root) {
      const std::vector<char> sum = reduce_parts(task, count);
      if (task.kind != Kind::kReduceScatter) {
        std::memcpy(to + start * size, sum.data(), count * size);
        return;
      }
      const std::size_t own = task.count * static_cast<std::size_t>(rank_);
      const std::size_t first = std::max(start, own);
      const std::size_t last = std::min(start + count, own + task.count);
      if (first >= last) return;
      std::memcpy(
          to + (first - own) * size, sum.data() + (first - start) * size, (last - first) * size);
    }
  }

  std::vector<char> reduce_parts(const Task& task, std::size_t count) {
    const char* first = shared_->parts[0];
    std::vector<char> sum(first, first + count * type_bytes(task.type));
    for (int other = 1; other < num_ranks_; ++other) {
      reduce_into(sum.data(), shared_->parts[other], count, task.type, task.reduction);
    }
    if (task.reduction == ncclAvg) divide(sum.data(), count, task.type, num_ranks_);
    return sum;
  }

  struct Transfer {
    const Task* task;
    std::size_t num_bytes;
    std::size_t num_done;
    bool is_over;
  };

  /// Moves all messages of a group side by side; those between the same two ranks in order.
  void run_transfers(std::vector<Transfer>& transfers) {
    std::size_t num_left = transfers.size();
    wait_until([&] {
      bool has_moved = true;
      while (has_moved && num_left > 0) {
        has_moved = false;
        std::set<std::pair<Kind, int>> busy;
        for (Transfer& transfer : transfers) {
          if (transfer.is_over) continue;
          if (!busy.emplace(transfer.task->kind, transfer.task->root).second) continue;
          const bool moved =
              transfer.task->kind == Kind::kSend ? send_piece(transfer) : receive_piece(transfer);
          has_moved = has_moved || moved;
          if (transfer.is_over) --num_left;
        }
      }
      return num_left == 0;
    });
  }

  bool send_piece(Transfer& transfer) {
    Mailbox& box = shared_->mail[rank_][transfer.task->root];
    if (box.num_sent.load() != box.num_received.load()) return false;
    const std::size_t size = std::min(kMailBytes, transfer.num_bytes - transfer.num_done);
    if (size > 0) {
      std::memcpy(
          box.data, static_cast<const char*>(transfer.task->from) + transfer.num_done, size);
    }
    box.num_bytes = size;
    box.message_bytes = transfer.num_bytes;
    box.num_sent.fetch_add(1);
    transfer.num_done += size;
    transfer.is_over = transfer.num_done == transfer.num_bytes;
    return true;
  }

  bool receive_piece(Transfer& transfer) {
    Mailbox& box = shared_->mail[transfer.task->root][rank_];
    if (box.num_sent.load() == box.num_received.load()) return false;
    if (box.message_bytes != transfer.num_bytes) {
      report("library",
             fmt::format("rank {} sends {} bytes, of which rank {} wants {}",
                         transfer.task->root,
                         box.message_bytes,
                         rank_,
                         transfer.num_bytes));
      fail(ncclInvalidUsage);
      return false;
    }
    if (box.num_bytes > 0) {
      std::memcpy(
          static_cast<char*>(transfer.task->to) + transfer.num_done, box.data, box.num_bytes);
    }
    transfer.num_done += box.num_bytes;
    box.num_received.fetch_add(1);
    transfer.is_over = transfer.num_done == transfer.num_bytes;
    return true;
  }

  SharedState* shared_;
  std::string path_;
  int device_;
  int rank_;
  int num_ranks_;
  bool blocking_;
  std::atomic<bool> has_joined_ = false;
  int num_in_progress_ = 0;  ///< queries that will still say ncclInProgress
  std::atomic<ncclResult_t> error_ = ncclSuccess;
  std::thread worker_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> batches_;
  bool is_closing_ = false;
};

namespace {

ncclResult_t fail_with(ncclResult_t error, std::string text) {
  say(std::move(text));
  return error;
}

struct Buffer {
  const void* address;
  std::size_t num_bytes;
  Access access;
};

std::vector<Buffer> buffers_of(const Task& task) {
  const std::size_t size = task.count * type_bytes(task.type);
  const auto num_ranks = static_cast<std::size_t>(task.communicator->num_ranks());
  const bool is_root = task.communicator->rank() == task.root;
  switch (task.kind) {
    case Kind::kAllReduce:
      return {{task.from, size, Access::kRead}, {task.to, size, Access::kWrite}};
    case Kind::kReduceScatter:
      return {{task.from, size * num_ranks, Access::kRead}, {task.to, size, Access::kWrite}};
    case Kind::kAllGather:
      return {{task.from, size, Access::kRead}, {task.to, size * num_ranks, Access::kWrite}};
    case Kind::kBroadcast:
      if (!is_root) return {{task.to, size, Access::kWrite}};
      return {{task.from, size, Access::kRead}, {task.to, size, Access::kWrite}};
    case Kind::kReduce:
      if (!is_root) return {{task.from, size, Access::kRead}};
      return {{task.from, size, Access::kRead}, {task.to, size, Access::kWrite}};
    case Kind::kSend:
      return {{task.from, size, Access::kRead}};
    case Kind::kReceive:
      return {{task.to, size, Access::kWrite}};
  }
  return {};
}

ncclResult_t check_task(const Task& task) {
  if (task.communicator == nullptr) return fail_with(ncclInvalidArgument, "no communicator");
  if (const ncclResult_t error = task.communicator->error()) return error;
  if (task.communicator->in_progress()) {
    report("library", fmt::format("{} while an earlier call is in progress", name_of(task.kind)));
    return fail_with(ncclInvalidUsage, "an earlier call is in progress");
  }
  const bool is_float = task.type == ncclFloat16 || task.type == ncclBfloat16 ||
                        task.type == ncclFloat32 || task.type == ncclFloat64;
  if (type_bytes(task.type) == 0 || task.reduction < ncclSum || task.reduction > ncclAvg ||
      (task.reduction == ncclAvg && !is_float && task.type != ncclInt32 &&
       task.type != ncclInt64)) {
    return fail_with(ncclInvalidArgument, "a type or reduction that the emulation does not have");
  }
  if (task.root < 0 || task.root >= task.communicator->num_ranks()) {
    return fail_with(ncclInvalidArgument, fmt::format("there is no rank {}", task.root));
  }
  const std::scoped_lock lock(device_mutex());
  if (find_stream(task.stream) == nullptr) return fail_with(ncclInvalidArgument, "no such stream");
  for (const Buffer& buffer : buffers_of(task)) {
    if (buffer.num_bytes == 0) continue;
    if (find_allocation(buffer.address) == nullptr ||
        !lies_within(buffer.address, buffer.num_bytes, name_of(task.kind))) {
      report("library",
             fmt::format("{} of {} bytes at {}, which is no memory of the device",
                         name_of(task.kind),
                         buffer.num_bytes,
                         buffer.address));
      return fail_with(ncclInvalidArgument, "a buffer that is no memory of the device");
    }
  }
  return ncclSuccess;
}

/// Hands the tasks to their communicators, each with what its streams wait for.
void issue(const std::vector<Task>& tasks) {
  const std::scoped_lock lock(device_mutex());
  std::vector<std::pair<ncclComm_t, Batch>> batches;
  for (const Task& task : tasks) {
    auto found = std::find_if(batches.begin(), batches.end(), [&](const auto& batch) {
      return batch.first == task.communicator;
    });
    if (found == batches.end()) {
      batches.push_back({task.communicator, Batch{{}, {}, std::make_shared<PendingWork>()}});
      found = std::prev(batches.end());
    }
    Stream& stream = *find_stream(task.stream);
    const std::uint32_t operation = begin_operation(stream, name_of(task.kind));
    for (const Buffer& buffer : buffers_of(task)) {
      note_access(buffer.address, buffer.num_bytes, buffer.access, operation);
    }
    Batch& batch = found->second;
    batch.tasks.push_back(task);
    for (const auto& pending : stream.pending) {
      if (!pending->is_finished()) batch.needed.push_back(pending);
    }
  }
  // The streams wait for all of them only now: the tasks of a group do not wait for each other.
  for (auto& [communicator, batch] : batches) {
    for (const Task& task : batch.tasks) {
      PendingList& pending = find_stream(task.stream)->pending;
      std::erase_if(pending, [](const auto& work) { return work->is_finished(); });
      if (std::find(pending.begin(), pending.end(), batch.work) == pending.end()) {
        pending.push_back(batch.work);
      }
    }
  }
  for (auto& [communicator, batch] : batches) communicator->enqueue(std::move(batch));
}

ncclResult_t submit(const char* function, const Task& task) {
  if (const auto code = count_call(function)) return static_cast<ncclResult_t>(*code);
  if (const ncclResult_t error = check_task(task)) return error;
  if (group_depth > 0) {
    group_tasks.push_back(task);
  } else {
    issue({task});
  }
  return ncclSuccess;
}

std::string new_path() {
  const char* folder = std::getenv("TMPDIR");
  return fmt::format("{}/pecan-nccl-XXXXXX", folder == nullptr ? "/tmp" : folder);
}

}  // namespace

#define PECAN_NCCL_API extern "C" __attribute__((visibility("default"))) ncclResult_t

PECAN_NCCL_API ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
PECAN_NCCL_API ncclGetUniqueId(ncclUniqueId* id) {
  if (const auto code = count_call(__func__)) return static_cast<ncclResult_t>(*code);
  std::string path = new_path();
  if (path.size() >= sizeof id->internal) {
    return fail_with(ncclSystemError, fmt::format("TMPDIR is too long for an id: {}", path));
  }
  const int file = mkstemp(path.data());
  if (file < 0) return fail_with(ncclSystemError, fmt::format("cannot make {}", path));
  const int truncated = ftruncate(file, sizeof(SharedState));
  close(file);
  if (truncated != 0) {
    unlink(path.c_str());
    return fail_with(ncclSystemError, fmt::format("no space for {}", path));
  }
  std::memset(id, 0, sizeof *id);
  std::memcpy(id->internal, path.c_str(), path.size());
  const std::scoped_lock lock(open_files().mutex);
  if (!std::exchange(open_files().is_watched, true)) std::atexit(remove_open_files);
  open_files().paths.insert(path);
  return ncclSuccess;
}
namespace {

ncclResult_t make_communicator(
    ncclComm_t* communicator, int num_ranks, const ncclUniqueId& id, int rank, bool blocking) {
  if (num_ranks < 1 || num_ranks > kMaxRanks || rank < 0 || rank >= num_ranks) {
    return fail_with(
        ncclInvalidArgument,
        fmt::format("rank {} of {}; the emulation has at most {}", rank, num_ranks, kMaxRanks));
  }
  const int file = open(id.internal, O_RDWR | O_CLOEXEC);
  if (file < 0) return fail_with(ncclSystemError, fmt::format("cannot open {}", id.internal));
  void* mapped = mmap(nullptr, sizeof(SharedState), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped == MAP_FAILED) return fail_with(ncclSystemError, "cannot map the ranks' file");
  auto made = std::make_unique<ncclComm>(
      static_cast<SharedState*>(mapped), id.internal, chosen_device(), rank, num_ranks, blocking);
  if (!made->join_others()) {
    if (made->error() == ncclInvalidUsage) return ncclInvalidUsage;
    return fail_with(ncclRemoteError, "not all ranks came");
  }
  *communicator = made.release();
  return blocking ? ncclSuccess : ncclInProgress;
}

}  // namespace

PECAN_NCCL_API ncclCommInitRank(ncclComm_t* communicator,
                                int num_ranks,
                                ncclUniqueId id,
                                int rank) {
  if (const auto code = count_call(__func__)) return static_cast<ncclResult_t>(*code);
  return make_communicator(communicator, num_ranks, id, rank, true);
}
PECAN_NCCL_API ncclCommInitRankConfig(
    ncclComm_t* communicator, int num_ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (const auto code = count_call(__func__)) return static_cast<ncclResult_t>(*code);
  return make_communicator(communicator, num_ranks, id, rank, config->blocking != 0);
}
PECAN_NCCL_API ncclCommFinalize(ncclComm_t communicator) {
  if (const auto code = count_call(__func__)) return static_cast<ncclResult_t>(*code);
  communicator->wait_until_idle();
  return ncclSuccess;
}
PECAN_NCCL_API ncclCommDestroy(ncclComm_t communicator) {
  if (const auto code = count_call(__func__)) return static_cast<ncclResult_t>(*code);
  if (communicator == nullptr) return ncclInvalidArgument;
  communicator->wait_until_idle();
  delete communicator;
  return ncclSuccess;
}
PECAN_NCCL_API ncclCommAbort(ncclComm_t communicator) {
  if (const auto code = count_call(__func__)) return static_cast<ncclResult_t>(*code);
  if (communicator == nullptr) return ncclInvalidArgument;
  communicator->abort();
  delete communicator;
  return ncclSuccess;
}
PECAN_NCCL_API ncclCommCount(const ncclComm_t communicator, int* count) {
  *count = communicator->num_ranks();
  return ncclSuccess;
}
PECAN_NCCL_API ncclCommUserRank(const ncclComm_t communicator, int* rank) {
  *rank = communicator->rank();
  return ncclSuccess;
}
PECAN_NCCL_API ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* error) {
  if (const auto code = count_call(__func__)) return static_cast<ncclResult_t>(*code);
  *error = communicator->state();
  return ncclSuccess;
}
extern "C" __attribute__((visibility("default"))) const char* ncclGetErrorString(
    ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "in progress";
    default:
      return "unknown result code";
  }
}
extern "C" __attribute__((visibility("default"))) const char* ncclGetLastError(ncclComm_t) {
  thread_local std::string said;
  const std::scoped_lock lock(last_failure().mutex);
  said = last_failure().text;
  return said.c_str();
}

PECAN_NCCL_API ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}
PECAN_NCCL_API ncclGroupEnd() {
  if (group_depth == 0) return fail_with(ncclInvalidUsage, "ncclGroupEnd without its start");
  if (--group_depth > 0) return ncclSuccess;
  const std::vector<Task> tasks = std::exchange(group_tasks, {});
  if (const auto code = count_call(__func__)) return static_cast<ncclResult_t>(*code);
  issue(tasks);
  ncclResult_t result = ncclSuccess;
  for (const Task& task : tasks) {
    if (task.communicator->begin_call() == ncclInProgress) result = ncclInProgress;
  }
  return result;
}

PECAN_NCCL_API ncclAllReduce(const void* from,
                             void* to,
                             std::size_t count,
                             ncclDataType_t type,
                             ncclRedOp_t reduction,
                             ncclComm_t communicator,
                             cudaStream_t stream) {
  return submit(__func__,
                {Kind::kAllReduce, from, to, count, type, reduction, 0, communicator, stream});
}
PECAN_NCCL_API ncclReduceScatter(const void* from,
                                 void* to,
                                 std::size_t count,
                                 ncclDataType_t type,
                                 ncclRedOp_t reduction,
                                 ncclComm_t communicator,
                                 cudaStream_t stream) {
  return submit(__func__,
                {Kind::kReduceScatter, from, to, count, type, reduction, 0, communicator, stream});
}
PECAN_NCCL_API ncclAllGather(const void* from,
                             void* to,
                             std::size_t count,
                             ncclDataType_t type,
                             ncclComm_t communicator,
                             cudaStream_t stream) {
  return submit(__func__,
                {Kind::kAllGather, from, to, count, type, ncclSum, 0, communicator, stream});
}
PECAN_NCCL_API ncclBroadcast(const void* from,
                             void* to,
                             std::size_t count,
                             ncclDataType_t type,
                             int root,
                             ncclComm_t communicator,
                             cudaStream_t stream) {
  return submit(__func__,
                {Kind::kBroadcast, from, to, count, type, ncclSum, root, communicator, stream});
}
PECAN_NCCL_API ncclReduce(const void* from,
                          void* to,
                          std::size_t count,
                          ncclDataType_t type,
                          ncclRedOp_t reduction,
                          int root,
                          ncclComm_t communicator,
                          cudaStream_t stream) {
  return submit(__func__,
                {Kind::kReduce, from, to, count, type, reduction, root, communicator, stream});
}
PECAN_NCCL_API ncclSend(const void* from,
                        std::size_t count,
                        ncclDataType_t type,
                        int peer,
                        ncclComm_t communicator,
                        cudaStream_t stream) {
  return submit(__func__,
                {Kind::kSend, from, nullptr, count, type, ncclSum, peer, communicator, stream});
}
PECAN_NCCL_API ncclRecv(void* to,
                        std::size_t count,
                        ncclDataType_t type,
                        int peer,
                        ncclComm_t communicator,
                        cudaStream_t stream) {
  return submit(__func__,
                {Kind::kReceive, nullptr, to, count, type, ncclSum, peer, communicator, stream});
}
