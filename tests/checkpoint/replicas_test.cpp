#include <mutex>

#include <pecan/checkpoint/replicas.hpp>

#include "checkpoint/job.hpp"
#include "support/catch.hpp"
#include "support/memory_file_system.hpp"

using namespace pecan;
using namespace pecan::checkpoint;

namespace {

std::vector<Rank> ranks(std::initializer_list<int> numbers) {
  std::vector<Rank> all;
  for (const int number : numbers) all.push_back(Rank{number});
  return all;
}

/// What each of five ranks makes of a comparison; value[r]: what rank r hashes of every block.
std::vector<std::vector<ReplicaDifference>> compare(const std::vector<Replicated>& shared,
                                                    const std::vector<std::uint64_t>& value) {
  std::vector<std::vector<ReplicaDifference>> found(value.size());
  comm::run_thread_group(int(value.size()), [&](comm::Group& world) {
    device::Stream stream{device::cpu()};
    device::Arena arena;
    Context ctx{device::cpu(), stream, arena, 1};
    const auto me = std::size_t(world.rank().value);
    found[me] = compare_replicas(
        ctx, world, comm::Purpose::kTest, shared, [&](std::size_t) { return value[me]; });
  });
  return found;
}

const Block kBlock = Block::whole(Shape{3});

}  // namespace

TEST_CASE("holders that differ from the majority are suspects, else all are", "[replicas]") {
  // Hashes with and without the sign bit, since they travel as signed numbers.
  constexpr std::uint64_t kA = 0xF123456789ABCDEFULL, kB = 5, kC = 0x8000000000000000ULL;
  const std::vector<Replicated> shared{{"sound", ItemIndex{-1}, kBlock, ranks({1, 3})},
                                       {"one of four", ItemIndex{-1}, kBlock, ranks({0, 1, 2, 3})},
                                       {"two", ItemIndex{-1}, kBlock, ranks({2, 3})},
                                       {"two and two", ItemIndex{-1}, kBlock, ranks({0, 1, 2, 4})}};
  const auto found = compare(shared, {kA, kA, kB, kA, kB});
  for (const auto& mine : found) {
    REQUIRE(mine.size() == 3);
    CHECK(mine == found[0]);
  }
  CHECK(found[0][0].name == "one of four");
  CHECK(found[0][0].suspects == ranks({2}));
  CHECK(describe(found[0][0]) == "rank 2 holds other bytes of one of four than ranks 0, 1, 3");
  CHECK(found[0][1].suspects == ranks({2, 3}));
  CHECK(describe(found[0][1]) == "ranks 2, 3 hold different bytes of two");
  CHECK(found[0][2].suspects == ranks({0, 1, 2, 4}));

  const std::vector<Replicated> five{{"five", ItemIndex{-1}, kBlock, ranks({0, 1, 2, 3, 4})}};
  CHECK(compare(five, {kA, kB, kA, kC, kA})[4][0].suspects == ranks({1, 3}));
  CHECK(describe(compare(five, {kA, kB, kA, kC, kA})[0][0]) ==
        "ranks 1, 3 hold other bytes of five than ranks 0, 2, 4");
  CHECK(compare(five, {kA, kB, kA, kC, kB})[0][0].suspects.size() == 5);
  CHECK(compare(five, {kA, kA, kA, kA, kA})[0].empty());
}

TEST_CASE("shared blocks of a catalog are those with several holders", "[replicas]") {
  const StateCatalog catalog = test::make_catalog({1, 2, 2, 2});
  std::size_t expected = 0;
  for (const StateItem& item : catalog.items) {
    for (const StateBlock& part : item.blocks) expected += part.holders.size() > 1 ? 1 : 0;
  }
  CHECK(replicated_blocks(catalog, ReplicaScope::kEverything).size() == expected);
  const auto parameters = replicated_blocks(catalog, ReplicaScope::kParameters);
  CHECK_FALSE(parameters.empty());
  CHECK(parameters.size() < expected);
  for (const Replicated& shared : parameters)
    CHECK(catalog.items[std::size_t(shared.item.value)].dtype != DType::kI64);
}

TEST_CASE("a recovery takes nothing newer than its limit, and abandons it", "[recovery]") {
  test::MemoryFileSystem fs;
  const StateCatalog catalog = test::make_catalog({2, 4, 2, 1});
  test::JobOptions options = test::job_options(2);
  options.checkpoint.keep_latest_k = 9;
  comm::run_thread_group(catalog.world_size, [&](comm::Group& world) {
    test::Job job(fs, catalog, options, world);
    job.train(6);
  });
  std::vector<std::string> differences;
  std::vector<std::int64_t> steps;
  RecoveryReport report;
  std::mutex mutex;
  comm::run_thread_group(catalog.world_size, [&](comm::Group& world) {
    device::Stream stream{device::cpu()};
    device::Arena arena;
    Context ctx{device::cpu(), stream, arena, 1};
    test::FakeBinding binding(catalog, world.rank());
    const Recovered recovered = recover(fs,
                                        "run",
                                        ResumeMode::kFromFailure,
                                        "",
                                        catalog,
                                        binding,
                                        ctx,
                                        world,
                                        {.lock = options.lock, .newest_step = Step{4}});
    const std::lock_guard lock(mutex);
    differences.push_back(binding.difference(recovered.report.plan));
    steps.push_back(recovered.report.plan.recovery.step.value);
    if (world.rank().value == 0) report = recovered.report;
  });
  CHECK(differences == std::vector<std::string>(2));
  CHECK(steps == std::vector<std::int64_t>{4, 4});
  for (const UnitRestore& restore : report.plan.restores) CHECK(restore.version.step <= Step{4});
  CHECK(report.damages.empty());
  CHECK(report.abandoned ==
        std::vector<std::string>{"abandoned-1-step-00000005", "abandoned-1-step-00000006"});
}
