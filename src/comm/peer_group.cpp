#include "comm/peer_group.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include <pecan/core/error.hpp>
#include <pecan/core/log.hpp>

#include <pecan/device/context.hpp>

#include "comm/arguments.hpp"
#include "comm/reduce.hpp"
#include "comm/stream_copy.hpp"

namespace pecan::comm {
namespace {

/// Calls visit(peer) for all other members, beginning with the next one: nobody is everybody's
/// first.
template <typename Visit>
void for_each_peer(const Transport& transport, Visit visit) {
  for (int distance = 1; distance < transport.size(); ++distance) {
    visit((transport.rank() + distance) % transport.size());
  }
}

/// Sends piece_for(r) to each r and reduces `own` and what they send, equally long, into `output`.
template <typename PieceFor>
void post_reduce(PeerOperation& operation,
                 const Transport& transport,
                 std::span<const std::byte> own,
                 PieceFor piece_for,
                 std::byte* output,
                 DType dtype,
                 ReduceOp op) {
  std::vector<const std::byte*> pieces(std::size_t(transport.size()), own.data());
  std::byte* next = operation.scratch(own.size() * (pieces.size() - 1));
  for_each_peer(transport, [&](int peer) {
    pieces[std::size_t(peer)] = next;
    operation.receive({next, own.size()}, peer);
    next += own.size();
  });
  for_each_peer(transport, [&](int peer) { operation.send(piece_for(peer), peer); });
  operation.then([=, pieces = std::move(pieces)] {
    reduce_in_order(dtype, op, pieces, output, std::int64_t(own.size() / size_of(dtype)));
  });
}

/// Sends this member's piece, in its place in `output`, to all others, and receives theirs.
void post_all_gather(PeerOperation& operation,
                     const Transport& transport,
                     const Pieces& pieces,
                     std::byte* output) {
  for_each_peer(transport, [&](int peer) { operation.receive(pieces.of(output, peer), peer); });
  const std::span<const std::byte> own = pieces.of(output, transport.rank());
  for_each_peer(transport, [&](int peer) { operation.send(own, peer); });
}

void copy(std::span<const std::byte> from, std::span<std::byte> to) {
  if (from.empty() || from.data() == to.data()) return;
  if (from.size() >= kStreamedBytes) {
    stream_copy(from, to);
  } else {
    std::memcpy(to.data(), from.data(), from.size());
  }
}

void validate_device(const Context& ctx, std::string_view name) {
  PECAN_VALIDATE(
      ctx.device.kind == device::DeviceKind::kCpu,
      NotConfigured,
      "{} on CUDA device {} by a group that moves host memory alone: make a device group "
      "over it",
      name,
      ctx.device.ordinal);
}

/// The members' pieces as one list.
template <typename Byte>
std::vector<std::span<Byte>> list_of(const Pieces& pieces, Byte* packed, int size) {
  std::vector<std::span<Byte>> list;
  for (int member = 0; member < size; ++member) list.push_back(pieces.of(packed, member));
  return list;
}

/// Starts what was posted.
Pending launch(std::unique_ptr<PeerOperation> operation) {
  operation->advance();
  return Pending(std::move(operation));
}

}  // namespace

PeerGroup::PeerGroup(std::unique_ptr<Transport> transport,
                     std::shared_ptr<AbortFlag> abort_flag,
                     GroupOptions options) {
  peers_.world_ranks.resize(std::size_t(transport->size()));
  std::iota(peers_.world_ranks.begin(), peers_.world_ranks.end(), 0);
  peers_.transport = std::move(transport);
  peers_.family = std::make_shared<Family>(std::move(abort_flag), options);
}

void PeerGroup::open_window() {
  if (!peers_.family->options.shared_memory || size() == 1 || !peers_.transport->is_on_one_node()) {
    return;
  }
  PECAN_EXPECTS(peers_.window == nullptr);
  device::Stream stream(device::cpu());
  device::Arena no_workspace;
  Context ctx{device::cpu(), stream, no_workspace};
  constexpr Tag kTag{Purpose::kSetup, kNoLayer};
  const std::size_t piece_bytes = peers_.family->options.piece_bytes;
  // By messages, so that a member that does not come is named by a time-out.
  SharedBlock memory;
  Status status;
  const auto keep = [&](Result<SharedBlock> block) {
    status = block.status();
    if (block.ok()) memory = std::move(block).value();
  };
  std::array<std::int64_t, 4> words{};
  if (rank().value == 0) {
    keep(SharedBlock::create(Window::memory_bytes(size(), piece_bytes)));
    if (status.ok()) {
      const SharedBlock::Address own = memory.address();
      words = {own.process, own.descriptor, own.nonce, own.num_bytes};
    }
  }
  broadcast(ctx, view_of(std::span(words)), Rank{0}, kTag).wait();
  if (rank().value != 0 && words[0] != 0) {
    keep(SharedBlock::attach({words[0], words[1], words[2], words[3]}));
  }
  const Window::Part part = Window::part_of(rank().value, size(), piece_bytes);
  if (memory.bytes().data() != nullptr) status = memory.reserve(part.begin, part.num_bytes);
  // The first that fails says why; all decide alike.
  std::int32_t first_failed = status.ok() ? size() : rank().value;
  all_reduce(ctx, view_of(std::span(&first_failed, 1)), ReduceOp::kMin, kTag).wait();
  if (first_failed == rank().value) {
    PECAN_LOG(kWarn,
              "[comm] the ranks of a node exchange messages, which is slower than memory that they "
              "share: {}; comm.shared_memory: false does without and without this warning",
              status.message);
  }
  if (first_failed < size()) return;
  memory.close();
  peers_.memory = std::move(memory);
  peers_.window =
      std::make_unique<Window>(peers_.memory.bytes(), size(), rank().value, piece_bytes);
  peers_.family->add_scratch(part.num_bytes);
}

std::unique_ptr<PeerOperation> PeerGroup::begin_collective(std::string_view name, Tag tag) {
  peers_.family->abort_flag->check();
  peers_.family->begin(name, tag);
  // Members call in one order, so that the number of the call tells apart what is under way at
  // once; a number may come again, since messages of equal tag match in order.
  const std::int64_t number = num_collectives_++;
  const int message_tag = 1 + int(number % Transport::kMaxTag);
  return std::make_unique<PeerOperation>(
      peers_, fmt::format("{} #{}", name, number), tag, message_tag);
}

std::unique_ptr<PeerOperation> PeerGroup::begin_message(std::string name, Tag tag) {
  peers_.family->abort_flag->check();
  peers_.family->begin(name, tag);
  constexpr int kMessageTag = 0;  // no collective's
  return std::make_unique<PeerOperation>(peers_, std::move(name), tag, kMessageTag);
}

std::size_t plan_all_reduce_scratch(std::int64_t num_elements, DType dtype, int group_size) {
  PECAN_EXPECTS(num_elements >= 0 && group_size >= 1);
  if (group_size == 1) return 0;
  const std::size_t whole = std::size_t(num_elements) * size_of(dtype);
  const std::int64_t share = (num_elements + group_size - 1) / group_size;
  const std::size_t own =
      whole < kSmallAllReduceBytes ? whole : std::size_t(share) * size_of(dtype);
  return scratch_size(own * std::size_t(group_size - 1));
}

std::size_t plan_window_bytes(int group_size) {
  PECAN_EXPECTS(group_size >= 1);
  return group_size == 1 ? 0 : Window::part_of(0, group_size, kPieceBytes).num_bytes;
}

Pending PeerGroup::all_reduce(Context& ctx, TensorView inout, ReduceOp op, Tag tag) {
  constexpr std::string_view kName = "all_reduce";
  validate_device(ctx, kName);
  validate_all_reduce(inout, op, kName);
  auto operation = begin_collective(kName, tag);
  const Transport& transport = *peers_.transport;
  const std::span<const std::byte> whole(inout.data, inout.num_bytes());
  if (size() == 1) return launch(std::move(operation));
  if (peers_.window) {
    using Chunks = ExchangeParts::Chunks;
    ExchangeParts parts;
    if (whole.size() < kSmallAllReduceBytes) {
      parts.common = whole;
      parts.reduction = {whole, inout.data, inout.dtype, op, Chunks::kCommon};
    } else {
      const Pieces pieces(all_reduce_counts(inout.num_elements(), size()), inout.dtype);
      const std::span<std::byte> own = pieces.of(inout.data, transport.rank());
      parts.personal = list_of<const std::byte>(pieces, inout.data, size());
      parts.reduction = {own, own.data(), inout.dtype, op, Chunks::kPersonal};
      parts.common = own;
      parts.common_chunks = Chunks::kPersonal;
      parts.common_is_reduced = true;
      parts.gathered = list_of<std::byte>(pieces, inout.data, size());
      parts.gathered_chunks = Chunks::kPersonal;
    }
    operation->exchange(std::move(parts));
    return launch(std::move(operation));
  }
  if (whole.size() < kSmallAllReduceBytes) {
    post_reduce(
        *operation,
        transport,
        whole,
        [&](int /*peer*/) { return whole; },
        inout.data,
        inout.dtype,
        op);
    return launch(std::move(operation));
  }
  const Pieces pieces(all_reduce_counts(inout.num_elements(), size()), inout.dtype);
  const std::span<std::byte> own = pieces.of(inout.data, transport.rank());
  post_reduce(
      *operation,
      transport,
      own,
      [&](int peer) { return std::span<const std::byte>(pieces.of(inout.data, peer)); },
      own.data(),
      inout.dtype,
      op);
  operation->then([&posted = *operation, &transport, pieces, data = inout.data] {
    post_all_gather(posted, transport, pieces, data);
  });
  return launch(std::move(operation));
}

Pending PeerGroup::reduce_scatter_v(Context& ctx,
                                    ConstTensorView input,
                                    std::span<const std::int64_t> counts,
                                    TensorView output,
                                    ReduceOp op,
                                    Tag tag) {
  constexpr std::string_view kName = "reduce_scatter_v";
  validate_device(ctx, kName);
  validate_reduce_scatter_v(*this, input, counts, output, op, kName);
  const Pieces pieces(counts, input.dtype);
  auto operation = begin_collective(kName, tag);
  if (peers_.window) {
    ExchangeParts parts;
    parts.personal = list_of<const std::byte>(pieces, input.data, size());
    parts.reduction = {parts.personal[std::size_t(rank().value)],
                       output.data,
                       input.dtype,
                       op,
                       ExchangeParts::Chunks::kPersonal};
    operation->exchange(std::move(parts));
    return launch(std::move(operation));
  }
  post_reduce(
      *operation,
      *peers_.transport,
      pieces.of(input.data, rank().value),
      [&](int peer) { return pieces.of(input.data, peer); },
      output.data,
      input.dtype,
      op);
  return launch(std::move(operation));
}

Pending PeerGroup::all_gather_v(Context& ctx,
                                ConstTensorView input,
                                std::span<const std::int64_t> counts,
                                TensorView output,
                                Tag tag) {
  constexpr std::string_view kName = "all_gather_v";
  validate_device(ctx, kName);
  validate_all_gather_v(*this, input, counts, output, kName);
  const Pieces pieces(counts, input.dtype);
  const std::span<std::byte> own = pieces.of(output.data, rank().value);
  auto operation = begin_collective(kName, tag);
  copy({input.data, input.num_bytes()}, own);
  // Between two by messages, for the same reason as in all_to_all_v.
  if (peers_.window && size() > 2) {
    ExchangeParts parts;
    parts.common = own;
    parts.gathered = list_of<std::byte>(pieces, output.data, size());
    operation->exchange(std::move(parts));
    return launch(std::move(operation));
  }
  post_all_gather(*operation, *peers_.transport, pieces, output.data);
  return launch(std::move(operation));
}

Pending PeerGroup::all_to_all_v(Context& ctx,
                                ConstTensorView input,
                                std::span<const std::int64_t> send_counts,
                                TensorView output,
                                std::span<const std::int64_t> receive_counts,
                                Tag tag) {
  constexpr std::string_view kName = "all_to_all_v";
  validate_device(ctx, kName);
  validate_all_to_all_v(*this, input, send_counts, output, receive_counts, kName);
  auto operation = begin_collective(kName, tag);
  const Pieces sent(send_counts, input.dtype), received(receive_counts, input.dtype);
  // By messages also where members share memory: what each gives is for one other alone, and MPI
  // copies it once between processes of a node, where a window copies twice.
  for_each_peer(*peers_.transport,
                [&](int peer) { operation->receive(received.of(output.data, peer), peer); });
  for_each_peer(*peers_.transport,
                [&](int peer) { operation->send(sent.of(input.data, peer), peer); });
  copy(sent.of(input.data, rank().value), received.of(output.data, rank().value));
  return launch(std::move(operation));
}

Pending PeerGroup::broadcast(Context& ctx, TensorView inout, Rank root, Tag tag) {
  constexpr std::string_view kName = "broadcast";
  validate_device(ctx, kName);
  validate_view(inout, kName);
  validate_member(*this, root, kName);
  auto operation = begin_collective(kName, tag);
  const std::span<std::byte> whole(inout.data, inout.num_bytes());
  if (peers_.window) {
    ExchangeParts parts;
    if (rank() == root) {
      parts.common = whole;
    } else {
      parts.gathered.resize(std::size_t(size()));
      parts.gathered[std::size_t(root.value)] = whole;
    }
    operation->exchange(std::move(parts));
    return launch(std::move(operation));
  }
  if (rank() == root) {
    for_each_peer(*peers_.transport, [&](int peer) { operation->send(whole, peer); });
  } else {
    operation->receive(whole, root.value);
  }
  return launch(std::move(operation));
}

Pending PeerGroup::send(Context& ctx, ConstTensorView input, Rank to, Tag tag) {
  validate_device(ctx, "send");
  validate_view(input, "send");
  validate_member(*this, to, "send");
  auto operation = begin_message("send", tag);
  operation->send({input.data, input.num_bytes()}, to.value);
  return launch(std::move(operation));
}

Pending PeerGroup::receive(Context& ctx, TensorView output, Rank from, Tag tag) {
  validate_device(ctx, "receive");
  validate_view(output, "receive");
  validate_member(*this, from, "receive");
  auto operation = begin_message("receive", tag);
  operation->receive({output.data, output.num_bytes()}, from.value);
  return launch(std::move(operation));
}

std::unique_ptr<Group> PeerGroup::split(int color, int key) {
  device::Stream stream(device::cpu());
  device::Arena no_workspace;
  Context ctx{device::cpu(), stream, no_workspace};
  // Gathered by our own means first, so that a member that does not come is named by a time-out.
  const auto num_members = std::size_t(size()), own = std::size_t(rank().value);
  std::vector<std::int32_t> colors_and_keys(2 * num_members);
  colors_and_keys[2 * own] = color;
  colors_and_keys[2 * own + 1] = key;
  const std::vector<std::int64_t> counts(num_members, 2);
  const TensorView all = view_of(std::span(colors_and_keys));
  all_gather_v(ctx, all.rows(2 * std::int64_t(own), 2), counts, all, {Purpose::kSetup, kNoLayer})
      .wait();

  std::vector<int> members;
  for (std::size_t member = 0; member < num_members; ++member) {
    if (colors_and_keys[2 * member] == color) members.push_back(int(member));
  }
  std::ranges::stable_sort(
      members, {}, [&](int member) { return colors_and_keys[2 * std::size_t(member) + 1]; });
  const auto index = int(std::ranges::find(members, rank().value) - members.begin());
  Peers peers;
  peers.transport = peers_.transport->split(members, index);
  peers.family = peers_.family;
  for (const int member : members) {
    peers.world_ranks.push_back(peers_.world_ranks[std::size_t(member)]);
  }
  std::unique_ptr<PeerGroup> part(new PeerGroup(std::move(peers)));
  part->open_window();
  return part;
}

}  // namespace pecan::comm
