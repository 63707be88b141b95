#pragma once
/// Collectives over a group of ranks: Self, Thread (ranks as threads, for tests) and MPI for host
/// memory, and between devices.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/ids.hpp>
#include <pecan/core/tensor.hpp>

#include <pecan/device/context.hpp>

namespace pecan::comm {

/// What a collective is for; named in errors and counted per purpose.
enum class Purpose : std::uint8_t {
  kSetup,
  kDispatchPlan,
  kDispatch,
  kCombine,
  kDispatchBackward,
  kCombineBackward,
  kDispatchAgain,
  kCombineAgain,
  kTensorGather,
  kTensorReduce,
  kTensorGatherBackward,
  kTensorReduceBackward,
  kRouting,
  kDefaultVectors,
  kLoss,
  kGradients,
  kParameters,
  kGradNorm,
  kLossWeight,
  kStepFlags,
  kCheckpointVote,
  kReplication,
  kRecovery,
  kEvaluation,
  kTest,
  kCount
};
[[nodiscard]] std::string_view name_of(Purpose purpose);

struct Tag {
  Purpose purpose = Purpose::kSetup;
  LayerId layer = kNoLayer;
};

enum class ReduceOp : std::uint8_t { kSum, kMax, kMin };

/// A collective under way; its group outlives it. Move-only. The buffers given to the collective
/// stay untouched until it is complete. Progress is made only inside test() and wait() of any
/// Pending of the same group family, on the calling thread.
class Pending {
 public:
  class Operation {
   public:
    virtual ~Operation() = default;
    /// Advances; true when complete. Throws CommError after abort.
    virtual bool test() = 0;
    /// Blocks until complete (on a device: its stream, not the host); CommError on abort or
    /// time-out, naming rank, collective, purpose, layer, step and who is missing.
    virtual void wait() = 0;
  };
  Pending() = default;  ///< complete
  explicit Pending(std::unique_ptr<Operation> operation) : operation_(std::move(operation)) {}
  Pending(Pending&&) noexcept = default;
  Pending& operator=(Pending&& other);
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;
  /// An unfinished operation is waited for, errors are logged; while an exception unwinds, it
  /// aborts the group instead.
  ~Pending();
  [[nodiscard]] bool test();
  void wait();

 private:
  std::unique_ptr<Operation> operation_;
};

/// Traffic of one purpose since the group was made.
struct Traffic {
  std::int64_t calls = 0;
  std::int64_t sent_bytes = 0;
  double seconds = 0;  ///< from start to completion seen by the caller; on a device queued for it
};

/// A group of ranks. Every collective is called by all members, in the same order, with matching
/// arguments. Sums are formed in ascending rank order in the element type (bf16: in float, rounded
/// once), so that Thread and MPI agree bit for bit, and all_reduce equals reduce_scatter_v followed
/// by all_gather_v. dtypes: f32, f64, i64, i32 and u8 (u8 not for sums). Counts are elements and
/// may be zero.
class Group {
 public:
  Group() = default;
  virtual ~Group() = default;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  [[nodiscard]] virtual int size() const = 0;
  [[nodiscard]] virtual Rank rank() const = 0;

  /// In place over all members.
  [[nodiscard]] virtual Pending all_reduce(Context& ctx,
                                           TensorView inout,
                                           ReduceOp op,
                                           Tag tag) = 0;
  /// Input: sum(counts) elements in rank order; output: the reduced counts[rank] elements, which
  /// may be their own place in input, whose rest stays as it is.
  [[nodiscard]] virtual Pending reduce_scatter_v(Context& ctx,
                                                 ConstTensorView input,
                                                 std::span<const std::int64_t> counts,
                                                 TensorView output,
                                                 ReduceOp op,
                                                 Tag tag) = 0;
  /// Input: counts[rank] elements; output: sum(counts) in rank order. Input may be its own place in
  /// output.
  [[nodiscard]] virtual Pending all_gather_v(Context& ctx,
                                             ConstTensorView input,
                                             std::span<const std::int64_t> counts,
                                             TensorView output,
                                             Tag tag) = 0;
  /// Sends send_counts[r] elements to each r (packed in rank order) and receives receive_counts[r]
  /// (likewise). No overlap.
  [[nodiscard]] virtual Pending all_to_all_v(Context& ctx,
                                             ConstTensorView input,
                                             std::span<const std::int64_t> send_counts,
                                             TensorView output,
                                             std::span<const std::int64_t> receive_counts,
                                             Tag tag) = 0;
  [[nodiscard]] virtual Pending broadcast(Context& ctx, TensorView inout, Rank root, Tag tag) = 0;
  /// Point to point; matched in order per (sender, receiver). A send may complete only once it is
  /// received.
  [[nodiscard]] virtual Pending send(Context& ctx, ConstTensorView input, Rank to, Tag tag) = 0;
  [[nodiscard]] virtual Pending receive(Context& ctx, TensorView output, Rank from, Tag tag) = 0;

  /// Collective over this group: members with equal `color` form a group, ordered by (key, rank).
  /// The parent outlives it.
  [[nodiscard]] virtual std::unique_ptr<Group> split(int color, int key) = 0;
  /// Every member blocked in this group or its relatives gets CommError with `reason`; not
  /// collective.
  virtual void abort(const std::string& reason) = 0;
  /// Named in time-out errors of this group and its relatives; set once a step.
  virtual void set_step(Step step) = 0;
  [[nodiscard]] virtual Traffic traffic(Purpose purpose) const = 0;
  /// Memory that this rank's groups of one family have taken and keep: scratch memory for reuse,
  /// and what they share with the ranks of their node.
  [[nodiscard]] virtual std::size_t scratch_bytes() const = 0;
};

/// Bytes of scratch memory that one all_reduce takes on the member of a group of `group_size` that
/// takes most: the others' pieces of its own share. Pure.
[[nodiscard]] std::size_t plan_all_reduce_scratch(std::int64_t num_elements,
                                                  DType dtype,
                                                  int group_size);

/// Bytes of memory that a member of a group of `group_size` brings to what the members of one node
/// share. Pure.
[[nodiscard]] std::size_t plan_window_bytes(int group_size);
/// Of what goes through it at once: small enough for the caches of all ranks, large enough that
/// waiting for each other costs little.
inline constexpr std::size_t kPieceBytes = std::size_t{256} << 10;

/// Bytes of device memory that a member of a device group of `group_size` takes for good, if
/// options leave it at that. Pure.
[[nodiscard]] std::size_t plan_device_scratch_bytes(int group_size);
/// What the others give to a sum comes in parts of this size together: large enough for the links
/// between devices, and little beside a device's memory.
inline constexpr std::size_t kDeviceScratchBytes = std::size_t{32} << 20;

/// A collective or message that this rank begins.
struct CollectiveNote {
  std::int64_t sequence = 0;   ///< from 1, over all groups of a family
  std::string_view operation;  ///< "all_reduce"
  Tag tag;
  Step step;
};

struct GroupOptions {
  std::chrono::milliseconds timeout{600'000};  ///< of one wait(); 0 waits for ever
  /// Collectives of members that share a node go through memory that they share, if it can be had.
  bool shared_memory = false;
  /// Of a piece that goes through it; a member of a group has four in it.
  std::size_t piece_bytes = kPieceBytes;
  /// Of a device group: of each member, in device memory.
  std::size_t device_scratch_bytes = kDeviceScratchBytes;
  /// Told of each collective and message before anything is sent, on the calling thread; must be
  /// quick and not throw.
  std::function<void(const CollectiveNote&)> observer;
};

/// A group of one.
[[nodiscard]] std::unique_ptr<Group> make_self_group(GroupOptions options = {});
/// `group`, which outlives it, with each call in the profile of the Context that it is given;
/// without a profile there it is passed on. So are those that it is split into.
[[nodiscard]] std::unique_ptr<Group> make_profiled_group(Group& group);
/// `host`, which outlives it and is its rank's alone, for tensors in host memory, and for those on
/// `device`, of which each rank has one of its own, a group that sends from device to device over
/// NCCL. Each collective goes where its Context says. On the device it runs on a stream of the
/// group, after what the Context's stream holds at the call, and sums are formed in the same order
/// as on the host, bit by bit (a NaN is one, with other bits). `wait()` does not block the host:
/// the Context's stream, which outlives the Pending, goes on when the collective is over. So a
/// time-out or an error of a peer is thrown by the next call of any group of the family, after what
/// was queued has gone on with memory of no use: what a device computed is known to be good after a
/// later collective or message. Messages begin with the next wait(), test() or collective.
/// `options.observer` is told of collectives on the host as well. Collective over host. CommError
/// where the devices cannot reach each other.
[[nodiscard]] std::unique_ptr<Group> make_device_group(Group& host,
                                                       device::Device device,
                                                       GroupOptions options = {});
/// Runs `body(group)` on `size` threads, each with its member of one Thread group; rethrows the
/// first exception in rank order after joining all (a throwing member aborts the others, whose
/// CommErrors come last). Runs bodies without Catch assertions: see docs/testing.md.
void run_thread_group(int size, const std::function<void(Group&)>& body, GroupOptions options = {});

/// MPI for the life of the object: initialised (thread level funneled, yielding when idle) and
/// finalised, when all processes have come to its end. One per process.
class MpiEnvironment {
 public:
  MpiEnvironment(int* argc, char*** argv);
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;
  /// Over all processes, and collective over them; all calls come from the thread that made the
  /// environment.
  [[nodiscard]] std::unique_ptr<Group> world(GroupOptions options = {});
  /// Ends all processes with `exit_code`; does not return.
  [[noreturn]] void abort(int exit_code);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pecan::comm
