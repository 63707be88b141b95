#include "train/device_choice.hpp"

#include <pecan/core/error.hpp>
#include <pecan/core/log.hpp>

#include <pecan/device/backend.hpp>

#include "train/agreement.hpp"

namespace pecan::train {
namespace {

Result<device::Device> open_here(const Placement& placement) {
  Result<device::Device> first = device::open_cuda(0);
  if (!first.ok()) return first;
  const Result<int> count = first.value().backend->count_devices();
  if (!count.ok()) return count.status();
  // A launcher may have given each rank a device that it alone sees.
  return device::open_cuda(placement.rank_here % count.value());
}

}  // namespace

device::Device choose_device(Context& host,
                             comm::Group& world,
                             config::DeviceChoice choice,
                             const Placement& placement) {
  using config::DeviceChoice;
  if (choice == DeviceChoice::kCpu) return device::cpu();
  const Result<device::Device> opened = open_here(placement);
  std::int64_t first_without = opened.ok() ? world.size() : world.rank().value;
  world
      .all_reduce(host,
                  view_of(std::span(&first_without, 1)),
                  comm::ReduceOp::kMin,
                  {comm::Purpose::kSetup})
      .wait();
  if (first_without == world.size()) return opened.value();
  const std::string reason = from_rank(host,
                                       world,
                                       Rank{std::int32_t(first_without)},
                                       opened.ok() ? std::string() : opened.status().message);
  PECAN_VALIDATE(choice == DeviceChoice::kAuto,
                 NotConfigured,
                 "training.device=cuda, but {}; use auto or cpu to train on the CPU",
                 reason);
  if (world.rank().value == 0) PECAN_LOG(kInfo, "[train] training on the CPU: {}", reason);
  return device::cpu();
}

}  // namespace pecan::train
