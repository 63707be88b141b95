#include "checkpoint/load.hpp"

#include "checkpoint/job.hpp"
#include "support/catch.hpp"
#include "support/memory_file_system.hpp"

using namespace pecan;
using namespace pecan::checkpoint;
using test::Job;
using test::job_options;
using test::make_catalog;

TEST_CASE("a run continues on another number of ranks and another layout", "[load]") {
  struct Layout {
    int ep;
    int edp;
  };
  const std::vector<Layout> layouts{{1, 1}, {2, 1}, {4, 1}, {2, 2}};
  // Same items and shapes for all worlds, whose row shards differ.
  const auto catalog_for = [](const Layout& layout) {
    StateCatalog catalog = make_catalog({2, 4, layout.ep, layout.edp});
    const Shape embedding{8, 6};
    for (StateItem& item : catalog.items) {
      if (item.name != "model.embed_tokens.weight") continue;
      item.global_shape = embedding;
      const std::int64_t rows = 8 / std::int64_t(item.blocks.size());
      for (std::size_t b = 0; b < item.blocks.size(); ++b) {
        item.blocks[b].block = Block{Shape{std::int64_t(b) * rows, 0}, Shape{rows, 6}};
      }
    }
    catalog.validate();
    return catalog;
  };
  for (const Layout& from : layouts) {
    for (const Layout& to : layouts) {
      test::MemoryFileSystem fs;
      const StateCatalog before = catalog_for(from);
      comm::run_thread_group(from.ep * from.edp, [&](comm::Group& world) {
        Job(fs, before, job_options(1), world).train(3);
      });
      const StateCatalog after = catalog_for(to);
      std::vector<std::string> differences(std::size_t(to.ep * to.edp));
      std::vector<Step> steps(differences.size());
      comm::run_thread_group(to.ep * to.edp, [&](comm::Group& world) {
        const Job job(fs, after, job_options(1), world);
        differences[std::size_t(world.rank().value)] = job.difference();
        steps[std::size_t(world.rank().value)] = job.recovered().report.plan.recovery.step;
      });
      INFO("EP " << from.ep << " x " << from.edp << " to EP " << to.ep << " x " << to.edp);
      CHECK(differences == std::vector<std::string>(differences.size()));
      CHECK(steps == std::vector<Step>(steps.size(), Step{3}));
    }
  }
}
