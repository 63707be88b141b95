#pragma once
/// Wrong device code and wrong calls, each of a kind that a GPU hides or punishes without a word,
/// and correct twins that look like them.

#include <string>
#include <vector>

namespace pecan::emulation::test {

struct PlantedBug {
  const char* name;
  /// Kind of the finding that must come, or "" for code that is correct.
  const char* expected;
  void (*run)();
};

/// All of them; each may be run on its own, after reset_device().
const std::vector<PlantedBug>& planted_bugs();

}  // namespace pecan::emulation::test
