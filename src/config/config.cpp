#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <type_traits>

#include <yaml-cpp/yaml.h>

#include <pecan/core/file_system.hpp>
#include <pecan/core/nearest.hpp>
#include <pecan/core/text.hpp>

#include <pecan/config/config.hpp>

#include "config/fields.hpp"
#include "config/tree.hpp"
#include "config/validate.hpp"

namespace pecan::config {
namespace detail {
namespace {

std::string join(const std::vector<std::string_view>& names, std::string_view last_separator) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    text += fmt::format("{}{}",
                        i == 0                  ? ""
                        : i + 1 == names.size() ? last_separator
                                                : ", ",
                        names[i]);
  }
  return text;
}

bool contains(const std::vector<std::string_view>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

template <typename Enum>
std::vector<std::string_view> names_of(const Named<Enum>& rule) {
  std::vector<std::string_view> names;
  for (const auto& [name, value] : rule.here) names.push_back(name);
  return names;
}

/// "at least 1", "above 0", "from 0 to 1 (excluded)".
std::string describe(const Range& range) {
  if (range.high == std::numeric_limits<double>::infinity()) {
    return fmt::format("{} {}", range.low_open ? "above" : "at least", range.low);
  }
  return fmt::format("{} {} to {}{}",
                     range.low_open ? "above" : "from",
                     static_cast<std::int64_t>(range.low),
                     static_cast<std::int64_t>(range.high),
                     range.high_open ? " (excluded)" : "");
}

// ---- Reading
// --------------------------------------------------------------------------------------------------------

/// All paths of the configuration, sections included.
class PathCollector {
 public:
  explicit PathCollector(std::string prefix = {}) : prefix_(std::move(prefix)) {}
  template <typename T, typename Rule>
  void operator()(std::string_view key, T&, const Rule&, std::string_view) {
    keys.push_back(prefix_ + std::string(key));
    paths.push_back(keys.back());
  }
  template <typename Section>
  void section(std::string_view key, Section& value) {
    const std::string path = prefix_ + std::string(key);
    paths.push_back(path);
    PathCollector inner(path + ".");
    visit(value, inner);
    paths.insert(paths.end(), inner.paths.begin(), inner.paths.end());
    keys.insert(keys.end(), inner.keys.begin(), inner.keys.end());
  }
  std::vector<std::string> paths;
  std::vector<std::string> keys;  ///< without sections

 private:
  std::string prefix_;
};

std::string_view last_part(std::string_view path) {
  return path.substr(path.rfind('.') + 1);
}

constexpr std::size_t kMaxComparedBytes = 200;

/// The known path nearest to an unknown one. The same key in another section is nearest, then a key
/// that contains it.
std::string nearest_path(std::string_view unknown) {
  Config config;
  PathCollector known;
  visit(config, known);
  // The distance of a key of a megabyte would take seconds, and is as good by its beginning.
  unknown = unknown.substr(0, kMaxComparedBytes);
  const std::string_view key = last_part(unknown);
  const auto distance = [&](const std::string& path) {
    const std::string_view known_key = last_part(path);
    const bool contained = known_key.find(key) != std::string_view::npos;
    return std::pair(contained ? std::size_t{known_key != key} : edit_distance(known_key, key),
                     edit_distance(path, unknown));
  };
  return *std::min_element(known.paths.begin(),
                           known.paths.end(),
                           [&](const auto& a, const auto& b) { return distance(a) < distance(b); });
}

/// Where a value stands and what it is called, for messages.
struct Place {
  const Node& node;
  std::string path;

  [[noreturn]] void fail(const std::string& what, const std::string& remedy) const {
    const std::string value = node.kind == Node::Kind::kScalar ? "=" + shortened(node.scalar) : "";
    throw ConfigError(fmt::format("{}: {}{} {}; {}", node.where, path, value, what, remedy));
  }
  const std::string& scalar(const std::string& expected) const {
    if (node.kind == Node::Kind::kNull)
      fail("has no value", "give " + expected + " or remove the key");
    if (node.kind != Node::Kind::kScalar) {
      fail(node.kind == Node::Kind::kMap ? "is a map" : "is a list", "give " + expected);
    }
    return node.scalar;
  }
};

void check(const Place& place, double value, const Range& range) {
  const bool low = range.low_open ? value > range.low : value >= range.low;
  const bool high = range.high_open ? value < range.high : value <= range.high;
  if (!low || !high) place.fail("is out of range", "use a number " + describe(range));
}

template <typename T>
void check(const Place& place, T value, const Only<T>& rule) {
  if (value != rule.value) {
    place.fail(fmt::format("is not supported in this version ({})", rule.instead),
               fmt::format("use {}", rule.value));
  }
}

template <typename T>
void check(const Place&, const T&, const Free&) {}

void check(const Place& place, const std::string& value, const Choice& rule) {
  if (contains(rule.here, value)) return;
  const std::string remedy = "use " + join(rule.here, " or ");
  place.fail(
      contains(rule.absent, value) ? "is not supported in this version" : "is not a known value",
      remedy);
}

template <typename Int>
Int parse_integer(const Place& place) {
  const std::string& text = place.scalar("an integer");
  Int value{};
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), value);
  if (error == std::errc::result_out_of_range) {
    place.fail("is too large",
               fmt::format("use at most {} in magnitude", std::numeric_limits<Int>::max()));
  }
  if (error != std::errc{} || end != text.data() + text.size())
    place.fail("is not an integer", "write digits only");
  return value;
}

template <typename Int, typename Rule>
requires std::is_integral_v<Int>
void read(const Place& place, Int& value, const Rule& rule) {
  value = parse_integer<Int>(place);
  if constexpr (std::is_same_v<Rule, Range>) {
    check(place, static_cast<double>(value), rule);
  } else {
    check(place, value, rule);
  }
}

template <typename Rule>
void read(const Place& place, double& value, const Rule& rule) {
  const std::string& text = place.scalar("a number");
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), value);
  const bool not_finite =
      contains({".inf", "-.inf", ".nan", ".Inf", "-.Inf", ".NaN", ".INF", "-.INF", ".NAN"}, text);
  if (not_finite || error == std::errc::result_out_of_range ||
      (error == std::errc{} && !std::isfinite(value))) {
    place.fail("is not a finite number", "use a number " + describe(rule));
  }
  if (error != std::errc{} || end != text.data() + text.size())
    place.fail("is not a number", "write it like 0.01 or 1e-2");
  check(place, value, rule);
}

template <typename Rule>
void read(const Place& place, bool& value, const Rule& rule) {
  const std::string& text = place.scalar("true or false");
  if (text != "true" && text != "false") place.fail("is not a truth value", "write true or false");
  value = text == "true";
  check(place, value, rule);
}

template <typename Rule>
void read(const Place& place, std::string& value, const Rule& rule) {
  value = place.scalar("a text");
  check(place, value, rule);
}

template <typename Enum>
void read(const Place& place, Enum& value, const Named<Enum>& rule) {
  check(place, place.scalar(join(names_of(rule), " or ")), Choice{names_of(rule), rule.absent});
  for (const auto& [name, named] : rule.here) {
    if (name == place.node.scalar) value = named;
  }
}

void read(const Place& place, std::vector<std::string>& value, const Choice& rule) {
  if (place.node.kind != Node::Kind::kList)
    place.fail("is not a list", "write it like [" + std::string(rule.here[0]) + "]");
  value.clear();
  for (const Node& item : place.node.items) {
    std::string& entry = value.emplace_back();
    const Place item_place{item, place.path};
    read(item_place, entry, rule);
    if (std::count(value.begin(), value.end(), entry) > 1)
      item_place.fail("is listed twice", "keep one");
  }
}

void read(const Place& place, std::vector<int>& value, const LayerPattern&) {
  if (place.node.kind != Node::Kind::kList) {
    value = {parse_integer<int>(place)};
    check(place, value[0], at_least(1));
    value[0] = -value[0];
    return;
  }
  value.clear();
  for (const Node& item : place.node.items)
    read(Place{item, place.path}, value.emplace_back(), from_to(0, 1));
  if (value.empty()) place.fail("is an empty list", "give an entry for each layer, or one number");
}

void read(const Place& place, std::vector<WeightedDataset>& value, const Blend&) {
  value.clear();
  if (place.node.kind != Node::Kind::kList) {
    const std::string& prefix = place.scalar("a path, or a list of weights and paths in turn");
    if (!prefix.empty()) value.push_back({1, prefix});
    return;
  }
  if (place.node.items.size() % 2 != 0 || place.node.items.empty()) {
    place.fail(fmt::format("is a list of {} entries", place.node.items.size()),
               "write weights and paths in turn, like [0.7, data/a, 0.3, data/b]");
  }
  for (std::size_t i = 0; i < place.node.items.size(); i += 2) {
    WeightedDataset& dataset = value.emplace_back();
    read(Place{place.node.items[i], place.path}, dataset.weight, above(0));
    dataset.prefix = Place{place.node.items[i + 1], place.path}.scalar("a path");
  }
}

void read(const Place& place, std::string& value, const Shares&) {
  if (place.node.kind == Node::Kind::kList) {
    place.fail("is a list", "write the shares as one text, like '99,1,0'");
  }
  value = place.scalar("three shares like '99,1,0'");
  if (value.empty()) return;
  double sum = 0;
  int count = 0;
  const char* at = value.data();
  const char* const end = at + value.size();
  for (bool more = true; more; ++count) {
    double share = 0;
    const auto [next, error] = std::from_chars(at, end, share);
    if (error != std::errc{} || !std::isfinite(share) || share < 0 ||
        (next != end && *next != ',')) {
      place.fail("is not a list of shares", "write numbers of at least 0, like '99,1,0'");
    }
    sum += share;
    more = next != end;
    at = more ? next + 1 : next;
  }
  if (count > 3) place.fail("has more than three shares", "give training, evaluation and test");
  if (!(sum > 0)) place.fail("gives nothing to anyone", "let one share be above 0");
}

void read(const Place& place, Interval& value, const Every&) {
  const std::string expected = "steps like 10, or seconds like 30s";
  const std::string& text = place.scalar(expected);
  value = {};
  if (text.ends_with('s')) {
    const auto [end, error] =
        std::from_chars(text.data(), text.data() + text.size() - 1, value.seconds);
    if (error != std::errc{} || end != text.data() + text.size() - 1 ||
        !std::isfinite(value.seconds) || value.seconds < 0) {
      place.fail("is no number of seconds", "give " + expected);
    }
    return;
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value.steps);
  if (error == std::errc::result_out_of_range) place.fail("is too large", "give " + expected);
  if (error != std::errc{} || end != text.data() + text.size() || value.steps < 0)
    place.fail("is no interval", "give " + expected + ", or 0 for never");
}

void read(const Place& place, std::vector<std::string>& value, const Texts&);
template <typename Section>
void read(const Place& place, std::vector<Section>& value, const Maps&);

/// Takes the values of one section from a map, and refuses keys that the section does not have.
class Reader {
 public:
  Reader(const Node& map, std::string path) : map_(map), path_(std::move(path)) {
    if (map_.kind == Node::Kind::kNull || map_.kind == Node::Kind::kMap) return;
    Place{map_, path_}.fail("is not a section", "put its keys, indented, on the lines below it");
  }
  template <typename T, typename Rule>
  void operator()(std::string_view key, T& value, const Rule& rule, std::string_view) {
    known_.push_back(key);
    if (const Node* node = map_.find(key)) read(Place{*node, path_of(key)}, value, rule);
  }
  template <typename Section>
  void section(std::string_view key, Section& value) {
    known_.push_back(key);
    if (const Node* node = map_.find(key)) {
      Reader inner(*node, path_of(key));
      visit(value, inner);
      inner.finish();
    }
  }
  void finish() const {
    for (std::size_t i = 0; i < map_.keys.size(); ++i) {
      if (contains(known_, map_.keys[i])) continue;
      const std::string path = path_of(map_.keys[i]);
      throw ConfigError(
          fmt::format("{}: unknown key {}; the nearest is {} (docs/configuration.md lists all)",
                      map_.items[i].where,
                      shortened(path),
                      nearest_path(path)));
    }
  }

 private:
  [[nodiscard]] std::string path_of(std::string_view key) const {
    return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
  }
  const Node& map_;
  std::string path_;
  std::vector<std::string_view> known_;
};

void read(const Place& place, std::vector<std::string>& value, const Texts&) {
  if (place.node.kind != Node::Kind::kList) place.fail("is not a list", "write it like [\"a text\"]");
  value.clear();
  for (const Node& item : place.node.items)
    value.push_back(Place{item, place.path}.scalar("a text"));
}

template <typename Section>
void read(const Place& place, std::vector<Section>& value, const Maps&) {
  if (place.node.kind != Node::Kind::kList)
    place.fail("is not a list", "write it like [{key: value}, {key: value}]");
  value.clear();
  for (std::size_t i = 0; i < place.node.items.size(); ++i) {
    Reader reader(place.node.items[i], fmt::format("{}[{}]", place.path, i));
    visit(value.emplace_back(), reader);
    reader.finish();
  }
}

Config read_tree(const Node& tree) {
  Config config = unresolved_defaults();
  Reader reader(tree, "");
  visit(config, reader);
  reader.finish();
  resolve(config);
  return config;
}

// ---- Writing
// --------------------------------------------------------------------------------------------------------

/// A value as YAML text that reads back as the same value.
template <typename T, typename Rule>
requires std::is_arithmetic_v<T> std::string to_text(T value, const Rule&) {
  return fmt::format("{}", value);
}

/// Protects "${", which reading would replace.
template <typename Rule>
std::string to_text(const std::string& value, const Rule&) {
  std::string text;
  for (std::size_t i = 0; i < value.size(); ++i) {
    if (value.compare(i, 2, "${") == 0) text += '$';
    text += value[i];
  }
  return text;
}

template <typename Enum>
std::string to_text(Enum value, const Named<Enum>& rule) {
  for (const auto& [name, named] : rule.here) {
    if (named == value) return std::string(name);
  }
  throw InternalError("an enumerator without a name in the configuration's tables");
}

std::string to_text(const Interval& value, const Every&) {
  return to_string(value);
}

class Writer {
 public:
  template <typename T, typename Rule>
  void operator()(std::string_view key, const T& value, const Rule& rule, std::string_view) {
    out_ << YAML::Key << std::string(key) << YAML::Value << to_text(value, rule);
  }
  template <typename T, typename Rule>
  void operator()(std::string_view key,
                  const std::vector<T>& value,
                  const Rule&,
                  std::string_view) {
    out_ << YAML::Key << std::string(key) << YAML::Value << YAML::Flow << value;
  }
  void operator()(std::string_view key,
                  const std::vector<WeightedDataset>& value,
                  const Blend&,
                  std::string_view) {
    out_ << YAML::Key << std::string(key) << YAML::Value;
    if (value.empty()) {
      out_ << "";
      return;
    }
    out_ << YAML::Flow << YAML::BeginSeq;
    for (const WeightedDataset& dataset : value)
      out_ << fmt::format("{}", dataset.weight) << to_text(dataset.prefix, Free{});
    out_ << YAML::EndSeq;
  }
  void operator()(std::string_view key,
                  const std::vector<std::string>& value,
                  const Texts&,
                  std::string_view) {
    out_ << YAML::Key << std::string(key) << YAML::Value << YAML::Flow << YAML::BeginSeq;
    for (const std::string& text : value) out_ << YAML::DoubleQuoted << to_text(text, Free{});
    out_ << YAML::EndSeq;
  }
  template <typename Section>
  void operator()(std::string_view key,
                  const std::vector<Section>& value,
                  const Maps&,
                  std::string_view) {
    out_ << YAML::Key << std::string(key) << YAML::Value << YAML::BeginSeq;
    for (Section section : value) {
      out_ << YAML::Flow;
      map(section);
    }
    out_ << YAML::EndSeq;
  }
  template <typename Section>
  void section(std::string_view key, Section& value) {
    out_ << YAML::Key << std::string(key) << YAML::Value;
    map(value);
  }
  template <typename Section>
  void map(Section& value) {
    out_ << YAML::BeginMap;
    visit(value, *this);
    out_ << YAML::EndMap;
  }
  [[nodiscard]] std::string text() const { return std::string(out_.c_str()) + "\n"; }

 private:
  YAML::Emitter out_;
};

// ---- Reference
// ------------------------------------------------------------------------------------------------------

template <typename T>
std::string allowed(const T&, const Range& rule) {
  return fmt::format("{} {}", std::is_floating_point_v<T> ? "number" : "integer", describe(rule));
}
template <typename T>
std::string allowed(const T&, const Only<T>& rule) {
  return fmt::format("`{}`", rule.value);
}
inline std::string allowed(bool, const Free&) {
  return "`true`, `false`";
}
inline std::string allowed(const std::string&, const Free&) {
  return "text";
}
std::string quoted(const std::vector<std::string_view>& names) {
  std::string text;
  for (const std::string_view name : names)
    text += fmt::format("{}`{}`", text.empty() ? "" : ", ", name);
  return text;
}
inline std::string allowed(const std::string&, const Choice& rule) {
  return quoted(rule.here);
}
inline std::string allowed(const std::vector<std::string>&, const Choice& rule) {
  return "list of " + quoted(rule.here);
}
inline std::string allowed(const std::string&, const Shares&) {
  return "numbers like `99,1,0`";
}
inline std::string allowed(const std::vector<WeightedDataset>&, const Blend&) {
  return "text, or list of weights and texts";
}
inline std::string allowed(const Interval&, const Every&) {
  return "integer at least 0, or seconds like `30s`";
}
inline std::string allowed(const std::vector<std::string>&, const Texts&) {
  return "list of texts";
}
template <typename Section>
std::string allowed(const std::vector<Section>&, const Maps&) {
  PathCollector known;
  Section section;
  visit(section, known);
  return "list of maps of " + quoted({known.keys.begin(), known.keys.end()});
}
inline std::string allowed(const std::vector<int>&, const LayerPattern&) {
  return "integer at least 1, or list of 0 and 1";
}
template <typename Enum>
std::string allowed(Enum, const Named<Enum>& rule) {
  return quoted(names_of(rule));
}

/// One Markdown table a section.
class Reference {
 public:
  template <typename T, typename Rule>
  void operator()(std::string_view key,
                  const T& value,
                  const Rule& rule,
                  std::string_view meaning) {
    row(key, allowed(value, rule), to_text(value, rule), meaning);
  }
  void operator()(std::string_view key,
                  const std::vector<int>& value,
                  const LayerPattern& rule,
                  std::string_view meaning) {
    row(key, allowed(value, rule), "1", meaning);
  }
  void operator()(std::string_view key,
                  const std::vector<std::string>& value,
                  const Choice& rule,
                  std::string_view meaning) {
    row(key, allowed(value, rule), "[]", meaning);
  }
  void operator()(std::string_view key,
                  const std::vector<std::string>& value,
                  const Texts& rule,
                  std::string_view meaning) {
    row(key, allowed(value, rule), "[]", meaning);
  }
  template <typename Section>
  void operator()(std::string_view key,
                  const std::vector<Section>& value,
                  const Maps& rule,
                  std::string_view meaning) {
    row(key, allowed(value, rule), "[]", meaning);
  }
  void operator()(std::string_view key,
                  const std::vector<WeightedDataset>& value,
                  const Blend& rule,
                  std::string_view meaning) {
    row(key, allowed(value, rule), "", meaning);
  }
  template <typename Section>
  void section(std::string_view key, Section& value) {
    const std::string outer =
        std::exchange(path_, path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key));
    text_ += fmt::format(
        "\n## {}\n\n| key | values | default | meaning |\n| --- | --- | --- | --- |\n", path_);
    visit(value, *this);
    path_ = outer;
  }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  void row(std::string_view key,
           const std::string& values,
           const std::string& standard,
           std::string_view meaning) {
    text_ += fmt::format("| `{}` | {} | {} | {} |\n",
                         key,
                         values,
                         standard.empty() ? "empty" : "`" + standard + "`",
                         meaning);
  }
  std::string path_;
  std::string text_;
};

}  // namespace
}  // namespace detail

Config load_config(std::span<const std::string> files, std::span<const std::string> settings) {
  detail::Node tree;
  tree.kind = detail::Node::Kind::kMap;
  const std::unique_ptr<FileSystem> file_system = make_posix_file_system();
  for (const std::string& file : files) {
    const Result<std::string> text = read_text(*file_system, file);
    PECAN_VALIDATE(text.ok(),
                   ConfigError,
                   "the configuration cannot be read: {}; check the path given to --config",
                   text.status().message);
    detail::merge(tree, detail::parse_tree(text.value(), file));
  }
  for (const std::string& setting : settings) detail::merge(tree, detail::parse_setting(setting));
  return detail::read_tree(tree);
}

Config parse_config(std::string_view yaml, std::span<const std::string> settings) {
  detail::Node tree;
  tree.kind = detail::Node::Kind::kMap;
  detail::merge(tree, detail::parse_tree(std::string(yaml), "yaml"));
  for (const std::string& setting : settings) detail::merge(tree, detail::parse_setting(setting));
  return detail::read_tree(tree);
}

std::string to_string(const Interval& interval) {
  return interval.seconds > 0 ? fmt::format("{}s", interval.seconds)
                              : fmt::format("{}", interval.steps);
}

std::string dump_config(const Config& config) {
  Config copy = config;
  detail::Writer writer;
  writer.map(copy);
  return writer.text();
}

std::vector<std::string> config_keys() {
  Config config;
  detail::PathCollector known;
  detail::visit(config, known);
  return known.keys;
}

std::string config_reference() {
  Config defaults = detail::unresolved_defaults();
  detail::Reference reference;
  detail::visit(defaults, reference);
  return reference.text();
}

}  // namespace pecan::config
