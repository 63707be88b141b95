#include "planted_bugs.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>
#include <pecan_emulation/control.hpp>

#include "support/catch.hpp"

using namespace pecan::emulation;

TEST_CASE("planted bugs are found, their correct twins are not") {
  const Schedule schedule = GENERATE(Schedule::kForward, Schedule::kReverse, Schedule::kRandom);
  set_schedule(schedule, 5);
  int num_bugs = 0;
  int num_twins = 0;
  for (const test::PlantedBug& bug : test::planted_bugs()) {
    INFO(bug.name);
    bug.run();
    cudaDeviceSynchronize();
    const std::vector<std::string> findings = take_findings();
    reset_device();
    for (const std::string& finding : findings) UNSCOPED_INFO(finding);
    const std::string expected = bug.expected;
    if (expected.empty()) {
      ++num_twins;
      CHECK(findings.empty());
    } else {
      ++num_bugs;
      // Which of two unordered accesses comes first also decides what else is found.
      CHECK(std::any_of(findings.begin(), findings.end(), [&](const std::string& finding) {
        return finding.starts_with(expected + ": ");
      }));
    }
  }
  CHECK(num_bugs == 55);
  CHECK(num_twins == 21);
}
