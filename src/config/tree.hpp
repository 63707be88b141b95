#pragma once
/// YAML as a plain tree that knows where each value was written, so that errors can say so after
/// merging.

#include <string>
#include <string_view>
#include <vector>

namespace pecan::config::detail {

struct Node {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string where;              ///< "run.yaml:12" or "--set model.num_layers=4"
  std::string scalar;             ///< kScalar, environment variables replaced
  std::vector<std::string> keys;  ///< kMap, parallel to items
  std::vector<Node> items;        ///< kMap and kList

  [[nodiscard]] const Node* find(std::string_view key) const;
};

/// Reads one YAML document whose root is a map (or empty). Throws ConfigError: malformed YAML,
/// several documents, duplicate or non-scalar keys, unset environment variables, unreasonable size
/// or depth.
[[nodiscard]] Node parse_tree(const std::string& yaml, const std::string& source);
/// The tree of one "key.path=value" setting; the value is YAML.
[[nodiscard]] Node parse_setting(const std::string& setting);
/// Puts `over` on top of `base`: maps are merged key by key, everything else is replaced; null
/// changes nothing.
void merge(Node& base, Node over);

}  // namespace pecan::config::detail
