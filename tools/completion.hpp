#pragma once
/// Shell completion, generated from the same definitions that the program parses with.

#include <string>

#include "manual.hpp"

namespace pecan::tools {

/// A script that bash sources: share/bash-completion/completions/<program>.
[[nodiscard]] std::string bash_completion(const Command& program);
/// A function file for zsh's $fpath: share/zsh/site-functions/_<program>.
[[nodiscard]] std::string zsh_completion(const Command& program);

}  // namespace pecan::tools
