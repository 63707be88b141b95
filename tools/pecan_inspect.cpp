// pecan-inspect: what the checkpoints of a run hold, on storage and in memory.

#include <iostream>
#include <string>

#include <pecan/core/file_system.hpp>

#include <pecan/config/config.hpp>

#include <pecan/checkpoint/render.hpp>

#include "command_line.hpp"

namespace {

using namespace pecan;
using namespace pecan::checkpoint;

struct Arguments {
  std::string directory;
  std::string view = "summary";
  std::int64_t step = -1;
  bool memory = false;
  std::string memory_directory = config::CheckpointConfig{}.memory_dir;
  std::string clean;  ///< run id or "all"; empty: nothing
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

int inspect_memory(const Arguments& arguments) {
  const Format format = arguments.json ? Format::kJson : Format::kText;
  const std::string& directory = arguments.memory_directory;
  std::cout << (arguments.clean.empty()
                    ? render_memory(checkpoint::inspect_memory(directory), format)
                    : render_removal(
                          remove_segments(directory,
                                          arguments.clean == "all" ? "" : arguments.clean),
                          format));
  return int(ExitCode::kDone);
}

tools::Manual manual() {
  return {
      .name = "pecan-inspect",
      .version = {},
      .summary = "show what the checkpoints of a run hold",
      .synopsis = {"pecan-inspect DIR [summary|list|experts|coverage|verify] [--json]",
                   "pecan-inspect DIR show STEP [--json]",
                   "pecan-inspect --memory [--memory-dir DIR] [--clean RUN_ID|all] [--json]"},
      .description =
          {"Reads the manifests of a run directory and shows what is saved of which expert, how "
           "old it is, and what a recovery would use. It changes nothing, and may look at a run "
           "that is training.",
           "summary is the short answer; list has one line a checkpoint; show all of one "
           "checkpoint; experts the newest copy of each expert; coverage which experts each "
           "checkpoint holds; verify reads every file, compares checksums, and names what is "
           "damaged.",
           "--memory looks at this node's snapshots in host memory instead, of all runs, and "
           "verifies those that no process uses. They outlive a process that was killed, so that "
           "its run can continue from them; --clean removes those of a run that will not. What a "
           "process uses is left."},
      .exit_codes = {ExitCode::kDone, ExitCode::kUsage, ExitCode::kCheckpoint, ExitCode::kInternal},
      .environment = {},
      .files = {{"DIR/checkpoints/step-NNNNNNNN/", "one checkpoint (docs/formats/checkpoint.md)"},
                {"/dev/shm/pecan.RUN.HOST.rRANK.bBUFFER",
                 "snapshots in memory (docs/formats/memory.md)"}},
      .examples = {{"What would a recovery lose?", "pecan-inspect runs/my experts"},
                   {"Are all files whole?", "pecan-inspect runs/my verify && echo yes"},
                   {"Free what killed runs left in memory", "pecan-inspect --memory --clean all"}},
      .see_also = {"pecan-train(1)", "docs/formats/inspect.md"}};
}

void describe_arguments(CLI::App& app, Arguments& arguments) {
  auto* directory = app.add_option("DIR", arguments.directory, "run directory; not with --memory")
                        ->required()
                        ->type_name("DIR");
  app.add_option("VIEW", arguments.view, "what to show; summary if nothing is said")
      ->type_name("VIEW")
      ->check(tools::one_of({"summary", "list", "show", "experts", "coverage", "verify"}));
  auto* step = app.add_option("STEP", arguments.step, "with show: the checkpoint's step")
                   ->type_name("N")
                   ->check(tools::at_least(0, "steps"));
  auto* memory = app.add_flag_function(
      "--memory",
      [&arguments, directory](std::int64_t /*count*/) {
        arguments.memory = true;
        directory->required(false);
      },
      "snapshots in host memory instead");
  memory->excludes(directory);
  app.add_option(
         "--memory-dir", arguments.memory_directory, "where these lie: checkpoint.memory_dir")
      ->type_name("DIR")
      ->capture_default_str()
      ->needs(memory);
  app.add_option(
         "--clean", arguments.clean, "remove those of this run that no process uses; all: of any")
      ->type_name("RUN_ID")
      ->needs(memory);
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
    if (arguments.memory) return inspect_memory(arguments);
    const std::unique_ptr<FileSystem> fs = make_posix_file_system();
    const RunReport report = inspect_run(
        *fs, arguments.directory, arguments.view == "verify" ? Verify::kYes : Verify::kNo);
    std::cout << render(report, arguments);
    return int(arguments.view == "verify" && count_problems(report) > 0 ? ExitCode::kCheckpoint
                                                                        : ExitCode::kDone);
  });
}
