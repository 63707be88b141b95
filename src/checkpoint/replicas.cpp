#include <algorithm>
#include <limits>
#include <map>

#include <fmt/ranges.h>

#include <pecan/core/hash.hpp>

#include <pecan/checkpoint/replicas.hpp>

namespace pecan::checkpoint {
namespace {

bool is_parameter(const StateItem& item) {
  return item.role == Role::kWeight || item.role == Role::kMaster || item.role == Role::kExpAvg ||
         item.role == Role::kExpAvgSq;
}

bool holds(const Replicated& shared, Rank rank) {
  return std::ranges::binary_search(shared.holders, rank);
}

std::vector<Rank> suspects_among(const std::vector<Rank>& holders,
                                 std::span<const std::int64_t> hashes) {
  std::map<std::int64_t, std::size_t> votes;
  for (const std::int64_t hash : hashes) ++votes[hash];
  const auto most =
      std::ranges::max_element(votes, {}, [](const auto& entry) { return entry.second; });
  if (2 * most->second <= holders.size()) return holders;
  std::vector<Rank> suspects;
  for (std::size_t i = 0; i < holders.size(); ++i) {
    if (hashes[i] != most->first) suspects.push_back(holders[i]);
  }
  return suspects;
}

std::string listed(const std::vector<Rank>& ranks) {
  return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(ranks, ", "));
}

}  // namespace

std::vector<Replicated> replicated_blocks(const StateCatalog& catalog, ReplicaScope scope) {
  std::vector<Replicated> shared;
  for (std::size_t i = 0; i < catalog.items.size(); ++i) {
    const StateItem& item = catalog.items[i];
    if (scope == ReplicaScope::kParameters && !is_parameter(item)) continue;
    for (const StateBlock& part : item.blocks) {
      if (part.holders.size() > 1)
        shared.push_back({item.path(), ItemIndex{std::int32_t(i)}, part.block, part.holders});
    }
  }
  return shared;
}

std::uint64_t hash_of(const StateBinding& binding,
                      const StateCatalog& catalog,
                      const Replicated& shared) {
  const StateItem& item = catalog.items[std::size_t(shared.item.value)];
  std::vector<std::byte> bytes(std::size_t(shared.block.extent.num_elements()) *
                               size_of(item.dtype));
  binding.begin_copies();
  binding.copy_out(shared.item, shared.block, bytes);
  binding.finish_copies();
  return xxh3(bytes);
}

std::vector<ReplicaDifference> compare_replicas(
    Context& ctx,
    comm::Group& world,
    comm::Purpose purpose,
    std::span<const Replicated> shared,
    const std::function<std::uint64_t(std::size_t)>& hash) {
  std::vector<std::int64_t> mine(shared.size(), 0);
  std::vector<std::int64_t> lowest(shared.size(), std::numeric_limits<std::int64_t>::max());
  std::vector<std::int64_t> highest(shared.size(), std::numeric_limits<std::int64_t>::min());
  for (std::size_t i = 0; i < shared.size(); ++i) {
    if (holds(shared[i], world.rank())) lowest[i] = highest[i] = mine[i] = std::int64_t(hash(i));
  }
  const auto reduce = [&](std::vector<std::int64_t>& values, comm::ReduceOp op) {
    world.all_reduce(ctx, view_of(std::span(values)), op, {purpose}).wait();
  };
  reduce(lowest, comm::ReduceOp::kMin);
  reduce(highest, comm::ReduceOp::kMax);

  // Rare, so that only then every holder's own hash travels.
  std::vector<std::size_t> differing;
  std::vector<std::int64_t> hashes;
  for (std::size_t i = 0; i < shared.size(); ++i) {
    if (lowest[i] == highest[i]) continue;
    differing.push_back(i);
    for (const Rank holder : shared[i].holders)
      hashes.push_back(holder == world.rank() ? mine[i] : 0);
  }
  if (differing.empty()) return {};
  reduce(hashes, comm::ReduceOp::kSum);
  std::vector<ReplicaDifference> differences;
  std::span<const std::int64_t> rest = hashes;
  for (const std::size_t i : differing) {
    const std::vector<Rank>& holders = shared[i].holders;
    differences.push_back({shared[i].name,
                           shared[i].block,
                           holders,
                           suspects_among(holders, rest.first(holders.size()))});
    rest = rest.subspan(holders.size());
  }
  return differences;
}

std::string describe(const ReplicaDifference& difference) {
  if (difference.suspects == difference.holders) {
    return fmt::format(
        "{} hold different bytes of {}", listed(difference.holders), difference.name);
  }
  std::vector<Rank> others;
  std::ranges::set_difference(difference.holders, difference.suspects, std::back_inserter(others));
  return fmt::format("{} {} other bytes of {} than {}",
                     listed(difference.suspects),
                     difference.suspects.size() == 1 ? "holds" : "hold",
                     difference.name,
                     listed(others));
}

}  // namespace pecan::checkpoint
