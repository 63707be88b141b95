#include "checkpoint/persist.hpp"

#include "checkpoint/job.hpp"
#include "checkpoint/scan.hpp"
#include "support/catch.hpp"
#include "support/memory_file_system.hpp"

using namespace pecan;
using namespace pecan::checkpoint;

namespace {

const Version kVersion{Incarnation{0}, Step{7}};

/// Two ranks that have written their parts of a full checkpoint of step 7.
struct Written {
  StateCatalog catalog = test::make_catalog({1, 2, 2, 1});
  test::MemoryFileSystem fs;
  SavePlan plan = plan_save(catalog, {{UnitIndex{1}, UnitIndex{2}}, {}, {}});
  Manifest header;
  std::int64_t num_bytes = 0;

  Written() {
    header.version = kVersion;
    header.world_size = 2;
    header.units = catalog.units;
    header.lineage = {{Incarnation{0}, true, {}}};
    for (int rank = 0; rank < 2; ++rank) {
      test::FakeBinding binding(catalog, Rank{rank});
      binding.set(kVersion, MutatedIn::kForward);
      binding.set(kVersion, MutatedIn::kUpdate);
      Snapshot snapshot(catalog, binding, std::make_unique<PrivateMemory>(device::cpu()));
      snapshot.lay_out(plan, Rank{rank});
      snapshot.copy(MutatedIn::kForward);
      snapshot.copy(MutatedIn::kUpdate);
      num_bytes += write_part(fs, "run", catalog, plan, snapshot, kVersion, Rank{rank}).value();
    }
  }
  Result<Manifest> commit(const Status& permission = {}) {
    return commit_checkpoint(fs, "run", catalog, plan, header, {}, [&] { return permission; });
  }
  [[nodiscard]] bool committed() { return fs.exists("run/step-00000007"); }
  [[nodiscard]] std::string index_path(int rank) const {
    return "run/step-00000007.partial/" + index_name(Rank{rank});
  }
  /// Changes rank 1's index and writes it back with a good checksum.
  template <typename Change>
  Result<Manifest> commit_changed(Change change) {
    RankIndex index = parse_rank_index(read_text(fs, index_path(1)).value()).value();
    change(index);
    REQUIRE(write_text_atomically(fs, index_path(1), to_json(index)).ok());
    return commit();
  }
};

}  // namespace

TEST_CASE("a commit merges every rank's part into a complete manifest", "[persist]") {
  Written written;
  std::size_t total = 0;
  for (const StateItem& item : written.catalog.items) total += item.num_bytes();
  CHECK(written.num_bytes == std::int64_t(total));
  const Result<Manifest> manifest = written.commit();
  REQUIRE(manifest.ok());
  CHECK(written.committed());
  const auto loaded = load_checkpoint(written.fs, "run", "step-00000007");
  REQUIRE(loaded.ok());
  CHECK_FALSE(loaded.value().retired);
  for (const UnitGroup& key : unit_groups(written.catalog)) CHECK(loaded.value().has(key));
  CHECK(loaded.value().manifest.copies == manifest.value().copies);
  CHECK(loaded.value().manifest.blocks.size() == written.plan.writes.size());
}

TEST_CASE("nothing is committed that is not wholly what was planned", "[persist]") {
  SECTION("a rank's index is missing") {
    Written written;
    REQUIRE(written.fs.remove_file(written.index_path(1)).ok());
    CHECK_FALSE(written.commit().ok());
    CHECK_FALSE(written.committed());
  }
  SECTION("a rank's index is damaged") {
    Written written;
    REQUIRE(write_text_atomically(written.fs, written.index_path(0), "{}").ok());
    CHECK(written.commit().status().code == StatusCode::kCorrupt);
    CHECK_FALSE(written.committed());
  }
  const auto refused = [](auto change) {
    Written written;
    const Result<Manifest> result = written.commit_changed(change);
    return !result.ok() && result.status().code == StatusCode::kCorrupt && !written.committed();
  };
  SECTION("a block is missing") {
    CHECK(refused([](RankIndex& index) { index.blocks.pop_back(); }));
  }
  SECTION("a block stands twice") {
    CHECK(refused([](RankIndex& index) { index.blocks.push_back(index.blocks.back()); }));
  }
  SECTION("a block is of another item") {
    CHECK(refused([](RankIndex& index) { index.blocks[0].block.item = "other"; }));
  }
  SECTION("a block is of another unit") {
    CHECK(refused([](RankIndex& index) { index.blocks[0].unit = UnitIndex{1}; }));
  }
  SECTION("the index is of another step") {
    CHECK(refused([](RankIndex& index) {
      index.version.step = Step{6};
      for (BlockEntry& entry : index.blocks) entry.block.step = Step{6};
    }));
  }
  SECTION("a unit was never saved") {
    Written written;
    written.plan = plan_save(written.catalog, {{UnitIndex{1}}, {}, {}});
    CHECK_FALSE(written.commit().ok());
    CHECK_FALSE(written.committed());
  }
  SECTION("it is forbidden") {
    Written written;
    const Result<Manifest> result = written.commit(Status::failure(StatusCode::kExists, "fenced"));
    CHECK(result.status().message == "fenced");
    CHECK_FALSE(written.committed());
  }
}
