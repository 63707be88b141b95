#include "train/device_choice.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include <pecan/core/error.hpp>
#include <pecan/core/log.hpp>

#include "train/agreement.hpp"

namespace pecan::train {
namespace {

Result<device::Device> open_here(const Placement& placement, const DeviceLacks& lacks) {
  Result<device::Device> first = device::open_cuda(0);
  if (!first.ok()) return first;
  const Result<int> count = first.value().backend->count_devices();
  if (!count.ok()) return count.status();
  // A launcher may have given each rank a device that it alone sees.
  Result<device::Device> own = device::open_cuda(placement.rank_here % count.value());
  if (!own.ok() || !lacks) return own;
  const device::Device found = own.value();
  const std::string missing = lacks(found.backend->properties(found.ordinal));
  if (!missing.empty()) return Status::failure(StatusCode::kInvalid, missing);
  return own;
}

FoundDevice found_by(const Result<device::Device>& opened, const Placement& placement) {
  if (!opened.ok()) return {};
  const device::Device& device = opened.value();
  return {1, placement.host, device.backend->properties(device.ordinal).address};
}

/// That of each rank. Collective.
std::vector<FoundDevice> gather(Context& ctx, comm::Group& world, const FoundDevice& own) {
  const std::array<std::int64_t, 3> message{own.exists, own.host, own.address};
  const std::vector<std::int64_t> counts(std::size_t(world.size()), message.size());
  std::vector<std::int64_t> all(message.size() * counts.size());
  world
      .all_gather_v(ctx,
                    const_view_of(std::span(message)),
                    counts,
                    view_of(std::span(all)),
                    {comm::Purpose::kSetup})
      .wait();
  std::vector<FoundDevice> found;
  for (std::size_t at = 0; at < all.size(); at += message.size())
    found.push_back({all[at], all[at + 1], all[at + 2]});
  return found;
}

}  // namespace

std::string describe_shared_device(std::span<const FoundDevice> of_ranks) {
  for (std::size_t rank = 1; rank < of_ranks.size(); ++rank) {
    const auto earlier = of_ranks.first(rank);
    const auto other = std::ranges::find(earlier, of_ranks[rank]);
    if (other == earlier.end()) continue;
    return fmt::format(
        "ranks {} and {} are on one host and would share a GPU, where each needs one of its own",
        other - earlier.begin(),
        rank);
  }
  return "";
}

device::Device choose_device(Context& host,
                             comm::Group& world,
                             config::DeviceChoice choice,
                             const Placement& placement,
                             const DeviceLacks& lacks) {
  using config::DeviceChoice;
  if (choice == DeviceChoice::kCpu) return device::cpu();
  const Result<device::Device> opened = open_here(placement, lacks);
  const std::vector<FoundDevice> found = gather(host, world, found_by(opened, placement));
  const auto without =
      std::ranges::find_if(found, [](const FoundDevice& device) { return device.exists == 0; });
  const std::string reason = without == found.end()
                                 ? describe_shared_device(found)
                                 : from_rank(host,
                                             world,
                                             Rank{std::int32_t(without - found.begin())},
                                             opened.ok() ? std::string() : opened.status().message);
  if (reason.empty()) return opened.value();
  PECAN_VALIDATE(choice == DeviceChoice::kAuto,
                 NotConfigured,
                 "training.device=cuda, but {}; use auto or cpu to train on the CPU",
                 reason);
  if (world.rank().value == 0) PECAN_LOG(kInfo, "[train] training on the CPU: {}", reason);
  return device::cpu();
}

}  // namespace pecan::train
