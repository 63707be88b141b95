/// Groups of ranks with a device each: what lies in device memory goes from device to device, in
/// the order of streams; sums are formed as on the CPU.

#include <algorithm>
#include <array>
#include <exception>
#include <numeric>
#include <thread>
#include <utility>

#include <pecan/core/error.hpp>
#include <pecan/core/hash.hpp>
#include <pecan/core/log.hpp>

#include <pecan/device/backend.hpp>
#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

#include "comm/abort_flag.hpp"
#include "comm/arguments.hpp"
#include "comm/device_watch.hpp"

namespace pecan::comm {
namespace {

using device::DeviceMessage;
using Direction = device::DeviceMessage::Direction;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kPieceAlignment = 256;

device::Reduction reduction_of(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return device::Reduction::kSum;
    case ReduceOp::kMax:
      return device::Reduction::kMax;
    case ReduceOp::kMin:
      return device::Reduction::kMin;
  }
  throw InternalError("no such reduction");
}

std::size_t scratch_for(int group_size, std::size_t wanted) {
  if (group_size == 1) return 0;
  const auto others = std::size_t(group_size - 1);
  const std::size_t least = others * kSmallAllReduceBytes;
  const std::size_t unit = others * kPieceAlignment;
  return (std::max(wanted, least) + unit - 1) / unit * unit;
}

class DeviceGroup;

/// What a rank's first group and all its splits share.
struct DeviceFamily {
  DeviceFamily(Group& host, device::Device where, const GroupOptions& given)
      : device(where),
        options(given),
        watch(host, given),
        flights(std::make_shared<FlightPool>(where)) {}

  const device::Device device;
  const GroupOptions options;
  DeviceWatch watch;
  std::shared_ptr<FlightPool> flights;  ///< which may outlive it in a Pending that was given up
  std::vector<DeviceGroup*> with_messages;
  Step step;
  std::int64_t num_begun = 0;
  std::size_t scratch_bytes = 0;
};

class DeviceGroup final : public Group {
 public:
  DeviceGroup(Group& host, device::Device device, const GroupOptions& options)
      : host_(host),
        family_(std::make_shared<DeviceFamily>(host, device, options)),
        stream_(device) {
    world_ranks_.resize(std::size_t(host.size()));
    std::iota(world_ranks_.begin(), world_ranks_.end(), 0);
    connect();
  }
  DeviceGroup(std::unique_ptr<Group> host,
              std::shared_ptr<DeviceFamily> family,
              std::vector<int> world_ranks,
              std::uint64_t id)
      : owned_host_(std::move(host)),
        host_(*owned_host_),
        family_(std::move(family)),
        world_ranks_(std::move(world_ranks)),
        id_(id),
        stream_(family_->device) {
    connect();
  }
  ~DeviceGroup() override {
    std::erase(family_->with_messages, this);
    try {
      if (communicator_ && std::uncaught_exceptions() > exceptions_at_start_) {
        family_->watch.remove(lane_);  // which would take it for an error of NCCL
        communicator_->abort();
      } else {
        family_->watch.drain(lane_);
      }
    } catch (const AbortedError&) {
      // Whoever raised the abort has reported it.
    } catch (const std::exception& error) {
      PECAN_LOG(kWarn, "[comm] a group was given up before it was idle: {}", error.what());
    }
    family_->watch.remove(lane_);
  }

  [[nodiscard]] int size() const override { return host_.size(); }
  [[nodiscard]] Rank rank() const override { return host_.rank(); }
  [[nodiscard]] Pending all_reduce(Context& ctx, TensorView inout, ReduceOp op, Tag tag) override;
  [[nodiscard]] Pending reduce_scatter_v(Context& ctx,
                                         ConstTensorView input,
                                         std::span<const std::int64_t> counts,
                                         TensorView output,
                                         ReduceOp op,
                                         Tag tag) override;
  [[nodiscard]] Pending all_gather_v(Context& ctx,
                                     ConstTensorView input,
                                     std::span<const std::int64_t> counts,
                                     TensorView output,
                                     Tag tag) override;
  [[nodiscard]] Pending all_to_all_v(Context& ctx,
                                     ConstTensorView input,
                                     std::span<const std::int64_t> send_counts,
                                     TensorView output,
                                     std::span<const std::int64_t> receive_counts,
                                     Tag tag) override;
  [[nodiscard]] Pending broadcast(Context& ctx, TensorView inout, Rank root, Tag tag) override;
  [[nodiscard]] Pending send(Context& ctx, ConstTensorView input, Rank to, Tag tag) override;
  [[nodiscard]] Pending receive(Context& ctx, TensorView output, Rank from, Tag tag) override;
  [[nodiscard]] std::unique_ptr<Group> split(int color, int key) override;
  void abort(const std::string& reason) override { family_->watch.abort(reason); }
  void set_step(Step step) override {
    family_->step = step;
    host_.set_step(step);
  }
  [[nodiscard]] Traffic traffic(Purpose purpose) const override {
    const Traffic own = traffic_[std::size_t(purpose)], host = host_.traffic(purpose);
    return {own.calls + host.calls, own.sent_bytes + host.sent_bytes, own.seconds + host.seconds};
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return host_.scratch_bytes() + family_->scratch_bytes;
  }

  /// Issues the messages that were begun since the last time, all at once.
  void issue_messages();

 private:
  class Operation;
  struct QueuedMessage {
    DeviceMessage message;
    std::shared_ptr<Flight> flight;
  };

  /// Begins to be a member; collective over the host group.
  void connect();
  void make_communicator();
  /// First messages between all members, which would else take their time in the first step.
  void meet();
  /// Whether `ctx` is of the host, whose group then does it.
  [[nodiscard]] bool on_host(const Context& ctx, std::string_view name, Tag tag);
  /// Members but this one, beginning with the next: nobody is everybody's first.
  template <typename Visit>
  void for_each_peer(Visit visit) const {
    for (int distance = 1; distance < size(); ++distance) {
      visit((rank().value + distance) % size());
    }
  }
  [[nodiscard]] std::shared_ptr<Flight> begin(Context& ctx, std::string name, Tag tag);
  /// A collective: what `enqueue` does on the group's stream after all that `ctx` did on its own.
  template <typename Enqueue>
  [[nodiscard]] Pending run(
      Context& ctx, std::string_view name, Tag tag, std::vector<int> peers, Enqueue enqueue);
  [[nodiscard]] Pending queue(Context& ctx, DeviceMessage message, std::string name, Tag tag);
  [[nodiscard]] std::vector<int> all_peers() const;
  void exchange(std::span<const DeviceMessage> messages, Tag tag);
  void copy(std::span<const std::byte> from, std::span<std::byte> to);
  /// Sends piece_for(r) to each r and reduces `own` and what they send, equally long, into
  /// `output`. Longer pieces go in parts, of which the longest piece of all members makes most.
  template <typename PieceFor>
  void reduce(std::span<const std::byte> own,
              PieceFor piece_for,
              std::size_t longest_bytes,
              std::byte* output,
              DType dtype,
              ReduceOp op,
              Tag tag);
  void all_gather(const Pieces& pieces, std::byte* output, Tag tag);

  const std::unique_ptr<Group> owned_host_;
  Group& host_;
  const std::shared_ptr<DeviceFamily> family_;  ///< with the groups that one was split from
  std::vector<int> world_ranks_;
  std::uint64_t id_ = 0;
  device::Stream stream_;
  device::Buffer scratch_;
  std::unique_ptr<device::Communicator> communicator_;  ///< none in a group of one
  Lane lane_;
  std::vector<QueuedMessage> messages_;
  std::int64_t num_collectives_ = 0;
  std::int64_t num_splits_ = 0;
  std::array<Traffic, std::size_t(Purpose::kCount)> traffic_{};
  const int exceptions_at_start_ = std::uncaught_exceptions();
};

/// A collective on the device.
class DeviceGroup::Operation final : public Pending::Operation {
 public:
  Operation(DeviceGroup& group, std::shared_ptr<Flight> flight, device::Stream& stream)
      : group_(group), flight_(std::move(flight)), stream_(stream) {}
  bool test() override {
    progress();
    if (!flight_->issued || !flight_->end.complete()) return false;
    group_.family_->watch.check_over(group_.lane_, *flight_);
    count();
    return true;
  }
  void wait() override {
    if (std::uncaught_exceptions() > exceptions_at_start_) {
      if (flight_->issued && flight_->end.complete()) return;
      const std::string what = fmt::format("rank {} gave up {} because of an exception",
                                           group_.world_ranks_[std::size_t(group_.rank().value)],
                                           flight_->name);
      group_.abort(what);
      throw AbortedError(what);
    }
    progress();
    PECAN_VALIDATE(flight_->issued,
                   CommError,
                   "rank {} waits for a message to itself ({}) whose other half was not begun",
                   group_.rank(),
                   flight_->name);
    stream_.wait(flight_->end);
    count();
  }

 private:
  void progress() {
    DeviceFamily& family = *group_.family_;
    family.watch.check();
    for (DeviceGroup* group : std::exchange(family.with_messages, {})) group->issue_messages();
  }
  void count() {
    group_.traffic_[std::size_t(flight_->tag.purpose)].seconds +=
        std::chrono::duration<double>(Clock::now() - start_).count();
  }

  DeviceGroup& group_;
  const std::shared_ptr<Flight> flight_;  ///< with the watch
  device::Stream& stream_;
  const int exceptions_at_start_ = std::uncaught_exceptions();
  const Clock::time_point start_ = Clock::now();
};

void DeviceGroup::connect() {
  family_->watch.add(lane_);
  if (size() == 1) return;
  try {
    make_communicator();
    meet();
  } catch (...) {
    if (communicator_) communicator_->abort();
    family_->watch.remove(lane_);
    throw;
  }
}

void DeviceGroup::make_communicator() {
  device::Backend& backend = *family_->device.backend;
  device::Stream stream(device::cpu());
  device::Arena no_workspace;
  Context ctx{device::cpu(), stream, no_workspace};
  constexpr Tag kTag{Purpose::kSetup, kNoLayer};
  std::string complaint;
  const auto attempt = [&](const auto& action) {
    try {
      action();
    } catch (const Error& error) {
      complaint = error.what();
    }
  };
  device::CommunicatorId id;
  if (rank() == Rank{0}) attempt([&] { id = backend.new_communicator_id(); });
  const std::span bytes(reinterpret_cast<std::uint8_t*>(id.bytes.data()), id.bytes.size());
  host_.broadcast(ctx, view_of(bytes), Rank{0}, kTag).wait();
  const bool has_id = std::ranges::any_of(bytes, [](std::uint8_t byte) { return byte != 0; });
  if (has_id) {
    attempt([&] {
      scratch_ = device::Buffer(family_->device,
                                scratch_for(size(), family_->options.device_scratch_bytes));
      communicator_ = backend.make_communicator(family_->device.ordinal, id, size(), rank().value);
      const auto timeout = family_->options.timeout;
      const auto limit = Clock::now() + timeout;
      while (!communicator_->ready()) {
        PECAN_VALIDATE(timeout.count() == 0 || Clock::now() < limit,
                       CommError,
                       "of {} ranks not all came to make a communicator",
                       size());
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    });
  }
  // The first that fails says why; all decide alike.
  std::int32_t first_failed = has_id && complaint.empty() ? size() : rank().value;
  host_.all_reduce(ctx, view_of(std::span(&first_failed, 1)), ReduceOp::kMin, kTag).wait();
  PECAN_VALIDATE(complaint.empty(),
                 CommError,
                 "rank {} cannot reach the devices of the others: {}",
                 world_ranks_[std::size_t(rank().value)],
                 complaint);
  PECAN_VALIDATE(first_failed == size(),
                 CommError,
                 "rank {} cannot reach the devices of the others; see what it says",
                 world_ranks_[std::size_t(first_failed)]);
  family_->scratch_bytes += scratch_.size();
  lane_.communicator = communicator_.get();
}

void DeviceGroup::meet() {
  device::Arena no_workspace;
  Context ctx{family_->device, stream_, no_workspace};
  run(ctx, "all_to_all_v", {Purpose::kSetup, kNoLayer}, all_peers(), [&] {
    const std::array<std::byte, 16> nothing{};
    device::Backend& backend = *family_->device.backend;
    backend.upload(
        family_->device.ordinal, stream_.handle(), nothing.data(), scratch_.data(), nothing.size());
    std::vector<DeviceMessage> messages;
    for_each_peer([&](int peer) {
      std::byte* const place = scratch_.data() + (messages.size() / 2 + 1) * nothing.size();
      messages.push_back({Direction::kReceive, peer, place, nothing.size()});
      messages.push_back({Direction::kSend, peer, scratch_.data(), nothing.size()});
    });
    communicator_->exchange(stream_.handle(), messages);
  }).wait();
}

bool DeviceGroup::on_host(const Context& ctx, std::string_view name, Tag tag) {
  if (ctx.device.kind == device::DeviceKind::kCpu) {
    family_->watch.check();
  } else {
    PECAN_VALIDATE(ctx.device == family_->device,
                   DeviceError,
                   "{} on CUDA device {} by a group of device {}",
                   name,
                   ctx.device.ordinal,
                   family_->device.ordinal);
  }
  ++family_->num_begun;
  if (family_->options.observer) {
    family_->options.observer({family_->num_begun, name, tag, family_->step});
  }
  return ctx.device.kind == device::DeviceKind::kCpu;
}

std::shared_ptr<Flight> DeviceGroup::begin(Context& ctx, std::string name, Tag tag) {
  family_->watch.check();
  ++traffic_[std::size_t(tag.purpose)].calls;
  std::shared_ptr<Flight> flight = family_->flights->take();
  flight->name = std::move(name);
  flight->tag = tag;
  flight->step = family_->step;
  flight->group = id_;
  ctx.stream.record(flight->ready);
  return flight;
}

template <typename Enqueue>
Pending DeviceGroup::run(
    Context& ctx, std::string_view name, Tag tag, std::vector<int> peers, Enqueue enqueue) {
  issue_messages();
  const std::int64_t number = num_collectives_++;
  std::shared_ptr<Flight> flight = begin(ctx, fmt::format("{} #{}", name, number), tag);
  flight->number = number;
  flight->peers = std::move(peers);
  stream_.wait(flight->ready);
  family_->watch.begin(lane_, flight);
  try {
    enqueue();
  } catch (const CommError& error) {
    family_->watch.fail(lane_, error.what());
    family_->watch.check();
  } catch (...) {
    family_->watch.drop(lane_, *flight);
    throw;
  }
  stream_.record(flight->end);
  family_->watch.note_issued(*flight);
  return Pending(std::make_unique<Operation>(*this, std::move(flight), ctx.stream));
}

std::vector<int> DeviceGroup::all_peers() const {
  std::vector<int> peers = world_ranks_;
  peers.erase(peers.begin() + rank().value);
  return peers;
}

void DeviceGroup::exchange(std::span<const DeviceMessage> messages, Tag tag) {
  for (const DeviceMessage& message : messages) {
    if (message.direction == Direction::kSend) {
      traffic_[std::size_t(tag.purpose)].sent_bytes += std::int64_t(message.num_bytes);
    }
  }
  if (!messages.empty()) communicator_->exchange(stream_.handle(), messages);
}

void DeviceGroup::copy(std::span<const std::byte> from, std::span<std::byte> to) {
  if (from.empty() || from.data() == to.data()) return;
  const device::Device& device = family_->device;
  device.backend->copy(device.ordinal, stream_.handle(), from.data(), to.data(), from.size());
}

template <typename PieceFor>
void DeviceGroup::reduce(std::span<const std::byte> own,
                         PieceFor piece_for,
                         std::size_t longest_bytes,
                         std::byte* output,
                         DType dtype,
                         ReduceOp op,
                         Tag tag) {
  if (size() == 1) return copy(own, {output, own.size()});
  const std::size_t stride = scratch_.size() / std::size_t(size() - 1);
  const auto part_of = [&](std::span<const std::byte> piece, std::size_t begin) {
    const std::size_t start = std::min(begin, piece.size());
    return piece.subspan(start, std::min(stride, piece.size() - start));
  };
  std::vector<DeviceMessage> messages;
  for (std::size_t begin = 0; begin < longest_bytes; begin += stride) {
    const std::span<const std::byte> mine = part_of(own, begin);
    messages.clear();
    for_each_peer([&](int peer) {
      const auto place = std::size_t(peer < rank().value ? peer : peer - 1);
      const std::span<const std::byte> theirs = part_of(piece_for(peer), begin);
      if (!mine.empty()) {
        messages.push_back(
            {Direction::kReceive, peer, scratch_.data() + place * stride, mine.size()});
      }
      if (!theirs.empty()) {
        messages.push_back(
            {Direction::kSend, peer, const_cast<std::byte*>(theirs.data()), theirs.size()});
      }
    });
    exchange(messages, tag);
    if (mine.empty()) continue;
    const device::Device& device = family_->device;
    device.backend->reduce_in_order(device.ordinal,
                                    stream_.handle(),
                                    dtype,
                                    reduction_of(op),
                                    {.own = mine.data(),
                                     .others = scratch_.data(),
                                     .stride = stride,
                                     .member = rank().value,
                                     .num_members = size()},
                                    output + begin,
                                    std::int64_t(mine.size() / size_of(dtype)));
  }
}

void DeviceGroup::all_gather(const Pieces& pieces, std::byte* output, Tag tag) {
  const std::span<std::byte> own = pieces.of(output, rank().value);
  std::vector<DeviceMessage> messages;
  for_each_peer([&](int peer) {
    const std::span<std::byte> theirs = pieces.of(output, peer);
    if (!theirs.empty()) {
      messages.push_back({Direction::kReceive, peer, theirs.data(), theirs.size()});
    }
    if (!own.empty()) messages.push_back({Direction::kSend, peer, own.data(), own.size()});
  });
  exchange(messages, tag);
}

Pending DeviceGroup::all_reduce(Context& ctx, TensorView inout, ReduceOp op, Tag tag) {
  constexpr std::string_view kName = "all_reduce";
  if (on_host(ctx, kName, tag)) return host_.all_reduce(ctx, inout, op, tag);
  validate_all_reduce(inout, op, kName);
  return run(ctx, kName, tag, all_peers(), [&] {
    const std::span<const std::byte> whole(inout.data, inout.num_bytes());
    if (size() == 1) return;
    if (whole.size() < kSmallAllReduceBytes) {
      const auto everything = [&](int /*peer*/) { return whole; };
      return reduce(whole, everything, whole.size(), inout.data, inout.dtype, op, tag);
    }
    const std::vector<std::int64_t> counts = all_reduce_counts(inout.num_elements(), size());
    const Pieces pieces(counts, inout.dtype);
    const std::span<std::byte> own = pieces.of(inout.data, rank().value);
    reduce(
        own,
        [&](int peer) { return std::span<const std::byte>(pieces.of(inout.data, peer)); },
        std::size_t(counts.front()) * size_of(inout.dtype),
        own.data(),
        inout.dtype,
        op,
        tag);
    all_gather(pieces, inout.data, tag);
  });
}

Pending DeviceGroup::reduce_scatter_v(Context& ctx,
                                      ConstTensorView input,
                                      std::span<const std::int64_t> counts,
                                      TensorView output,
                                      ReduceOp op,
                                      Tag tag) {
  constexpr std::string_view kName = "reduce_scatter_v";
  if (on_host(ctx, kName, tag)) {
    return host_.reduce_scatter_v(ctx, input, counts, output, op, tag);
  }
  validate_reduce_scatter_v(*this, input, counts, output, op, kName);
  return run(ctx, kName, tag, all_peers(), [&] {
    const Pieces pieces(counts, input.dtype);
    reduce(
        pieces.of(input.data, rank().value),
        [&](int peer) { return pieces.of(input.data, peer); },
        std::size_t(*std::ranges::max_element(counts)) * size_of(input.dtype),
        output.data,
        input.dtype,
        op,
        tag);
  });
}

Pending DeviceGroup::all_gather_v(Context& ctx,
                                  ConstTensorView input,
                                  std::span<const std::int64_t> counts,
                                  TensorView output,
                                  Tag tag) {
  constexpr std::string_view kName = "all_gather_v";
  if (on_host(ctx, kName, tag)) return host_.all_gather_v(ctx, input, counts, output, tag);
  validate_all_gather_v(*this, input, counts, output, kName);
  return run(ctx, kName, tag, all_peers(), [&] {
    const Pieces pieces(counts, input.dtype);
    copy({input.data, input.num_bytes()}, pieces.of(output.data, rank().value));
    all_gather(pieces, output.data, tag);
  });
}

Pending DeviceGroup::all_to_all_v(Context& ctx,
                                  ConstTensorView input,
                                  std::span<const std::int64_t> send_counts,
                                  TensorView output,
                                  std::span<const std::int64_t> receive_counts,
                                  Tag tag) {
  constexpr std::string_view kName = "all_to_all_v";
  if (on_host(ctx, kName, tag)) {
    return host_.all_to_all_v(ctx, input, send_counts, output, receive_counts, tag);
  }
  validate_all_to_all_v(*this, input, send_counts, output, receive_counts, kName);
  return run(ctx, kName, tag, all_peers(), [&] {
    const Pieces sent(send_counts, input.dtype), received(receive_counts, input.dtype);
    copy(sent.of(input.data, rank().value), received.of(output.data, rank().value));
    std::vector<DeviceMessage> messages;
    for_each_peer([&](int peer) {
      const std::span<std::byte> from = received.of(output.data, peer);
      const std::span<const std::byte> to = sent.of(input.data, peer);
      if (!from.empty()) {
        messages.push_back({Direction::kReceive, peer, from.data(), from.size()});
      }
      if (!to.empty()) {
        messages.push_back({Direction::kSend, peer, const_cast<std::byte*>(to.data()), to.size()});
      }
    });
    exchange(messages, tag);
  });
}

Pending DeviceGroup::broadcast(Context& ctx, TensorView inout, Rank root, Tag tag) {
  constexpr std::string_view kName = "broadcast";
  if (on_host(ctx, kName, tag)) return host_.broadcast(ctx, inout, root, tag);
  validate_view(inout, kName);
  validate_member(*this, root, kName);
  const bool is_root = rank() == root;
  std::vector<int> peers =
      is_root ? all_peers() : std::vector{world_ranks_[std::size_t(root.value)]};
  return run(ctx, kName, tag, std::move(peers), [&] {
    std::vector<DeviceMessage> messages;
    if (inout.num_bytes() == 0) return;
    if (is_root) {
      for_each_peer([&](int peer) {
        messages.push_back({Direction::kSend, peer, inout.data, inout.num_bytes()});
      });
    } else {
      messages.push_back({Direction::kReceive, root.value, inout.data, inout.num_bytes()});
    }
    exchange(messages, tag);
  });
}

Pending DeviceGroup::send(Context& ctx, ConstTensorView input, Rank to, Tag tag) {
  if (on_host(ctx, "send", tag)) return host_.send(ctx, input, to, tag);
  validate_view(input, "send");
  validate_member(*this, to, "send");
  return queue(ctx,
               {Direction::kSend, to.value, const_cast<std::byte*>(input.data), input.num_bytes()},
               "send",
               tag);
}

Pending DeviceGroup::receive(Context& ctx, TensorView output, Rank from, Tag tag) {
  if (on_host(ctx, "receive", tag)) return host_.receive(ctx, output, from, tag);
  validate_view(output, "receive");
  validate_member(*this, from, "receive");
  return queue(
      ctx, {Direction::kReceive, from.value, output.data, output.num_bytes()}, "receive", tag);
}

Pending DeviceGroup::queue(Context& ctx, DeviceMessage message, std::string name, Tag tag) {
  std::shared_ptr<Flight> flight = begin(ctx, std::move(name), tag);
  flight->peers = {world_ranks_[std::size_t(message.peer)]};
  if (messages_.empty()) family_->with_messages.push_back(this);
  messages_.push_back({message, flight});
  return Pending(std::make_unique<Operation>(*this, std::move(flight), ctx.stream));
}

void DeviceGroup::issue_messages() {
  if (messages_.empty()) return;
  std::erase(family_->with_messages, this);
  // What a rank sends itself is copied when both halves are there.
  std::vector<QueuedMessage> going, halves;
  std::vector<DeviceMessage> to_others;
  std::vector<std::pair<std::span<const std::byte>, std::span<std::byte>>> copies;
  for (QueuedMessage& one : std::exchange(messages_, {})) {
    if (one.message.peer != rank().value) {
      if (one.message.num_bytes > 0) to_others.push_back(one.message);
      going.push_back(std::move(one));
      continue;
    }
    if (halves.empty() || halves.front().message.direction == one.message.direction) {
      halves.push_back(std::move(one));
      continue;
    }
    const bool sends = one.message.direction == Direction::kSend;
    const DeviceMessage& from = sends ? one.message : halves.front().message;
    const DeviceMessage& to = sends ? halves.front().message : one.message;
    PECAN_VALIDATE(from.num_bytes == to.num_bytes,
                   CommError,
                   "rank {} sends itself {} bytes where it expects {}",
                   rank(),
                   from.num_bytes,
                   to.num_bytes);
    copies.emplace_back(std::span<const std::byte>(from.memory, from.num_bytes),
                        std::span(to.memory, to.num_bytes));
    going.push_back(std::move(halves.front()));
    going.push_back(std::move(one));
    halves.erase(halves.begin());
  }
  messages_ = std::move(halves);
  if (!messages_.empty()) family_->with_messages.push_back(this);
  if (going.empty()) return;
  for (const QueuedMessage& one : going) {
    stream_.wait(one.flight->ready);
    family_->watch.begin(lane_, one.flight);
  }
  try {
    exchange(to_others, going.front().flight->tag);
    for (const auto& [from, to] : copies) copy(from, to);
  } catch (const CommError& error) {
    family_->watch.fail(lane_, error.what());
    family_->watch.check();
  } catch (...) {
    for (const QueuedMessage& one : going) family_->watch.drop(lane_, *one.flight);
    throw;
  }
  for (const QueuedMessage& one : going) {
    stream_.record(one.flight->end);
    family_->watch.note_issued(*one.flight);
  }
}

std::unique_ptr<Group> DeviceGroup::split(int color, int key) {
  family_->watch.check();
  std::unique_ptr<Group> part = host_.split(color, key);
  // Who is in it is known to the host's group alone.
  device::Stream stream(device::cpu());
  device::Arena no_workspace;
  Context ctx{device::cpu(), stream, no_workspace};
  const auto num_members = std::size_t(part->size());
  std::vector<std::int32_t> members(num_members);
  const std::vector<std::int64_t> counts(num_members, 1);
  const TensorView all = view_of(std::span(members));
  const auto own = std::size_t(part->rank().value);
  members[own] = world_ranks_[std::size_t(rank().value)];
  part->all_gather_v(ctx, all.rows(std::int64_t(own), 1), counts, all, {Purpose::kSetup, kNoLayer})
      .wait();
  Xxh3Stream id;
  const std::array<std::uint64_t, 2> parent = {id_, std::uint64_t(num_splits_++)};
  id.update(std::as_bytes(std::span(parent)));
  id.update(std::as_bytes(std::span(members)));
  return std::make_unique<DeviceGroup>(
      std::move(part), family_, std::vector<int>(members.begin(), members.end()), id.digest());
}

}  // namespace

std::size_t plan_device_scratch_bytes(int group_size) {
  PECAN_EXPECTS(group_size >= 1);
  return scratch_for(group_size, kDeviceScratchBytes);
}

std::unique_ptr<Group> make_device_group(Group& host, device::Device device, GroupOptions options) {
  PECAN_VALIDATE(device.kind == device::DeviceKind::kCuda && device.backend != nullptr,
                 DeviceError,
                 "a device group needs a CUDA device; on the CPU the group of the host is enough");
  return std::make_unique<DeviceGroup>(host, device, options);
}

}  // namespace pecan::comm
