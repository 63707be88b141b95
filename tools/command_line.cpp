#include "command_line.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <new>

#include <fmt/ranges.h>

#include <pecan/core/build_info.hpp>
#include <pecan/core/nearest.hpp>

#include "completion.hpp"

namespace pecan::tools {
namespace {

/// The command that the arguments name, or the program.
const CLI::App& chosen(const CLI::App& app) {
  const std::vector<CLI::App*> parsed = app.get_subcommands();
  return parsed.empty() ? app : *parsed.front();
}

std::vector<std::string> long_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty()) continue;
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

bool is_flag(const CLI::Option& option) {
  return option.get_expected_max() == 0 || option.get_type_size_max() == 0;
}

/// "FILE" of "FILE:{a,b}": what stands behind the colon are checks.
std::string placeholder_of(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  return type.substr(0, type.find(':'));
}

std::vector<std::string> words_of(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const std::size_t begin = type.find(":{");
  const std::size_t end = type.rfind('}');
  if (begin == std::string::npos || end == std::string::npos) return {};
  return CLI::detail::split(type.substr(begin + 2, end - begin - 2), ',');
}

/// The required option that is not there.
const CLI::Option* missing_option(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_required() && option->count() == 0) return option;
  }
  return nullptr;
}

/// A finite number that is `sound`; `advice` is what would be taken.
CLI::Validator number_where(bool (*sound)(double), std::string what, std::string advice) {
  return {
      [sound, what = std::move(what), advice = std::move(advice)](std::string& text) {
        double value = 0;
        const char* const end = text.data() + text.size();
        const auto parsed = std::from_chars(text.data(), end, value);
        if (parsed.ec == std::errc() && parsed.ptr == end && std::isfinite(value) && sound(value))
          return std::string();
        return fmt::format("'{}' is no number of {}; {}", text, what, advice);
      },
      ""};
}

}  // namespace

CLI::Validator one_of(std::vector<std::string> words) {
  const std::string shown = fmt::format("{{{}}}", fmt::join(words, ","));
  return {[words = std::move(words)](std::string& value) {
            if (std::ranges::count(words, value) > 0) return std::string();
            return fmt::format("'{}' is not known; use {} (the nearest is {})",
                               value,
                               fmt::join(words, ", "),
                               nearest_name(value, words));
          },
          shown};
}

CLI::Validator at_least(std::int64_t low, std::string what) {
  return {[low, what = std::move(what)](std::string& text) {
            std::int64_t value = 0;
            const char* const end = text.data() + text.size();
            const auto parsed = std::from_chars(text.data(), end, value);
            // What an int cannot hold is no number of anything here.
            const bool fits = value <= std::numeric_limits<std::int32_t>::max();
            if (parsed.ec == std::errc() && parsed.ptr == end && value >= low && fits)
              return std::string();
            return fmt::format(
                "'{}' is no number of {}; use an integer from {} on", text, what, low);
          },
          ""};
}

CLI::Validator above_zero(std::string what) {
  return number_where(
      [](double value) { return value > 0; }, std::move(what), "use a number above 0");
}

CLI::Validator from_zero(std::string what) {
  return number_where(
      [](double value) { return value >= 0; }, std::move(what), "use a number from 0 on");
}

CommandLine::CommandLine(Manual manual)
    : manual_(std::move(manual)), app_(manual_.summary, manual_.name) {
  const BuildInfo& build = build_info();
  manual_.version = build.version;
  app_.set_version_flag("--version",
                        fmt::format("{} {} {}", manual_.name, build.version, build.git_id),
                        "print program, version and commit, and exit");
  app_.set_help_flag("-h,--help", "print this manual and exit");
  // Used when installing: no option for people.
  app_.add_option("--completion", shell_)->check(one_of({"bash", "zsh"}))->group("");
  app_.add_flag("--man-page", man_page_)->group("");
}

void CommandLine::offer(const CLI::Option* option, std::vector<std::string> words) {
  offers_.emplace_back(option, std::move(words));
}

Command CommandLine::describe(const CLI::App& app) const {
  Command command;
  command.name = app.get_name();
  command.summary = app.get_description();
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty()) continue;
    Argument argument;
    argument.description = option->get_description();
    if (const std::string standard = option->get_default_str();
        !standard.empty() && !is_flag(*option))
      argument.description += fmt::format(" (default: {})", standard);
    if (option->get_required()) argument.description += " (required)";
    argument.group = option->get_group();
    argument.repeats = option->get_expected_max() > 1;
    if (!is_flag(*option)) {
      argument.placeholder = placeholder_of(*option);
      const bool directory = argument.placeholder == "DIR";
      const bool file = argument.placeholder == "FILE" || argument.placeholder == "PREFIX";
      argument.values = directory                     ? Values::kDirectories
                        : file                        ? Values::kFiles
                        : argument.placeholder == "N" ? Values::kNone
                                                      : Values::kAnything;
      argument.words = words_of(*option);
      for (const auto& [offered, words] : offers_) {
        if (offered == option) argument.words = words;
      }
      if (!argument.words.empty()) argument.values = Values::kWords;
    }
    if (option->get_positional()) {
      argument.placeholder = option->get_name(true);
      argument.names = {argument.placeholder};
      command.positionals.push_back(std::move(argument));
      continue;
    }
    for (const std::string& name : option->get_lnames()) argument.names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) argument.names.push_back("-" + name);
    command.options.push_back(std::move(argument));
  }
  for (const CLI::App* inner : app.get_subcommands([](const CLI::App*) { return true; })) {
    command.commands.push_back(describe(*inner));
  }
  return command;
}

std::string CommandLine::explain(const CLI::ParseError& error) const {
  const CLI::App& command = chosen(app_);
  const std::string name =
      &command == &app_ ? manual_.name : manual_.name + " " + command.get_name();
  const std::string see = fmt::format("see {} --help", manual_.name);
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const std::vector<std::string> extras = app_.remaining(true);
    const std::string& extra = extras.front();
    if (!extra.starts_with('-')) {
      return fmt::format(
          "unexpected argument '{}': {} takes no further ones; values follow their "
          "option, as in --option value; {}",
          extra,
          name,
          see);
    }
    const std::string option = extra.substr(0, extra.find('='));
    std::vector<std::string> names = long_names(command);
    if (&command != &app_ && command.get_fallthrough()) {
      for (std::string& more : long_names(app_)) names.push_back(std::move(more));
    }
    return fmt::format("unknown option '{}' of {}; the nearest is {}; {}",
                       option,
                       name,
                       nearest_name(option, names),
                       see);
  }
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    const CLI::Option* option = missing_option(command);
    if (option == nullptr) option = missing_option(app_);  // one that every command needs
    if (option != nullptr) {
      const std::string shown = option->get_name(true).empty()
                                    ? option->get_name(false) + " " + placeholder_of(*option)
                                    : option->get_name(true);
      return fmt::format("{} needs {}: {}; {}", name, shown, option->get_description(), see);
    }
    std::vector<std::string> names;
    for (const CLI::App* inner : app_.get_subcommands([](const CLI::App*) { return true; }))
      names.push_back(inner->get_name());
    return fmt::format("{} needs a command; use {}; {}", name, fmt::join(names, ", "), see);
  }
  if (dynamic_cast<const CLI::ExcludesError*>(&error) != nullptr) {
    return fmt::format("{}: only one of the two can hold, so give one; {}", error.what(), see);
  }
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
    const std::string what = error.what();
    if (what.find("At Most") != std::string::npos || what.find("at most") != std::string::npos) {
      return fmt::format("{} is given several times, but one value can hold; give it once; {}",
                         what.substr(0, what.find(':')),
                         see);
    }
    return fmt::format(
        "{} lacks its value; write it behind the option; {}", what.substr(0, what.find(':')), see);
  }
  return fmt::format("{}; {}", error.what(), see);
}

std::optional<int> CommandLine::parse(int argc, const char* const* argv) {
  // Without other arguments: what is required for work is not for these.
  if (argc >= 2 &&
      (std::string(argv[1]).starts_with("--completion") || std::string(argv[1]) == "--man-page")) {
    for (CLI::Option* option : app_.get_options()) option->required(false);
    app_.require_subcommand(0);
  }
  try {
    app_.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    if (is_first_rank()) std::cout << to_text(manual_, describe(app_));
    return int(ExitCode::kDone);
  } catch (const CLI::CallForVersion& version) {
    if (is_first_rank()) std::cout << version.what() << "\n";
    return int(ExitCode::kDone);
  } catch (const CLI::ParseError& error) {
    // Every rank has the same arguments: the first one speaks.
    if (is_first_rank()) std::cerr << manual_.name << ": " << explain(error) << std::endl;
    return int(ExitCode::kUsage);
  }
  if (shell_.empty() && !man_page_) return std::nullopt;
  const Command program = describe(app_);
  std::cout << (man_page_          ? to_man_page(manual_, program)
                : shell_ == "bash" ? bash_completion(program)
                                   : zsh_completion(program));
  return int(ExitCode::kDone);
}

void ConfigArguments::add_to(CommandLine& line,
                             CLI::App& command,
                             const std::vector<std::string>& keys) {
  command.add_option("--config", files, "YAML file; several are merged left to right")
      ->required()
      ->type_name("FILE")
      ->take_all()
      ->allow_extra_args(false)
      ->group("Configuration");
  CLI::Option* set =
      command.add_option("--set", settings, "a value over those of the files, several in order")
          ->type_name("KEY=VALUE")
          ->take_all()
          ->allow_extra_args(false)
          ->group("Configuration");
  std::vector<std::string> words;
  for (const std::string& key : keys) words.push_back(key + "=");
  line.offer(set, std::move(words));
}

bool is_first_rank() {
  // Before MPI_Init this variable of Open MPI is the only sign.
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  return rank == nullptr || std::string_view(rank) == "0";
}

int run_program(const std::string& name, const std::function<int()>& body) noexcept {
  int code = int(ExitCode::kInternal);
  std::string message;
  try {
    code = body();
  } catch (const Error& error) {
    code = int(error.exit_code());
    message = error.what();
  } catch (const std::bad_alloc&) {
    message =
        "out of memory; free some, or choose smaller sizes (pecan-plan shows what a run needs)";
  } catch (const std::exception& error) {
    message = fmt::format("internal error: {}; please report it", error.what());
  }
  // What was asked for may have been the output itself.
  std::cout.flush();
  if (message.empty() && (!std::cout.good() || std::fflush(stdout) != 0)) {
    code = int(ExitCode::kInternal);
    message =
        "standard output did not take all that was written to it; check the disk or the "
        "program that reads it";
  }
  if (!message.empty()) std::cerr << name << ": " << message << std::endl;
  return code;
}

}  // namespace pecan::tools
