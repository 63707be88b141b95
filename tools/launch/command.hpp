#pragma once
/// The command line of a start.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "launch/hosts.hpp"

namespace pecan::launch {

/// What the user has given.
struct JobCommand {
  std::vector<std::string> config_files;
  std::vector<std::string> settings;
  std::string run_directory;
  std::string train_program;
  std::string agent;  ///< that starts programs on hosts, with its arguments; empty: mpirun's own
  std::vector<std::string> mpirun_options;
  std::string layouts;  ///< elastic.layouts with all sizes, if there are any: see layouts_text()
};

/// ConfigError if `options` hold one that pecan-launch sets itself.
void validate_mpirun_options(std::span<const std::string> options);
/// `elastic.layouts` as a value for --set in which every size is given: in a start that is set to
/// one of them, the others mean what they meant before. Empty without layouts. Pure.
[[nodiscard]] std::string layouts_text(const config::Config& config);
/// mpirun and its arguments; variables named in `passed_on` go to all hosts. Pure.
[[nodiscard]] std::vector<std::string> mpirun_command(const JobCommand& job,
                                                      const Assignment& assignment,
                                                      std::span<const std::string> passed_on);
/// "a:2,b:1".
[[nodiscard]] std::string hosts_text(std::span<const Host> hosts);
/// "agent -p 22" as words.
[[nodiscard]] std::vector<std::string> split_words(std::string_view text);
/// Whether a program is there to be run: a path, or a name in `search_path` (PATH).
[[nodiscard]] bool can_run(const std::string& program, const std::string& search_path);

}  // namespace pecan::launch
