#pragma once
/// Where ranks run: how many threads each gets, and whether they were bound to cores badly.

#include <bitset>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::train {

constexpr std::size_t kMaxCores = 1024;
using Cores = std::bitset<kMaxCores>;

/// What one rank may use.
struct RankCores {
  std::int64_t host = 0;  ///< equal for ranks of one host
  Cores own;              ///< that it is bound to
  Cores launcher;         ///< those of the process that started it
};

/// What follows for a rank.
struct Placement {
  int threads = 1;
  std::int64_t host = 0;  ///< equal for ranks of one host
  int ranks_here = 1;     ///< on its host
  int rank_here = 0;      ///< its place among these
  int cores_here = 1;     ///< that these may use together
  std::string complaint;  ///< empty unless cores are bound badly; names what to change
};

/// `configured` threads, or for 0 an equal share of the cores that the host's ranks may use, at
/// least one and at most those that the rank is bound to. Pure.
[[nodiscard]] Placement place_threads(std::span<const RankCores> ranks, Rank rank, int configured);

/// Asks the system, tells the other ranks, and places the threads of this one. Collective.
[[nodiscard]] Placement place_threads(Context& ctx, comm::Group& world, int configured);

}  // namespace pecan::train
