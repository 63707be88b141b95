#pragma once
/// What this program was built from, written into every manifest and metrics header.

#include <string>

namespace pecan {

struct BuildInfo {
  std::string version;
  std::string
      git_id;  ///< commit, "-dirty" appended for local changes; "unknown" outside a checkout
  std::string compiler;
  std::string build_type;
};
[[nodiscard]] const BuildInfo& build_info();

}  // namespace pecan
