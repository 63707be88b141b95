// pecan-train: trains a model on the processes that mpirun started.

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <unistd.h>

#include <pecan/core/build_info.hpp>
#include <pecan/core/log.hpp>

#include <pecan/config/config.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/train/plan.hpp>
#include <pecan/train/run.hpp>

namespace {

using namespace pecan;

struct Arguments {
  std::vector<std::string> configs;
  std::vector<std::string> settings;
  train::RunOptions run;
  bool resume_from_failure = false;
  bool dump_config = false;
  bool dry_run = false;
};

void describe_arguments(CLI::App& app, Arguments& arguments) {
  app.set_version_flag("--version", build_info().version + " " + build_info().git_id);
  app.add_option("--config", arguments.configs, "YAML file; several are merged left to right")
      ->required()
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--set", arguments.settings, "key.path=value, over the files")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--run-dir",
                 arguments.run.run_directory,
                 "where checkpoints and metrics go (default: runs/default)")
      ->default_val("runs/default");
  auto* from_failure = app.add_flag("--resume-from-failure",
                                    arguments.resume_from_failure,
                                    "continue from the newest recoverable state");
  auto* from_path = app.add_option(
      "--resume", arguments.run.resume_path, "continue from this checkpoint directory");
  from_failure->excludes(from_path);
  app.add_flag("--dump-config", arguments.dump_config, "print the resolved configuration and exit");
  app.add_flag("--dry-run", arguments.dry_run, "print the plan and exit");
}

/// Whether a person watches. mpirun gives every rank a pseudo-terminal: its own output, one process
/// up, is what counts.
bool writes_to_terminal() {
  if (std::getenv("OMPI_COMM_WORLD_RANK") == nullptr) return isatty(STDOUT_FILENO) == 1;
  std::error_code error;
  const auto target =
      std::filesystem::read_symlink(fmt::format("/proc/{}/fd/1", getppid()), error).string();
  return !error && (target.starts_with("/dev/pts/") || target.starts_with("/dev/tty"));
}

int fail(const comm::Group& world, ExitCode code, const std::string& message) {
  // Most errors strike all ranks alike: the first one speaks and ends the job before the others
  // would say it again.
  constexpr std::chrono::milliseconds kLeaveToFirstRank{500};
  if (world.rank().value != 0) std::this_thread::sleep_for(kLeaveToFirstRank);
  std::cerr << "pecan-train: " << message << std::endl;
  return int(code);
}

int run(const Arguments& arguments, comm::MpiEnvironment& mpi) {
  comm::GroupOptions group_options;
  std::unique_ptr<comm::Group> world = mpi.world(group_options);
  int code = 0;
  try {
    const config::Config config = config::load_config(arguments.configs, arguments.settings);
    if (arguments.dump_config) {
      if (world->rank().value == 0) std::cout << config::dump_config(config);
      return int(ExitCode::kDone);
    }
    if (arguments.dry_run) {
      const train::TrainPlan plan =
          train::make_plan(config, train::resolve_vocab_size(config), world->size());
      if (world->rank().value == 0) std::cout << train::describe(plan);
      return int(ExitCode::kDone);
    }
    const std::string prefix =
        world->rank().value == 0 ? "" : fmt::format("[rank {}] ", world->rank());
    configure_log(log_level_from_name(config.logging.level), prefix);
    group_options.timeout = std::chrono::seconds(config.comm.timeout_s);
    world = mpi.world(group_options);
    const std::unique_ptr<FileSystem> fs = make_posix_file_system();
    return int(train::run(config, arguments.run, *fs, *world));
  } catch (const Error& error) {
    code = fail(*world, error.exit_code(), error.what());
  } catch (const std::exception& error) {
    code = fail(*world, ExitCode::kInternal, fmt::format("internal error: {}", error.what()));
  }
  // The others may wait in a collective for this rank: the whole job ends with this exit code.
  mpi.abort(code);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app{"Trains a sparse mixture-of-experts model. Start it with mpirun, see README.md.",
               "pecan-train"};
  describe_arguments(app, arguments);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Every rank has the same arguments: the first one speaks. Before MPI_Init Open MPI's variable
    // is the only sign.
    const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
    const bool speaks = rank == nullptr || std::string(rank) == "0";
    const int code = speaks ? app.exit(error) : error.get_exit_code();
    return code == 0 ? int(ExitCode::kDone) : int(ExitCode::kUsage);
  }
  if (arguments.resume_from_failure) arguments.run.resume = checkpoint::ResumeMode::kFromFailure;
  if (!arguments.run.resume_path.empty()) arguments.run.resume = checkpoint::ResumeMode::kFromPath;
  arguments.run.out = &std::cout;
  arguments.run.terminal = writes_to_terminal();

  comm::MpiEnvironment mpi(&argc, &argv);
  std::signal(SIGUSR1, [](int) { train::request_stop(); });
  return run(arguments, mpi);
}
