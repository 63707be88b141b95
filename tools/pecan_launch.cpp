// pecan-launch: starts pecan-train on hosts, watches it, and starts it again after failures.

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include <pecan/core/file_system.hpp>
#include <pecan/core/log.hpp>

#include <pecan/config/config.hpp>

#include "command_line.hpp"
#include "launch/supervisor.hpp"

namespace {

using namespace pecan;

struct Arguments {
  tools::ConfigArguments config;
  std::string hosts_path;
  launch::SupervisorOptions supervisor;
};

tools::Manual manual() {
  return {
      .name = "pecan-launch",
      .version = {},
      .summary = "run pecan-train on hosts, and again after failures",
      .synopsis = {"pecan-launch --config FILE [--config FILE2 ...] [--set key.path=value ...]",
                   "        --hosts FILE [--run-dir DIR] [--agent PROGRAM] [--train PROGRAM]",
                   "        [--log FILE] [-- mpirun options]"},
      .description =
          {"Starts mpirun with pecan-train on the hosts of FILE, in the largest layout of "
           "elastic.layouts that they hold, and watches its exit code and the heartbeats of its "
           "ranks. After a failure it asks the hosts whether they answer, replaces those that are "
           "lost by others of FILE or goes on in a smaller layout, and starts pecan-train again "
           "with --resume-from-failure; a host that answers again is used again. A job in which no "
           "rank makes progress for elastic.heartbeat_timeout_s is ended, whatever mpirun does.",
           "It gives up after elastic.max_restarts restarts in a row that saved no new "
           "step, with the exit code of the last failure. Exit codes 2 and 3 of pecan-train "
           "lead to no restart, nor does 6 where another start would be fed the same data from the "
           "same state and diverge too, or has not got past a divergence before.",
           "FILE has a host a line, as Open MPI's hostfiles: a name and slots=N, one where it is "
           "not said. The order of the lines is the order in which hosts are taken. --agent names "
           "a "
           "program that is called as PROGRAM HOST COMMAND, by mpirun too; it may have arguments "
           "of "
           "its own, like \"ssh -p 2222\". Without it ssh is used, or nothing where all hosts are "
           "this "
           "machine.",
           "SIGTERM, SIGINT and SIGUSR1 stop the run after a whole step and a last checkpoint, "
           "with "
           "exit code 75; a second one ends it at once. If pecan-launch itself is killed, mpirun "
           "ends too, and a new pecan-launch takes over."},
      .exit_codes = tools::exit_codes_of_runs(),
      .environment =
          {{"PATH", "where mpirun and ssh are found"},
           {"OMPI_*",
            "Open MPI's variables; as root, and for oversubscribing and yielding, they are set "
            "unless they are set already"},
           {"PECAN_FAULT, OMP_NUM_THREADS", "are passed on to all hosts"},
           {"PECAN_SUPERVISED", "is set for pecan-train, so that its processes are known again"},
           tools::variables_of_configuration("; for other hosts add -- -x NAME")},
      .files = {{"DIR/events.jsonl",
                 "one record a line: starts, failures, hosts lost and back, downtime, lost steps"},
                {"DIR/heartbeat/", "where each rank is; written by pecan-train"},
                {"DIR/launch.lock", "held by the pecan-launch that supervises the run"}},
      .examples =
          {{"Supervise a run", "pecan-launch --config my.yaml --hosts hosts.txt --run-dir runs/my"},
           {"With an ssh configuration of its own",
            "pecan-launch --config my.yaml --hosts hosts.txt --agent \"ssh -F cluster.ssh\""},
           {"With an option of mpirun",
            "pecan-launch --config my.yaml --hosts hosts.txt -- --mca btl_tcp_if_include eth1"}},
      .see_also = {"pecan-train(1)",
                   "mpirun(1)",
                   "docs/how-to/run-under-a-supervisor.md",
                   "docs/formats/events.md"}};
}

void describe_arguments(tools::CommandLine& line, Arguments& arguments) {
  arguments.config.add_to(line, line.app(), config::config_keys());
  CLI::App& app = line.app();
  launch::JobCommand& job = arguments.supervisor.job;
  app.add_option("--hosts", arguments.hosts_path, "the hosts, one a line: a name and slots=N")
      ->required()
      ->type_name("FILE")
      ->group("Hosts");
  app.add_option("--agent", job.agent, "starts a command on a host: PROGRAM HOST COMMAND")
      ->type_name("PROGRAM")
      ->group("Hosts");
  app.add_option("--run-dir", job.run_directory, "where checkpoints, metrics and events go")
      ->default_val("runs/default")
      ->type_name("DIR")
      ->group("Run");
  app.add_option("--train",
                 job.train_program,
                 "the program to train with; without it the pecan-train beside this program")
      ->type_name("PROGRAM")
      ->group("Run");
  app.add_option("--log",
                 arguments.supervisor.log_path,
                 "a file that what the job and pecan-launch print is appended to as well")
      ->type_name("FILE")
      ->group("Run");
}

/// The pecan-train that stands beside this program, or the one of PATH.
std::string neighbour() {
  std::error_code error;
  const std::filesystem::path own = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string path = error ? std::string() : (own.parent_path() / "pecan-train").string();
  return launch::can_run(path, "") ? path : "pecan-train";
}

}  // namespace

int main(int argc, char** argv) {
  // A stop that is asked for while the configuration is read is one, too.
  launch::hold_signals();
  return tools::run_program("pecan-launch", [&] {
    Arguments arguments;
    tools::CommandLine line(manual());
    describe_arguments(line, arguments);
    // What stands behind "--" is mpirun's, and nobody else's to understand.
    int own = 1;
    while (own < argc && std::string_view(argv[own]) != "--") ++own;
    if (const std::optional<int> done = line.parse(own, argv)) return *done;
    launch::JobCommand& job = arguments.supervisor.job;
    if (own < argc) job.mpirun_options.assign(argv + own + 1, argv + argc);
    if (job.train_program.empty()) job.train_program = neighbour();
    job.config_files = arguments.config.files;
    job.settings = arguments.config.settings;

    const config::Config config = config::load_config(job.config_files, job.settings);
    configure_log(log_level_from_name(config.logging.level), "");
    const Result<std::string> hosts = read_text(*make_posix_file_system(), arguments.hosts_path);
    PECAN_VALIDATE(hosts.ok(), ConfigError, "--hosts: {}", hosts.status().message);
    arguments.supervisor.hosts = launch::parse_hosts(hosts.value(), arguments.hosts_path);
    return launch::Supervisor(config, arguments.supervisor).run();
  });
}
