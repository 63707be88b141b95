#include "launch/hosts.hpp"

#include <algorithm>
#include <charconv>
#include <map>
#include <numeric>
#include <sstream>

#include <fmt/ranges.h>

#include <pecan/core/error.hpp>
#include <pecan/core/text.hpp>

namespace pecan::launch {
namespace {

bool is_host_name(std::string_view name) {
  const auto fits = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '-' || c == '_';
  };
  return !name.empty() && name.front() != '-' && std::ranges::all_of(name, fits);
}

int parse_slots(std::string_view text, const std::string& where) {
  int slots = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), slots);
  PECAN_VALIDATE(parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && slots >= 1,
                 ConfigError,
                 "{}: slots={} is no number of processes for a host; use an integer from 1 on",
                 where,
                 shortened(text));
  return slots;
}

}  // namespace

std::vector<Host> parse_hosts(std::string_view text, const std::string& path) {
  std::vector<Host> hosts;
  std::map<std::string, int> line_of;
  std::istringstream lines{std::string(text)};
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    const std::string where = fmt::format("{}:{}", path, number);
    line.resize(std::min(line.find('#'), line.size()));
    std::istringstream words(line);
    Host host;
    if (!(words >> host.name)) continue;
    PECAN_VALIDATE(is_host_name(host.name),
                   ConfigError,
                   "{}: '{}' is no name of a host, which has letters, digits, '.', '-' and '_'; "
                   "write lines like \"node1 slots=2\"",
                   where,
                   shortened(host.name));
    std::string word;
    bool has_slots = false;
    while (words >> word) {
      constexpr std::string_view kSlots = "slots=";
      PECAN_VALIDATE(word.starts_with(kSlots),
                     ConfigError,
                     "{}: '{}' is not known behind a host; write lines like \"node1 slots=2\"",
                     where,
                     shortened(word));
      PECAN_VALIDATE(!has_slots, ConfigError, "{}: slots are given twice; keep one", where);
      has_slots = true;
      host.slots = parse_slots(std::string_view(word).substr(kSlots.size()), where);
    }
    const auto [first, is_new] = line_of.try_emplace(host.name, number);
    PECAN_VALIDATE(is_new,
                   ConfigError,
                   "{}: host {} stands on line {} already; give it once, with all its slots",
                   where,
                   host.name,
                   first->second);
    hosts.push_back(host);
  }
  PECAN_VALIDATE(!hosts.empty(),
                 ConfigError,
                 "{} names no host; write one a line, like \"node1 slots=2\"",
                 path);
  return hosts;
}

std::set<int> ranks_of_snapshots(std::string_view files) {
  std::set<int> ranks;
  std::istringstream lines{std::string(files)};
  std::string line;
  while (std::getline(lines, line)) {
    // From the end: run and host may have dots.
    constexpr std::string_view kMark = ".r";
    const std::size_t mark = line.rfind(kMark);
    if (mark == std::string::npos) continue;
    const char* const end = line.data() + line.size();
    int rank = 0;
    const auto parsed = std::from_chars(line.data() + mark + kMark.size(), end, rank);
    if (parsed.ec == std::errc() && rank >= 0 &&
        std::string_view(parsed.ptr, end).starts_with(".b"))
      ranks.insert(rank);
  }
  return ranks;
}

bool is_this_machine(std::string_view host, std::string_view own_name) {
  const auto short_form = [](std::string_view name) { return name.substr(0, name.find('.')); };
  return host == "localhost" || host == "127.0.0.1" || host == own_name ||
         (host.find('.') == std::string_view::npos && host == short_form(own_name));
}

const std::string& Assignment::host_of(int rank) const {
  for (const Host& host : hosts) {
    if (rank < host.slots) return host.name;
    rank -= host.slots;
  }
  throw InternalError(fmt::format("rank {} beyond the world has no host", rank));
}

std::optional<Assignment> assign(const config::Config& config,
                                 std::span<const Host> hosts,
                                 const std::set<std::string>& holders) {
  const int slots = std::accumulate(
      hosts.begin(), hosts.end(), 0, [](int sum, const Host& host) { return sum + host.slots; });
  if (slots == 0) return {};
  config::ElasticLayout layout;
  if (config.elastic.layouts.empty()) {
    try {
      config::validate_for_world(config, slots);
    } catch (const ConfigError&) {
      return {};
    }
    layout.world_size = slots;
  }
  for (const config::ElasticLayout& candidate : config.elastic.layouts) {
    if (candidate.world_size <= slots && candidate.world_size > layout.world_size)
      layout = candidate;
  }
  if (layout.world_size == 0) return {};

  Assignment assignment;
  assignment.world = layout.world_size;
  const config::ParallelConfig parallel = config::with_layout(config, layout).parallel;
  assignment.layout = {.world_size = layout.world_size,
                       .tensor_model_parallel_size = parallel.tensor_model_parallel_size,
                       .expert_model_parallel_size = parallel.expert_model_parallel_size,
                       .expert_tensor_parallel_size = parallel.expert_tensor_parallel_size};
  int rest = assignment.world;
  std::vector<int> ranks(hosts.size(), 0);
  const auto give = [&](bool to_holders, int most) {
    for (std::size_t h = 0; h < hosts.size(); ++h) {
      if (holders.contains(hosts[h].name) != to_holders) continue;
      const int more = std::min(rest, std::min(most, hosts[h].slots) - ranks[h]);
      ranks[h] += more;
      rest -= more;
    }
  };
  give(/*to_holders=*/true, 1);
  give(/*to_holders=*/true, assignment.world);
  give(/*to_holders=*/false, assignment.world);
  for (std::size_t h = 0; h < hosts.size(); ++h) {
    if (ranks[h] > 0) assignment.hosts.push_back({hosts[h].name, ranks[h]});
  }
  return assignment;
}

std::string describe_wanted_slots(const config::Config& config) {
  std::vector<int> sizes;
  for (const config::ElasticLayout& layout : config.elastic.layouts)
    sizes.push_back(layout.world_size);
  if (sizes.empty()) return "a number of slots that `parallel` and the batch divide";
  std::ranges::sort(sizes, std::greater());
  const auto repeated = std::ranges::unique(sizes);
  sizes.erase(repeated.begin(), repeated.end());
  return fmt::format("{} slots", fmt::join(sizes, " or "));
}

}  // namespace pecan::launch
