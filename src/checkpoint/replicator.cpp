#include "checkpoint/replicator.hpp"

#include <algorithm>
#include <array>
#include <mutex>
#include <span>
#include <utility>

#include <pecan/core/hash.hpp>

#include "checkpoint/segment_memory.hpp"
#include "checkpoint/worker.hpp"

namespace pecan::checkpoint {
namespace {

constexpr comm::Tag kTag{comm::Purpose::kReplication, kNoLayer};
/// One message, and how many of one snapshot are under way.
constexpr std::size_t kChunkBytes = std::size_t(4) << 20;
constexpr std::size_t kWindow = 4;

/// What comes before a snapshot.
enum Preamble : std::size_t { kIsWhole, kManifestBytes, kIndexBytes, kPayloadBytes, kPreambleSize };

template <typename Byte>
std::vector<std::span<Byte>> chunks_of(std::span<Byte> bytes) {
  std::vector<std::span<Byte>> chunks;
  for (std::size_t at = 0; at < bytes.size(); at += kChunkBytes)
    chunks.push_back(bytes.subspan(at, std::min(kChunkBytes, bytes.size() - at)));
  return chunks;
}

TensorView view(std::span<std::byte> bytes) {
  return {bytes.data(), DType::kU8, Shape{std::int64_t(bytes.size())}};
}
ConstTensorView view(std::span<const std::byte> bytes) {
  return {bytes.data(), DType::kU8, Shape{std::int64_t(bytes.size())}};
}

/// Messages that are sent or received in order, few at a time.
template <typename Byte>
class Stream {
 public:
  void add(std::vector<std::span<Byte>> messages) {
    waiting_.insert(waiting_.end(), messages.begin(), messages.end());
  }
  /// `start(message)` gives its Pending.
  template <typename Start>
  void progress(Start start) {
    while (!under_way_.empty() && under_way_.front().test()) under_way_.pop_front();
    while (!waiting_.empty() && under_way_.size() < kWindow) {
      under_way_.push_back(start(waiting_.front()));
      waiting_.pop_front();
    }
  }
  [[nodiscard]] bool empty() const { return waiting_.empty() && under_way_.empty(); }

 private:
  std::deque<std::span<Byte>> waiting_;
  std::deque<comm::Pending> under_way_;
};

}  // namespace

/// To one keeper.
struct Replicator::Outgoing {
  Rank keeper;
  std::array<std::int64_t, kPreambleSize> preamble{};
  std::string description{};
  Stream<const std::byte> stream{};
};

/// From one rank.
struct Replicator::Incoming {
  enum class State : std::uint8_t { kIdle, kPreamble, kContent, kChecking };
  Rank owner;
  std::size_t max_blocks = 0;
  std::deque<SegmentMemory> buffers{};
  int buffer = 0;  ///< being filled
  State state = State::kIdle;
  std::array<std::int64_t, kPreambleSize> preamble{};
  std::string description{};
  Stream<std::byte> stream{};

  /// Where what comes in place of a buffer goes that could not grow; else empty.
  std::vector<std::byte> discarded{};
  std::string why_discarded{};

  /// Room for what the preamble announces: the owner's buffer may have grown beyond the plan.
  void make_room() {
    discarded.clear();
    try {
      static_cast<void>(
          buffers[std::size_t(buffer)].reserve(std::size_t(preamble[kPayloadBytes]), max_blocks));
      buffers[std::size_t(buffer)].begin();
    } catch (const CheckpointError& e) {
      // It has been sent, and is taken.
      why_discarded = e.what();
      discarded.resize(std::max<std::size_t>(1, std::size_t(preamble[kPayloadBytes])));
    }
  }
  [[nodiscard]] std::span<std::byte> payload() {
    const auto num_bytes = std::size_t(preamble[kPayloadBytes]);
    if (!discarded.empty()) return std::span(discarded).first(num_bytes);
    return buffers[std::size_t(buffer)].segment()->payload().first(num_bytes);
  }
  /// Compares the checksums and makes what came a snapshot. Any thread.
  Status commit();
};

/// What the checking thread reports.
struct Replicator::Checks {
  mutable std::mutex mutex;
  std::size_t under_way = 0;
  Status status;
  Worker worker;
};

Status Replicator::Incoming::commit() {
  if (!discarded.empty()) return Status::failure(StatusCode::kNoSpace, why_discarded);
  const auto manifest_bytes = std::size_t(preamble[kManifestBytes]);
  const Result<Manifest> header = parse_manifest(description.substr(0, manifest_bytes));
  if (!header.ok()) return header.status();
  const Result<RankIndex> index = parse_rank_index(description.substr(manifest_bytes));
  if (!index.ok()) return index.status();
  SegmentMemory& memory = buffers[std::size_t(buffer)];
  const Status whole = memory.segment()->verify(index.value(), payload().size());
  return whole.ok() ? memory.seal(header.value(), index.value()) : whole;
}

Replicator::Replicator(const Replication& replication,
                       const Nodes& nodes,
                       const std::string& directory,
                       const std::string& host,
                       const std::string& run_id,
                       const std::vector<SnapshotMemory>& memory)
    : ctx_(*replication.ctx), checks_(std::make_unique<Checks>()) {
  const int num_copies = replication.factor - 1;
  PECAN_VALIDATE(num_copies < nodes.size(),
                 ConfigError,
                 "checkpoint.replication_factor={} keeps each snapshot on as many nodes, but the "
                 "ranks of this start are on {}; use at most {}, or more nodes",
                 replication.factor,
                 nodes.size(),
                 nodes.size());
  group_ = replication.world->split(0, replication.world->rank().value);
  const Rank rank = group_->rank();
  for (int copy = 1; copy <= num_copies; ++copy)
    outgoing_.push_back(std::make_unique<Outgoing>(Outgoing{nodes.keeper(rank, copy)}));
  for (const auto& [owner, copy] : nodes.kept_by(rank, num_copies)) {
    const SnapshotMemory& reserved = memory[std::size_t(owner.value)];
    auto incoming = std::make_unique<Incoming>(Incoming{owner, reserved.max_blocks});
    for (int b = 0; b < reserved.num_buffers; ++b) {
      const SegmentName name{run_id, host, owner, b, copy};
      // Filled from the network: no device copies to it.
      incoming->buffers.emplace_back(directory, name, device::cpu());
      static_cast<void>(incoming->buffers.back().reserve(b == 0 ? reserved.first : reserved.others,
                                                         reserved.max_blocks));
    }
    incoming_.push_back(std::move(incoming));
  }
}

Replicator::~Replicator() = default;

void Replicator::invalidate(int buffer) {
  for (const auto& incoming : incoming_) incoming->buffers[std::size_t(buffer)].begin();
}

void Replicator::begin(int buffer) {
  PECAN_EXPECTS(done());
  expects_offer_ = true;
  {
    const std::lock_guard lock(checks_->mutex);
    checks_->status = {};
  }
  for (const auto& incoming : incoming_) {
    incoming->buffer = buffer;
    incoming->buffers[std::size_t(buffer)].begin();
    incoming->state = Incoming::State::kPreamble;
    incoming->stream.add({std::as_writable_bytes(std::span(incoming->preamble))});
  }
  progress();
}

void Replicator::offer(const Segment* segment) {
  PECAN_EXPECTS(expects_offer_);
  expects_offer_ = false;
  for (const auto& outgoing : outgoing_) {
    outgoing->preamble = {};
    std::span<const std::byte> payload;
    if (segment != nullptr) {
      SegmentContent content = segment->content();
      outgoing->preamble = {1,
                            std::int64_t(content.manifest.size()),
                            std::int64_t(content.index.size()),
                            std::int64_t(content.payload.size())};
      outgoing->description = std::move(content.manifest) + content.index;
      payload = content.payload;
    }
    outgoing->stream.add({std::as_bytes(std::span(outgoing->preamble))});
    if (segment == nullptr) continue;
    outgoing->stream.add(chunks_of(std::as_bytes(std::span(std::as_const(outgoing->description)))));
    outgoing->stream.add(chunks_of(payload));
  }
  progress();
}

void Replicator::progress() {
  for (const auto& outgoing : outgoing_) {
    outgoing->stream.progress([&](std::span<const std::byte> message) {
      sent_bytes_ += std::int64_t(message.size());
      return group_->send(ctx_, view(message), outgoing->keeper, kTag);
    });
  }
  for (const auto& incoming : incoming_) {
    Incoming& from = *incoming;
    const auto receive = [&](std::span<std::byte> message) {
      return group_->receive(ctx_, view(message), from.owner, kTag);
    };
    from.stream.progress(receive);
    if (from.state == Incoming::State::kPreamble && from.stream.empty()) {
      if (from.preamble[kIsWhole] == 0) {
        // The owner tells all ranks by its own vote.
        from.state = Incoming::State::kIdle;
        continue;
      }
      from.make_room();
      from.description.resize(
          std::size_t(from.preamble[kManifestBytes] + from.preamble[kIndexBytes]));
      from.stream.add(chunks_of(std::as_writable_bytes(std::span(from.description))));
      from.stream.add(chunks_of(from.payload()));
      from.state = Incoming::State::kContent;
      from.stream.progress(receive);
    }
    if (from.state == Incoming::State::kContent && from.stream.empty()) {
      from.state = Incoming::State::kChecking;
      const std::lock_guard lock(checks_->mutex);
      ++checks_->under_way;
      checks_->worker.post([this, &from] {
        Status status = from.commit();
        const std::lock_guard guard(checks_->mutex);
        if (!status.ok())
          checks_->status = Status::failure(
              status.code,
              fmt::format("the copy of rank {}'s snapshot: {}", from.owner, status.message));
        --checks_->under_way;
      });
    }
    if (from.state == Incoming::State::kChecking) {
      const std::lock_guard lock(checks_->mutex);
      if (checks_->under_way == 0) from.state = Incoming::State::kIdle;
    }
  }
}

bool Replicator::done() const {
  return !expects_offer_ && std::ranges::all_of(outgoing_, [](const auto& outgoing) {
    return outgoing->stream.empty();
  }) && std::ranges::all_of(incoming_, [](const auto& incoming) {
    return incoming->state == Incoming::State::kIdle;
  });
}

Status Replicator::status() const {
  const std::lock_guard lock(checks_->mutex);
  return checks_->status;
}

void Replicator::remove() {
  for (const auto& incoming : incoming_) {
    for (SegmentMemory& buffer : incoming->buffers) buffer.remove();
  }
}

bool keeps_copy(
    const SegmentName& name, const Nodes& nodes, int node, int num_copies, int num_buffers) {
  return name.copy > 0 && name.copy <= num_copies && name.copy < nodes.size() &&
         name.rank.value < nodes.num_ranks() && name.buffer < num_buffers &&
         nodes.of(nodes.keeper(name.rank, name.copy)) == node;
}

}  // namespace pecan::checkpoint
