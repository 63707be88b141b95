#include <algorithm>
#include <array>

#include <sched.h>
#include <unistd.h>

#include <pecan/core/hash.hpp>

#include <pecan/train/placement.hpp>

namespace pecan::train {
namespace {

constexpr std::size_t kWords = kMaxCores / 64;
/// host, own cores, launcher's cores
using Message = std::array<std::int64_t, 1 + 2 * kWords>;

Cores cores_of(pid_t process) {
  Cores cores;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(process, sizeof(set), &set) != 0) return cores;
  for (std::size_t core = 0; core < std::min<std::size_t>(kMaxCores, CPU_SETSIZE); ++core)
    cores[core] = CPU_ISSET(core, &set);
  return cores;
}

void pack(const Cores& cores, std::span<std::int64_t> words) {
  for (std::size_t core = 0; core < kMaxCores; ++core)
    words[core / 64] |= std::int64_t(std::uint64_t(cores[core]) << (core % 64));
}

Cores unpack(std::span<const std::int64_t> words) {
  Cores cores;
  for (std::size_t core = 0; core < kMaxCores; ++core)
    cores[core] = (std::uint64_t(words[core / 64]) >> (core % 64) & 1) != 0;
  return cores;
}

std::int64_t this_host() {
  std::array<char, 256> name{};
  (void)gethostname(name.data(), name.size() - 1);
  return std::int64_t(xxh3(std::as_bytes(std::span(name))));
}

}  // namespace

Placement place_threads(std::span<const RankCores> ranks, Rank rank, int configured) {
  const RankCores& mine = ranks[std::size_t(rank.value)];
  Placement placement;
  Cores bound, available;
  placement.host = mine.host;
  placement.ranks_here = 0;
  for (const RankCores& other : ranks) {
    if (other.host != mine.host) continue;
    if (&other < &mine) ++placement.rank_here;
    ++placement.ranks_here;
    bound |= other.own;
    available |= other.own | other.launcher;
  }
  const int own = std::max(1, int(mine.own.count()));
  placement.cores_here = std::max(1, int(bound.count()));
  placement.threads =
      configured > 0 ? configured : std::clamp(placement.cores_here / placement.ranks_here, 1, own);
  if (placement.threads > own) {
    placement.complaint = fmt::format(
        "rank {} has {} threads (training.threads) but is bound to {} cores; start it with mpirun "
        "--bind-to none, or set training.threads to at most {}",
        rank,
        placement.threads,
        own,
        own);
  } else if (placement.ranks_here * placement.threads > placement.cores_here &&
             bound.count() < available.count()) {
    placement.complaint = fmt::format(
        "the {} ranks of this host are bound to {} of the {} cores that they were started on, the "
        "others idle; start them with mpirun --bind-to none",
        placement.ranks_here,
        bound.count(),
        available.count());
  }
  return placement;
}

Placement place_threads(Context& ctx, comm::Group& world, int configured) {
  Message own{};
  own[0] = this_host();
  pack(cores_of(0), std::span(own).subspan(1, kWords));
  pack(cores_of(getppid()), std::span(own).subspan(1 + kWords));
  std::vector<std::int64_t> all(own.size() * std::size_t(world.size()));
  const std::vector<std::int64_t> counts(std::size_t(world.size()), std::int64_t(own.size()));
  world
      .all_gather_v(ctx,
                    const_view_of(std::span<const std::int64_t>(own)),
                    counts,
                    view_of(std::span(all)),
                    {comm::Purpose::kSetup})
      .wait();
  std::vector<RankCores> ranks;
  for (std::size_t first = 0; first < all.size(); first += own.size()) {
    const auto message = std::span<const std::int64_t>(all).subspan(first, own.size());
    ranks.push_back(
        {message[0], unpack(message.subspan(1, kWords)), unpack(message.subspan(1 + kWords))});
  }
  return place_threads(ranks, world.rank(), configured);
}

}  // namespace pecan::train
