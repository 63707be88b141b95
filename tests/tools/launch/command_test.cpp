#include "launch/command.hpp"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <pecan/core/error.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::launch {
namespace {

using Strings = std::vector<std::string>;

const Assignment kAssignment{{{"a", 2}, {"b", 1}},
                             3,
                             {.world_size = 3,
                              .tensor_model_parallel_size = 1,
                              .expert_model_parallel_size = 3,
                              .expert_tensor_parallel_size = 1}};

TEST_CASE("a start's command names hosts, agent, files, settings and the run", "[launch]") {
  JobCommand job;
  job.config_files = {"x.yaml", "y.yaml"};
  job.settings = {"training.seed=3"};
  job.run_directory = "runs/my run";
  job.train_program = "/opt/pecan-train";
  CHECK(mpirun_command(job, kAssignment, {}) == Strings{"mpirun",
                                                        "-n",
                                                        "3",
                                                        "--host",
                                                        "a:2,b:1",
                                                        "/opt/pecan-train",
                                                        "--config",
                                                        "x.yaml",
                                                        "--config",
                                                        "y.yaml",
                                                        "--set",
                                                        "training.seed=3",
                                                        "--run-dir",
                                                        "runs/my run",
                                                        "--resume-from-failure"});
  job.agent = "/opt/agent -p 22";
  job.mpirun_options = {"--bind-to", "none"};
  job.layouts = "[{world_size: 3}]";
  CHECK(mpirun_command(job, kAssignment, Strings{"PECAN_FAULT"}) ==
        Strings{"mpirun",
                "-n",
                "3",
                "--host",
                "a:2,b:1",
                "--mca",
                "plm_rsh_agent",
                "/opt/agent -p 22",
                "-x",
                "PECAN_FAULT",
                "--bind-to",
                "none",
                "/opt/pecan-train",
                "--config",
                "x.yaml",
                "--config",
                "y.yaml",
                "--set",
                "training.seed=3",
                "--set",
                "elastic.layouts=[{world_size: 3}]",
                "--set",
                "parallel.tensor_model_parallel_size=1",
                "--set",
                "parallel.expert_model_parallel_size=3",
                "--set",
                "parallel.expert_tensor_parallel_size=1",
                "--run-dir",
                "runs/my run",
                "--resume-from-failure"});
}

TEST_CASE("layouts handed on mean the same under every layout", "[launch]") {
  const std::string text =
      "model: {num_layers: 2, hidden_size: 64, num_attention_heads: 4, vocab_size: 100}\n"
      "moe: {num_experts: 8, moe_ffn_hidden_size: 32}\n"
      "data: {data_path: x}\n";
  CHECK(layouts_text(config::parse_config(text)).empty());
  const config::Config config = config::parse_config(
      text +
      "elastic: {layouts: [{world_size: 4, expert_model_parallel_size: 4}, {world_size: 1}]}");
  const config::Config handed_on = config::parse_config(
      text,
      Strings{"elastic.layouts=" + layouts_text(config), "parallel.expert_model_parallel_size=4"});
  REQUIRE(handed_on.elastic.layouts.size() == 2);
  CHECK(handed_on.elastic.layouts[0].world_size == 4);
  CHECK(handed_on.elastic.layouts[1] == config::ElasticLayout{1, 1, 1, 1});
}

TEST_CASE("options that choose hosts or processes are not for mpirun", "[launch]") {
  for (const char* option : {"-n",
                             "-np",
                             "--np",
                             "--n",
                             "-c",
                             "-H",
                             "-host",
                             "--host",
                             "-hostfile",
                             "--hostfile",
                             "-machinefile",
                             "--machinefile",
                             "--default-hostfile"}) {
    CAPTURE(option);
    CHECK_THROWS_AS(validate_mpirun_options(Strings{"--mca", option, "4"}), ConfigError);
  }
  validate_mpirun_options(Strings{"--mca", "btl", "self,vader", "--bind-to", "none", "-x", "A"});
}

TEST_CASE("a program is a path to an executable file, or a name in PATH", "[launch]") {
  const test::TempDir dir;
  std::ofstream(dir / "tool") << "#!/bin/sh\n";
  std::filesystem::create_directory(dir / "folder");
  CHECK_FALSE(can_run(dir / "tool", ""));
  std::filesystem::permissions(dir / "tool", std::filesystem::perms::owner_all);
  CHECK(can_run(dir / "tool", ""));
  CHECK(can_run("tool", "/nowhere:" + dir.path()));
  CHECK_FALSE(can_run("tool", "/nowhere"));
  CHECK_FALSE(can_run(dir / "folder", ""));
  CHECK_FALSE(can_run(dir / "none", ""));
  CHECK(split_words(" ssh  -p 22 ") == Strings{"ssh", "-p", "22"});
}

}  // namespace
}  // namespace pecan::launch
