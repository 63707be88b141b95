#include <string>
#include <vector>

#include <pecan/core/log.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

using namespace pecan;

TEST_CASE("records below the level are dropped, others reach the sink", "[core]") {
  std::vector<std::string> seen;
  const LogSink former =
      set_log_sink([&](LogLevel, std::string_view text) { seen.emplace_back(text); });
  PECAN_LOG(kDebug, "[core] hidden {}", 1);
  PECAN_LOG(kInfo, "[core] shown {}", 2);
  set_log_sink(former);
  CHECK(seen == std::vector<std::string>{"[core] shown 2"});
}

TEST_CASE("an expected warning is recorded and does not fail the test", "[core]") {
  const test::ExpectLog expected;
  PECAN_LOG(kWarn, "[core] the disk is {} % full", 97);
  CHECK(expected.contains("97 % full"));
}
