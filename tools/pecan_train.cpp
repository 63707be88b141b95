// pecan-train: trains a model on the processes that mpirun started.

#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

#include <pecan/core/heartbeat.hpp>
#include <pecan/core/log.hpp>

#include <pecan/config/config.hpp>

#include <pecan/device/backend.hpp>

#include <pecan/comm/group.hpp>

#include <pecan/train/plan.hpp>
#include <pecan/train/run.hpp>

#include "command_line.hpp"

namespace {

using namespace pecan;

struct Arguments {
  tools::ConfigArguments config;
  train::RunOptions run;
  bool resume_from_failure = false;
  bool dump_config = false;
  bool dry_run = false;
  bool profile = false;
  std::string profile_steps;
};

tools::Manual manual() {
  return {
      .name = "pecan-train",
      .version = {},
      .summary = "train a sparse mixture-of-experts model",
      .synopsis = {"mpirun -n N pecan-train --config FILE [--config FILE2 ...]",
                   "        [--set key.path=value ...] [--run-dir DIR]",
                   "        [--resume-from-failure | --resume DIR] [--allow-reinit-expert]",
                   "        [--profile [--profile-steps STEPS]]",
                   "pecan-train --config FILE --dump-config | --dry-run"},
      .description =
          {"Trains on the N processes that mpirun started. The model, its layout over the "
           "processes, "
           "data, optimizer and checkpoints are described by YAML files, merged left to right, and "
           "by settings over them; docs/configuration.md explains every key.",
           "While it trains it writes partial experts checkpoints: all non-expert state and some "
           "of "
           "the experts each time. After a failure, the same command with --resume-from-failure "
           "rebuilds the newest recoverable state from them, and prints what was restored from "
           "where and what was lost.",
           "A run directory that holds an earlier run is refused without a resume option. SIGUSR1, "
           "which mpirun forwards, stops all processes together after a whole step and a last "
           "checkpoint."},
      .exit_codes = tools::exit_codes_of_runs(),
      .environment =
          {{"OMPI_ALLOW_RUN_AS_ROOT, OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
            "both 1 let Open MPI's mpirun start as root"},
           {"OMPI_MCA_*",
            "Open MPI's parameters; mpi_yield_when_idle is set to 1 unless it is set already"},
           {"PECAN_FAULT", "failures on purpose beside those of fault.inject, with ; between them"},
           tools::variables_of_configuration()},
      .files = {{"DIR/config.yaml", "the resolved configuration of the newest start"},
                {"DIR/metrics.jsonl",
                 "one record a line: steps, evaluations, checkpoints, recoveries"},
                {"DIR/checkpoints/step-NNNNNNNN/", "manifest and HDF5 shards of one checkpoint"},
                {"DIR/profile/", "with --profile: a trace of each rank, and a table of rank 0"},
                {"DIR/skipped_data.json", "samples that training passes over after rollbacks"},
                {"DIR/lock.json", "which start of the run may write"},
                {"DIR/heartbeat/", "where each rank is; pecan-launch reads it"}},
      .examples =
          {{"What a configuration needs, on 4 processes", "pecan-plan --config my.yaml --world 4"},
           {"Train", "mpirun -n 4 pecan-train --config my.yaml --run-dir runs/my"},
           {"Go on after a failure",
            "mpirun -n 4 pecan-train --config my.yaml --run-dir runs/my --resume-from-failure"}},
      .see_also = {
          "pecan-launch(1)", "pecan-plan(1)", "pecan-data(1)", "pecan-inspect(1)", "mpirun(1)"}};
}

/// The steps of "5:15"; nothing for any other text.
std::optional<train::ProfileOptions> parse_steps(std::string_view text) {
  std::int64_t first = 0, last = 0;
  const char* end = text.data() + text.size();
  const auto [colon, first_error] = std::from_chars(text.data(), end, first);
  if (first_error != std::errc{} || colon == end || *colon != ':') return {};
  const auto [rest, last_error] = std::from_chars(colon + 1, end, last);
  if (last_error != std::errc{} || rest != end || first < 1 || last < first) return {};
  return train::ProfileOptions{Step{first}, Step{last}};
}

CLI::Validator steps_from_to() {
  return {[](const std::string& text) {
            return parse_steps(text)
                       ? std::string()
                       : fmt::format("'{}' is not A:B with 1 <= A <= B, as 5:15 is", text);
          },
          ""};
}

void describe_arguments(tools::CommandLine& line, Arguments& arguments) {
  arguments.config.add_to(line, line.app(), config::config_keys());
  CLI::App& app = line.app();
  app.add_option("--run-dir", arguments.run.run_directory, "where checkpoints and metrics go")
      ->default_val("runs/default")
      ->type_name("DIR")
      ->group("Run");
  auto* from_failure = app.add_flag("--resume-from-failure",
                                    arguments.resume_from_failure,
                                    "continue from the newest recoverable state of the run "
                                    "directory; start fresh if there is none")
                           ->group("Run");
  auto* from_path = app.add_option("--resume",
                                   arguments.run.resume_path,
                                   "continue from this checkpoint directory of the run directory")
                        ->type_name("DIR")
                        ->group("Run");
  from_failure->excludes(from_path);
  app.add_flag("--allow-reinit-expert",
               arguments.run.allow_reinit_expert,
               "where no copy of an expert is left, go on with that expert as a fresh run begins")
      ->group("Run");
  auto* profile =
      app.add_flag("--profile",
                   arguments.profile,
                   "write where the time of some steps goes, as a trace for Perfetto and "
                   "a table, to the run directory")
          ->group("Profile");
  app.add_option("--profile-steps",
                 arguments.profile_steps,
                 "the steps A:B, from A to B, instead of ten after the first two of this start")
      ->type_name("STEPS")
      ->check(steps_from_to())
      ->needs(profile)
      ->group("Profile");
  app.add_flag("--dump-config", arguments.dump_config, "print the resolved configuration and exit")
      ->group("Instead of training");
  app.add_flag("--dry-run",
               arguments.dry_run,
               "print the plan for the processes that were started and exit")
      ->group("Instead of training");
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

/// Ranks that wait for one that is gone find out within a step of each other, and each tells what
/// it waits for: together they say who is missing, and where.
int fail_waiting(const std::string& message) {
  constexpr std::chrono::milliseconds kLeaveToOthers{1500};
  std::cerr << "pecan-train: " << message << std::endl;
  std::this_thread::sleep_for(kLeaveToOthers);
  return int(ExitCode::kWatchdog);
}

int run(const Arguments& arguments, comm::MpiEnvironment& mpi) {
  std::optional<Heartbeat> heartbeat;  // outlives the groups that beat it
  std::uint64_t begun = 0;             // by groups of the host and of devices together
  comm::GroupOptions group_options;
  std::unique_ptr<comm::Group> world = mpi.world(group_options);
  int code = 0;
  try {
    const config::Config config =
        config::load_config(arguments.config.files, arguments.config.settings);
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
    group_options.shared_memory = config.comm.shared_memory;
    heartbeat.emplace(arguments.run.run_directory, world->rank(), world->size());
    group_options.observer = [&heartbeat, &begun](const comm::CollectiveNote& note) {
      heartbeat->enter(
          ++begun, note.operation, name_of(note.tag.purpose), note.tag.layer, note.step);
    };
    world = mpi.world(group_options);
    train::RunOptions options = arguments.run;
    options.heartbeat = &*heartbeat;
    options.device_groups = group_options;
    const std::unique_ptr<FileSystem> fs = make_posix_file_system();
    return int(train::run(config, options, *fs, *world));
  } catch (const CommError& error) {
    code = fail_waiting(error.what());
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
  return tools::run_program("pecan-train", [&] {
    Arguments arguments;
    tools::CommandLine line(manual());
    describe_arguments(line, arguments);
    if (const std::optional<int> done = line.parse(argc, argv)) return *done;
    if (arguments.resume_from_failure) arguments.run.resume = checkpoint::ResumeMode::kFromFailure;
    if (!arguments.run.resume_path.empty())
      arguments.run.resume = checkpoint::ResumeMode::kFromPath;
    if (arguments.profile) {
      arguments.run.profile =
          parse_steps(arguments.profile_steps).value_or(train::ProfileOptions{});
    }
    arguments.run.out = &std::cout;
    arguments.run.terminal = writes_to_terminal();

    device::prepare_environment();
    comm::MpiEnvironment mpi(&argc, &argv);
    std::signal(SIGUSR1, [](int) { train::request_stop(); });
    return run(arguments, mpi);
  });
}
