#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>

#include <pecan/config/config.hpp>
#include <pecan/config/fault.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::config {
namespace {

void write(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

/// The message that `yaml` is refused with; empty if it is accepted.
std::string refusal(const std::string& yaml, const std::vector<std::string>& settings = {}) {
  try {
    (void)parse_config(yaml, settings);
    return "";
  } catch (const ConfigError& e) {
    return e.what();
  }
}

TEST_CASE("a configuration without keys has the documented defaults", "[config]") {
  const Config config = parse_config("");
  CHECK(config.model.num_layers == 2);
  CHECK(config.model.ffn_hidden_size == 4 * 128);
  CHECK(config.model.num_query_groups == 4);
  CHECK(config.model.kv_channels == 32);
  CHECK(config.model.max_position_embeddings == config.training.seq_length);
  CHECK(config.optimizer.lr_decay_iters == config.training.train_iters);
  CHECK(config.moe.moe_layer_freq == std::vector<int>{0, 0});
  CHECK(config.checkpoint.pec.experts_per_checkpoint == 0);
}

TEST_CASE("derived values follow what they depend on", "[config]") {
  const Config config = parse_config(R"(
model: {num_layers: 5, hidden_size: 96, num_attention_heads: 6}
moe: {num_experts: 8, moe_layer_freq: 2}
training: {seq_length: 64, train_iters: 7}
)");
  CHECK(config.model.ffn_hidden_size == 384);
  CHECK(config.model.num_query_groups == 6);
  CHECK(config.model.kv_channels == 16);
  CHECK(config.model.max_position_embeddings == 64);
  CHECK(config.moe.moe_ffn_hidden_size == 384);
  CHECK(config.moe.moe_layer_freq == std::vector<int>{1, 0, 1, 0, 1});
  CHECK(config.checkpoint.pec.experts_per_checkpoint == 8);
  CHECK(config.optimizer.lr_decay_iters == 7);
}

TEST_CASE("an MoE layer pattern is a period or a list", "[config]") {
  const std::string model = "model: {num_layers: 3}\nmoe: {num_experts: 4, moe_layer_freq: ";
  CHECK(parse_config(model + "1}").moe.moe_layer_freq == std::vector<int>{1, 1, 1});
  CHECK(parse_config(model + "3}").moe.moe_layer_freq == std::vector<int>{1, 0, 0});
  CHECK(parse_config(model + "[0, 1, 1]}").moe.moe_layer_freq == std::vector<int>{0, 1, 1});
}

TEST_CASE("every kind of value is read", "[config]") {
  const Config config = parse_config(R"(
model: {norm_epsilon: 1e-6, qk_layernorm: true, hidden_size: +256}
moe: {moe_router_load_balancing_type: none, num_experts: 4}
training: {compute_dtype: fp64, device: cpu, check_for_nan_in_loss_and_grad: skip, seed: 4294967295}
optimizer: {lr_decay_style: constant, lr: .5}
checkpoint: {pec: {always_saved: [moments]}}
logging: {level: debug}
)");
  CHECK(config.model.norm_epsilon == 1e-6);
  CHECK(config.model.qk_layernorm);
  CHECK(config.model.hidden_size == 256);
  CHECK(config.moe.moe_router_load_balancing_type == "none");
  CHECK(config.training.compute_dtype == ComputeDType::kF64);
  CHECK(config.training.device == DeviceChoice::kCpu);
  CHECK(config.training.check_for_nan_in_loss_and_grad == NanPolicy::kSkip);
  CHECK(config.training.seed == std::numeric_limits<std::uint32_t>::max());
  CHECK(config.optimizer.lr_decay_style == LrDecayStyle::kConstant);
  CHECK(config.optimizer.lr == .5);
  CHECK(config.checkpoint.pec.always_saved == std::vector<std::string>{"moments"});
  CHECK(config.logging.level == "debug");
}

TEST_CASE("files are merged left to right and settings come last", "[config]") {
  test::TempDir dir;
  write(dir / "a.yaml",
        "model: {num_layers: 4, hidden_size: 64}\ncheckpoint: {pec: {experts_per_checkpoint: "
        "2}}\nmoe: {num_experts: 4}\n");
  write(dir / "b.yaml", "model:\n  num_layers: 6\noptimizer:\n");
  write(dir / "empty.yaml", "");
  const std::vector<std::string> files{dir / "a.yaml", dir / "b.yaml", dir / "empty.yaml"};
  const std::vector<std::string> settings{"checkpoint.save_interval=5",
                                          "checkpoint.save_interval=9",
                                          "checkpoint.pec.always_saved=[weight]",
                                          "data.data_path=a=b"};
  const Config config = load_config(files, settings);
  CHECK(config.model.num_layers == 6);
  CHECK(config.model.hidden_size == 64);
  CHECK(config.checkpoint.pec.experts_per_checkpoint == 2);
  CHECK(config.checkpoint.save_interval == Interval{9});
  CHECK(config.checkpoint.pec.always_saved == std::vector<std::string>{"weight"});
  CHECK(config.data.data_path == std::vector<WeightedDataset>{{1, "a=b"}});
}

TEST_CASE("a wrong value names the file and line that it came from, also after merging",
          "[config]") {
  test::TempDir dir;
  write(dir / "a.yaml", "model:\n  num_layers: 4\n");
  write(dir / "b.yaml", "# comment\n\nmodel:\n  num_layers: four\n");
  const std::vector<std::string> files{dir / "a.yaml", dir / "b.yaml"};
  CHECK_THROWS_WITH(
      load_config(files, {}),
      Catch::Contains(dir / "b.yaml" + ":4: model.num_layers=four is not an integer"));
  const std::vector<std::string> missing{dir / "absent.yaml"};
  CHECK_THROWS_WITH(load_config(missing, {}), Catch::Contains("absent.yaml"));
  CHECK_THROWS_AS(load_config(missing, {}), ConfigError);
}

TEST_CASE("dump_config prints every key and reads back as the same configuration", "[config]") {
  setenv("PECAN_TEST_ODD", "a ${b} $${c} \"q\": #x\n\ttrue", 1);
  const std::vector<std::string> cases{
      "",
      "moe: {num_experts: 6, moe_layer_freq: [0, 1], moe_aux_loss_coeff: 0.01}\noptimizer: {lr: "
      "0.1, min_lr: 1e-300}",
      "data: {data_path: '${PECAN_TEST_ODD}', valid_data_path: 'null', tokenizer_model: \"\"}",
      "training: {compute_dtype: fp64, device: cpu, exit_duration_in_mins: 0.1}\nlogging: {level: "
      "error}",
      "checkpoint: {save_interval: 3, pec: {always_saved: [moments]}, async_save: false}",
      "moe: {num_experts: 8}\ncheckpoint: {save_interval: 90s, non_persistent_save_interval: 2.5s, "
      "pec: {experts_per_checkpoint: 1, experts_per_snapshot: 4, selection: load_aware, "
      "max_expert_age: 9, sharding: equal, dynamic_k: true, plt_budget: 0.05}}",
      "data: {data_path: [0.1, 'a ${PECAN_TEST_ODD}', 3e-7, b], split: '99.5,.5'}",
      "model: {normalization: LayerNorm, position_embedding_type: none, swiglu: false}\nmoe: "
      "{num_experts: 8, moe_router_score_function: sigmoid, moe_router_num_groups: 4, "
      "moe_router_group_topk: 2, moe_expert_capacity_factor: 1.25, moe_token_drop_policy: "
      "position}\ntraining: {bf16: true}\noptimizer: {lr_decay_style: WSD, lr_wsd_decay_style: "
      "minus_sqrt, lr_wsd_decay_iters: 10}",
  };
  for (const std::string& yaml : cases) {
    const Config config = parse_config(yaml);
    const std::string dump = dump_config(config);
    INFO(dump);
    CHECK(parse_config(dump) == config);
    CHECK(dump_config(parse_config(dump)) == dump);
  }
  const Config odd = parse_config(cases[2]);
  CHECK(odd.data.data_path[0].prefix == std::getenv("PECAN_TEST_ODD"));
  CHECK(odd.data.valid_data_path == "null");

  // Every key of the reference, which lists all, stands in the dump.
  const std::string dump = dump_config(parse_config(""));
  std::istringstream reference(config_reference());
  int num_keys = 0;
  for (std::string line; std::getline(reference, line);) {
    if (!line.starts_with("| `")) continue;
    const std::string key = line.substr(3, line.find('`', 3) - 3);
    INFO(key);
    CHECK(dump.find(" " + key + ":") != std::string::npos);
    ++num_keys;
  }
  CHECK(num_keys == 120);
}

TEST_CASE("docs/configuration.md holds the reference of every key", "[config]") {
  std::ifstream in(PECAN_SOURCE_DIR "/docs/configuration.md");
  std::stringstream text;
  text << in.rdbuf();
  INFO("the tables should be:\n" << config_reference());
  CHECK(text.str().find(config_reference()) != std::string::npos);
}

TEST_CASE("unusable configurations are refused with a message that helps", "[config]") {
  struct Case {
    std::string yaml;
    std::string message;
  };
  const std::vector<Case> cases{
      // Unknown keys.
      {"model:\n  num_layer: 3",
       "yaml:2: unknown key model.num_layer; the nearest is model.num_layers"},
      {"modle: {num_layers: 3}", "yaml:1: unknown key modle; the nearest is model"},
      {"model: {num_experts: 3}", "unknown key model.num_experts; the nearest is moe.num_experts"},
      {"learning_rate: 3", "unknown key learning_rate; the nearest is"},
      {"checkpoint: {pec: {experts_per_chekpoint: 3}}",
       "the nearest is checkpoint.pec.experts_per_checkpoint"},
      {"optimizer: {beta2: 0.9}", "the nearest is optimizer.adam_beta2"},
      // Wrong types.
      {"model: {num_layers: two}",
       "yaml:1: model.num_layers=two is not an integer; write digits only"},
      {"model: {num_layers: 2.5}", "model.num_layers=2.5 is not an integer"},
      {"model: {num_layers: 1e3}", "is not an integer"},
      {"model: {num_layers: [2]}", "model.num_layers is a list; give an integer"},
      {"model: {num_layers: {a: 2}}", "model.num_layers is a map; give an integer"},
      {"model: {num_layers: }", "model.num_layers has no value; give an integer or remove the key"},
      {"model: {num_layers: 99999999999}", "is too large; use at most 2147483647"},
      {"model: {qk_layernorm: yes}",
       "model.qk_layernorm=yes is not a truth value; write true or false"},
      {"optimizer: {lr: fast}", "optimizer.lr=fast is not a number; write it like 0.01"},
      {"data: {data_path: [a, b]}", "data.data_path=a is not a number"},
      {"data: {data_path: [1, a, 2]}",
       "data.data_path is a list of 3 entries; write weights and paths in turn"},
      {"data: {data_path: []}", "data.data_path is a list of 0 entries"},
      {"data: {data_path: [0, a]}", "data.data_path=0 is out of range; use a number above 0"},
      {"data: {data_path: [1, [a]]}", "data.data_path is a list; give a path"},
      {"data: {split: [99, 1]}", "data.split is a list; write the shares as one text"},
      {"data: {split: '99;1'}", "data.split=99;1 is not a list of shares"},
      {"data: {split: '99,'}", "data.split=99, is not a list of shares"},
      {"data: {split: '99,-1'}", "data.split=99,-1 is not a list of shares"},
      {"data: {split: '1,1,1,1'}", "data.split=1,1,1,1 has more than three shares"},
      {"data: {split: '0,0'}", "data.split=0,0 gives nothing to anyone"},
      {"model: 3", "model=3 is not a section"},
      {"checkpoint: {pec: {always_saved: weight}}", "is not a list; write it like [weight]"},
      // Out of range.
      {"model: {num_layers: 0}", "model.num_layers=0 is out of range; use a number at least 1"},
      {"model: {num_layers: -3}", "model.num_layers=-3 is out of range"},
      {"optimizer: {lr: -1e-3}", "optimizer.lr=-1e-3 is out of range; use a number at least 0"},
      {"optimizer: {lr: .nan}", "optimizer.lr=.nan is not a finite number"},
      {"optimizer: {lr: nan}", "is not a finite number"},
      {"optimizer: {lr: .inf}", "is not a finite number"},
      {"optimizer: {lr: 1e999}", "is not a finite number"},
      {"optimizer: {adam_beta2: 1.0}", "out of range; use a number from 0 to 1 (excluded)"},
      {"optimizer: {adam_eps: 0}", "out of range; use a number above 0"},
      {"training: {seed: -1}", "out of range; use a number from 0 to 4294967295"},
      {"training: {seed: 4294967296}", "out of range"},
      {"training: {train_iters: 0}", "training.train_iters=0 is out of range"},
      {"training: {micro_batch_size: 0}", "training.micro_batch_size=0 is out of range"},
      {"moe: {default_vectors: {beta: 1}}", "use a number from 0 to 1 (excluded)"},
      {"moe: {dispatch_buffer_factor: 0.5}",
       "moe.dispatch_buffer_factor=0.5 is out of range; use a number at least 1"},
      {"checkpoint: {keep_latest_k: 0}", "checkpoint.keep_latest_k=0 is out of range"},
      {"parallel: {expert_model_parallel_size: -1}",
       "parallel.expert_model_parallel_size=-1 is out of range"},
      // Does not fit together.
      {"moe: {default_vectors: {enabled: true}}", "a dense model has no experts to stand for"},
      {"moe: {num_experts: 8, default_vectors: {enabled: true}}",
       "needs moe.moe_router_pre_softmax=true"},
      {"moe: {num_experts: 2, moe_router_pre_softmax: true, default_vectors: {enabled: true}}",
       "has no effect with moe.moe_router_topk=2 of moe.num_experts=2"},
      // Not in this version.
      {"parallel: {pipeline_model_parallel_size: 2}", "is not supported in this version"},
      {"parallel: {context_parallel_size: 2}", "is not supported in this version"},
      {"parallel: {data_parallel_sharding_strategy: optim_grads_params}",
       "is not supported in this version"},
      {"training: {recompute_granularity: selective}",
       "is not supported in this version; use none or full"},
      {"training: {compute_dtype: bf16}", "is not supported in this version; use fp32 or fp64"},
      {"training: {device: tpu}",
       "training.device=tpu is not a known value; use auto, cpu or cuda"},
      {"model: {normalization: rmsnorm}",
       "model.normalization=rmsnorm is not a known value; use RMSNorm or LayerNorm"},
      {"model: {position_embedding_type: yarn}",
       "is not supported in this version; use rope, learned_absolute or none"},
      {"moe: {moe_router_score_function: sqrtsoftplus}",
       "is not supported in this version; use softmax or sigmoid"},
      {"moe: {moe_pad_expert_input_to_capacity: true}",
       "is not supported in this version (experts take the rows that they get); use false"},
      {"moe: {moe_router_load_balancing_type: sinkhorn}",
       "is not supported in this version; use aux_loss, "
       "seq_aux_loss, global_aux_loss or none"},
      {"moe: {moe_token_dispatcher_type: flex}", "is not supported in this version; use alltoall"},
      {"moe: {moe_router_dtype: fp64}", "is not supported in this version; use fp32"},
      {"optimizer: {lr_decay_style: cosin}",
       "use constant, linear, cosine, inverse-square-root or WSD"},
      {"checkpoint: {pec: {selection: random}}",
       "is not supported in this version; use sequential"},
      {"checkpoint: {pec: {always_saved: [master]}}",
       "always_saved=[master] needs training.bf16=true"},
      {"training: {bf16: true}\nmoe: {num_experts: 2}\ncheckpoint: {pec: {always_saved: [weight, "
       "master]}}",
       "would be written twice; keep one"},
      {"checkpoint: {pec: {always_saved: [weight, weight]}}",
       "always_saved=weight is listed twice"},
      {"logging: {level: loud}", "is not a known value; use debug, info, warn or error"},
      // Values that contradict each other.
      {"model: {hidden_size: 100, num_attention_heads: 3}",
       "model.hidden_size=100 is not divisible by model.num_attention_heads=3 (each head gets an "
       "equal share); use 99 or 102"},
      {"model: {num_attention_heads: 6, hidden_size: 96, num_query_groups: 4}",
       "model.num_query_groups=4 does not divide model.num_attention_heads=6 (each key head serves "
       "an equal share of the query heads); use 1, 2, 3 or 6"},
      {"model: {kv_channels: 33}", "model.kv_channels=33 is odd"},
      {"model: {max_position_embeddings: 8}",
       "model.max_position_embeddings=8 is less than training.seq_length=256"},
      {"moe: {num_experts: 2, moe_router_topk: 3}",
       "moe.moe_router_topk=3 is more than moe.num_experts=2"},
      {"moe: {num_experts: 2, moe_layer_freq: [1]}",
       "moe.moe_layer_freq has 1 entries but model.num_layers=2"},
      {"moe: {num_experts: 2, moe_layer_freq: [1, 2]}",
       "moe.moe_layer_freq=2 is out of range; use a number from 0 to 1"},
      {"moe: {num_experts: 2, moe_layer_freq: [0, 0]}", "marks no layer as MoE"},
      {"moe: {num_experts: 2, moe_layer_freq: 0}", "moe.moe_layer_freq=0 is out of range"},
      {"moe: {num_experts: 2, moe_layer_freq: []}", "is an empty list"},
      {"moe: {moe_layer_freq: [1, 0]}", "asks for MoE layers but moe.num_experts=0"},
      {"moe: {num_experts: 2, moe_aux_loss_coeff: 0.1, moe_router_load_balancing_type: none}",
       "has no effect"},
      {"parallel: {expert_model_parallel_size: 2}", "a dense model has no experts to spread"},
      {"checkpoint: {pec: {experts_per_checkpoint: 1}}",
       "a dense model has no experts to choose from"},
      {"moe: {num_experts: 4}\ncheckpoint: {pec: {experts_per_checkpoint: 5}}",
       "experts_per_checkpoint=5 is more than moe.num_experts=4"},
      {"training: {micro_batch_size: 3, global_batch_size: 8}",
       "training.global_batch_size=8 is not divisible by training.micro_batch_size=3 (a step is "
       "whole micro-batches); use 6 or 9"},
      {"optimizer: {min_lr: 0.1, lr: 0.01}", "optimizer.min_lr=0.1 is more than optimizer.lr=0.01"},
      {"optimizer: {lr_warmup_init: 0.1, lr: 0.01}",
       "optimizer.lr_warmup_init=0.1 is more than optimizer.lr=0.01"},
      {"optimizer: {lr_warmup_iters: 100}",
       "optimizer.lr_warmup_iters=100 leaves no step for the decay, which ends at step 100 "
       "(optimizer.lr_decay_iters); use at most 99"},
      {"model: {qk_layernorm_across_heads: true}", "has no effect without model.qk_layernorm=true"},
      {"training: {bf16: true, compute_dtype: fp64}", "contradicts training.compute_dtype=fp64"},
      {"moe: {num_experts: 4, moe_router_enable_expert_bias: true}",
       "needs moe.moe_router_score_function=sigmoid"},
      {"moe: {num_experts: 4, moe_router_score_function: sigmoid, moe_router_pre_softmax: true}",
       "has no meaning with moe.moe_router_score_function=sigmoid"},
      {"moe: {num_experts: 8, moe_router_num_groups: 3, moe_router_group_topk: 1}",
       "moe.moe_router_num_groups=3 does not divide moe.num_experts=8 (groups are equal); use 1, "
       "2, "
       "4 or 8"},
      {"moe: {num_experts: 8, moe_router_num_groups: 4, moe_router_group_topk: 5}",
       "moe.moe_router_group_topk=5 is not one of the 4 groups"},
      {"moe: {num_experts: 8, moe_router_num_groups: 4}", "moe.moe_router_group_topk=0"},
      {"moe: {num_experts: 8, moe_router_group_topk: 2}", "but moe.moe_router_num_groups=0"},
      {"moe: {num_experts: 8, moe_router_topk: 4, moe_router_num_groups: 4, moe_router_group_topk: "
       "1}",
       "moe.moe_router_topk=4 is more than the 2 experts of moe.moe_router_group_topk=1 groups"},
      {"moe: {num_experts: 8, moe_router_topk: 3, moe_router_num_groups: 4, moe_router_group_topk: "
       "2}",
       "moe.moe_router_topk=3 is not divisible by moe.moe_router_group_topk=2"},
      {"moe: {num_experts: 8, moe_token_drop_policy: position}",
       "has no effect without moe.moe_expert_capacity_factor"},
      {"optimizer: {lr_decay_style: WSD}", "leaves out how long the decay"},
      {"optimizer: {lr_wsd_decay_iters: 5}", "has no effect without optimizer.lr_decay_style=WSD"},
      {"optimizer: {lr_decay_style: WSD, lr_warmup_iters: 60, lr_wsd_decay_iters: 50}",
       "do not fit into the 100 steps of the schedule (optimizer.lr_decay_iters); use at most 40"},
      {"data: {split: '9,1', valid_data_path: x}", "both name the held-out text"},
      {"data: {reset_position_ids: true, tokenizer_model: t}\nmodel: {position_embedding_type: "
       "none}",
       "has no effect with model.position_embedding_type=none"},
      {"data: {eod_mask_loss: true}", "set data.tokenizer_model"},
  };
  for (const Case& c : cases) {
    INFO(c.yaml);
    CHECK_THAT(refusal(c.yaml), Catch::Contains(c.message));
  }
}

TEST_CASE("layouts that cannot be are refused with the nearest that can", "[config]") {
  struct Case {
    std::string yaml;
    std::string message;
  };
  const std::string heads = "model: {hidden_size: 96, num_attention_heads: 12";
  const std::string moe = heads + "}\nmoe: {num_experts: 4";
  const std::string tp = "}\nparallel: {sequence_parallel: true, tensor_model_parallel_size: ";
  const Case cases[] = {
      {heads + "}\nparallel: {tensor_model_parallel_size: 5}",
       "model.num_attention_heads=12 is not divisible by parallel.tensor_model_parallel_size=5 "
       "(each rank computes an equal share of the heads); use 10 or 15, or a "
       "tensor_model_parallel_size of 1, 2, 3, 4, 6 or 12"},
      {heads + ", num_query_groups: 4}\nparallel: {tensor_model_parallel_size: 6}",
       "model.num_query_groups=4 is neither a divisor nor a multiple of "
       "parallel.tensor_model_parallel_size=6"},
      {heads + ", ffn_hidden_size: 30}\nparallel: {tensor_model_parallel_size: 4}",
       "model.ffn_hidden_size=30 is not divisible by parallel.tensor_model_parallel_size=4"},
      {moe + ", moe_shared_expert_intermediate_size: 30" + tp + "4}",
       "moe.moe_shared_expert_intermediate_size=30 is not divisible by "
       "parallel.tensor_model_parallel_size=4"},
      {heads + ", qk_layernorm: true, qk_layernorm_across_heads: true}\nparallel: "
               "{tensor_model_parallel_size: 2}",
       "no rank has all heads that this norm spans; use a tensor_model_parallel_size of 1"},
      {moe + "}\nparallel: {tensor_model_parallel_size: 2}",
       "with MoE layers needs parallel.sequence_parallel=true"},
      {"training: {seq_length: 255}\n" + moe + tp + "2}",
       "= 255 tokens are not divisible by parallel.tensor_model_parallel_size=2"},
      {"parallel: {overlap_param_gather: true}", "no rank lacks weights to gather"},
      {"parallel: {expert_tensor_parallel_size: 2}", "a dense model has no experts to share out"},
      {moe + ", moe_ffn_hidden_size: 7}\nparallel: {expert_tensor_parallel_size: 2}",
       "moe.moe_ffn_hidden_size=7 is not divisible by parallel.expert_tensor_parallel_size=2 (each "
       "rank computes an equal share of an expert); use 6 or 8"},
      {moe + "}\nparallel: {tensor_model_parallel_size: 0}", "is out of range"},
      {moe + "}\nparallel: {expert_tensor_parallel_size: -1}", "is out of range"},
      {"training: {micro_batch_size: 3, global_batch_size: 9, seq_length: 5}\n" + moe + tp + "4}",
       "= 15 tokens are not divisible by parallel.tensor_model_parallel_size=4"},
      {"moe: {num_experts: 62}\nparallel: {expert_model_parallel_size: 8}",
       "moe.num_experts=62 is not divisible by parallel.expert_model_parallel_size=8 (each rank "
       "owns an equal share); use 56 or 64"},
      {moe + ", default_vectors: {beta: 0.5}}",
       "moe.default_vectors.beta=0.5 has no effect without moe.default_vectors.enabled=true"},
      {moe + ", moe_router_score_function: sigmoid, default_vectors: {enabled: true}}",
       "moe.default_vectors.enabled=true needs moe.moe_router_score_function=softmax"},
      {"moe: {expert_compute: loop}", "moe.expert_compute is set but moe.num_experts=0"},
      {"parallel: {data_parallel_sharding_strategy: zero9}", "is not a known value"},
  };
  for (const Case& c : cases) {
    INFO(c.yaml);
    CHECK_THAT(refusal(c.yaml), Catch::Contains(c.message));
  }

  // Those that only the number of ranks tells.
  const Case worlds[] = {
      {moe + tp + "4}", "start 4 or 8 ranks"},
      {moe + "}\nparallel: {expert_model_parallel_size: 4}",
       "parallel.expert_model_parallel_size=4"},
      {moe + ", moe_ffn_hidden_size: 8}\nparallel: {expert_model_parallel_size: 2, "
             "expert_tensor_parallel_size: 2}",
       "parallel.expert_tensor_parallel_size=2"},
      {"training: {micro_batch_size: 1, global_batch_size: 8}\n" + moe + "}",
       "training.global_batch_size=8"},
  };
  for (const Case& c : worlds) {
    INFO(c.yaml);
    const Config config = parse_config(c.yaml);
    CHECK_THROWS_WITH(validate_for_world(config, 6), Catch::Contains(c.message));
  }
}

TEST_CASE("a refused setting is named as it was given", "[config]") {
  CHECK_THAT(refusal("", {"model.num_layers=x"}),
             Catch::Contains("--set model.num_layers=x: model.num_layers=x is not an integer"));
  CHECK_THAT(refusal("", {"model.num_layer=1"}),
             Catch::Contains("the nearest is model.num_layers"));
  CHECK_THAT(refusal("", {"model=3"}), Catch::Contains("model=3 is not a section"));
  CHECK_THAT(refusal("", {"model..num_layers=3"}), Catch::Contains("unknown key model."));
  CHECK_THAT(refusal("", {"model.num_layers"}), Catch::Contains("not of the form key.path=value"));
  CHECK_THAT(refusal("", {"=3"}), Catch::Contains("not of the form key.path=value"));
}

TEST_CASE("intervals are steps or seconds", "[config]") {
  const auto interval = [](const std::string& text) {
    return parse_config("checkpoint: {save_interval: " + text + "}").checkpoint.save_interval;
  };
  CHECK(interval("12") == Interval{12, 0});
  CHECK(interval("1.5s") == Interval{0, 1.5});
  CHECK(interval("0").never());
  CHECK(interval("0s").never());
  for (const char* bad : {"-1", "ten", "1.5", "s", "-2s", "nans", "infs", "5 s", "5m", "1e999s"}) {
    INFO(bad);
    CHECK_THROWS_AS(interval(bad), ConfigError);
  }
}

TEST_CASE("faults that cannot happen are refused", "[config]") {
  const auto fault = [](const std::string& text) {
    return refusal("fault: {inject: ['" + text + "']}");
  };
  CHECK(fault("kill step=4 rank=1 phase=vote").empty());
  CHECK(fault("stop step=4-9 rank=random seed=7 start=every").empty());
  CHECK(fault("slow_disk step=2 node=host-3 bytes_per_s=1e6").empty());
  struct Case {
    const char* text;
    const char* message;
  };
  for (const Case& c : {Case{"", "there is no kind"},
                        {"explode step=1", "use one of kill, stop, exit, corrupt"},
                        {"kill rank=1", "needs a step"},
                        {"kill step=0", "step=0 is no number from 1"},
                        {"kill step=9-4", "step=4 is no number from 9"},
                        {"kill step=4 rank=-1", "rank=-1 is no number"},
                        {"kill step=4 rank=1 node=a", "exclude each other"},
                        {"kill step=4 step=5", "step is given twice"},
                        {"kill step=4 now", "now is not key=value"},
                        {"kill step=4 phase=lunch", "no phase lunch"},
                        {"kill step=4 phase=commit rank=1", "on rank 0 alone"},
                        {"kill step=4 phase=retention node=a", "on rank 0 alone"},
                        {"nan step=4 phase=vote", "nan has no key phase"},
                        {"exit step=4 code=256", "code=256 is no number"},
                        {"nan step=4 repeats=maybe", "repeats=maybe is neither yes nor no"},
                        {"flip step=4 repeats=no", "flip has no key repeats"},
                        {"slow_disk step=4 bytes_per_s=nan", "bytes_per_s=nan is no number"}}) {
    INFO(c.text);
    CHECK_THAT(fault(c.text), Catch::Contains(c.message));
  }
  CHECK_THAT(refusal("fault: {inject: kill}"), Catch::Contains("is not a list"));
}

TEST_CASE("faults come from the configuration and the environment", "[config]") {
  const Config config = parse_config("fault: {inject: [kill step=4 rank=1 phase=vote]}");
  const std::vector<Fault> faults =
      faults_of(config, "exit step=2-8 code=3 ; nan step=5 rank=every;nan step=5 repeats=no");
  REQUIRE(faults.size() == 4);
  CHECK(
      faults[0] ==
      Fault{.kind = FaultKind::kKill, .first_step = 4, .last_step = 4, .rank = 1, .phase = "vote"});
  CHECK(faults[1] == Fault{.kind = FaultKind::kExit, .first_step = 2, .last_step = 8, .code = 3});
  CHECK(faults[2] ==
        Fault{.kind = FaultKind::kNan, .first_step = 5, .last_step = 5, .rank = Fault::kEveryRank});
  CHECK(faults[3] ==
        Fault{.kind = FaultKind::kNan, .first_step = 5, .last_step = 5, .repeats = false});
  CHECK(faults_of(parse_config("{}"), "").empty());
}

TEST_CASE("layouts to restart in are checked with the configuration", "[config]") {
  const std::string moe =
      "moe: {num_experts: 8}\nmodel: {num_attention_heads: 4}\nparallel: "
      "{expert_model_parallel_size: 4}\n";
  const Config config = parse_config(
      moe +
      "elastic: {layouts: [{world_size: 8}, {world_size: 2, expert_model_parallel_size: 2}]}");
  REQUIRE(config.elastic.layouts.size() == 2);
  CHECK(with_layout(config, config.elastic.layouts[0]).parallel == config.parallel);
  CHECK(with_layout(config, config.elastic.layouts[1]).parallel.expert_model_parallel_size == 2);
  CHECK(parse_config(dump_config(config)) == config);
  CHECK_THAT(refusal(moe + "elastic: {layouts: [{world_size: 2}]}"),
             Catch::Contains("expert_model_parallel_size"));
  CHECK_THAT(refusal(moe + "elastic: {layouts: [{tensor_model_parallel_size: 1}]}"),
             Catch::Contains("without world_size"));
  CHECK_THAT(refusal(moe + "elastic: {layouts: [{world_size: 4, tensor_model_parallel_size: 3}]}"),
             Catch::Contains("not divisible"));
  CHECK_THAT(refusal("elastic: {layouts: [{world: 2}]}"),
             Catch::Contains("unknown key elastic.layouts[0].world"));
  CHECK_THAT(refusal("elastic: {layouts: 4}"), Catch::Contains("is not a list"));
  CHECK_THAT(refusal("elastic: {layouts: [4]}"), Catch::Contains("is not a section"));
}

TEST_CASE("settings of partial checkpoints that contradict each other are refused", "[config]") {
  const auto refused = [](const std::string& checkpoint, const std::string& rest = "") {
    return refusal("moe: {num_experts: 8}\ncheckpoint: {" + checkpoint + "}\n" + rest);
  };
  const std::string memory = "save_interval: 9, non_persistent_save_interval: 3, ";
  CHECK(refused(memory + "pec: {experts_per_checkpoint: 2, experts_per_snapshot: 4}").empty());
  CHECK(refused("pec: {selection: full}").empty());
  CHECK(refused("pec: {selection: auto, max_expert_age: 5}").empty());
  struct Case {
    std::string checkpoint, rest, says;
  };
  for (const Case& bad : {
           Case{"non_persistent_save_interval: 3", "", "set save_interval"},
           Case{memory + "async_save: false", "", "needs async_save=true"},
           Case{"save_interval: 9, pec: {experts_per_checkpoint: 2, experts_per_snapshot: 4}",
                "",
                "needs snapshots in memory"},
           Case{memory + "pec: {experts_per_checkpoint: 4, experts_per_snapshot: 2}",
                "",
                "must lie between"},
           Case{memory + "pec: {experts_per_checkpoint: 4, experts_per_snapshot: 9}",
                "",
                "must lie between"},
           Case{memory + "memory_dir: ''", "", "memory_dir is empty"},
           Case{"pec: {selection: full, experts_per_checkpoint: 2}", "", "saves all 8 experts"},
           Case{"pec: {experts_per_checkpoint: 2, max_expert_age: 4}", "", "has no effect"},
           Case{"pec: {experts_per_checkpoint: 2, selection: load_aware, max_expert_age: 2}",
                "",
                "take 4 checkpoints; use at least 3"},
           Case{"pec: {dynamic_k: true}", "", "cannot raise experts_per_checkpoint=8"},
           Case{"pec: {experts_per_checkpoint: 2, selection: auto, dynamic_k: true}",
                "",
                "chooses by itself"},
           Case{"pec: {plt_budget: 0}", "", "above 0 to 1"},
           Case{"pec: {plt_budget: 1.5}", "", "above 0 to 1"},
           Case{"pec: {always_saved: [weight, moments]}", "", "leaves nothing"},
           Case{"pec: {always_saved: [master, moments]}",
                "training: {bf16: true}",
                "leaves nothing"},
       }) {
    INFO(bad.checkpoint);
    CHECK_THAT(refused(bad.checkpoint, bad.rest), Catch::Matchers::Contains(bad.says));
  }
}

}  // namespace
}  // namespace pecan::config
