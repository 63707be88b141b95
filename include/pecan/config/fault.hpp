#pragma once
/// Failures on purpose: what `fault.inject` and PECAN_FAULT may say (docs/how-to/inject-faults.md).

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/config/config.hpp>

namespace pecan::config {

enum class FaultKind : std::uint8_t {
  kKill,      ///< SIGKILL
  kStop,      ///< SIGSTOP: the process is there and does nothing
  kExit,      ///< _exit with `code`
  kCorrupt,   ///< a bit of a shard that this rank has written and synced
  kFillDisk,  ///< from then on every write of a checkpoint finds the disk full
  kSlowDisk,  ///< from then on checkpoints are written at `bytes_per_s`
  kNan,       ///< a gradient becomes NaN
  kSpike,     ///< the reported loss is multiplied by `factor`
  kFlip       ///< a bit of a parameter on this rank alone
};

/// One failure: "kind key=value ...".
struct Fault {
  FaultKind kind = FaultKind::kKill;
  std::int64_t first_step = 1;  ///< `step=4`, or `step=4-9`: one of them by `seed`
  std::int64_t last_step = 1;
  int rank = 0;          ///< kRandomRank: `rank=random`, by `seed`; kEveryRank: `rank=every`
  std::string node;      ///< not one rank but all of this host
  std::string phase;     ///< of the first save from the step on; empty: when the step begins
  int start = 0;         ///< incarnation; kEveryStart: `start=every`
  std::uint64_t seed = 0;
  int code = 1;              ///< kExit
  double bytes_per_s = 1e6;  ///< kSlowDisk
  double factor = 1e3;       ///< kSpike
  bool repeats = true;       ///< kNan: when the step is computed once more, too
  bool operator==(const Fault&) const = default;

  static constexpr int kRandomRank = -1;
  static constexpr int kEveryRank = -2;
  static constexpr int kEveryStart = -1;
};

[[nodiscard]] std::string_view name_of(FaultKind kind);
/// Throws ConfigError: an unknown kind or key, a value that is none, or keys that do not go
/// together.
[[nodiscard]] Fault parse_fault(std::string_view text);
/// Those of `fault.inject` and of `environment`, with ';' between them.
[[nodiscard]] std::vector<Fault> faults_of(const Config& config, std::string_view environment);

}  // namespace pecan::config
