#include <numeric>
#include <utility>

#include <pecan/core/profile.hpp>

#include <pecan/comm/traffic.hpp>

namespace pecan::comm {
namespace {

/// A collective under way that is watched. Asking for it takes long only where that does a part of
/// it; what is shorter is counted and not drawn, since it happens often.
class ProfiledOperation final : public Pending::Operation {
 public:
  ProfiledOperation(
      Pending pending, ProfileTrack& track, SpanLabel label, Work work, std::int64_t begin_ns)
      : pending_(std::move(pending)),
        track_(track),
        label_(label),
        work_(work),
        begin_ns_(begin_ns) {}

  bool test() override {
    constexpr std::int64_t kWorthDrawingNs = 20'000;
    const Part part(*this, SpanPart::kTest, kWorthDrawingNs);
    if (!pending_.test()) return false;
    note_end();
    return true;
  }
  void wait() override {
    const Part part(*this, SpanPart::kWait, 0);
    pending_.wait();
    note_end();
  }

 private:
  class Part {
   public:
    Part(const ProfiledOperation& operation, SpanPart part, std::int64_t least_ns)
        : track_(operation.track_), least_ns_(least_ns) {
      SpanLabel label = operation.label_;
      label.part = part;
      track_.begin(label);
    }
    ~Part() { track_.end_if_longer(least_ns_); }
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

   private:
    ProfileTrack& track_;
    std::int64_t least_ns_;
  };

  void note_end() {
    SpanLabel label = label_;
    label.kind = SpanKind::kInFlight;
    track_.flew(label, begin_ns_, work_);
  }

  Pending pending_;
  ProfileTrack& track_;
  SpanLabel label_;
  Work work_;
  std::int64_t begin_ns_;
};

/// Another group, whose calls are in the profile of the Context that they are given.
class ProfiledGroup final : public Group {
 public:
  explicit ProfiledGroup(Group& group) : group_(group) {}
  explicit ProfiledGroup(std::unique_ptr<Group> group)
      : owned_(std::move(group)), group_(*owned_) {}

  [[nodiscard]] int size() const override { return group_.size(); }
  [[nodiscard]] Rank rank() const override { return group_.rank(); }
  [[nodiscard]] Pending all_reduce(Context& ctx, TensorView inout, ReduceOp op, Tag tag) override {
    const auto sent = [&] {
      return plan_all_reduce_sent(inout.num_elements(), inout.dtype, size(), own());
    };
    return watch(
        ctx, "all_reduce", tag, sent, [&] { return group_.all_reduce(ctx, inout, op, tag); });
  }
  [[nodiscard]] Pending reduce_scatter_v(Context& ctx,
                                         ConstTensorView input,
                                         std::span<const std::int64_t> counts,
                                         TensorView output,
                                         ReduceOp op,
                                         Tag tag) override {
    const auto sent = [&] { return plan_reduce_scatter_sent(counts, input.dtype, own()); };
    return watch(ctx, "reduce_scatter_v", tag, sent, [&] {
      return group_.reduce_scatter_v(ctx, input, counts, output, op, tag);
    });
  }
  [[nodiscard]] Pending all_gather_v(Context& ctx,
                                     ConstTensorView input,
                                     std::span<const std::int64_t> counts,
                                     TensorView output,
                                     Tag tag) override {
    const auto sent = [&] { return plan_all_gather_sent(counts, input.dtype, own()); };
    return watch(ctx, "all_gather_v", tag, sent, [&] {
      return group_.all_gather_v(ctx, input, counts, output, tag);
    });
  }
  [[nodiscard]] Pending all_to_all_v(Context& ctx,
                                     ConstTensorView input,
                                     std::span<const std::int64_t> send_counts,
                                     TensorView output,
                                     std::span<const std::int64_t> receive_counts,
                                     Tag tag) override {
    // What goes to others, as in a reduction.
    const auto sent = [&] { return plan_reduce_scatter_sent(send_counts, input.dtype, own()); };
    return watch(ctx, "all_to_all_v", tag, sent, [&] {
      return group_.all_to_all_v(ctx, input, send_counts, output, receive_counts, tag);
    });
  }
  [[nodiscard]] Pending broadcast(Context& ctx, TensorView inout, Rank root, Tag tag) override {
    const auto sent = [&] {
      return root == rank() ? std::int64_t(inout.num_bytes()) * (size() - 1) : 0;
    };
    return watch(
        ctx, "broadcast", tag, sent, [&] { return group_.broadcast(ctx, inout, root, tag); });
  }
  [[nodiscard]] Pending send(Context& ctx, ConstTensorView input, Rank to, Tag tag) override {
    const auto sent = [&] { return std::int64_t(input.num_bytes()); };
    return watch(ctx, "send", tag, sent, [&] { return group_.send(ctx, input, to, tag); });
  }
  [[nodiscard]] Pending receive(Context& ctx, TensorView output, Rank from, Tag tag) override {
    const auto sent = [] { return std::int64_t{0}; };
    return watch(ctx, "receive", tag, sent, [&] { return group_.receive(ctx, output, from, tag); });
  }
  [[nodiscard]] std::unique_ptr<Group> split(int color, int key) override {
    return std::make_unique<ProfiledGroup>(group_.split(color, key));
  }
  void abort(const std::string& reason) override { group_.abort(reason); }
  void set_step(Step step) override { group_.set_step(step); }
  [[nodiscard]] Traffic traffic(Purpose purpose) const override { return group_.traffic(purpose); }
  [[nodiscard]] std::size_t scratch_bytes() const override { return group_.scratch_bytes(); }

 private:
  [[nodiscard]] int own() const { return group_.rank().value; }

  template <typename Sent, typename Start>
  [[nodiscard]] static Pending watch(
      const Context& ctx, std::string_view name, Tag tag, const Sent& sent, const Start& start) {
    if (ctx.profile == nullptr) return start();
    SpanLabel label{.kind = SpanKind::kCollective,
                    .name = name,
                    .detail = name_of(tag.purpose),
                    .layer = tag.layer,
                    .part = SpanPart::kBegin};
    const Work work{.flops = 0, .bytes = sent()};
    const std::int64_t begin_ns = ProfileTrack::now();
    Pending pending = [&] {
      const ProfileSpan span(ctx.profile, label, [&] { return work; });
      return start();
    }();
    return Pending(std::make_unique<ProfiledOperation>(
        std::move(pending), *ctx.profile, label, work, begin_ns));
  }

  std::unique_ptr<Group> owned_;
  Group& group_;
};

}  // namespace

std::unique_ptr<Group> make_profiled_group(Group& group) {
  return std::make_unique<ProfiledGroup>(group);
}

}  // namespace pecan::comm
