#pragma once
/// The manual of a program, as text for --help and as a man page.

#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/error.hpp>

namespace pecan::tools {

/// A term and what it means: an exit code, a variable, a file, or an example's title and command.
struct Entry {
  std::string term;
  std::string text;
};

/// What completion offers as an option's value.
enum class Values : int { kNone, kAnything, kFiles, kDirectories, kWords };

/// An option, a flag (without placeholder) or a positional argument.
struct Argument {
  std::vector<std::string> names;  ///< "--world"; of a positional argument, its placeholder alone
  std::string placeholder;         ///< "FILE"; empty: a flag
  std::string description;
  std::string group;  ///< heading in the manual
  bool repeats = false;
  Values values = Values::kAnything;
  std::vector<std::string> words;  ///< of kWords
};

/// A program, or one of its commands.
struct Command {
  std::string name;
  std::string summary;  ///< one sentence
  std::vector<Argument> options;
  std::vector<Argument> positionals;
  std::vector<Command> commands;
};

/// What the definitions of the options do not say.
struct Manual {
  std::string name;
  std::string version;
  std::string summary;                   ///< one line after the name
  std::vector<std::string> synopsis;     ///< one command line each
  std::vector<std::string> description;  ///< paragraphs
  std::vector<ExitCode> exit_codes;
  std::vector<Entry> environment;
  std::vector<Entry> files;
  std::vector<Entry> examples;
  std::vector<std::string> see_also;
};

/// The manual as text of at most 80 columns where words allow.
[[nodiscard]] std::string to_text(const Manual& manual, const Command& program);
/// The manual as a page for man(1).
[[nodiscard]] std::string to_man_page(const Manual& manual, const Command& program);
/// The exit codes of a run, which pecan-train and pecan-launch share.
[[nodiscard]] std::vector<ExitCode> exit_codes_of_runs();
/// The variables that a configuration reads; `more` is said of them too.
[[nodiscard]] Entry variables_of_configuration(std::string_view more = {});
/// What one exit code means, in the words that all programs share.
[[nodiscard]] std::string_view meaning_of(ExitCode code);

}  // namespace pecan::tools
