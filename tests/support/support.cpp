// Catch2 v2 shows its listener interface only when asked.
#define CATCH_CONFIG_EXTERNAL_INTERFACES
#include "support/catch.hpp"

#include "support/support.hpp"

#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <stdexcept>


namespace pecan::test {
namespace {

struct Records {
  std::mutex mutex;
  int expecting = 0;
  std::vector<std::string> expected;
  std::vector<std::string> unexpected;
};

Records& records() {
  static Records instance;
  return instance;
}

void record(LogLevel level, std::string_view message) {
  if (level < LogLevel::kWarn) return;
  Records& all = records();
  const std::lock_guard lock(all.mutex);
  (all.expecting > 0 ? all.expected : all.unexpected).emplace_back(message);
}

#if __has_include(<catch2/catch_all.hpp>)
using ListenerBase = Catch::EventListenerBase;
#else
using ListenerBase = Catch::TestEventListenerBase;
#endif

/// Fails the test case that logged a warning or an error outside of ExpectLog.
class LogListener : public ListenerBase {
 public:
  using ListenerBase::ListenerBase;
  void testCaseStarting(const Catch::TestCaseInfo& info) override {
    ListenerBase::testCaseStarting(info);
    set_log_sink(record);
    const std::lock_guard lock(records().mutex);
    records().unexpected.clear();
  }
  void sectionEnded(const Catch::SectionStats& stats) override {
    std::vector<std::string> unexpected;
    {
      const std::lock_guard lock(records().mutex);
      unexpected.swap(records().unexpected);
    }
    for (const std::string& text : unexpected) FAIL_CHECK("unexpected log record: " << text);
    ListenerBase::sectionEnded(stats);
  }
};
CATCH_REGISTER_LISTENER(LogListener)

}  // namespace

ExpectLog::ExpectLog() {
  const std::lock_guard lock(pecan::test::records().mutex);
  if (pecan::test::records().expecting++ == 0) pecan::test::records().expected.clear();
}

ExpectLog::~ExpectLog() {
  const std::lock_guard lock(pecan::test::records().mutex);
  --pecan::test::records().expecting;
}

std::vector<std::string> ExpectLog::records() const {
  const std::lock_guard lock(pecan::test::records().mutex);
  return pecan::test::records().expected;
}

bool ExpectLog::contains(const std::string& text) const {
  for (const std::string& entry : records()) {
    if (entry.find(text) != std::string::npos) return true;
  }
  return false;
}

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "pecan-test-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr)
    throw std::runtime_error("no temporary folder can be made at " + pattern);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace pecan::test
