#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>

#include <nlohmann/json.hpp>

#include <pecan/core/forwarding_file_system.hpp>
#include <pecan/core/philox.hpp>

#include <pecan/data/indexed_dataset.hpp>

#include <pecan/checkpoint/shard.hpp>

#include <pecan/train/run.hpp>
#include <pecan/train/state.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

using namespace pecan;
using test::TempDir;

namespace {

constexpr int kVocab = 48;
/// Saved at this step, on one layout; trained to the next, on another.
constexpr std::int64_t kSaved = 3;

struct Layout {
  int world;
  int tp;
  int ep;
  int etp;
  const char* sharding;
  [[nodiscard]] std::string name() const {
    return fmt::format("{} ranks tp {} ep {} etp {} {}", world, tp, ep, etp, sharding);
  }
};
const std::vector<Layout> kLayouts{{1, 1, 1, 1, "no_shard"},
                                   {2, 1, 2, 1, "no_shard"},
                                   {2, 2, 1, 2, "optim"},
                                   {4, 1, 4, 1, "optim_grads"},
                                   {4, 2, 2, 2, "no_shard"},
                                   {4, 4, 2, 2, "optim"},
                                   {8, 1, 8, 1, "optim"},
                                   {8, 2, 2, 2, "optim_grads"},
                                   {8, 2, 8, 1, "no_shard"}};

/// Whole items by path.
using Items = std::map<std::string, std::vector<std::byte>>;

/// Calls with the flat index in the whole item and in the block, for each element of the block.
template <typename Body>
void for_each_element(const Shape& whole, const Block& block, Body body) {
  const std::int64_t count = block.extent.num_elements();
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i, index = 0, stride = 1;
    for (int dim = whole.num_dims() - 1; dim >= 0; --dim) {
      index += (block.offset[dim] + rest % block.extent[dim]) * stride;
      rest /= block.extent[dim];
      stride *= whole[dim];
    }
    body(std::size_t(index), std::size_t(i));
  }
}

/// Counts the bytes of blocks that are read from shards: what their seals call data.
class CountingFileSystem final : public ForwardingFileSystem {
 public:
  using ForwardingFileSystem::ForwardingFileSystem;
  /// By reads that begin where a block does.
  [[nodiscard]] std::uint64_t data_bytes() const { return counts_.data; }
  /// By all reads: HDF5 looks ahead a little when it parses headers.
  [[nodiscard]] std::uint64_t touched_bytes() const { return counts_.touched; }

  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override {
    Result<std::unique_ptr<File>> file = inner().open(path, mode);
    if (!file.ok() || !path.ends_with(".h5")) return file;
    return {std::make_unique<CountingFile>(std::move(file).value(), counts_)};
  }

 private:
  struct Counts {
    std::uint64_t data = 0;
    std::uint64_t touched = 0;
  };
  class CountingFile final : public ForwardingFile {
   public:
    CountingFile(std::unique_ptr<File> inner, Counts& counts)
        : ForwardingFile(std::move(inner)), counts_(counts) {
      // The seal: pairs of offset and size, then their number, a checksum and a magic word.
      const std::uint64_t tail = size().value() - 3 * sizeof(std::uint64_t);
      ranges_.resize(word_at(tail));
      std::uint64_t at = tail - 2 * sizeof(std::uint64_t) * ranges_.size();
      for (auto& [begin, end] : ranges_) {
        begin = word_at(at);
        end = begin + word_at(at + sizeof(std::uint64_t));
        at += 2 * sizeof(std::uint64_t);
      }
    }
    Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> target) override {
      Result<std::size_t> read = inner().read_at(offset, target);
      if (!read.ok()) return read;
      const std::uint64_t stop = offset + read.value();
      for (const auto& [begin, end] : ranges_) {
        if (begin >= stop || offset >= end) continue;
        const std::uint64_t bytes = std::min(stop, end) - std::max(offset, begin);
        counts_.touched += bytes;
        if (begin == offset) counts_.data += bytes;
      }
      return read;
    }

   private:
    [[nodiscard]] std::uint64_t word_at(std::uint64_t offset) const {
      std::array<std::byte, sizeof(std::uint64_t)> bytes{};
      (void)inner().read_at(offset, bytes);
      return std::bit_cast<std::uint64_t>(bytes);
    }
    Counts& counts_;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges_;
  };

  Counts counts_;
};

/// Runs of one small model in double precision over Thread groups.
class ElasticLab {
 public:
  ElasticLab() : fs_(make_posix_file_system()) {
    data::IndexedDatasetWriter writer(*fs_, folder_ / "corpus", data::TokenType::kU16);
    for (std::uint64_t document = 0; document < 20; ++document) {
      std::vector<std::int32_t> tokens;
      for (std::uint64_t i = 0; i < 60; ++i)
        tokens.push_back(std::int32_t(philox_uniform(1, document, i) * kVocab));
      writer.add_sequence(tokens);
      writer.end_document();
    }
    writer.finish(data::DatasetInfo{.documents = 20, .tokens = 1200, .vocab_size = kVocab});
  }

  [[nodiscard]] config::Config config(const Layout& layout,
                                      const std::vector<std::string>& more = {}) const {
    std::vector<std::string> settings{
        fmt::format("parallel.tensor_model_parallel_size={}", layout.tp),
        fmt::format("parallel.expert_model_parallel_size={}", layout.ep),
        fmt::format("parallel.expert_tensor_parallel_size={}", layout.etp),
        fmt::format("parallel.sequence_parallel={}", layout.tp > 1),
        fmt::format("parallel.data_parallel_sharding_strategy={}", layout.sharding)};
    settings.insert(settings.end(), more.begin(), more.end());
    return config::parse_config(fmt::format(R"(
model: {{num_layers: 2, hidden_size: 16, ffn_hidden_size: 24, num_attention_heads: 4, num_query_groups: 2, make_vocab_size_divisible_by: 8, vocab_size: {}}}
moe: {{num_experts: 8, moe_ffn_hidden_size: 8, moe_layer_freq: [0, 1], moe_aux_loss_coeff: 0.01, dispatch_buffer_factor: 8}}
training: {{seq_length: 8, micro_batch_size: 1, global_batch_size: 8, train_iters: 4, compute_dtype: fp64, threads: 1}}
optimizer: {{lr: 0.01}}
data: {{data_path: {}}}
checkpoint: {{save_interval: {}, save_retain_interval: 1, async_save: false, pec: {{experts_per_checkpoint: 8}}}}
)",
                                            kVocab,
                                            folder_ / "corpus",
                                            kSaved),
                                settings);
  }

  ExitCode train(const std::string& name,
                 const Layout& layout,
                 checkpoint::ResumeMode mode,
                 const std::vector<std::string>& settings = {}) {
    const config::Config run_config = config(layout, settings);
    const train::RunOptions options{.run_directory = path(name), .resume = mode};
    std::vector<ExitCode> codes(std::size_t(layout.world));
    comm::run_thread_group(layout.world, [&](comm::Group& world) {
      codes[std::size_t(world.rank().value)] = train::run(run_config, options, *fs_, world);
    });
    return codes[0];
  }

  [[nodiscard]] checkpoint::Manifest manifest(const std::string& run, std::int64_t step) {
    Result<std::string> text = read_text(*fs_, directory(run, step) + "/manifest.json");
    REQUIRE(text.ok());
    return checkpoint::parse_manifest(text.value()).value();
  }

  /// Items of a full checkpoint, put together from its shards.
  [[nodiscard]] Items items(const std::string& run, std::int64_t step) {
    Items items;
    const checkpoint::Manifest stored = manifest(run, step);
    std::vector<std::byte> bytes;
    for (std::size_t f = 0; f < stored.files.size(); ++f) {
      checkpoint::ShardReader shard(*fs_, directory(run, step) + "/" + stored.files[f].name);
      REQUIRE(shard.open().ok());
      for (const checkpoint::BlockEntry& entry : stored.blocks) {
        if (entry.file != int(f)) continue;
        const std::size_t size = size_of(entry.block.dtype);
        bytes.resize(std::size_t(entry.block.block.extent.num_elements()) * size);
        REQUIRE(shard.read(entry.block, bytes).ok());
        std::vector<std::byte>& whole = items[entry.block.item + "/" + entry.block.dataset];
        whole.resize(std::size_t(entry.block.global_shape.num_elements()) * size);
        for_each_element(
            entry.block.global_shape, entry.block.block, [&](std::size_t to, std::size_t from) {
              std::memcpy(&whole[to * size], &bytes[from * size], size);
            });
      }
    }
    return items;
  }

  [[nodiscard]] nlohmann::json last_step(const std::string& run) const {
    nlohmann::json last;
    std::ifstream in(path(run) + "/metrics.jsonl");
    for (std::string line; std::getline(in, line);) {
      auto record = nlohmann::json::parse(line);
      if (record.value("kind", "") == "step") last = std::move(record);
    }
    return last;
  }

  void copy(const std::string& from, const std::string& to) {
    std::filesystem::copy(path(from), path(to), std::filesystem::copy_options::recursive);
  }
  void remove(const std::string& run) { std::filesystem::remove_all(path(run)); }
  [[nodiscard]] std::string path(const std::string& run) const { return folder_ / run; }
  [[nodiscard]] std::string directory(const std::string& run, std::int64_t step) const {
    return path(run) + "/checkpoints/" + checkpoint::step_directory_name(Step{step});
  }
  [[nodiscard]] FileSystem& fs() { return *fs_; }

 private:
  TempDir folder_;
  std::unique_ptr<FileSystem> fs_;
};

/// What loading onto a layout found, for assertions on the main thread.
struct Loaded {
  std::vector<std::string> differences;
  std::vector<std::string> overreads;
  std::int64_t step = -1;
};

bool overlap(const Block& a, const Block& b) {
  for (int dim = 0; dim < a.offset.num_dims(); ++dim) {
    if (a.offset[dim] + a.extent[dim] <= b.offset[dim] ||
        b.offset[dim] + b.extent[dim] <= a.offset[dim])
      return false;
  }
  return true;
}

/// Bytes of stored blocks that hold something that `rank` holds, once for each block of its own.
std::uint64_t needed_bytes(const StateCatalog& catalog,
                           Rank rank,
                           const checkpoint::Manifest& stored) {
  std::map<std::string, std::vector<const checkpoint::BlockEntry*>> blocks_of;
  for (const checkpoint::BlockEntry& entry : stored.blocks)
    blocks_of[entry.block.item + "/" + entry.block.dataset].push_back(&entry);
  std::uint64_t bytes = 0;
  for (const StateItem& item : catalog.items) {
    for (const StateBlock& part : item.blocks) {
      if (std::ranges::count(part.holders, rank) == 0) continue;
      for (const checkpoint::BlockEntry* entry : blocks_of[item.path()]) {
        if (!overlap(entry->block.block, part.block)) continue;
        bytes += std::uint64_t(entry->block.block.extent.num_elements()) * size_of(item.dtype);
      }
    }
  }
  return bytes;
}

/// Recovers `run` on `layout`; every held block must be the one of `truth`.
Loaded load(ElasticLab& lab, const std::string& run, const Layout& layout, const Items& truth) {
  const config::Config config = lab.config(layout);
  const train::TrainPlan plan = train::make_plan(config, kVocab, layout.world);
  const checkpoint::Manifest stored = lab.manifest(run, kSaved);
  Loaded loaded;
  std::mutex mutex;
  comm::run_thread_group(layout.world, [&](comm::Group& world) {
    device::Stream stream{device::cpu()};
    device::Arena workspace;
    Context ctx{device::cpu(), stream, workspace, 1};
    train::TrainState state(ctx, plan, world.rank());
    CountingFileSystem fs(lab.fs());
    const checkpoint::Recovered recovered =
        checkpoint::recover(fs,
                            lab.path(run),
                            checkpoint::ResumeMode::kFromFailure,
                            "",
                            plan.catalog,
                            state.binding(),
                            ctx,
                            world);
    std::vector<std::string> differences;
    for (std::size_t i = 0; i < plan.catalog.items.size(); ++i) {
      const StateItem& item = plan.catalog.items[i];
      const std::size_t size = size_of(item.dtype);
      const auto whole = truth.find(item.path());
      for (const StateBlock& part : item.blocks) {
        if (std::ranges::count(part.holders, world.rank()) == 0) continue;
        std::vector<std::byte> bytes(std::size_t(part.block.extent.num_elements()) * size);
        state.binding().copy_out(ItemIndex{std::int32_t(i)}, part.block, bytes);
        bool equal = whole != truth.end();
        for_each_element(item.global_shape, part.block, [&](std::size_t from, std::size_t to) {
          equal = equal && std::memcmp(&whole->second[from * size], &bytes[to * size], size) == 0;
        });
        if (!equal) differences.push_back(fmt::format("rank {}: {}", world.rank(), item.path()));
      }
    }
    const std::uint64_t needed = needed_bytes(plan.catalog, world.rank(), stored);
    const std::lock_guard lock(mutex);
    loaded.differences.insert(loaded.differences.end(), differences.begin(), differences.end());
    if (fs.data_bytes() != needed || double(fs.touched_bytes()) > 1.4 * double(needed)) {
      loaded.overreads.push_back(
          fmt::format("rank {} read {} bytes of blocks and touched {}; it needs {}",
                      world.rank(),
                      fs.data_bytes(),
                      fs.touched_bytes(),
                      needed));
    }
    if (world.rank().value == 0) loaded.step = recovered.report.plan.recovery.step.value;
  });
  return loaded;
}

/// Items that differ by more than roundings; counters that differ at all.
std::vector<std::string> distant(const Items& a, const Items& b, double limit) {
  std::vector<std::string> paths;
  for (const auto& [path, bytes] : a) {
    const auto other = b.find(path);
    if (other == b.end() || other->second.size() != bytes.size()) {
      paths.push_back(path);
      continue;
    }
    if (bytes == other->second) continue;
    const std::string role = path.substr(path.rfind('/') + 1);
    const bool real = role == "weight" || role == "exp_avg" || role == "exp_avg_sq";
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i + sizeof(double) <= bytes.size(); i += sizeof(double)) {
      double x = 0, y = 0;
      std::memcpy(&x, &bytes[i], sizeof x);
      std::memcpy(&y, &other->second[i], sizeof y);
      difference += (x - y) * (x - y);
      norm += y * y;
    }
    if (!real || !(std::sqrt(difference) <= limit * std::sqrt(norm))) paths.push_back(path);
  }
  return paths;
}

}  // namespace

TEST_CASE("a run goes on in another layout, from each of nine to each", "[.][elastic]") {
  using checkpoint::ResumeMode;
  ElasticLab lab;
  const std::string stop = fmt::format("training.exit_interval={}", kSaved);
  for (std::size_t f = 0; f < kLayouts.size(); ++f) {
    const Layout& from = kLayouts[f];
    INFO("saved on " << from.name());
    CHECK(lab.train("saved", from, ResumeMode::kFreshOnly, {stop}) == ExitCode::kStoppedOnRequest);
    const Items truth = lab.items("saved", kSaved);
    CHECK(truth.size() > 100);

    // The layout itself goes on to the bytes of a run that was never stopped.
    lab.copy("saved", "same");
    CHECK(lab.train("same", from, ResumeMode::kFromFailure) == ExitCode::kDone);
    CHECK(lab.train("straight", from, ResumeMode::kFreshOnly) == ExitCode::kDone);
    const Items next = lab.items("same", kSaved + 1);
    CHECK(next == lab.items("straight", kSaved + 1));
    CHECK(next != truth);
    const nlohmann::json reference = lab.last_step("same");
    CHECK(reference.at("step") == kSaved + 1);

    for (std::size_t t = 0; t < kLayouts.size(); ++t) {
      if (t == f) continue;
      const Layout& to = kLayouts[t];
      INFO("loaded on " << to.name());
      lab.copy("saved", "other");
      const Loaded loaded = load(lab, "other", to, truth);
      CHECK(loaded.step == kSaved);
      CHECK(loaded.differences == std::vector<std::string>{});
      CHECK(loaded.overreads == std::vector<std::string>{});

      CHECK(lab.train("other", to, ResumeMode::kFromFailure) == ExitCode::kDone);
      const nlohmann::json step = lab.last_step("other");
      CHECK(step.at("step") == kSaved + 1);
      CHECK(step.at("consumed_samples") == reference.at("consumed_samples"));
      for (const char* figure : {"loss", "grad_norm"}) {
        const double expected = reference.at(figure).get<double>();
        CHECK(std::abs(step.at(figure).get<double>() - expected) <= 1e-11 * expected);
      }
      CHECK(distant(lab.items("other", kSaved + 1), next, 1e-9) == std::vector<std::string>{});
      lab.remove("other");
    }
    for (const char* run : {"saved", "same", "straight"}) lab.remove(run);
  }
}
