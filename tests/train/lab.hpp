#pragma once
/// Whole training runs over Thread groups, in a temporary folder.

#include <algorithm>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <pecan/core/philox.hpp>

#include <pecan/data/indexed_dataset.hpp>

#include <pecan/checkpoint/manifest.hpp>

#include <pecan/train/run.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::test {

inline constexpr int kWorld = 4;
inline constexpr int kVocab = 50;

/// A folder with a corpus of random tokens, and runs over Thread groups.
class Lab {
 public:
  Lab() : fs_(make_posix_file_system()) {
    data::IndexedDatasetWriter writer(*fs_, folder_ / "corpus", data::TokenType::kU16);
    for (std::uint64_t document = 0; document < 40; ++document) {
      std::vector<std::int32_t> tokens;
      for (std::uint64_t i = 0; i < 60; ++i)
        tokens.push_back(std::int32_t(philox_uniform(1, document, i) * kVocab));
      writer.add_sequence(tokens);
      writer.end_document();
    }
    writer.finish(data::DatasetInfo{.documents = 40, .tokens = 2400, .vocab_size = kVocab});
  }

  [[nodiscard]] config::Config config(const std::vector<std::string>& settings) const {
    return config::parse_config(fmt::format(R"(
model: {{num_layers: 2, hidden_size: 16, num_attention_heads: 2, make_vocab_size_divisible_by: 8, vocab_size: {}}}
moe: {{num_experts: 8, moe_ffn_hidden_size: 8, moe_layer_freq: 1, moe_aux_loss_coeff: 0.01, dispatch_buffer_factor: 4}}
training: {{seq_length: 16, micro_batch_size: 1, global_batch_size: 8, train_iters: 20}}
optimizer: {{lr: 0.01}}
parallel: {{expert_model_parallel_size: 2}}
data: {{data_path: {}}}
checkpoint: {{save_interval: 4, save_retain_interval: 4, async_save: false, pec: {{experts_per_checkpoint: 8}}}}
)",
                                            kVocab,
                                            folder_ / "corpus"),
                                settings);
  }

  ExitCode train(const std::string& name,
                 const std::vector<std::string>& settings,
                 checkpoint::ResumeMode mode = checkpoint::ResumeMode::kFreshOnly,
                 const std::vector<std::string>& node_of_rank = std::vector<std::string>(kWorld)) {
    const config::Config run_config = config(settings);
    std::vector<ExitCode> codes(kWorld);
    comm::run_thread_group(kWorld, [&](comm::Group& world) {
      const train::RunOptions options{.run_directory = folder_ / name,
                                      .resume = mode,
                                      .node = node_of_rank[std::size_t(world.rank().value)]};
      codes[std::size_t(world.rank().value)] = train::run(run_config, options, *fs_, world);
    });
    CHECK(std::ranges::count(codes, codes[0]) == kWorld);
    return codes[0];
  }

  /// Trains to step `last`, where a checkpoint is due, and one more, in which it fails: what is in
  /// storage is that of `last`.
  void train_and_fail(const std::string& name,
                      std::vector<std::string> settings,
                      std::int64_t last,
                      checkpoint::ResumeMode mode = checkpoint::ResumeMode::kFreshOnly) {
    settings.push_back(fmt::format("training.exit_interval={}", last + 1));
    CHECK(train(name, settings, mode) == ExitCode::kStoppedOnRequest);
    // A stop on request saves everything, which a failure would not have done.
    REQUIRE(fs_->remove_all(folder_ / (name + "/checkpoints/" +
                                       checkpoint::step_directory_name(Step{last + 1})))
                .ok());
  }

  [[nodiscard]] checkpoint::Manifest manifest(const std::string& run, std::int64_t step) {
    const std::string base =
        folder_ / (run + "/checkpoints/" + checkpoint::step_directory_name(Step{step}));
    Result<std::string> text = read_text(*fs_, base + "/manifest.json");
    REQUIRE(text.ok());
    Result<checkpoint::Manifest> parsed = checkpoint::parse_manifest(text.value());
    REQUIRE(parsed.ok());
    return std::move(parsed).value();
  }

  /// Checksums of the blocks that a checkpoint wrote, by dataset path.
  [[nodiscard]] std::map<std::string, std::uint64_t> checksums(const std::string& run,
                                                               std::int64_t step) {
    std::map<std::string, std::uint64_t> all;
    for (const checkpoint::BlockEntry& entry : manifest(run, step).blocks) {
      all[entry.block.dataset_path()] = entry.block.xxh3;
    }
    return all;
  }

  [[nodiscard]] std::vector<nlohmann::json> metrics(const std::string& run,
                                                    const std::string& kind) const {
    std::vector<nlohmann::json> records;
    std::ifstream in(folder_ / (run + "/metrics.jsonl"));
    for (std::string line; std::getline(in, line);) {
      const auto record = nlohmann::json::parse(line);
      if (record.value("kind", "") == kind) records.push_back(record);
    }
    return records;
  }

  [[nodiscard]] FileSystem& fs() { return *fs_; }
  [[nodiscard]] std::string path(const std::string& name) const { return folder_ / name; }

 private:
  TempDir folder_;
  std::unique_ptr<FileSystem> fs_;
};

}  // namespace pecan::test
