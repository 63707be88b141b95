#include <algorithm>
#include <chrono>
#include <functional>
#include <iterator>
#include <numeric>
#include <tuple>
#include <utility>

#include <pecan/core/build_info.hpp>
#include <pecan/core/file_system.hpp>
#include <pecan/core/profile.hpp>

namespace pecan {
namespace detail {

/// Text that goes to a file in large pieces.
class TextFile {
 public:
  explicit TextFile(File& file) : file_(file) { text_.reserve(2 * kPiece); }
  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    if (text_.size() >= kPiece) flush();
  }
  Status finish() {
    flush();
    return status_;
  }

 private:
  static constexpr std::size_t kPiece = std::size_t{1} << 20;
  void flush() {
    if (status_.ok()) status_ = file_.write_at(written_, std::as_bytes(std::span(text_)));
    written_ += text_.size();
    text_.clear();
  }
  File& file_;
  std::string text_;
  std::uint64_t written_ = 0;
  Status status_;
};

}  // namespace detail

namespace {

constexpr int kSchema = 1;  // of the trace: raise with every change of meaning
constexpr std::size_t kSpansOfOtherThreads = 4096;

std::int64_t system_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

/// Where the calls of a collective are summed, whatever part of it a span is.
SpanKind row_kind(SpanKind kind) {
  return kind == SpanKind::kInFlight ? SpanKind::kCollective : kind;
}

}  // namespace

std::string_view name_of(SpanKind kind) {
  switch (kind) {
    case SpanKind::kStep:
      return "step";
    case SpanKind::kPhase:
      return "phase";
    case SpanKind::kOperator:
      return "operator";
    case SpanKind::kCollective:
      return "collective";
    case SpanKind::kInFlight:
      return "in_flight";
    case SpanKind::kSave:
      return "save";
  }
  return "unknown";
}

std::string_view name_of(SpanPart part) {
  switch (part) {
    case SpanPart::kWhole:
      return "whole";
    case SpanPart::kBegin:
      return "begin";
    case SpanPart::kTest:
      return "test";
    case SpanPart::kWait:
      return "wait";
  }
  return "unknown";
}

ProfileTrack::ProfileTrack(std::string name, std::size_t max_spans)
    : name_(std::move(name)), spans_(max_spans) {}

std::int64_t ProfileTrack::now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void ProfileTrack::begin(const SpanLabel& label, const Work& work) {
  settle();
  const std::lock_guard lock(mutex_);
  if (depth_ < kMaxDepth) frames_[depth_] = {label, work, now(), 0};
  ++depth_;
}

void ProfileTrack::moved(std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (depth_ > 0 && depth_ <= kMaxDepth) frames_[depth_ - 1].work.bytes += bytes;
}

void ProfileTrack::end() {
  end_if_longer(0);
}

void ProfileTrack::end_if_longer(std::int64_t least_ns) {
  settle();
  const std::lock_guard lock(mutex_);
  PECAN_EXPECTS(depth_ > 0);
  if (--depth_ >= kMaxDepth) return;
  const Frame& frame = frames_[depth_];
  const std::int64_t end_ns = now();
  const std::int64_t total = end_ns - frame.begin_ns;
  if (depth_ > 0) frames_[depth_ - 1].inner_ns += total;
  if (!recording_) return;
  const SpanKind root = frames_[0].label.kind;
  if (root == SpanKind::kStep || root == SpanKind::kSave) {
    ProfileRow& row = rows_[row_of(frame.label)];
    if (frame.label.part == SpanPart::kWhole || frame.label.part == SpanPart::kBegin) ++row.calls;
    row.total_ns += total;
    row.self_ns += total - frame.inner_ns;
    row.bytes += frame.work.bytes;
    std::int64_t& flops = frame.work.dtype == DType::kBF16  ? row.bf16_flops
                          : frame.work.dtype == DType::kF64 ? row.f64_flops
                                                            : row.f32_flops;
    flops += frame.work.flops;
  }
  if (total >= least_ns) store(frame.label, frame.work, frame.begin_ns, end_ns, Ending::kOver);
}

void ProfileTrack::flew(const SpanLabel& label, std::int64_t begin_ns, const Work& work) {
  settle();
  const std::lock_guard lock(mutex_);
  if (!recording_) return;
  const std::int64_t end_ns = now();
  if (depth_ > 0 && frames_[0].label.kind == SpanKind::kStep)
    rows_[row_of(label)].flight_ns += end_ns - begin_ns;
  store(label, work, begin_ns, end_ns, Ending::kOver);
}

std::size_t ProfileTrack::row_of(const SpanLabel& label) {
  const SpanKind kind = row_kind(label.kind);
  std::size_t at = std::hash<std::string_view>()(label.name) + label.detail.size();
  for (std::size_t tries = 0; tries < kMaxNames; ++tries, ++at) {
    ProfileRow& row = rows_[at % kMaxNames];
    if (row.name.empty()) {
      row.kind = kind;
      row.name = label.name;
      row.detail = label.detail;
    }
    if (row.kind == kind && row.name == label.name && row.detail == label.detail)
      return at % kMaxNames;
  }
  rows_[kMaxNames].name = "further names";
  return kMaxNames;
}

void ProfileTrack::store(const SpanLabel& label,
                         const Work& work,
                         std::int64_t begin_ns,
                         std::int64_t end_ns,
                         Ending ending) {
  if (num_spans_ == spans_.size()) {
    if (cut_++ == 0) cut_at_ = begin_ns;
    return;
  }
  const std::size_t row = row_of(label);
  spans_[num_spans_++] = {.begin_ns = begin_ns,
                          .end_ns = end_ns,
                          .step = label.step.value,
                          .flops = work.flops,
                          .bytes = work.bytes,
                          .layer = label.layer.value,
                          .row = std::uint16_t(row),
                          .part = label.part,
                          .in_flight = label.kind == SpanKind::kInFlight,
                          .unfinished = ending == Ending::kUnfinished};
}

void ProfileTrack::write(detail::TextFile& out, Rank rank, int thread, std::int64_t zero_ns) const {
  const std::lock_guard lock(mutex_);
  out.add(
      ",\n"
      R"({{"ph":"M","name":"thread_name","pid":{0},"tid":{1},"args":{{"name":"{2}"}}}},)"
      "\n"
      R"({{"ph":"M","name":"thread_sort_index","pid":{0},"tid":{1},"args":{{"sort_index":{1}}}}})",
      rank,
      thread,
      name_);
  // Viewers nest spans of equal begin by their order.
  std::vector<std::uint32_t> order(num_spans_);
  std::iota(order.begin(), order.end(), 0U);
  std::ranges::sort(order, [this](std::uint32_t a, std::uint32_t b) {
    const Span &x = spans_[a], &y = spans_[b];
    return std::tuple(x.begin_ns, -x.end_ns, b) < std::tuple(y.begin_ns, -y.end_ns, a);
  });
  std::int64_t num_flights = 0;
  for (const std::uint32_t index : order) {
    const Span& span = spans_[index];
    const ProfileRow& row = rows_[span.row];
    const std::string name =
        row.detail.empty() ? std::string(row.name) : fmt::format("{} {}", row.name, row.detail);
    const double begin_us = double(span.begin_ns - zero_ns) / 1000;
    const double end_us = double(span.end_ns - zero_ns) / 1000;
    if (!span.in_flight) {
      out.add(
          ",\n"
          R"({{"ph":"X","cat":"{}","name":"{}","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},"args":{{{}}}}})",
          name_of(row.kind),
          name,
          rank,
          thread,
          begin_us,
          double(span.end_ns - span.begin_ns) / 1000,
          arguments_of(span));
      continue;
    }
    for (const auto& [phase, at_us] : {std::pair{'b', begin_us}, {'e', end_us}}) {
      out.add(
          ",\n"
          R"({{"ph":"{}","cat":"{}","id":"{}.{}","name":"{}","pid":{},"tid":{},"ts":{:.3f},"args":{{{}}}}})",
          phase,
          name_of(SpanKind::kInFlight),
          rank,
          num_flights,
          name,
          rank,
          thread,
          at_us,
          arguments_of(span));
    }
    ++num_flights;
  }
  if (cut_ > 0) {
    out.add(
        ",\n"
        R"({{"ph":"i","s":"t","cat":"cut","name":"{} later spans found no room","pid":{},"tid":{},"ts":{:.3f}}})",
        cut_,
        rank,
        thread,
        double(cut_at_ - zero_ns) / 1000);
  }
}

std::string ProfileTrack::arguments_of(const Span& span) {
  std::string text;
  const auto add = [&](std::string_view name, auto value) {
    text += fmt::format("{}\"{}\":{}", text.empty() ? "" : ",", name, value);
  };
  if (span.step >= 0) add("step", span.step);
  if (span.layer >= 0) add("layer", span.layer);
  if (span.part != SpanPart::kWhole) add("part", fmt::format("\"{}\"", name_of(span.part)));
  if (span.flops > 0) add("flops", span.flops);
  if (span.bytes > 0) add("bytes", span.bytes);
  if (span.unfinished) add("unfinished", true);
  return text;
}

Profiler::Profiler(std::size_t max_main_spans) : to_system_ns_(system_now() - ProfileTrack::now()) {
  const std::array names = {"main", "copier", "writer", "keeper"};
  for (std::size_t i = 0; i < tracks_.size(); ++i) {
    tracks_[i] = std::make_unique<ProfileTrack>(
        names[i], i == std::size_t(ProfileThread::kMain) ? max_main_spans : kSpansOfOtherThreads);
  }
}

void Profiler::start() {
  for (const auto& track : tracks_) {
    const std::lock_guard lock(track->mutex_);
    track->recording_ = true;
  }
}

void Profiler::stop() {
  const std::int64_t now = ProfileTrack::now();
  for (const auto& track : tracks_) {
    const std::lock_guard lock(track->mutex_);
    if (!std::exchange(track->recording_, false)) continue;
    for (std::size_t i = 0; i < std::min(track->depth_, ProfileTrack::kMaxDepth); ++i) {
      const ProfileTrack::Frame& frame = track->frames_[i];
      track->store(frame.label, frame.work, frame.begin_ns, now, ProfileTrack::Ending::kUnfinished);
    }
  }
}

std::vector<ProfileRow> Profiler::rows(ProfileThread thread) const {
  const ProfileTrack& track = *tracks_[std::size_t(thread)];
  const std::lock_guard lock(track.mutex_);
  std::vector<ProfileRow> rows;
  for (const ProfileRow& row : track.rows_) {
    if (row.calls > 0 || row.total_ns > 0) rows.push_back(row);
  }
  return rows;
}

std::int64_t Profiler::num_cut() const {
  std::int64_t cut = 0;
  for (const auto& track : tracks_) {
    const std::lock_guard lock(track->mutex_);
    cut += track->cut_;
  }
  return cut;
}

Status Profiler::write_trace(FileSystem& fs,
                             const std::string& path,
                             const ProfileFacts& facts) const {
  const std::string unfinished = path + ".tmp";
  Result<std::unique_ptr<File>> file = fs.open(unfinished, OpenMode::kCreate);
  if (!file.ok()) return file.status();
  detail::TextFile out(*file.value());
  const BuildInfo& build = build_info();
  out.add(
      R"({{"displayTimeUnit":"ms","otherData":{{"schema":{},"build":"{} {}","rank":{},"world":{},)",
      kSchema,
      build.version,
      build.git_id,
      facts.rank,
      facts.world);
  out.add(R"("origin_unix_ns":{},"first_step":{},"last_step":{},"cut_spans":{},"sums":[)",
          facts.origin_ns,
          facts.first_step,
          facts.last_step,
          num_cut());
  std::string_view comma = "";
  for (std::size_t i = 0; i < tracks_.size(); ++i) {
    for (const ProfileRow& row : rows(ProfileThread(i))) {
      out.add("{}\n", std::exchange(comma, ","));
      out.add(
          R"({{"thread":"{}","kind":"{}","name":"{}","detail":"{}","calls":{},"self_ns":{},"total_ns":{},"flight_ns":{},"flops":{},"bytes":{}}})",
          tracks_[i]->name_,
          name_of(row.kind),
          row.name,
          row.detail,
          row.calls,
          row.self_ns,
          row.total_ns,
          row.flight_ns,
          row.flops(),
          row.bytes);
    }
  }
  out.add(R"(]}},"traceEvents":[)");
  out.add(
      "\n"
      R"({{"ph":"M","name":"process_name","pid":{0},"args":{{"name":"rank {0}"}}}},)"
      "\n"
      R"({{"ph":"M","name":"process_sort_index","pid":{0},"args":{{"sort_index":{0}}}}})",
      facts.rank);
  for (std::size_t i = 0; i < tracks_.size(); ++i)
    tracks_[i]->write(out, facts.rank, int(i), facts.origin_ns - to_system_ns_);
  out.add("\n]}}\n");
  if (Status status = out.finish(); !status.ok()) return status;
  file.value().reset();
  return fs.rename(unfinished, path);
}

}  // namespace pecan
