#include <algorithm>
#include <set>

#include <pecan/checkpoint/root.hpp>
#include <pecan/checkpoint/state_reader.hpp>

#include "checkpoint/job.hpp"
#include "support/catch.hpp"
#include "support/memory_file_system.hpp"

using namespace pecan;
using namespace pecan::checkpoint;
using test::Job;
using test::job_options;
using test::make_catalog;
using test::MemoryFileSystem;

namespace {

/// First item that is not of the version that the manifest names for it; empty if none.
std::string difference(StateReader& reader, const StateCatalog& catalog) {
  if (reader.paths().size() != catalog.items.size()) return "another number of items";
  for (std::size_t i = 0; i < catalog.items.size(); ++i) {
    const StateItem& item = catalog.items[i];
    const auto found = reader.find(item.path());
    if (!found || found->shape != item.global_shape || found->dtype != item.dtype)
      return item.path() + " is described otherwise";
    std::vector<std::byte> bytes(item.num_bytes());
    reader.read(item.path(), bytes);
    for (const UnitCopy& copy : reader.manifest().copies) {
      if (copy.unit == item.unit && copy.group == item.group &&
          bytes != test::content_of(catalog, ItemIndex{std::int32_t(i)}, copy.version))
        return fmt::format("{} is not that of step {}", item.path(), copy.version.step);
    }
  }
  return {};
}

}  // namespace

TEST_CASE("a reader finds each item where the manifest counts on it", "[state_reader]") {
  MemoryFileSystem fs;
  // Moments in rows of four ranks; experts of three older checkpoints.
  const StateCatalog catalog = make_catalog({2, 4, 2, 2});
  test::JobOptions options = job_options(1);
  options.checkpoint.keep_latest_k = 2;
  comm::run_thread_group(4, [&](comm::Group& world) { Job(fs, catalog, options, world).train(6); });
  // job.hpp keeps its run in "run".
  StateReader newest(fs, "run");
  CHECK(newest.manifest().version.step == Step{6});
  std::set<Step> steps;
  for (const UnitCopy& copy : newest.manifest().copies) steps.insert(copy.version.step);
  CHECK(steps == std::set{Step{3}, Step{4}, Step{5}, Step{6}});
  CHECK(difference(newest, catalog).empty());
  StateReader older(fs, "run", Step{5});
  CHECK(older.manifest().version.step == Step{5});
  CHECK(difference(older, catalog).empty());
  CHECK_FALSE(newest.find("model.norm.weight/weight").has_value());
  std::vector<std::byte> nothing;
  CHECK_THROWS_WITH(newest.read("model.norm.weight/weight", nothing),
                    Catch::Contains("step-00000006 has no model.norm.weight/weight"));
  CHECK_THROWS_WITH(StateReader(fs, "run", Step{7}),
                    Catch::Contains("no whole checkpoint of step 7"));
}

TEST_CASE("a root is a checkpoint of step 0, from which a run goes on by itself", "[root]") {
  MemoryFileSystem fs;
  const StateCatalog catalog = make_catalog({2, 4, 2, 1});
  class Content final : public StateBinding {
   public:
    explicit Content(const StateCatalog& of) : catalog_(of) {}
    void copy_out(ItemIndex item, const Block& block, std::span<std::byte> to) const override {
      const std::vector<std::byte> whole = test::content_of(catalog_, item, Version{});
      const StateItem& described = catalog_.items[std::size_t(item.value)];
      // All blocks here are whole rows.
      const std::size_t row = whole.size() / std::size_t(described.global_shape[0]);
      std::ranges::copy(std::span(whole).subspan(std::size_t(block.offset[0]) * row, to.size()),
                        to.begin());
    }
    void copy_in(ItemIndex, const Block&, std::span<const std::byte>) override {}

   private:
    const StateCatalog& catalog_;
  };
  const test::JobOptions options = job_options(1);
  const Manifest manifest =
      write_root(fs, "run", options.checkpoint, catalog, Content(catalog), 2, R"({"a":1})");
  CHECK(manifest.version == Version{});
  CHECK(manifest.full);
  CHECK(manifest.first_budget == 1);
  CHECK(manifest.extra_json == R"({"a":1})");
  StateReader reader(fs, "run");
  CHECK(difference(reader, catalog).empty());
  // Four files of experts a part: those that one checkpoint of the rotation supersedes.
  CHECK(std::ranges::count(manifest.files, FileKind::kExperts, &FileEntry::kind) == 2 * 4);
  CHECK_THROWS_WITH(write_root(fs, "run", options.checkpoint, catalog, Content(catalog), 2, "{}"),
                    Catch::Contains("run holds an earlier run; choose another one"));

  // The run stands on it: the next checkpoint is partial, and a later start takes experts from it.
  const auto start = [&](const StateCatalog& laid_out, int steps) {
    std::vector<std::string> said(std::size_t(laid_out.world_size));
    comm::run_thread_group(laid_out.world_size, [&](comm::Group& world) {
      Job job(fs, laid_out, options, world);
      said[std::size_t(world.rank().value)] =
          fmt::format("step {}{}", job.recovered().report.plan.recovery.step, job.difference());
      job.train(steps);
    });
    return said;
  };
  CHECK(start(catalog, 1) == std::vector<std::string>(2, "step 0"));
  StateReader partial(fs, "run");
  CHECK_FALSE(partial.manifest().full);
  CHECK(difference(partial, catalog).empty());
  CHECK(std::ranges::count(partial.manifest().copies, Version{}, &UnitCopy::version) == 2 * 6);
  CHECK(start(catalog, 0) == std::vector<std::string>(2, "step 1"));
}
