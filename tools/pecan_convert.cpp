// pecan-convert: the first state of a run, made from what another one has learned.

#include <iostream>
#include <memory>
#include <optional>

#include <pecan/config/config.hpp>

#include <pecan/model/dims.hpp>

#include <pecan/checkpoint/state_reader.hpp>

#include <pecan/convert/upcycle.hpp>
#include <pecan/train/plan.hpp>

#include "command_line.hpp"

namespace {

using namespace pecan;

tools::Manual manual() {
  return {
      .name = "pecan-convert",
      .version = {},
      .summary = "begin a run with what another one has learned",
      .synopsis = {"pecan-convert upcycle --from DIR --config FILE [--config FILE2 ...] "
                   "[--set key.path=value ...]",
                   "        [--out DIR] [--step N] [--drop-ratio X] [--indices WORD] "
                   "[--router-std X] [--seed N]"},
      .description =
          {"upcycle makes a mixture of experts from a dense model: each expert begins as the "
           "dense FFN, or a part of it, in which a share of the neurons is drawn anew from the "
           "mean and the standard deviation of the weights that they replace (Drop-Upcycling). "
           "With --drop-ratio 0 the experts are copies and the model computes what the dense one "
           "did.",
           "The configuration describes the mixture of experts: in everything but its FFNs it "
           "must be the dense run's. Experts may be narrower: with moe_ffn_hidden_size a G-th of "
           "the dense ffn_hidden_size, G of them together are one copy, of which a token takes "
           "all or none at first, and up and down projections are scaled so that the output "
           "stays that of the dense model.",
           "What is written is a run directory at step 0, with fresh optimizer state, learning "
           "rate and data position. pecan-train continues it in any layout; the directory must "
           "not hold a run yet. The dense run is only read.",
           "The result follows from the dense run's parameters, the configuration and --seed "
           "alone. Memory: the state of one layer, or of the embedding; no MPI is needed."},
      .exit_codes = {ExitCode::kDone,
                     ExitCode::kUsage,
                     ExitCode::kData,
                     ExitCode::kCheckpoint,
                     ExitCode::kInternal},
      .environment = {tools::variables_of_configuration()},
      .files = {{"DIR/config.yaml",
                 "of --from is read for the dense model; of --out is the new run's configuration"},
                {"DIR/origin.json", "of --out: where its state came from"},
                {"DIR/checkpoints/step-00000000/",
                 "of --out: the state (docs/formats/checkpoint.md)"}},
      .examples = {{"A mixture of experts from runs/dense, then its training",
                    "pecan-convert upcycle --from runs/dense --config moe.yaml --out runs/moe && "
                    "mpirun -n 4 pecan-train --config runs/moe/config.yaml --run-dir runs/moe "
                    "--resume-from-failure"},
                   {"Plain copies, from an older checkpoint",
                    "pecan-convert upcycle --from runs/dense --step 200 --config moe.yaml "
                    "--drop-ratio 0"}},
      .see_also = {"pecan-train(1)", "pecan-inspect(1)", "docs/how-to/upcycle-a-dense-model.md"}};
}

struct Arguments {
  tools::ConfigArguments config;
  std::string from;
  std::string out;
  std::optional<std::int64_t> step;
  std::string indices{convert::name_of(convert::DropIndices::kShared)};
  convert::UpcycleOptions options;
};

void add_upcycle(tools::CommandLine& line, Arguments& arguments) {
  CLI::App& app = *line.app().add_subcommand(
      "upcycle", "Makes the first state of a mixture of experts from a dense run");
  app.add_option("--from", arguments.from, "run directory of the dense model")
      ->required()
      ->type_name("DIR");
  app.add_option("--step", arguments.step, "its checkpoint of this step (default: the newest)")
      ->check(tools::at_least(0, "steps"))
      ->type_name("N");
  app.add_option("--out", arguments.out, "run directory to make (default: --from, with -upcycled)")
      ->type_name("DIR");
  arguments.config.add_to(line, app, config::config_keys());
  const char* experts = "Experts";
  app.add_option("--drop-ratio",
                 arguments.options.drop_ratio,
                 "share of each expert's neurons that is drawn anew, 0 to 1")
      ->check(tools::from_zero("neurons"))
      ->type_name("X")
      ->capture_default_str()
      ->group(experts);
  app.add_option("--indices",
                 arguments.indices,
                 "draw the same neurons in all matrices of an expert, or others in each")
      ->check(tools::one_of({std::string(convert::name_of(convert::DropIndices::kShared)),
                             std::string(convert::name_of(convert::DropIndices::kIndependent))}))
      ->type_name("WORD")
      ->capture_default_str()
      ->group(experts);
  app.add_option(
         "--router-std", arguments.options.router_std, "standard deviation of the routers' weights")
      ->check(tools::above_zero("deviations"))
      ->type_name("X")
      ->capture_default_str()
      ->group(experts);
  app.add_option("--seed", arguments.options.seed, "decides all that is drawn")
      ->type_name("N")
      ->capture_default_str()
      ->group(experts);
}

/// Sizes of the dense model, whose vocabulary the checkpoint tells.
model::ModelDims dense_dims(const checkpoint::StateReader& dense, const std::string& run) {
  const std::vector<std::string> files{run + "/config.yaml"};
  const config::Config config = config::load_config(files, {});
  const std::string embedding = "model.embed_tokens.weight";
  auto item = dense.find(embedding + "/weight");
  if (!item) item = dense.find(embedding + "/master");
  PECAN_VALIDATE(item.has_value(), ConfigError, "{} has no {}", run, embedding);
  return model::plan_dims(config, item->shape[0]);
}

int upcycle(Arguments arguments) {
  const std::unique_ptr<FileSystem> fs = make_posix_file_system();
  while (arguments.from.size() > 1 && arguments.from.ends_with('/')) arguments.from.pop_back();
  if (arguments.out.empty()) arguments.out = arguments.from + "-upcycled";
  if (arguments.indices == convert::name_of(convert::DropIndices::kIndependent))
    arguments.options.indices = convert::DropIndices::kIndependent;
  const config::Config config =
      config::load_config(arguments.config.files, arguments.config.settings);
  // Items are the same in every layout; this one needs no other processes.
  config::Config alone = config;
  alone.parallel = {};
  const train::TrainPlan plan = train::make_plan(alone, train::resolve_vocab_size(config), 1);
  std::optional<Step> step;
  if (arguments.step) step = Step{*arguments.step};
  checkpoint::StateReader dense(*fs, arguments.from, step);
  const convert::UpcycleReport report = convert::upcycle(*fs,
                                                         dense,
                                                         dense_dims(dense, arguments.from),
                                                         config,
                                                         plan.dims,
                                                         plan.catalog,
                                                         arguments.options,
                                                         arguments.out);
  const convert::UpcyclePlan& made = report.plan;
  std::cout
      << fmt::format("from        {}, step {}\n", arguments.from, dense.manifest().version.step)
      << fmt::format("experts     {} in each of {} layers, {} of a token; {} parameters\n",
                     plan.dims.num_experts,
                     plan.dims.num_moe_layers(),
                     plan.dims.topk,
                     report.parameters)
      << fmt::format("neurons     {} an expert, of which {} are drawn anew ({} indices)\n",
                     plan.dims.expert_ffn,
                     made.drawn,
                     convert::name_of(arguments.options.indices))
      << fmt::format(
             "copies      {} of the FFN, in {} parts each; up_proj times {}, down_proj times {}\n",
             made.copies,
             made.granularity,
             made.up_scale,
             made.down_scale)
      << fmt::format("written     {}, step 0: {} files, {} bytes; at most {} of it in memory\n",
                     arguments.out,
                     report.num_files,
                     report.num_bytes,
                     report.largest_bytes)
      << fmt::format(
             "go on with  mpirun -n N pecan-train --config {}/config.yaml --run-dir "
             "{} --resume-from-failure\n",
             arguments.out,
             arguments.out);
  return int(ExitCode::kDone);
}

}  // namespace

int main(int argc, char** argv) {
  return tools::run_program("pecan-convert", [&] {
    Arguments arguments;
    tools::CommandLine line(manual());
    line.app().require_subcommand(1);
    add_upcycle(line, arguments);
    if (const std::optional<int> done = line.parse(argc, argv)) return *done;
    return upcycle(arguments);
  });
}
