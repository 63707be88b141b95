#include "launch/command.hpp"

#include <algorithm>
#include <array>
#include <sstream>

#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <pecan/core/error.hpp>

namespace pecan::launch {
namespace {

bool is_program(const std::string& path) {
  struct stat facts {};
  return ::stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode) &&
         ::access(path.c_str(), X_OK) == 0;
}

}  // namespace

void validate_mpirun_options(std::span<const std::string> options) {
  constexpr std::array<std::string_view, 13> kOwn = {"-n",
                                                     "--n",
                                                     "-np",
                                                     "--np",
                                                     "-c",
                                                     "-H",
                                                     "-host",
                                                     "--host",
                                                     "-hostfile",
                                                     "--hostfile",
                                                     "-machinefile",
                                                     "--machinefile",
                                                     "--default-hostfile"};
  for (const std::string& option : options) {
    PECAN_VALIDATE(std::ranges::count(kOwn, option) == 0,
                   ConfigError,
                   "mpirun's option {} cannot be given behind --: pecan-launch chooses hosts and "
                   "processes itself; use --hosts and elastic.layouts",
                   option);
  }
}

std::string hosts_text(std::span<const Host> hosts) {
  std::vector<std::string> parts;
  for (const Host& host : hosts) parts.push_back(fmt::format("{}:{}", host.name, host.slots));
  return fmt::format("{}", fmt::join(parts, ","));
}

std::string layouts_text(const config::Config& config) {
  std::vector<std::string> parts;
  for (const config::ElasticLayout& layout : config.elastic.layouts) {
    const config::ParallelConfig parallel = config::with_layout(config, layout).parallel;
    parts.push_back(
        fmt::format("{{world_size: {}, tensor_model_parallel_size: {}, "
                    "expert_model_parallel_size: {}, expert_tensor_parallel_size: {}}}",
                    layout.world_size,
                    parallel.tensor_model_parallel_size,
                    parallel.expert_model_parallel_size,
                    parallel.expert_tensor_parallel_size));
  }
  return parts.empty() ? "" : fmt::format("[{}]", fmt::join(parts, ", "));
}

std::vector<std::string> mpirun_command(const JobCommand& job,
                                        const Assignment& assignment,
                                        std::span<const std::string> passed_on) {
  std::vector<std::string> words = {
      "mpirun", "-n", std::to_string(assignment.world), "--host", hosts_text(assignment.hosts)};
  const auto add = [&](std::initializer_list<std::string> more) {
    words.insert(words.end(), more);
  };
  if (!job.agent.empty()) add({"--mca", "plm_rsh_agent", job.agent});
  for (const std::string& name : passed_on) add({"-x", name});
  words.insert(words.end(), job.mpirun_options.begin(), job.mpirun_options.end());
  add({job.train_program});
  for (const std::string& file : job.config_files) add({"--config", file});
  for (const std::string& setting : job.settings) add({"--set", setting});
  if (!job.layouts.empty()) {
    const config::ElasticLayout& layout = assignment.layout;
    add({"--set",
         "elastic.layouts=" + job.layouts,
         "--set",
         fmt::format("parallel.tensor_model_parallel_size={}", layout.tensor_model_parallel_size),
         "--set",
         fmt::format("parallel.expert_model_parallel_size={}", layout.expert_model_parallel_size),
         "--set",
         fmt::format("parallel.expert_tensor_parallel_size={}",
                     layout.expert_tensor_parallel_size)});
  }
  add({"--run-dir", job.run_directory, "--resume-from-failure"});
  return words;
}

std::vector<std::string> split_words(std::string_view text) {
  std::istringstream stream{std::string(text)};
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

bool can_run(const std::string& program, const std::string& search_path) {
  if (program.find('/') != std::string::npos) return is_program(program);
  std::istringstream folders(search_path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (is_program(folder + "/" + program)) return true;
  }
  return false;
}

}  // namespace pecan::launch
