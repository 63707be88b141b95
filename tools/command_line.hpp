#pragma once
/// What all programs share: a command line with manual, completion and helpful errors, and a main
/// that turns exceptions into messages and exit codes.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <pecan/core/error.hpp>

#include "manual.hpp"

namespace pecan::tools {

/// Checks of values, for CLI::Option::check; their refusals say what would be taken.
[[nodiscard]] CLI::Validator one_of(std::vector<std::string> words);
/// Integers from `low` on; `what` is what is counted ("ranks").
[[nodiscard]] CLI::Validator at_least(std::int64_t low, std::string what);

/// Numbers above 0; `what` is what is measured ("milliseconds").
[[nodiscard]] CLI::Validator above_zero(std::string what);
/// Numbers from 0 on.
[[nodiscard]] CLI::Validator from_zero(std::string what);

/// A program's command line. Options are defined with app(); their type names decide what
/// completion offers: FILE, PREFIX (files) and DIR, the words of one_of, or those of offer().
class CommandLine {
 public:
  explicit CommandLine(Manual manual);

  [[nodiscard]] CLI::App& app() { return app_; }
  /// Lets completion offer `words` as the option's value; words that end in '=' are continued.
  void offer(const CLI::Option* option, std::vector<std::string> words);

  /// Parses. A value is the exit code to end with at once: after --help, --version, --completion,
  /// --man-page (0), or a mistake (2), of which the first rank of a job speaks.
  [[nodiscard]] std::optional<int> parse(int argc, const char* const* argv);

 private:
  [[nodiscard]] Command describe(const CLI::App& app) const;
  [[nodiscard]] std::string explain(const CLI::ParseError& error) const;

  Manual manual_;
  CLI::App app_;
  std::vector<std::pair<const CLI::Option*, std::vector<std::string>>> offers_;
  std::string shell_;
  bool man_page_ = false;
};

/// Options that every program with a configuration has.
struct ConfigArguments {
  std::vector<std::string> files;
  std::vector<std::string> settings;
  /// Defines --config and --set of the program or one of its commands; `keys` is what --set
  /// completes to.
  void add_to(CommandLine& line, CLI::App& command, const std::vector<std::string>& keys);
};

/// Whether this process speaks for the whole job: rank 0, or no rank of any.
[[nodiscard]] bool is_first_rank();

/// Runs `body` and returns its exit code, or the documented one of what it throws; the message goes
/// to standard error as "<name>: <message>". Ends with 70 where standard output took not all bytes.
[[nodiscard]] int run_program(const std::string& name, const std::function<int()>& body) noexcept;

}  // namespace pecan::tools
