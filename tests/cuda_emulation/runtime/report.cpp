#include "report.hpp"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include <cxxabi.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <pecan_emulation/control.hpp>
#include <unistd.h>

namespace pecan::emulation {
namespace {

constexpr int kExitCodeOfFindings = 86;
constexpr std::size_t kPrintedFindings = 50;

// Never destroyed: findings may come from the destructors of other objects.
struct Findings {
  std::mutex mutex;
  std::vector<std::string> taken_by_nobody;
  std::set<std::pair<const void*, std::string_view>> places;
  std::size_t num_printed = 0;
  bool ends_process = false;
};
Findings& findings() {
  static auto* all = new Findings;
  return *all;
}

// A process must not look well when device code is wrong.
void end_with_findings() {
  std::size_t count = 0;
  {
    const std::scoped_lock lock(findings().mutex);
    count = findings().taken_by_nobody.size();
  }
  if (count == 0) return;
  std::fflush(nullptr);
  fmt::print(stderr, "cuda emulation: {} findings\n", count);
  _exit(kExitCodeOfFindings);
}

struct CodeNames {
  std::string function;
  std::string source;
};

CodeNames look_up(const void* code) {
  static std::mutex mutex;
  static auto* known = new std::map<const void*, CodeNames>;
  const std::scoped_lock lock(mutex);
  if (const auto found = known->find(code); found != known->end()) return found->second;
  CodeNames names{fmt::format("{}", code), fmt::format("{}", code)};
  Dl_info module;
  if (dladdr(code, &module) != 0) {
    const auto offset = static_cast<const char*>(code) - static_cast<const char*>(module.dli_fbase);
    const std::string command =
        fmt::format("addr2line -Cfse '{}' {:#x} 2>/dev/null", module.dli_fname, offset);
    if (FILE* output = popen(command.c_str(), "r")) {
      char line[4096];
      std::vector<std::string> lines;
      while (std::fgets(line, sizeof line, output) != nullptr) {
        std::string_view text = line;
        if (text.ends_with('\n')) text.remove_suffix(1);
        lines.emplace_back(text);
      }
      if (pclose(output) == 0 && lines.size() >= 2 && lines[0] != "??") {
        names.function = lines[0];
        names.source = lines[1].substr(0, lines[1].find(' '));
      }
    }
  }
  return known->emplace(code, std::move(names)).first->second;
}

}  // namespace

void report(const char* kind, std::string text) {
  std::string finding = fmt::format("{}: {}", kind, text);
  const std::scoped_lock lock(findings().mutex);
  if (!findings().ends_process) {
    findings().ends_process = true;
    std::atexit(end_with_findings);
  }
  if (++findings().num_printed <= kPrintedFindings) {
    fmt::print(stderr, "cuda emulation: {}\n", finding);
  }
  findings().taken_by_nobody.push_back(std::move(finding));
}

bool is_first_at(const void* where, const char* kind) {
  const std::scoped_lock lock(findings().mutex);
  return findings().places.emplace(where, kind).second;
}

std::vector<std::string> take_findings() {
  const std::scoped_lock lock(findings().mutex);
  findings().places.clear();
  return std::exchange(findings().taken_by_nobody, {});
}

std::string source_of(const void* code) {
  return code == nullptr ? "a call of the API" : look_up(static_cast<const char*>(code) - 1).source;
}

std::string kernel_name(const void* kernel) {
  std::string name = look_up(kernel).function;
  // A demangled template starts with its return type.
  if (name.starts_with("void ")) name.erase(0, 5);
  constexpr std::string_view kAnonymous = "(anonymous namespace)::";
  for (std::size_t at = name.find(kAnonymous); at != name.npos; at = name.find(kAnonymous)) {
    name.erase(at, kAnonymous.size());
  }
  // Parameters begin behind template arguments, of which one may be (Enumeration)0.
  int depth = 0;
  for (std::size_t at = 0; at < name.size(); ++at) {
    depth += int(name[at] == '<') - int(name[at] == '>');
    if (name[at] == '(' && depth == 0) return name.substr(0, at);
  }
  return name;
}

}  // namespace pecan::emulation
