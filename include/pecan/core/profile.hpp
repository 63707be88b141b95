#pragma once
/// Where the time of a run goes: spans of each thread, in memory that is reserved beforehand, and
/// their sums. Written as a trace that Perfetto and Chrome read (docs/formats/profile.md).

#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pecan/core/error.hpp>
#include <pecan/core/ids.hpp>
#include <pecan/core/tensor.hpp>

namespace pecan {

class FileSystem;

namespace detail {
class TextFile;
}

/// What a span stands for.
enum class SpanKind : std::uint8_t {
  kStep,        ///< one step; a track's sums hold what lies inside of steps
  kPhase,       ///< a part of a step: data, forward, update
  kOperator,    ///< one call of an operator
  kCollective,  ///< a thread begins a collective, asks for it or waits for it
  kInFlight,    ///< a collective from its begin to its end, beside what the thread does meanwhile
  kSave         ///< a part of a checkpoint, on a thread of its own
};
[[nodiscard]] std::string_view name_of(SpanKind kind);

/// The part of a collective that a span of kCollective stands for.
enum class SpanPart : std::uint8_t { kWhole, kBegin, kTest, kWait };
[[nodiscard]] std::string_view name_of(SpanPart part);

/// What a span is called; its texts are literals, which outlive everything.
struct SpanLabel {
  SpanKind kind = SpanKind::kPhase;
  std::string_view name;
  std::string_view detail = {};  ///< of a collective: its purpose
  LayerId layer = kNoLayer;
  Step step{-1};  ///< of a step or a save; -1: none
  SpanPart part = SpanPart::kWhole;
};

/// What a call has to do at least.
struct Work {
  std::int64_t flops = 0;  ///< of matrix products and attention; 0 where memory is what counts
  std::int64_t bytes = 0;  ///< inputs once and outputs once; of a collective: sent to other ranks
  DType dtype = DType::kF32;  ///< of the operands of the flops
};

/// What the spans of one name sum up to.
struct ProfileRow {
  SpanKind kind = SpanKind::kPhase;
  std::string_view name;
  std::string_view detail;
  std::int64_t calls = 0;
  std::int64_t self_ns = 0;    ///< without the spans inside
  std::int64_t total_ns = 0;   ///< with them
  std::int64_t flight_ns = 0;  ///< of collectives, from begin to end
  std::int64_t bytes = 0;
  std::int64_t f32_flops = 0, f64_flops = 0, bf16_flops = 0;
  [[nodiscard]] std::int64_t flops() const { return f32_flops + f64_flops + bf16_flops; }
};

/// The spans of one thread, which nest. begin() and end() are called by that thread, in pairs.
/// Allocates nothing after its construction.
class ProfileTrack {
 public:
  /// Room for `max_spans`; what comes after is counted in the sums and as cut.
  ProfileTrack(std::string name, std::size_t max_spans);

  /// Called by the track's thread before each look at the clock, so that spans hold work which goes
  /// on beside the thread, too. `settle` waits for it and throws nothing; empty: nothing is waited
  /// for. Set outside of all spans.
  void settle_with(std::function<void()> settle) { settle_ = std::move(settle); }
  void begin(const SpanLabel& label, const Work& work = {});
  /// Of the innermost span: what was not known when it began.
  void moved(std::int64_t bytes);
  void end();
  /// The same for a span that may be of no interest: below `least_ns` it is kept in the sums alone.
  void end_if_longer(std::int64_t least_ns);
  /// A collective has ended that began at `begin_ns`; by the track's thread.
  void flew(const SpanLabel& label, std::int64_t begin_ns, const Work& work);
  /// Nanoseconds of the steady clock.
  [[nodiscard]] static std::int64_t now();

 private:
  friend class Profiler;
  static constexpr std::size_t kMaxDepth = 32;
  static constexpr std::size_t kMaxNames = 256;
  enum class Ending : std::uint8_t { kOver, kUnfinished };

  struct Span {
    std::int64_t begin_ns = 0, end_ns = 0;
    std::int64_t step = -1;
    std::int64_t flops = 0, bytes = 0;
    std::int32_t layer = -1;
    std::uint16_t row = 0;
    SpanPart part = SpanPart::kWhole;
    bool in_flight = false;
    bool unfinished = false;
  };
  struct Frame {
    SpanLabel label;
    Work work;
    std::int64_t begin_ns = 0;
    std::int64_t inner_ns = 0;  ///< of the spans directly inside
  };
  [[nodiscard]] std::size_t row_of(const SpanLabel& label);
  void settle() const {
    if (settle_) settle_();
  }
  void store(const SpanLabel& label,
             const Work& work,
             std::int64_t begin_ns,
             std::int64_t end_ns,
             Ending ending);
  /// All spans as events, in microseconds after `zero_ns`.
  void write(detail::TextFile& out, Rank rank, int thread, std::int64_t zero_ns) const;
  [[nodiscard]] static std::string arguments_of(const Span& span);

  std::string name_;
  std::function<void()> settle_;
  mutable std::mutex mutex_;  ///< its own thread takes it, others at the start and the end alone
  bool recording_ = false;
  std::array<Frame, kMaxDepth> frames_;
  std::size_t depth_ = 0;
  std::vector<Span> spans_;
  std::size_t num_spans_ = 0;
  std::int64_t cut_ = 0;                        ///< spans that found no room
  std::int64_t cut_at_ = 0;                     ///< when the first of them began
  std::array<ProfileRow, kMaxNames + 1> rows_;  ///< by hash; the last one for names without room
};

/// The threads of a rank that have tracks.
enum class ProfileThread : std::uint8_t { kMain, kCopier, kWriter, kKeeper, kCount };

/// What a profile says of itself.
struct ProfileFacts {
  Rank rank;
  int world = 1;
  std::int64_t origin_ns = 0;  ///< system clock, equal on all ranks: the trace's zero
  Step first_step, last_step;  ///< that were recorded
};

/// The profile of one rank. Reserves its memory (some megabytes) when it is made; records between
/// start() and stop().
class Profiler {
 public:
  static constexpr std::size_t kMainSpans = std::size_t{1} << 17;
  explicit Profiler(std::size_t max_main_spans = kMainSpans);

  [[nodiscard]] ProfileTrack* track(ProfileThread thread) { return &*tracks_[std::size_t(thread)]; }
  void start();
  /// What is under way then is kept as unfinished.
  void stop();

  /// In no order; of the main thread what lies inside of steps, of the others everything.
  [[nodiscard]] std::vector<ProfileRow> rows(ProfileThread thread) const;
  /// Spans that found no room.
  [[nodiscard]] std::int64_t num_cut() const;
  /// The trace, as docs/formats/profile.md has it; under its name only when it is whole.
  Status write_trace(FileSystem& fs, const std::string& path, const ProfileFacts& facts) const;

 private:
  std::array<std::unique_ptr<ProfileTrack>, std::size_t(ProfileThread::kCount)> tracks_;
  std::int64_t to_system_ns_;  ///< what makes the steady clock the system's
};

/// Times a scope; without a track that is one test of a pointer.
class ProfileSpan {
 public:
  ProfileSpan(ProfileTrack* track, const SpanLabel& label) : track_(track) {
    if (track_ != nullptr) track_->begin(label);
  }
  /// `work_of()` gives the work, and is called with a track alone.
  template <std::invocable WorkOf>
  ProfileSpan(ProfileTrack* track, const SpanLabel& label, const WorkOf& work_of) : track_(track) {
    if (track_ != nullptr) track_->begin(label, work_of());
  }
  ~ProfileSpan() {
    if (track_ != nullptr) track_->end();
  }
  ProfileSpan(const ProfileSpan&) = delete;
  ProfileSpan& operator=(const ProfileSpan&) = delete;
  void moved(std::int64_t bytes) {
    if (track_ != nullptr) track_->moved(bytes);
  }

 private:
  ProfileTrack* track_;
};

}  // namespace pecan
