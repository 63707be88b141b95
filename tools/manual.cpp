#include "manual.hpp"

#include <algorithm>
#include <cctype>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace pecan::tools {
namespace {

constexpr std::size_t kColumns = 80;
constexpr std::size_t kIndent = 4;

/// Receives a manual piece by piece.
class Renderer {
 public:
  Renderer() = default;
  Renderer(const Renderer&) = delete;
  Renderer& operator=(const Renderer&) = delete;
  virtual ~Renderer() = default;
  virtual void section(std::string_view title) = 0;
  virtual void subsection(std::string_view title) = 0;
  virtual void paragraph(std::string_view text) = 0;
  virtual void verbatim(const std::vector<std::string>& lines) = 0;
  virtual void item(std::string_view term, std::string_view text) = 0;
  [[nodiscard]] const std::string& text() const { return text_; }

 protected:
  std::string text_;
};

class TextRenderer final : public Renderer {
 public:
  void section(std::string_view title) override {
    text_ += fmt::format("{}{}\n", text_.empty() ? "" : "\n", title);
    first_ = true;
  }
  void subsection(std::string_view title) override {
    separate();
    text_ += fmt::format("  {}:\n", title);
    first_ = true;
  }
  void paragraph(std::string_view text) override {
    separate();
    wrap(text, kIndent);
  }
  void verbatim(const std::vector<std::string>& lines) override {
    separate();
    for (const std::string& line : lines) text_ += fmt::format("{:{}}{}\n", "", kIndent, line);
  }
  void item(std::string_view term, std::string_view text) override {
    text_ += fmt::format("{:{}}{}\n", "", kIndent, term);
    wrap(text, 3 * kIndent);
    first_ = false;
  }

 private:
  void separate() {
    if (!first_) text_ += '\n';
    first_ = false;
  }

  void wrap(std::string_view text, std::size_t indent) {
    std::size_t column = 0;
    while (!text.empty()) {
      const std::string_view word = text.substr(0, text.find(' '));
      text.remove_prefix(std::min(word.size() + 1, text.size()));
      if (word.empty()) continue;
      if (column > 0 && column + 1 + word.size() > kColumns) {
        text_ += '\n';
        column = 0;
      }
      text_ += fmt::format("{:{}}{}", "", column == 0 ? indent : 1, word);
      column += (column == 0 ? indent : 1) + word.size();
    }
    text_ += '\n';
  }

  bool first_ = true;
};

class ManRenderer final : public Renderer {
 public:
  explicit ManRenderer(const Manual& manual) {
    std::string title = manual.name;
    std::ranges::transform(title, title.begin(), [](unsigned char c) { return std::toupper(c); });
    text_ = fmt::format(".TH {} 1 \"\" \"pecan {}\" \"Pecan\"\n", title, manual.version);
  }
  void section(std::string_view title) override { text_ += fmt::format(".SH {}\n", title); }
  void subsection(std::string_view title) override { text_ += fmt::format(".SS {}\n", title); }
  void paragraph(std::string_view text) override { text_ += fmt::format(".PP\n{}\n", roff(text)); }
  void verbatim(const std::vector<std::string>& lines) override {
    text_ += ".PP\n.nf\n";
    for (const std::string& line : lines) text_ += roff(line) + "\n";
    text_ += ".fi\n";
  }
  void item(std::string_view term, std::string_view text) override {
    text_ += fmt::format(".TP\n\\fB{}\\fR\n{}\n", roff(term), roff(text));
  }

 private:
  static std::string roff(std::string_view text) {
    // A dot or a quote at the start of a line would be a command.
    std::string result = text.starts_with('.') || text.starts_with('\'') ? "\\&" : "";
    for (const char c : text) {
      if (c == '\\') {
        result += "\\e";
      } else if (c == '-') {
        result += "\\-";
      } else {
        result += c;
      }
    }
    return result;
  }
};

std::string term_of(const Argument& argument) {
  std::string term = fmt::format("{}", fmt::join(argument.names, ", "));
  if (!argument.placeholder.empty() && argument.placeholder != term)
    term += " " + argument.placeholder;
  return argument.repeats ? term + " ..." : term;
}

/// Groups in the order of their first option.
void render_options(const std::vector<Argument>& options, Renderer& out) {
  std::vector<std::string> groups;
  for (const Argument& option : options) {
    if (std::ranges::count(groups, option.group) == 0) groups.push_back(option.group);
  }
  for (const std::string& group : groups) {
    if (groups.size() > 1) out.subsection(group);
    for (const Argument& option : options) {
      if (option.group == group) out.item(term_of(option), option.description);
    }
  }
}

void render_entries(std::string_view title, const std::vector<Entry>& entries, Renderer& out) {
  if (entries.empty()) return;
  out.section(title);
  for (const Entry& entry : entries) out.item(entry.term, entry.text);
}

void render(const Manual& manual, const Command& program, Renderer& out) {
  out.section("NAME");
  out.paragraph(fmt::format("{} - {}", manual.name, manual.summary));
  out.section("SYNOPSIS");
  out.verbatim(manual.synopsis);
  out.section("DESCRIPTION");
  for (const std::string& paragraph : manual.description) out.paragraph(paragraph);
  if (!program.commands.empty()) {
    out.section("COMMANDS");
    for (const Command& command : program.commands) out.item(command.name, command.summary);
  }
  if (!program.positionals.empty()) {
    out.section("ARGUMENTS");
    for (const Argument& argument : program.positionals)
      out.item(term_of(argument), argument.description);
  }
  for (const Command& command : program.commands) {
    out.section(fmt::format("OPTIONS OF {}", command.name));
    for (const Argument& argument : command.positionals)
      out.item(term_of(argument), argument.description);
    render_options(command.options, out);
  }
  out.section(program.commands.empty() ? "OPTIONS" : "OPTIONS OF EVERY COMMAND");
  render_options(program.options, out);
  if (!manual.exit_codes.empty()) {
    out.section("EXIT CODES");
    for (const ExitCode code : manual.exit_codes)
      out.item(std::to_string(int(code)), meaning_of(code));
  }
  render_entries("ENVIRONMENT", manual.environment, out);
  render_entries("FILES", manual.files, out);
  if (!manual.examples.empty()) {
    out.section("EXAMPLES");
    for (const Entry& example : manual.examples) {
      out.paragraph(example.term + ":");
      out.verbatim({"    " + example.text});
    }
  }
  if (!manual.see_also.empty()) {
    out.section("SEE ALSO");
    out.paragraph(fmt::format("{}", fmt::join(manual.see_also, ", ")));
  }
}

}  // namespace

std::vector<ExitCode> exit_codes_of_runs() {
  using enum ExitCode;
  return {kDone, kUsage, kData, kCheckpoint, kWatchdog, kDivergence, kInternal, kStoppedOnRequest};
}

Entry variables_of_configuration(std::string_view more) {
  return {"any NAME", fmt::format("replaces ${{NAME}} in a value of the configuration{}", more)};
}

std::string_view meaning_of(ExitCode code) {
  switch (code) {
    case ExitCode::kDone:
      return "done";
    case ExitCode::kUsage:
      return "wrong usage or configuration; the message says what to change";
    case ExitCode::kData:
      return "a corpus, token file or tokenizer cannot be used";
    case ExitCode::kCheckpoint:
      return "a checkpoint or run directory cannot be written, read or recovered from";
    case ExitCode::kWatchdog:
      return "a peer is stuck or lost; the message names it";
    case ExitCode::kDivergence:
      return "numerical divergence: a loss, gradient or weight that is not to be believed";
    case ExitCode::kInternal:
      return "internal error, or standard output cannot be written";
    case ExitCode::kStoppedOnRequest:
      return "stopped on request, and resumable";
  }
  throw InternalError(fmt::format("{} is no exit code", int(code)));
}

std::string to_text(const Manual& manual, const Command& program) {
  TextRenderer out;
  render(manual, program, out);
  return out.text();
}

std::string to_man_page(const Manual& manual, const Command& program) {
  ManRenderer out(manual);
  render(manual, program, out);
  return out.text();
}

}  // namespace pecan::tools
