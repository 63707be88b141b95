#include "checkpoint/job.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

namespace pecan::test {
namespace {

using checkpoint::Version;

std::vector<Rank> ranks_from(int first, int stride, int count) {
  std::vector<Rank> ranks;
  for (int i = 0; i < count; ++i) ranks.emplace_back(first + i * stride);
  return ranks;
}

/// Calls visit(global element, element of the block) over a block of up to two dims.
template <typename Visit>
void for_each_element(const Shape& shape, const Block& block, Visit visit) {
  const bool matrix = shape.num_dims() == 2;
  const std::int64_t rows = matrix ? block.extent[0] : 1;
  const int last = shape.num_dims() - 1;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < block.extent[last]; ++c) {
      const std::int64_t row = matrix ? block.offset[0] + r : 0;
      visit(std::size_t(row * shape[last] + block.offset[last] + c),
            std::size_t(r * block.extent[last] + c));
    }
  }
}

}  // namespace

StateCatalog make_catalog(const CatalogShape& shape) {
  const int world = shape.ep * shape.edp;
  const std::vector<Rank> all = ranks_from(0, 1, world);
  StateCatalog catalog;
  catalog.world_size = world;
  catalog.num_moe_layers = shape.layers;
  catalog.num_experts = shape.experts;
  catalog.units.push_back({"non_expert", kNoLayer, ExpertId{-1}});

  const Shape embedding{world * 2, 6};
  StateItem weight{"model.embed_tokens.weight", "weight", UnitIndex{0}};
  weight.global_shape = embedding;
  weight.blocks = {{Block::whole(embedding), all}};
  StateItem moments = weight;
  moments.dataset = "exp_avg";
  moments.role = Role::kExpAvg;
  moments.group = RoleGroup::kMoments;
  moments.blocks.clear();
  for (int r = 0; r < world; ++r) {
    moments.blocks.push_back({Block{Shape{r * 2, 0}, Shape{2, 6}}, {Rank{r}}});
  }
  StateItem counter = weight;
  counter.name = "job.tokens";
  counter.dataset = "routed";
  counter.role = Role::kCounter;
  counter.group = RoleGroup::kJob;
  counter.mutated_in = MutatedIn::kForward;
  counter.dtype = DType::kI64;
  counter.global_shape = Shape{5};
  counter.blocks = {{Block::whole(counter.global_shape), all}};
  catalog.items = {weight, moments, counter};

  for (int layer = 0; layer < shape.layers; ++layer) {
    for (int expert = 0; expert < shape.experts; ++expert) {
      const UnitIndex unit{int(catalog.units.size())};
      catalog.units.push_back(
          {fmt::format("layers.{}.experts.{}", layer, expert), LayerId{layer}, ExpertId{expert}});
      StateItem item{fmt::format("model.layers.{}.mlp.experts.{}.up_proj.weight", layer, expert),
                     "weight",
                     unit};
      item.global_shape = Shape{3, 4};
      item.blocks = {{Block::whole(item.global_shape),
                      ranks_from(expert / (shape.experts / shape.ep), shape.ep, shape.edp)}};
      catalog.items.push_back(item);
      item.dataset = "exp_avg";
      item.role = Role::kExpAvg;
      item.group = RoleGroup::kMoments;
      catalog.items.push_back(item);
      item.dataset = "absorbed_moments";
      item.role = Role::kAbsorbed;
      item.mutated_in = MutatedIn::kForward;
      item.dtype = DType::kI64;
      item.global_shape = Shape{1};
      item.blocks[0].block = Block::whole(item.global_shape);
      catalog.items.push_back(item);
    }
  }
  catalog.validate();
  return catalog;
}

std::vector<std::byte> content_of(const StateCatalog& catalog, ItemIndex item, Version version) {
  std::vector<std::byte> bytes(catalog.items[std::size_t(item.value)].num_bytes());
  std::uint64_t state = std::uint64_t(item.value) * 1'000'003 +
                        std::uint64_t(version.incarnation.value) * 10'007 +
                        std::uint64_t(version.step.value);
  for (std::byte& byte : bytes) {  // splitmix64
    std::uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    byte = std::byte(z >> 56);
  }
  return bytes;
}

FakeBinding::FakeBinding(const StateCatalog& catalog, Rank rank) : catalog_(catalog), rank_(rank) {
  for (const StateItem& item : catalog.items) values_.emplace_back(item.num_bytes());
}

bool FakeBinding::holds(ItemIndex item, const Block& block) const {
  return std::ranges::any_of(
      catalog_.items[std::size_t(item.value)].blocks, [&](const StateBlock& part) {
        return part.block == block && std::ranges::count(part.holders, rank_) > 0;
      });
}

void FakeBinding::copy_out(ItemIndex item,
                           const Block& block,
                           std::span<std::byte> destination) const {
  if (!holds(item, block)) throw InternalError("copy_out of a block that is not held");
  const MutatedIn phase = catalog_.items[std::size_t(item.value)].mutated_in;
  if (fails_in_ && *fails_in_ == phase) {
    fails_in_.reset();
    throw InternalError("copy_out fails as the test asked for");
  }
  const StateItem& described = catalog_.items[std::size_t(item.value)];
  const std::size_t size = size_of(described.dtype);
  for_each_element(described.global_shape, block, [&](std::size_t global, std::size_t local) {
    std::memcpy(&destination[local * size], &values_[std::size_t(item.value)][global * size], size);
  });
}

void FakeBinding::copy_in(ItemIndex item, const Block& block, std::span<const std::byte> source) {
  if (!holds(item, block)) throw InternalError("copy_in of a block that is not held");
  const StateItem& described = catalog_.items[std::size_t(item.value)];
  const std::size_t size = size_of(described.dtype);
  for_each_element(described.global_shape, block, [&](std::size_t global, std::size_t local) {
    std::memcpy(&values_[std::size_t(item.value)][global * size], &source[local * size], size);
  });
}

void FakeBinding::set(Version version, MutatedIn phase) {
  for (std::size_t i = 0; i < values_.size(); ++i) {
    if (catalog_.items[i].mutated_in != phase) continue;
    values_[i] = content_of(catalog_, ItemIndex{std::int32_t(i)}, version);
  }
}

std::string FakeBinding::difference(const checkpoint::RestorePlan& plan) const {
  for (std::size_t i = 0; i < catalog_.items.size(); ++i) {
    const StateItem& item = catalog_.items[i];
    const ItemIndex index{std::int32_t(i)};
    const auto restore = std::ranges::find_if(plan.restores, [&](const auto& one) {
      return one.unit == item.unit && one.group == item.group;
    });
    if (restore == plan.restores.end()) return item.path() + " is not in the plan";
    const std::vector<std::byte> expected = content_of(catalog_, index, restore->version);
    const std::size_t size = size_of(item.dtype);
    for (const StateBlock& part : item.blocks) {
      if (!holds(index, part.block)) continue;
      bool equal = true;
      for_each_element(item.global_shape, part.block, [&](std::size_t global, std::size_t) {
        equal =
            equal && std::memcmp(&values_[i][global * size], &expected[global * size], size) == 0;
      });
      if (!equal) {
        return fmt::format("{} is not that of step {}", item.path(), restore->version.step);
      }
    }
  }
  return {};
}

JobOptions job_options(int experts_per_checkpoint, int fallback_copies) {
  JobOptions options;
  options.checkpoint.save_interval = {1};
  options.checkpoint.fallback_copies = fallback_copies;
  options.checkpoint.async_save = false;
  options.checkpoint.pec.experts_per_checkpoint = experts_per_checkpoint;
  return options;
}

JobOptions two_level_options(const std::string& memory_dir,
                             int in_storage,
                             int in_memory,
                             int save_interval,
                             int fallback_copies) {
  JobOptions options = job_options(in_storage, fallback_copies);
  options.checkpoint.save_interval = {save_interval};
  options.checkpoint.non_persistent_save_interval = {1};
  options.checkpoint.memory_dir = memory_dir;
  options.checkpoint.async_save = true;
  options.checkpoint.pec.experts_per_snapshot = in_memory;
  return options;
}

Job::Job(FileSystem& fs, const StateCatalog& catalog, const JobOptions& options, comm::Group& world)
    : stream_(device::cpu()),
      ctx_{device::cpu(), stream_, arena_, 1},
      world_(world),
      binding_(catalog, world.rank()),
      slots_a_step_(options.slots_a_step),
      extra_(options.extra),
      recovered_(checkpoint::recover(
          fs,
          "run",
          options.mode,
          options.path,
          catalog,
          binding_,
          ctx_,
          world,
          {options.lock,
           options.checkpoint.non_persistent_save_interval.never() ? ""
                                                                   : options.checkpoint.memory_dir,
           options.nodes.empty() ? "" : options.nodes[std::size_t(world.rank().value)]})) {
  if (!recovered_.report.fresh) step_ = recovered_.report.plan.recovery.step;
  if (recovered_.must_secure) {
    checkpoint::secure(
        recovered_, fs, "run", options.checkpoint, catalog, binding_, facts(), ctx_, world);
  }
  std::vector<checkpoint::SnapshotMemory> memory = checkpoint::plan_snapshot_memory(
      catalog, options.checkpoint, {}, recovered_.manifest.has_value());
  if (options.too_little_memory) {
    for (checkpoint::SnapshotMemory& rank : memory) rank.first = rank.others = 64;
  }
  checkpointer_ = std::make_unique<checkpoint::Checkpointer>(
      fs,
      "run",
      options.checkpoint,
      catalog,
      binding_,
      world.rank(),
      checkpoint::CheckpointerStart{
          .identity = recovered_.identity,
          .recovered = recovered_.manifest,
          .kept = recovered_.kept,
          .memory = std::move(memory),
          .node_of_rank = recovered_.node_of_rank,
          .replication = {options.checkpoint.replication_factor, &ctx_, &world},
          .routed = routed(),
          .seconds = options.seconds});
}

std::vector<std::int64_t> Job::routed() const {
  std::vector<std::int64_t> routed = slots_a_step_;
  for (std::int64_t& slots : routed) slots *= step_.value;
  return routed;
}

void Job::exchange_votes() {
  checkpoint::Vote vote = checkpointer_->vote();
  world_
      .all_reduce(ctx_,
                  view_of(std::span<std::int64_t>(vote)),
                  comm::ReduceOp::kMin,
                  {comm::Purpose::kCheckpointVote, kNoLayer})
      .wait();
  checkpointer_->observe(vote);
  for (checkpoint::SaveRecord& record : checkpointer_->take_records()) {
    records_.push_back(std::move(record));
  }
}

void Job::step() {
  const Version version{recovered_.identity.incarnation, Step{step_.value + 1}};
  binding_.set(version, MutatedIn::kForward);
  exchange_votes();
  static_cast<void>(checkpointer_->before_update());
  step_ = version.step;
  binding_.set(version, MutatedIn::kUpdate);
  static_cast<void>(checkpointer_->after_update(facts()));
}

void Job::train(int steps) {
  for (int i = 0; i < steps; ++i) {
    step();
    drain();
  }
}

void Job::drain() {
  while (true) {
    std::int64_t busy = checkpointer_->busy() ? 1 : 0;
    world_
        .all_reduce(ctx_,
                    view_of(std::span<std::int64_t>(&busy, 1)),
                    comm::ReduceOp::kMax,
                    {comm::Purpose::kCheckpointVote, kNoLayer})
        .wait();
    if (busy == 0) return;
    exchange_votes();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

Step Job::newest_committed() const {
  Step newest{-1};
  for (const checkpoint::SaveRecord& record : records_) {
    if (record.committed) newest = std::max(newest, record.version.step);
  }
  return newest;
}

void copy_below(FileSystem& from, FileSystem& to, const std::string& directory) {
  const auto require = [](const Status& status) {
    if (!status.ok()) throw InternalError(status.message);
  };
  require(to.create_directories(directory));
  const Result<std::vector<DirEntry>> entries = from.list(directory);
  for (const DirEntry& entry : entries.value()) {
    const std::string path = directory + "/" + entry.name;
    if (entry.is_directory) {
      copy_below(from, to, path);
      continue;
    }
    const std::string bytes = read_text(from, path).value();
    const std::unique_ptr<File> file = to.open(path, OpenMode::kCreate).value();
    require(file->write_at(0, std::as_bytes(std::span(bytes))));
    require(file->sync());
  }
  require(to.sync_directory(directory));
}

std::vector<std::string> files_below(FileSystem& fs, const std::string& directory) {
  std::vector<std::string> files;
  const Result<std::vector<DirEntry>> entries = fs.list(directory);
  if (!entries.ok()) return files;
  for (const DirEntry& entry : entries.value()) {
    if (!entry.is_directory) {
      files.push_back(entry.name);
      continue;
    }
    for (const std::string& below : files_below(fs, directory + "/" + entry.name)) {
      files.push_back(entry.name + "/" + below);
    }
  }
  return files;
}

}  // namespace pecan::test
