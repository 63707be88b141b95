#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <pecan/train/run.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"
#include "train/lab.hpp"

using namespace pecan;
using checkpoint::ResumeMode;
using test::Lab;

namespace {

const std::vector<std::string> kExpertsOverTensorRanks{"parallel.expert_model_parallel_size=2",
                                                       "parallel.tensor_model_parallel_size=2",
                                                       "parallel.expert_tensor_parallel_size=2",
                                                       "parallel.sequence_parallel=true"};

std::vector<std::string> with(std::vector<std::string> more) {
  more.push_back("moe.moe_router_pre_softmax=true");
  more.push_back("moe.default_vectors.enabled=true");
  return more;
}

bool is_vector(const std::string& path) {
  return path.ends_with("/default_vector");
}

/// Hashes of all experts' default vectors in a content record.
std::map<std::string, std::string> vectors_in(const nlohmann::json& content) {
  std::map<std::string, std::string> hashes;
  for (const auto& [path, item] : content.at("items").items()) {
    if (is_vector(path)) hashes[path] = item.at("hash");
  }
  return hashes;
}

std::map<std::string, std::string> trained(const Lab& lab, const std::string& run, int step) {
  for (const nlohmann::json& content : lab.metrics(run, "content")) {
    if (content.at("step") == step && content.at("recovered") == false) return vectors_in(content);
  }
  return {};
}

std::map<std::string, std::string> recovered(const Lab& lab, const std::string& run) {
  for (const nlohmann::json& content : lab.metrics(run, "content")) {
    if (content.at("recovered") == true) return vectors_in(content);
  }
  return {};
}

}  // namespace

TEST_CASE("default vectors: a run that stops and goes on has the bytes of one that does not",
          "[train][default_vectors]") {
  Lab lab;
  // Vectors are in a checkpoint once, and each rank needs those of experts that it does not hold,
  // too.
  const std::vector<std::vector<std::string>> variants{
      {}, {"training.bf16=true"}, kExpertsOverTensorRanks};
  for (const std::vector<std::string>& variant : variants) {
    CAPTURE(variant);
    auto settings = with(variant);
    settings.push_back("moe.moe_shared_expert_intermediate_size=8");
    CHECK(lab.train("straight", settings) == ExitCode::kDone);
    auto half = settings;
    half.push_back("training.exit_interval=12");
    CHECK(lab.train("halved", half) == ExitCode::kStoppedOnRequest);
    CHECK(lab.train("halved", settings, ResumeMode::kFromFailure) == ExitCode::kDone);
    const auto straight = lab.checksums("straight", 20);
    CHECK(lab.checksums("halved", 20) == straight);
    // Two layers of eight experts, each with a vector of its own.
    std::set<std::uint64_t> vectors;
    for (const auto& [path, checksum] : straight) {
      if (is_vector(path)) vectors.insert(checksum);
    }
    CHECK(vectors.size() == 16);
    for (const char* run : {"straight", "halved"}) REQUIRE(lab.fs().remove_all(lab.path(run)).ok());
  }
}

TEST_CASE("default vectors are in every checkpoint wherever weights are kept current",
          "[train][default_vectors]") {
  Lab lab;
  const auto written_at_8 = [&](const std::vector<std::string>& mode) {
    REQUIRE(lab.fs().remove_all(lab.path("run")).ok());
    auto settings = with(mode);
    settings.push_back("checkpoint.pec.experts_per_checkpoint=2");
    settings.push_back("training.exit_interval=9");
    CHECK(lab.train("run", settings) == ExitCode::kStoppedOnRequest);
    const auto written = lab.checksums("run", 8);
    return std::ranges::count_if(written, [](const auto& entry) { return is_vector(entry.first); });
  };
  CHECK(written_at_8({}) == 2 * 2);
  CHECK(written_at_8({"checkpoint.pec.always_saved=[moments]"}) == 2 * 2);
  CHECK(written_at_8({"checkpoint.pec.always_saved=[weight]"}) == 2 * 8);
  CHECK(written_at_8({"training.bf16=true", "checkpoint.pec.always_saved=[weight]"}) == 2 * 8);
  CHECK(written_at_8({"training.bf16=true", "checkpoint.pec.always_saved=[master]"}) == 2 * 8);
  CHECK(written_at_8({"training.bf16=true"}) == 2 * 2);
}

TEST_CASE("default vectors come back after a failure as their groups were saved, in any layout",
          "[train][default_vectors]") {
  Lab lab;
  const std::string hashes = "logging.content_hash_interval=4";
  const std::string partial = "checkpoint.pec.experts_per_checkpoint=2";
  const std::string weights = "checkpoint.pec.always_saved=[weight]";
  lab.train_and_fail("current", with({hashes, partial, weights}), 12);
  const auto at_12 = trained(lab, "current", 12);
  CHECK(at_12.size() == 16);
  auto other_layout = with(kExpertsOverTensorRanks);
  other_layout.insert(other_layout.end(), {hashes, partial, weights});
  CHECK(lab.train("current", other_layout, ResumeMode::kFromFailure) == ExitCode::kDone);
  CHECK(recovered(lab, "current") == at_12);

  // Each with its expert: at 12 two of eight a layer are as of 12, two as of 8, the rest as of 4.
  lab.train_and_fail("rotating", with({hashes, partial}), 12);
  CHECK(lab.train("rotating", with({hashes, partial}), ResumeMode::kFromFailure) ==
        ExitCode::kDone);
  const auto mixed = recovered(lab, "rotating");
  std::map<int, int> from;
  for (const int step : {4, 8, 12}) {
    const auto then = trained(lab, "rotating", step);
    for (const auto& [path, hash] : mixed) from[step] += then.at(path) == hash ? 1 : 0;
  }
  CHECK(from == std::map<int, int>{{4, 8}, {8, 4}, {12, 4}});
}

TEST_CASE("default vectors: a step whose update is skipped leaves no trace in them",
          "[train][default_vectors]") {
  Lab lab;
  const test::ExpectLog expected;
  const auto settings = with({"logging.content_hash_interval=1",
                              "training.train_iters=4",
                              "training.check_for_nan_in_loss_and_grad=skip",
                              "fault.inject=[nan step=3 rank=1]"});
  CHECK(lab.train("skips", settings) == ExitCode::kDone);
  CHECK(lab.metrics("skips", "step").at(2).at("skipped") == true);
  CHECK(trained(lab, "skips", 2) != trained(lab, "skips", 1));
  CHECK(trained(lab, "skips", 3) == trained(lab, "skips", 2));
  CHECK(trained(lab, "skips", 4) != trained(lab, "skips", 3));
}

TEST_CASE("without default vectors a checkpoint has none, and a run with them is another model",
          "[train][default_vectors]") {
  Lab lab;
  const test::ExpectLog expected;
  CHECK(lab.train("run", {"moe.moe_router_pre_softmax=true", "training.exit_interval=4"}) ==
        ExitCode::kStoppedOnRequest);
  for (const auto& [path, checksum] : lab.checksums("run", 4)) CHECK_FALSE(is_vector(path));
  CHECK_THROWS_WITH(lab.train("run", with({}), ResumeMode::kFromFailure),
                    Catch::Contains("is of another model"));
}
