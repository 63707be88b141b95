// pecan-inspect: what the checkpoints of a run hold.

#include <iostream>
#include <string>

#include <pecan/core/file_system.hpp>

#include <pecan/checkpoint/render.hpp>

#include "command_line.hpp"

namespace {

using namespace pecan;
using namespace pecan::checkpoint;

struct Arguments {
  std::string directory;
  std::string view = "summary";
  std::int64_t step = -1;
  bool json = false;
};

std::string render(const RunReport& report, const Arguments& arguments) {
  const Format format = arguments.json ? Format::kJson : Format::kText;
  if (arguments.view == "list") return render_list(report, format);
  if (arguments.view == "show") return render_show(report, Step{arguments.step}, format);
  if (arguments.view == "experts") return render_experts(report, format);
  if (arguments.view == "coverage") return render_coverage(report, format);
  if (arguments.view == "verify") return render_verify(report, format);
  return render_summary(report, format);
}

tools::Manual manual() {
  return {
      .name = "pecan-inspect",
      .version = {},
      .summary = "show what the checkpoints of a run hold",
      .synopsis = {"pecan-inspect DIR [summary|list|experts|coverage|verify] [--json]",
                   "pecan-inspect DIR show STEP [--json]"},
      .description =
          {"Reads the manifests of a run directory and shows what is saved of which expert, how "
           "old it is, and what a recovery would use. It changes nothing, and may look at a run "
           "that is training.",
           "summary is the short answer; list has one line a checkpoint; show all of one "
           "checkpoint; experts the newest copy of each expert; coverage which experts each "
           "checkpoint holds; verify reads every file, compares checksums, and names what is "
           "damaged."},
      .exit_codes = {ExitCode::kDone, ExitCode::kUsage, ExitCode::kCheckpoint, ExitCode::kInternal},
      .environment = {},
      .files = {{"DIR/checkpoints/step-NNNNNNNN/", "one checkpoint (docs/formats/checkpoint.md)"}},
      .examples = {{"What would a recovery lose?", "pecan-inspect runs/my experts"},
                   {"Are all files whole?", "pecan-inspect runs/my verify && echo yes"}},
      .see_also = {"pecan-train(1)", "docs/formats/inspect.md"}};
}

void describe_arguments(CLI::App& app, Arguments& arguments) {
  app.add_option("DIR", arguments.directory, "run directory")->required()->type_name("DIR");
  app.add_option("VIEW", arguments.view, "what to show; summary if nothing is said")
      ->type_name("VIEW")
      ->check(tools::one_of({"summary", "list", "show", "experts", "coverage", "verify"}));
  auto* step = app.add_option("STEP", arguments.step, "with show: the checkpoint's step")
                   ->type_name("N")
                   ->check(tools::at_least(0, "steps"));
  app.add_flag("--json", arguments.json, "machine-readable (docs/formats/inspect.md)");
  app.callback([&arguments, step] {
    if ((arguments.view == "show") != (step->count() > 0)) {
      throw CLI::ValidationError(
          "STEP", "goes with show and with nothing else: pecan-inspect DIR show STEP");
    }
  });
}

}  // namespace

int main(int argc, char** argv) {
  return tools::run_program("pecan-inspect", [&] {
    Arguments arguments;
    tools::CommandLine line(manual());
    describe_arguments(line.app(), arguments);
    if (const std::optional<int> done = line.parse(argc, argv)) return *done;
    const std::unique_ptr<FileSystem> fs = make_posix_file_system();
    const RunReport report = inspect_run(
        *fs, arguments.directory, arguments.view == "verify" ? Verify::kYes : Verify::kNo);
    std::cout << render(report, arguments);
    return int(arguments.view == "verify" && count_problems(report) > 0 ? ExitCode::kCheckpoint
                                                                        : ExitCode::kDone);
  });
}
