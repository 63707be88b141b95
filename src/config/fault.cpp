#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include <fmt/ranges.h>

#include <pecan/config/fault.hpp>

namespace pecan::config {
namespace {

constexpr std::array<std::pair<std::string_view, FaultKind>, 9> kKinds{{
    {"kill", FaultKind::kKill},
    {"stop", FaultKind::kStop},
    {"exit", FaultKind::kExit},
    {"corrupt", FaultKind::kCorrupt},
    {"fill_disk", FaultKind::kFillDisk},
    {"slow_disk", FaultKind::kSlowDisk},
    {"nan", FaultKind::kNan},
    {"spike", FaultKind::kSpike},
    {"flip", FaultKind::kFlip},
}};
constexpr std::array<std::string_view, 6> kPhases{
    "snapshot", "persist", "vote", "commit", "committed", "retention"};
/// Phases that rank 0 alone goes through.
constexpr std::array<std::string_view, 3> kRootPhases{"commit", "committed", "retention"};

template <typename Names>
std::string listed(const Names& names) {
  return fmt::format("{}", fmt::join(names, ", "));
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(separator), text.size());
    if (end > 0) parts.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

/// The words behind the kind, taken key by key.
class Words {
 public:
  explicit Words(std::string_view text) : text_(text) {
    for (const std::string_view word : split(text, ' ')) {
      if (kind_.empty()) {
        kind_ = word;
        continue;
      }
      const std::size_t equals = word.find('=');
      if (equals == std::string_view::npos) fail(fmt::format("{} is not key=value", word));
      keys_.emplace_back(word.substr(0, equals), word.substr(equals + 1));
    }
  }
  [[noreturn]] void fail(const std::string& why) const {
    throw ConfigError(fmt::format(
        "the fault \"{}\" cannot be injected: {}; docs/how-to/inject-faults.md has the grammar",
        text_,
        why));
  }
  [[nodiscard]] std::string_view kind() const { return kind_; }

  template <typename Take>
  void take(std::string_view key, Take take) {
    known_.push_back(key);
    const auto found =
        std::ranges::find(keys_, key, [](const auto& entry) { return entry.first; });
    if (found != keys_.end()) take(found->second);
  }
  template <typename Number>
  void number(std::string_view key, Number& value, double low, double high) {
    take(key, [&](std::string_view text) { value = parse<Number>(key, text, low, high); });
  }
  template <typename Number>
  Number parse(std::string_view key, std::string_view text, double low, double high) const {
    Number value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() ||
        !std::isfinite(double(value)) || double(value) < low || double(value) > high) {
      fail(fmt::format("{}={} is no number from {} to {}", key, text, low, high));
    }
    return value;
  }
  void finish() const {
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      const std::string_view key = keys_[i].first;
      if (std::ranges::count(known_, key) == 0)
        fail(fmt::format("{} has no key {}; it has {}", kind_, key, listed(known_)));
      for (std::size_t j = 0; j < i; ++j) {
        if (keys_[j].first == key) fail(fmt::format("{} is given twice", key));
      }
    }
  }
  [[nodiscard]] bool has(std::string_view key) const {
    return std::ranges::any_of(keys_, [&](const auto& entry) { return entry.first == key; });
  }

 private:
  std::string_view text_;
  std::string_view kind_;
  std::vector<std::pair<std::string_view, std::string_view>> keys_;
  std::vector<std::string_view> known_;
};

constexpr double kMostSteps = 9e15;  // exact in a double
constexpr double kMostRanks = 1e6;

}  // namespace

std::string_view name_of(FaultKind kind) {
  return std::ranges::find(kKinds, kind, [](const auto& entry) { return entry.second; })->first;
}

Fault parse_fault(std::string_view text) {
  Words words(text);
  const auto kind = std::ranges::find(
      kKinds, words.kind(), [](const auto& entry) { return entry.first; });
  if (kind == kKinds.end()) {
    std::vector<std::string_view> names;
    for (const auto& entry : kKinds) names.push_back(entry.first);
    words.fail(fmt::format("there is no kind \"{}\"; use one of {}", words.kind(), listed(names)));
  }
  Fault fault;
  fault.kind = kind->second;
  if (!words.has("step")) words.fail("it needs a step, like step=4 or step=4-9");
  words.take("step", [&](std::string_view value) {
    const std::size_t dash = std::min(value.find('-'), value.size());
    fault.first_step = words.parse<std::int64_t>("step", value.substr(0, dash), 1, kMostSteps);
    fault.last_step = fault.first_step;
    if (dash < value.size()) {
      fault.last_step = words.parse<std::int64_t>(
          "step", value.substr(dash + 1), double(fault.first_step), kMostSteps);
    }
  });
  words.take("rank", [&](std::string_view value) {
    fault.rank = value == "random"  ? Fault::kRandomRank
                 : value == "every" ? Fault::kEveryRank
                                    : words.parse<int>("rank", value, 0, kMostRanks);
  });
  words.take("node", [&](std::string_view value) { fault.node = value; });
  if (words.has("rank") && words.has("node")) words.fail("rank and node exclude each other");
  words.take("start", [&](std::string_view value) {
    fault.start = value == "every" ? Fault::kEveryStart : words.parse<int>("start", value, 0, 1e9);
  });
  words.number("seed", fault.seed, 0, kMostSteps);
  const bool ends_process = fault.kind == FaultKind::kKill || fault.kind == FaultKind::kStop ||
                            fault.kind == FaultKind::kExit;
  if (ends_process) {
    words.take("phase", [&](std::string_view value) {
      if (std::ranges::count(kPhases, value) == 0)
        words.fail(fmt::format("there is no phase {}; use one of {}", value, listed(kPhases)));
      fault.phase = value;
    });
  }
  if (std::ranges::count(kRootPhases, fault.phase) > 0 &&
      (fault.rank != 0 || !fault.node.empty())) {
    words.fail(fmt::format("phase {} happens on rank 0 alone", fault.phase));
  }
  if (fault.kind == FaultKind::kExit) words.number("code", fault.code, 0, 255);
  if (fault.kind == FaultKind::kSlowDisk) words.number("bytes_per_s", fault.bytes_per_s, 1, 1e15);
  if (fault.kind == FaultKind::kSpike) words.number("factor", fault.factor, 1, 1e30);
  if (fault.kind == FaultKind::kNan) {
    words.take("repeats", [&](std::string_view value) {
      if (value != "yes" && value != "no")
        words.fail(fmt::format("repeats={} is neither yes nor no", value));
      fault.repeats = value == "yes";
    });
  }
  words.finish();
  return fault;
}

std::vector<Fault> faults_of(const Config& config, std::string_view environment) {
  std::vector<Fault> faults;
  for (const std::string& text : config.fault.inject) faults.push_back(parse_fault(text));
  for (const std::string_view text : split(environment, ';')) faults.push_back(parse_fault(text));
  return faults;
}

}  // namespace pecan::config
