#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <pecan/train/plan.hpp>

#include "support/catch.hpp"

using namespace pecan;

namespace {

/// The papers' GPT models by hand: biases everywhere, LayerNorms, tied embeddings, learned
/// positions, FFNs of 4 * hidden without a gate.
train::ParameterCounts gpt(std::int64_t layers,
                           std::int64_t hidden,
                           std::int64_t experts,
                           std::int64_t moe_layers) {
  const std::int64_t vocabulary = 50257, positions = 2048;
  const std::int64_t norm = 2 * hidden;
  const std::int64_t attention = 4 * (hidden * hidden + hidden);
  const std::int64_t ffn = hidden * 4 * hidden + 4 * hidden + 4 * hidden * hidden + hidden;
  train::ParameterCounts counts;
  counts.expert = moe_layers * experts * ffn;
  counts.non_expert = (vocabulary + positions) * hidden + layers * (2 * norm + attention) + norm +
                      (layers - moe_layers) * ffn + moe_layers * experts * hidden;
  counts.total = counts.expert + counts.non_expert;
  counts.active = counts.non_expert + moe_layers * ffn;
  return counts;
}

}  // namespace

TEST_CASE("every model of configs/models has exactly its published parameters", "[train]") {
  // Total, active a token with the embedding, in experts, in the rest.
  const std::map<std::string, train::ParameterCounts> published{
      {"mixtral-8x7b", {46'702'792'704, 12'879'925'248, 45'097'156'608, 1'605'636'096}},
      {"mixtral-8x22b", {140'630'071'296, 39'161'468'928, 135'291'469'824, 5'338'601'472}},
      {"qwen3-30b-a3b", {30'532'122'624, 3'353'032'704, 28'991'029'248, 1'541'093'376}},
      {"qwen3-235b-a22b", {235'093'634'560, 22'190'763'520, 227'096'395'776, 7'997'238'784}},
      {"olmoe-1b-7b", {6'919'161'856, 1'282'017'280, 6'442'450'944, 476'710'912}},
      {"gpt-125m-8e", gpt(12, 768, 8, 6)},
      {"gpt-125m-8e-all-layers", gpt(12, 768, 8, 12)},
      {"gpt-350m-16e", gpt(24, 1024, 16, 12)},
  };
  CHECK(published.at("gpt-125m-8e").total / 1'000'000 == 323);  // as the paper says
  std::size_t found = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(PECAN_SOURCE_DIR "/configs/models")) {
    const std::string name = entry.path().stem().string();
    CAPTURE(name);
    REQUIRE(published.contains(name));
    const std::vector<std::string> files{entry.path().string()};
    const config::Config config = config::load_config(files, {});
    const train::TrainPlan plan = train::make_plan(config, config.model.vocab_size, 64);
    const train::ParameterCounts& expected = published.at(name);
    CHECK(plan.parameters.total == expected.total);
    CHECK(plan.parameters.active == expected.active);
    CHECK(plan.parameters.expert == expected.expert);
    CHECK(plan.parameters.non_expert == expected.non_expert);
    // Masters and two moments of every parameter, f32, and some counters.
    CHECK(plan.full_checkpoint_bytes / 12 >= expected.total);
    CHECK(plan.full_checkpoint_bytes < 12 * expected.total + 10'000'000);
    ++found;
  }
  CHECK(found == published.size());
}

TEST_CASE("the first release of Mixtral-8x22B had a smaller vocabulary", "[train]") {
  const std::vector<std::string> files{PECAN_SOURCE_DIR "/configs/models/mixtral-8x22b.yaml"};
  const std::vector<std::string> settings{"model.vocab_size=32000"};
  const config::Config config = config::load_config(files, settings);
  CHECK(train::make_plan(config, config.model.vocab_size, 8).parameters.total == 140'620'634'112);
}

TEST_CASE("every recipe of configs/parallel is a layout, and saves what it is for", "[train]") {
  const std::string model = PECAN_SOURCE_DIR "/configs/models/mixtral-8x7b.yaml";
  const auto plan_of = [&](const std::vector<std::string>& recipes,
                           const std::vector<std::string>& settings = {}) {
    std::vector<std::string> files{model};
    for (const std::string& name : recipes)
      files.push_back(PECAN_SOURCE_DIR "/configs/parallel/" + name + ".yaml");
    const config::Config config = config::load_config(files, settings);
    return train::make_plan(config, config.model.vocab_size, 64);
  };
  std::map<std::string, train::TrainPlan> plans;
  for (const auto& entry :
       std::filesystem::directory_iterator(PECAN_SOURCE_DIR "/configs/parallel")) {
    const std::string name = entry.path().stem().string();
    CAPTURE(name);
    plans.emplace(name, plan_of({name}));
  }
  CHECK(plans.size() == 7);
  const train::RankMemory plain = plan_of({}).memory[0];
  const auto memory = [&](const std::string& name) { return plans.at(name).memory[0]; };
  const auto whole = plan_of({}, {"parallel.expert_model_parallel_size=1"}).memory[0];
  CHECK(memory("expert").weights < whole.weights / 4);
  CHECK(memory("tensor").weights < plain.weights);
  CHECK(memory("tensor").activations < plain.activations);
  CHECK(memory("expert-tensor").weights < memory("expert").weights);
  CHECK(memory("folded").weights < memory("expert").weights);
  CHECK(memory("zero1").optimizer < plain.optimizer / 7);
  CHECK(memory("zero1").gradients == plain.gradients);
  CHECK(memory("zero2").gradients < plain.gradients / 3);
  CHECK(memory("recompute").activations < plain.activations / 4);
  CHECK(plans.at("folded").mesh.dp == 16);
  CHECK(plans.at("folded").mesh.edp == 8);
}

TEST_CASE("every recipe of configs/experts fits the quickstart's model", "[train]") {
  std::map<std::string, train::TrainPlan> plans;
  const auto plan_of = [](const std::vector<std::string>& files) {
    const config::Config config = config::load_config(files, {});
    return train::make_plan(config, 2000, 4);
  };
  const std::string quickstart = PECAN_SOURCE_DIR "/configs/quickstart.yaml";
  for (const auto& entry :
       std::filesystem::directory_iterator(PECAN_SOURCE_DIR "/configs/experts")) {
    plans.emplace(entry.path().stem().string(), plan_of({quickstart, entry.path().string()}));
  }
  const train::TrainPlan plain = plan_of({quickstart});
  REQUIRE(plans.contains("default-vectors"));
  const train::TrainPlan& vectors = plans.at("default-vectors");
  CHECK(vectors.dims.default_vectors);
  // Four layers of sixteen experts with 128 numbers each, and a copy of them; the sums of each
  // layer travel once, to all others, there and back.
  const std::size_t vector_bytes = 4 * 16 * 128 * sizeof(float);
  CHECK(vectors.memory[0].weights == plain.memory[0].weights + 2 * vector_bytes);
  CHECK(vectors.full_checkpoint_bytes == plain.full_checkpoint_bytes + std::int64_t(vector_bytes));
  const auto sent = [](const train::TrainPlan& plan) {
    std::int64_t sum = 0;
    for (const comm::SentBytes& rank : plan.sent) sum += rank[comm::Purpose::kDefaultVectors];
    return sum;
  };
  CHECK(sent(plain) == 0);
  CHECK(sent(vectors) == std::int64_t(2 * 3 * 4 * 16 * 129 * sizeof(float)));
  REQUIRE(plans.contains("block-sparse"));
  CHECK(plans.at("block-sparse").dims.expert_compute == config::ExpertCompute::kBlockSparse);
}

TEST_CASE("checkpoints hold the same items whatever the layout", "[train]") {
  const std::string model = PECAN_SOURCE_DIR "/configs/models/mixtral-8x7b.yaml";
  const auto items_of = [&](const std::vector<std::string>& settings) {
    const std::vector<std::string> files{model};
    const config::Config config = config::load_config(files, settings);
    std::vector<std::string> items;
    for (const StateItem& item :
         train::make_plan(config, config.model.vocab_size, 8).catalog.items) {
      std::int64_t covered = 0;
      for (const StateBlock& block : item.blocks) covered += block.block.extent.num_elements();
      items.push_back(fmt::format("{}/{} {} {} {}",
                                  item.name,
                                  item.dataset,
                                  item.global_shape.to_string(),
                                  int(item.dtype),
                                  covered == item.global_shape.num_elements()));
    }
    return items;
  };
  const auto plain = items_of({});
  REQUIRE(plain.size() > 1000);
  for (const std::string& item : plain) REQUIRE(item.ends_with("true"));
  const std::string tp = "parallel.sequence_parallel=true";
  CHECK(items_of({"parallel.expert_model_parallel_size=8"}) == plain);
  CHECK(items_of({tp,
                  "parallel.tensor_model_parallel_size=8",
                  "parallel.expert_model_parallel_size=1"}) == plain);
  CHECK(items_of({tp,
                  "parallel.tensor_model_parallel_size=4",
                  "parallel.expert_tensor_parallel_size=2",
                  "parallel.expert_model_parallel_size=4",
                  "parallel.data_parallel_sharding_strategy=optim_grads"}) == plain);
}
