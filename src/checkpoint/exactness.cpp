#include <algorithm>
#include <map>

#include <fmt/format.h>

#include <pecan/checkpoint/exactness.hpp>

namespace pecan::checkpoint {
namespace {

/// `copies` have unit and version; the expert units are those of `units`.
template <typename Copies>
Exactness of_copies(const Copies& copies, const std::vector<StateUnit>& units, Version version) {
  std::map<UnitIndex, Version> oldest;
  for (const auto& copy : copies) {
    if (!units[std::size_t(copy.unit.value)].is_expert()) continue;
    const auto [known, is_new] = oldest.try_emplace(copy.unit, copy.version);
    if (!is_new) known->second = std::min(known->second, copy.version);
  }
  Exactness exactness{.step = version.step, .experts = std::int64_t(oldest.size())};
  for (const auto& [unit, from] : oldest) {
    if (!(from < version)) continue;
    ++exactness.older;
    exactness.most_steps = std::max(exactness.most_steps, version.step.value - from.step.value);
  }
  return exactness;
}

}  // namespace

Exactness exactness_of(const RestorePlan& plan, const StateCatalog& catalog) {
  return of_copies(plan.restores, catalog.units, plan.recovery);
}

Exactness exactness_of(const Manifest& manifest) {
  return of_copies(manifest.copies, manifest.units, manifest.version);
}

std::string describe(const Exactness& exactness, std::optional<double> plt) {
  if (exactness.exact()) {
    return fmt::format(
        "exact: everything is of step {}; on the same layout training goes on bit for bit as if it "
        "had not stopped",
        exactness.step);
  }
  return fmt::format(
      "mixed: {} of {} experts are older than step {}, by up to {} steps; their updates since are "
      "lost{}, and training goes on from there, but not bit for bit as if it had not stopped",
      exactness.older,
      exactness.experts,
      exactness.step,
      exactness.most_steps,
      plt ? fmt::format(" (PLT {:.3f} %)", 100 * *plt) : "");
}

}  // namespace pecan::checkpoint
