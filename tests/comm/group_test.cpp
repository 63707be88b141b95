#include <memory>
#include <set>
#include <string>
#include <utility>

#include <pecan/core/error.hpp>

#include <pecan/comm/group.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::comm {
namespace {

/// Complete after some tests; counts what is done to it.
struct Counters {
  int tests = 0;
  int waits = 0;
};
class CountingOperation final : public Pending::Operation {
 public:
  CountingOperation(Counters& counters, int tests_needed, bool fails = false)
      : counters_(counters), tests_needed_(tests_needed), fails_(fails) {}
  bool test() override {
    if (fails_) throw CommError("it failed");
    return ++counters_.tests >= tests_needed_;
  }
  void wait() override {
    ++counters_.waits;
    if (fails_) throw CommError("it failed");
  }

 private:
  Counters& counters_;
  int tests_needed_;
  bool fails_;
};

Pending make(Counters& counters, int tests_needed = 1, bool fails = false) {
  return Pending(std::make_unique<CountingOperation>(counters, tests_needed, fails));
}

TEST_CASE("a pending is tested until complete, and waited for once", "[comm]") {
  Counters counters;
  Pending pending = make(counters, 2);
  CHECK_FALSE(pending.test());
  CHECK(pending.test());
  CHECK(pending.test());
  pending.wait();
  CHECK(counters.tests == 2);
  CHECK(counters.waits == 0);

  pending = make(counters);
  pending.wait();
  pending.wait();
  CHECK(counters.waits == 1);
  CHECK(Pending().test());
}

TEST_CASE("an unfinished pending is waited for when destroyed or replaced", "[comm]") {
  Counters first, second;
  {
    Pending pending = make(first);
    pending = make(second);
    CHECK(first.waits == 1);
    CHECK(second.waits == 0);
    Pending& self = pending;
    pending = std::move(self);
    CHECK(second.waits == 0);
    const Pending moved = std::move(pending);
    CHECK(pending.test());  // NOLINT: complete after a move is the contract
  }
  CHECK(second.waits == 1);
}

TEST_CASE("a pending that fails throws once; in a destructor it is logged", "[comm]") {
  Counters counters;
  Pending pending = make(counters, 1, true);
  CHECK_THROWS_AS(pending.wait(), CommError);
  CHECK(pending.test());
  pending = make(counters, 1, true);
  CHECK_THROWS_AS((void)pending.test(), CommError);
  CHECK(pending.test());
  const pecan::test::ExpectLog expected;
  { const Pending abandoned = make(counters, 1, true); }
  CHECK(expected.contains("it failed"));
}

TEST_CASE("each purpose has a name of its own", "[comm]") {
  std::set<std::string_view> names;
  for (int i = 0; i < int(Purpose::kCount); ++i) names.insert(name_of(Purpose(i)));
  CHECK(names.size() == std::size_t(Purpose::kCount));
  CHECK(names.count("") == 0);
  CHECK(name_of(Purpose::kCheckpointVote) == "checkpoint_vote");
  CHECK(name_of(Purpose::kTest) == "test");
}

}  // namespace
}  // namespace pecan::comm
