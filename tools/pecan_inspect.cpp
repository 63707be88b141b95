// pecan-inspect: what the checkpoints of a run hold.

#include <iostream>
#include <string>

#include <CLI/CLI.hpp>

#include <pecan/core/file_system.hpp>

#include <pecan/checkpoint/render.hpp>

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

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app{
      "Shows what the checkpoints of a run hold; reads only. Exit code 4: damage was found.",
      "pecan-inspect"};
  app.add_option("DIR", arguments.directory, "run directory")->required();
  app.add_option(
         "VIEW", arguments.view, "summary (default), list, show STEP, experts, coverage or verify")
      ->check(CLI::IsMember({"summary", "list", "show", "experts", "coverage", "verify"}));
  auto* step = app.add_option("STEP", arguments.step, "with show: the checkpoint's step")
                   ->check(CLI::NonNegativeNumber);
  app.add_flag("--json", arguments.json, "machine-readable (docs/formats/inspect.md)");
  try {
    app.parse(argc, argv);
    if ((arguments.view == "show") != (step->count() > 0)) {
      throw CLI::ValidationError(
          "STEP", "goes with show and with nothing else: pecan-inspect DIR show STEP");
    }
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? int(ExitCode::kDone) : int(ExitCode::kUsage);
  }
  try {
    const std::unique_ptr<FileSystem> fs = make_posix_file_system();
    const RunReport report = inspect_run(
        *fs, arguments.directory, arguments.view == "verify" ? Verify::kYes : Verify::kNo);
    std::cout << render(report, arguments);
    return int(arguments.view == "verify" && count_problems(report) > 0 ? ExitCode::kCheckpoint
                                                                        : ExitCode::kDone);
  } catch (const Error& error) {
    std::cerr << "pecan-inspect: " << error.what() << std::endl;
    return int(error.exit_code());
  }
}
