#include "launch/policy.hpp"

#include <algorithm>
#include <cmath>

#include <pecan/core/error.hpp>

namespace pecan::launch {

std::string_view name_of(Ending ending) {
  switch (ending) {
    case Ending::kDone:
      return "done";
    case Ending::kStopped:
      return "stopped";
    case Ending::kRefused:
      return "refused";
    case Ending::kCheckpoint:
      return "checkpoint";
    case Ending::kPeerLost:
      return "peer_lost";
    case Ending::kDiverged:
      return "diverged";
    case Ending::kInternal:
      return "internal";
    case Ending::kSignal:
      return "signal";
    case Ending::kHostLost:
      return "host_lost";
    case Ending::kHung:
      return "hung";
    case Ending::kOther:
      return "other";
  }
  throw InternalError(fmt::format("{} is no ending of a start", int(ending)));
}

Ending classify(int exit_code) {
  constexpr int kLostDaemon = 205;  // of Open MPI's mpirun
  constexpr int kFirstSignal = 129, kLastSignal = 192;
  switch (exit_code) {
    case int(ExitCode::kDone):
      return Ending::kDone;
    case int(ExitCode::kUsage):
    case int(ExitCode::kData):
      return Ending::kRefused;
    case int(ExitCode::kCheckpoint):
      return Ending::kCheckpoint;
    case int(ExitCode::kWatchdog):
      return Ending::kPeerLost;
    case int(ExitCode::kDivergence):
      return Ending::kDiverged;
    case int(ExitCode::kInternal):
      return Ending::kInternal;
    case int(ExitCode::kStoppedOnRequest):
      return Ending::kStopped;
    case kLostDaemon:
      return Ending::kHostLost;
    default:
      return exit_code >= kFirstSignal && exit_code <= kLastSignal ? Ending::kSignal
                                                                   : Ending::kOther;
  }
}

bool contradicts(Ending ending, std::span<const HeartbeatRecord> beats, int world) {
  if (ending != Ending::kDone && ending != Ending::kStopped) return false;
  // Ranks that could write no heartbeat prove nothing.
  if (int(beats.size()) != world) return false;
  const RunPhase least = ending == Ending::kDone ? RunPhase::kDone : RunPhase::kDraining;
  return std::ranges::any_of(beats,
                             [&](const HeartbeatRecord& beat) { return beat.phase < least; });
}

bool calls_for_restart(Ending ending) {
  return ending != Ending::kDone && ending != Ending::kStopped && ending != Ending::kRefused;
}

RestartPolicy::Decision RestartPolicy::after_failure(std::int64_t saved_step) {
  Decision decision;
  if (saved_step > newest_step_) {
    newest_step_ = saved_step;
    in_row_ = 0;
    decision.progress = Progress::kMade;
  }
  decision.restart = in_row_ < config_.max_restarts;
  if (!decision.restart) {
    decision.in_row = in_row_;
    return decision;
  }
  decision.in_row = ++in_row_;
  if (in_row_ >= 2) {
    decision.backoff_s = std::min(config_.restart_backoff_s * std::pow(2.0, in_row_ - 2),
                                  config_.restart_backoff_max_s);
  }
  return decision;
}

DivergencePolicy::Verdict DivergencePolicy::after(const Divergence& divergence) {
  const bool passed = !former_ || divergence.step > *former_;
  former_ = divergence.step;
  if (divergence.repeatable) return Verdict::kRepeatable;
  return passed ? Verdict::kRestart : Verdict::kNotPassed;
}

std::vector<std::string> HostRecord::after_failure(std::span<const std::string> culprits,
                                                   Progress progress) {
  if (progress == Progress::kMade) {
    blamed_in_row_.clear();
    // What those hold that were not part of it is older than what was saved.
    not_again_ = {set_aside_.begin(), set_aside_.end()};
  }
  std::erase_if(blamed_in_row_,
                [&](const auto& entry) { return std::ranges::count(culprits, entry.first) == 0; });
  std::vector<std::string> newly;
  for (const std::string& host : culprits) {
    if (++blamed_in_row_[host] < 2 || is_set_aside(host)) continue;
    set_aside_.push_back(host);
    newly.push_back(host);
  }
  return newly;
}

bool HostRecord::is_set_aside(const std::string& host) const {
  return std::ranges::count(set_aside_, host) > 0;
}

std::vector<std::string> HostRecord::take_back(const SnapshotHolders& held) {
  const auto may_return = [&](const std::string& host) {
    return is_set_aside(host) && !not_again_.contains(host);
  };
  std::set<int> at_hand, all;
  for (const auto& [host, ranks] : held) {
    if (!is_set_aside(host)) at_hand.insert(ranks.begin(), ranks.end());
    if (!is_set_aside(host) || may_return(host)) all.insert(ranks.begin(), ranks.end());
  }
  std::vector<std::string> back;
  // Where those of some rank are missing everywhere, memory has no whole step.
  if (all.empty() || *all.rbegin() >= int(all.size())) return back;
  for (const auto& [host, ranks] : held) {
    if (!may_return(host) || std::ranges::includes(at_hand, ranks)) continue;
    at_hand.insert(ranks.begin(), ranks.end());
    not_again_.insert(host);
    std::erase(set_aside_, host);
    back.push_back(host);
  }
  return back;
}

std::optional<Assignment> HostRecord::assign(const config::Config& config,
                                             std::span<const Host> reachable,
                                             const SnapshotHolders& held) const {
  std::set<std::string> holders;
  for (const auto& [host, ranks] : held) holders.insert(host);
  std::vector<Host> trusted;
  std::ranges::copy_if(reachable, std::back_inserter(trusted), [&](const Host& host) {
    return !is_set_aside(host.name);
  });
  if (auto found = launch::assign(config, trusted, holders)) return found;
  return launch::assign(config, reachable, holders);
}

}  // namespace pecan::launch
