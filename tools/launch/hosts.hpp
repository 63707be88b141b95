#pragma once
/// The hosts that a run may use, and which of them a start takes.

#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/config/config.hpp>

namespace pecan::launch {

/// A line of the hosts file.
struct Host {
  std::string name;
  int slots = 1;
  bool operator==(const Host&) const = default;
};

/// Open MPI's hostfile form: a name and `slots=N` (1 without) a line, comments from '#' on; `path`
/// names the file in errors. ConfigError: no host, a host twice, slots below 1, a name that mpirun
/// would not take as one, or a word that is not known.
[[nodiscard]] std::vector<Host> parse_hosts(std::string_view text, const std::string& path);
/// By host: the ranks of which a snapshot, or a copy of one, lies in its memory.
using SnapshotHolders = std::map<std::string, std::set<int>>;
/// Those ranks, of the names of its files one a line (docs/formats/memory.md); other lines are left
/// out. Pure.
[[nodiscard]] std::set<int> ranks_of_snapshots(std::string_view files);
/// Whether mpirun starts processes on it without an agent: localhost, or a name of this machine.
[[nodiscard]] bool is_this_machine(std::string_view host, std::string_view own_name);

/// What a start runs on.
struct Assignment {
  std::vector<Host> hosts;  ///< with the ranks that each gets as slots, none of them 0
  int world = 0;
  config::ElasticLayout layout;  ///< all sizes given; world_size is `world`
  bool operator==(const Assignment&) const = default;
  /// The host of a rank where ranks fill host after host.
  [[nodiscard]] const std::string& host_of(int rank) const;
};

/// The largest layout of `elastic.layouts` whose ranks the slots of `hosts` hold, the earlier one
/// of two as large; without a list all slots in the layout of `parallel`, if that fits their
/// number. Each of `holders`, hosts with snapshots of the run in memory, gets a rank, since what no
/// rank is near cannot be recovered from; the rest goes to holders and then to others, in their
/// order. nullopt if none fits. Pure.
[[nodiscard]] std::optional<Assignment> assign(const config::Config& config,
                                               std::span<const Host> hosts,
                                               const std::set<std::string>& holders = {});
/// What assign() asks for, for messages: "8 or 4 slots".
[[nodiscard]] std::string describe_wanted_slots(const config::Config& config);

}  // namespace pecan::launch
