#include "launch/blame.hpp"

#include <algorithm>
#include <charconv>
#include <optional>
#include <sstream>
#include <utility>

#include <fmt/ranges.h>

namespace pecan::launch {
namespace {

/// What follows `mark` in `line`.
std::optional<std::string_view> after(std::string_view line, std::string_view mark) {
  const std::size_t at = line.find(mark);
  if (at == std::string_view::npos) return {};
  return line.substr(at + mark.size());
}

/// Takes a number from the front of `text`.
std::optional<int> take_number(std::string_view& text) {
  int value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc()) return {};
  text.remove_prefix(std::size_t(parsed.ptr - text.data()));
  return value;
}

std::optional<int> number_after(std::string_view line, std::string_view mark) {
  auto rest = after(line, mark);
  return rest ? take_number(*rest) : std::nullopt;
}

/// "1, 4, 5" from the front.
std::vector<int> take_numbers(std::string_view text) {
  std::vector<int> numbers;
  while (const std::optional<int> number = take_number(text)) {
    numbers.push_back(*number);
    if (!text.starts_with(", ")) break;
    text.remove_prefix(2);
  }
  return numbers;
}

std::string ranks_text(std::span<const int> ranks) {
  return fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", fmt::join(ranks, ", "));
}

const HeartbeatRecord* beat_of(std::span<const HeartbeatRecord> beats, int rank) {
  const auto found =
      std::ranges::find_if(beats, [&](const HeartbeatRecord& b) { return b.rank.value == rank; });
  return found == beats.end() ? nullptr : &*found;
}

std::string pid_list(std::span<const std::int64_t> pids) {
  return fmt::format("{}", fmt::join(pids, " "));
}

std::string_view short_name(std::string_view host) {
  return host.substr(0, host.find('.'));
}

}  // namespace

void OutputScan::read(std::string_view line) {
  // "mpirun noticed that process rank 1 with PID 0 on node n exited on signal 9 (Killed)."
  if (line.find(" exited on signal ") != std::string_view::npos) {
    if (const auto rank = number_after(line, " process rank ")) signalled_.push_back(*rank);
    return;
  }
  // "  Remote daemon: [[20937,0],1] on node n", behind "lost communication with a remote daemon".
  if (const auto rest = after(line, "Remote daemon:")) {
    if (const auto node = after(*rest, " on node ")) {
      const std::string_view name = node->substr(0, node->find_first_of(" \r"));
      if (std::ranges::count(lost_nodes_, name) == 0) lost_nodes_.emplace_back(name);
    }
    return;
  }
  // "... unable to complete a TCP connection ...", then "  Local host:    n1", "  Remote host: vm".
  if (line.find("unable to complete a TCP connection") != std::string_view::npos) {
    in_connection_report_ = true;
    return;
  }
  if (line.find("unable to reliably start one or more daemons") != std::string_view::npos) {
    lost_a_daemon_ = true;
    return;
  }
  if (in_connection_report_) {
    for (const std::string_view mark : {"Local host:", "Remote host:"}) {
      auto name = after(line, mark);
      if (!name) continue;
      name->remove_prefix(std::min(name->find_first_not_of(' '), name->size()));
      *name = name->substr(0, name->find_first_of(" \r"));
      if (name->empty() || *name == own_host_) return;
      in_connection_report_ = false;
      if (std::ranges::count(cut_off_nodes_, *name) == 0) cut_off_nodes_.emplace_back(*name);
      return;
    }
  }
  // "  Process name: [[40425,1],1]" of the first process that returned a code.
  if (const auto rest = after(line, "Process name: [[")) {
    if (const auto rank = number_after(*rest, "],")) returned_.push_back(*rank);
    return;
  }
  if (const auto rank = number_after(line, "MPI_ABORT was invoked on rank ")) {
    aborted_.push_back(*rank);
    return;
  }
  // "rank 0 waited 2 s in ...: data is missing from rank 1, 2, data was not taken by rank 3; ..."
  const std::size_t waited = line.find(" waited ");
  if (waited == std::string_view::npos) return;
  std::vector<int> named;
  for (const std::string_view mark :
       {"data is missing from rank ", "data was not taken by rank "}) {
    if (const auto rest = after(line, mark))
      std::ranges::copy(take_numbers(*rest), std::back_inserter(named));
  }
  if (named.empty()) return;
  missing_.insert(named.begin(), named.end());
  const std::size_t at = line.rfind("rank ", waited);
  if (at != std::string_view::npos) {
    if (const auto rank = number_after(line.substr(at), "rank ")) waiting_.insert(*rank);
  }
}

Culprits OutputScan::culprits() const {
  if (!lost_nodes_.empty())
    return {{}, lost_nodes_, fmt::format("mpirun lost host {}", fmt::join(lost_nodes_, ", "))};
  if (!cut_off_nodes_.empty()) {
    return {{},
            cut_off_nodes_,
            fmt::format("the daemon of host {} did not get through to mpirun",
                        fmt::join(cut_off_nodes_, ", "))};
  }
  if (!signalled_.empty())
    return {{signalled_.front()}, {}, fmt::format("rank {} died of a signal", signalled_.front())};
  if (!missing_.empty()) {
    std::vector<int> silent;
    std::ranges::set_difference(missing_, waiting_, std::back_inserter(silent));
    // Those that wait themselves are held up by others, unless all are.
    if (silent.empty()) silent.assign(missing_.begin(), missing_.end());
    return {silent, {}, fmt::format("others waited for {} in vain", ranks_text(silent))};
  }
  if (!aborted_.empty())
    return {{aborted_.front()}, {}, fmt::format("rank {} ended the job", aborted_.front())};
  if (!returned_.empty())
    return {{returned_.front()}, {}, fmt::format("rank {} ended first", returned_.front())};
  return {};
}

std::vector<int> laggards(std::span<const HeartbeatRecord> beats, int world) {
  std::vector<int> behind;
  if (beats.empty()) return behind;
  for (int rank = 0; rank < world; ++rank) {
    if (beat_of(beats, rank) == nullptr) behind.push_back(rank);
  }
  if (!behind.empty()) return behind;
  const auto [least, most] = std::ranges::minmax(beats, {}, &HeartbeatRecord::sequence);
  if (least.sequence == most.sequence) return behind;
  for (const HeartbeatRecord& beat : beats) {
    if (beat.sequence == least.sequence) behind.push_back(beat.rank.value);
  }
  return behind;
}

std::string describe_place(const HeartbeatRecord& beat) {
  if (beat.operation.empty()) return fmt::format("{}, before any collective", name_of(beat.phase));
  return fmt::format("{} #{} ({}{}, step {}), {}",
                     beat.operation,
                     beat.sequence,
                     beat.purpose,
                     beat.layer == kNoLayer ? std::string() : fmt::format(", layer {}", beat.layer),
                     beat.step,
                     name_of(beat.phase));
}

std::string describe_standstill(std::span<const HeartbeatRecord> beats, int world) {
  if (beats.empty()) return fmt::format("none of {} ranks has begun to write its heartbeat", world);
  const std::vector<int> behind = laggards(beats, world);
  // By place, in the order of ranks; who is behind stands first.
  std::vector<std::pair<std::string, std::vector<int>>> late, others;
  for (int rank = 0; rank < world; ++rank) {
    const HeartbeatRecord* const beat = beat_of(beats, rank);
    auto& list = std::ranges::count(behind, rank) > 0 ? late : others;
    const std::string place = beat == nullptr ? std::string("no heartbeat") : describe_place(*beat);
    const auto found =
        std::ranges::find_if(list, [&](const auto& entry) { return entry.first == place; });
    if (found != list.end()) {
      found->second.push_back(rank);
    } else {
      list.emplace_back(place, std::vector<int>{rank});
    }
  }
  std::vector<std::string> parts;
  for (const auto& [place, ranks] : late)
    parts.push_back(fmt::format("{} behind: {}", ranks_text(ranks), place));
  for (const auto& [place, ranks] : others)
    parts.push_back(fmt::format("{} {}", ranks_text(ranks), place));
  return fmt::format("{}", fmt::join(parts, "; "));
}

std::map<std::int64_t, char> parse_process_states(std::string_view text) {
  std::map<std::int64_t, char> states;
  std::istringstream lines{std::string(text)};
  std::string line;
  while (std::getline(lines, line)) {
    std::int64_t pid = 0;
    const auto parsed = std::from_chars(line.data(), line.data() + line.size(), pid);
    if (parsed.ec != std::errc()) continue;
    const std::string_view rest(parsed.ptr, line.data() + line.size());
    // A name may hold brackets and blanks.
    const std::size_t end = rest.rfind(") ");
    if (rest == " gone") {
      states[pid] = '-';
    } else if (rest.starts_with(" (") && end != std::string_view::npos && end + 2 < rest.size()) {
      states[pid] = rest[end + 2];
    }
  }
  return states;
}

std::string process_states_command(std::span<const std::int64_t> pids) {
  return fmt::format("for p in {}; do cat /proc/$p/stat 2>/dev/null || echo $p gone; done; true",
                     pid_list(pids));
}

std::string kill_command(std::span<const std::int64_t> pids, std::string_view marker) {
  return fmt::format(
      "for p in {}; do if grep -aqs {} /proc/$p/environ; then kill -KILL $p && echo $p; fi; done; "
      "true",
      pid_list(pids),
      marker);
}

bool is_same_host(std::string_view a, std::string_view b) {
  return a == b || short_name(a) == b || a == short_name(b);
}

std::string host_of(const Assignment& assignment,
                    std::span<const HeartbeatRecord> beats,
                    int rank) {
  if (const HeartbeatRecord* const beat = beat_of(beats, rank)) {
    for (const Host& host : assignment.hosts) {
      if (is_same_host(host.name, beat->host)) return host.name;
    }
  }
  return assignment.host_of(rank);
}

Culprits standstill_culprits(std::span<const HeartbeatRecord> beats,
                             int world,
                             const std::map<int, char>& states,
                             std::span<const std::string> silent_hosts) {
  if (!silent_hosts.empty()) {
    return {{},
            {silent_hosts.begin(), silent_hosts.end()},
            fmt::format("host {} does not answer", fmt::join(silent_hosts, ", "))};
  }
  constexpr std::string_view kNotRunning = "TtZX-";
  Culprits culprits;
  for (const auto& [rank, state] : states) {
    if (kNotRunning.find(state) != std::string_view::npos) culprits.ranks.push_back(rank);
  }
  if (!culprits.ranks.empty()) {
    culprits.reason = fmt::format("{} does not run", ranks_text(culprits.ranks));
    return culprits;
  }
  culprits.ranks = laggards(beats, world);
  if (!culprits.ranks.empty())
    culprits.reason = fmt::format("{} fell behind", ranks_text(culprits.ranks));
  return culprits;
}

}  // namespace pecan::launch
