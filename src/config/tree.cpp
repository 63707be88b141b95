#include "config/tree.hpp"

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <pecan/core/error.hpp>
#include <pecan/core/text.hpp>

namespace pecan::config::detail {
namespace {

// Aliases may repeat or contain themselves: a few lines can stand for any number of nodes.
constexpr int kMaxNodes = 100'000;
constexpr int kMaxDepth = 32;

/// Replaces ${NAME} by the environment variable; "$${" stands for a literal "${".
std::string interpolate(std::string_view text, const std::string& where) {
  std::string result;
  while (!text.empty()) {
    if (text.starts_with("$${")) {
      result += "${";
      text.remove_prefix(3);
    } else if (text.starts_with("${")) {
      const std::size_t end = text.find('}');
      PECAN_VALIDATE(
          end != std::string_view::npos && end > 2,
          ConfigError,
          "{}: \"{}\" is not an environment variable; write ${{NAME}}, or $${{ for a literal ${{",
          where,
          shortened(text));
      const std::string name(text.substr(2, end - 2));
      const char* value = std::getenv(name.c_str());
      PECAN_VALIDATE(value != nullptr,
                     ConfigError,
                     "{}: environment variable {} is not set, but a value refers to ${{{}}}; set "
                     "it, or write the "
                     "value itself",
                     where,
                     shortened(name),
                     shortened(name));
      PECAN_VALIDATE(
          !find_invalid_utf8(value),
          ConfigError,
          "{}: environment variable {} is not UTF-8 text, as all values must be, so that "
          "the configuration can be written down; give it another value",
          where,
          name);
      result += value;
      text.remove_prefix(end + 1);
    } else {
      result += text.front();
      text.remove_prefix(1);
    }
  }
  return result;
}

/// Turns YAML nodes of one source into ours.
class Converter {
 public:
  Converter(std::string source, bool with_lines)
      : source_(std::move(source)), with_lines_(with_lines) {}

  Node convert(const YAML::Node& yaml, const std::string& where, int depth = 0) {
    ++num_nodes_;
    PECAN_VALIDATE(num_nodes_ <= kMaxNodes && depth <= kMaxDepth,
                   ConfigError,
                   "{}: the configuration is larger than {} values or deeper than {} levels, as "
                   "aliases that repeat "
                   "or contain themselves make it; write the values out",
                   where,
                   kMaxNodes,
                   kMaxDepth);
    Node node;
    node.where = where;
    if (yaml.IsScalar()) {
      node.kind = Node::Kind::kScalar;
      // Paths would end there, unseen.
      PECAN_VALIDATE(
          yaml.Scalar().find('\0') == std::string::npos,
          ConfigError,
          "{}: a value holds the character \"\\0\", which no path or name can; remove it",
          where);
      node.scalar = interpolate(yaml.Scalar(), where);
    } else if (yaml.IsSequence()) {
      node.kind = Node::Kind::kList;
      for (const YAML::Node& item : yaml) node.items.push_back(convert(item, where, depth + 1));
    } else if (yaml.IsMap()) {
      node.kind = Node::Kind::kMap;
      for (const auto& entry : yaml) {
        const YAML::Node& key = entry.first;
        const std::string key_where = locate(key);
        PECAN_VALIDATE(key.IsScalar(),
                       ConfigError,
                       "{}: a key is a list or a map; keys are plain names",
                       key_where);
        PECAN_VALIDATE(node.find(key.Scalar()) == nullptr,
                       ConfigError,
                       "{}: key {} is given twice in the same section (first at {}); keep one",
                       key_where,
                       shortened(key.Scalar()),
                       node.find(key.Scalar())->where);
        node.keys.push_back(key.Scalar());
        node.items.push_back(convert(entry.second, key_where, depth + 1));
      }
    }
    return node;
  }

  [[nodiscard]] std::string locate(const YAML::Node& yaml) const {
    return with_lines_ ? fmt::format("{}:{}", source_, yaml.Mark().line + 1) : source_;
  }

 private:
  std::string source_;
  bool with_lines_;
  int num_nodes_ = 0;
};

/// yaml-cpp replaces what is not UTF-8 when it writes, and stops reading at a NUL.
void validate_text(std::string_view yaml, const std::string& source) {
  const std::size_t bad = std::min(find_invalid_utf8(yaml).value_or(yaml.size()), yaml.find('\0'));
  PECAN_VALIDATE(
      bad >= yaml.size(),
      ConfigError,
      "{}:{}: byte {} is {:#04x}, which is not UTF-8 text; save the configuration as UTF-8",
      source,
      1 + std::ranges::count(yaml.substr(0, bad), '\n'),
      bad,
      static_cast<unsigned char>(yaml[bad]));
}

/// Counts documents. yaml-cpp leaves a ',', ']' or '}' where none can be in its input and takes it
/// for one more empty document, for ever.
class DocumentCounter final : public YAML::EventHandler {
 public:
  int num_documents = 0;

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (num_documents > 0 && mark.pos == last_.pos)
      throw YAML::ParserException(mark, "a ',', ']' or '}' without its beginning");
    last_ = mark;
    ++num_documents;
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& /*mark*/, YAML::anchor_t /*anchor*/) override {}
  void OnAlias(const YAML::Mark& /*mark*/, YAML::anchor_t /*anchor*/) override {}
  void OnScalar(const YAML::Mark& /*mark*/,
                const std::string& /*tag*/,
                YAML::anchor_t /*anchor*/,
                const std::string& /*value*/) override {}
  void OnSequenceStart(const YAML::Mark& /*mark*/,
                       const std::string& /*tag*/,
                       YAML::anchor_t /*anchor*/,
                       YAML::EmitterStyle::value /*style*/) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark& /*mark*/,
                  const std::string& /*tag*/,
                  YAML::anchor_t /*anchor*/,
                  YAML::EmitterStyle::value /*style*/) override {}
  void OnMapEnd() override {}

 private:
  YAML::Mark last_;
};

/// The only document of a text; none if there is no text.
std::optional<YAML::Node> load(const std::string& yaml, const std::string& source) {
  validate_text(yaml, source);
  // yaml-cpp takes a quoted text that is never closed for whole if a line break ends the input.
  const std::string trimmed = yaml.substr(0, yaml.find_last_not_of(" \t\r\n") + 1);
  try {
    std::istringstream stream(trimmed);
    YAML::Parser parser(stream);
    DocumentCounter counter;
    while (parser.HandleNextDocument(counter)) {
    }
    PECAN_VALIDATE(counter.num_documents <= 1,
                   ConfigError,
                   "{}: holds {} YAML documents, of which only one can be meant; remove the '---' "
                   "lines or split the file",
                   source,
                   counter.num_documents);
    if (counter.num_documents == 0) return std::nullopt;
    return YAML::Load(trimmed);
  } catch (const YAML::Exception& e) {
    throw ConfigError(
        fmt::format("{}:{}:{}: malformed YAML: {}; correct the syntax there (often indentation or "
                    "a missing quote)",
                    source,
                    e.mark.line + 1,
                    e.mark.column + 1,
                    e.msg));
  }
}

}  // namespace

const Node* Node::find(std::string_view key) const {
  const auto it = std::find(keys.begin(), keys.end(), key);
  return it == keys.end() ? nullptr : &items[static_cast<std::size_t>(it - keys.begin())];
}

Node parse_tree(const std::string& yaml, const std::string& source) {
  const std::optional<YAML::Node> root = load(yaml, source);
  if (!root || root->IsNull()) return {};
  Converter converter(source, true);
  PECAN_VALIDATE(
      root->IsMap(),
      ConfigError,
      "{}: the configuration is not a map of sections; start with a line such as \"model:\"",
      converter.locate(*root));
  return converter.convert(*root, source);
}

Node parse_setting(const std::string& setting) {
  const std::string where = "--set " + shortened(setting);
  const std::size_t equals = setting.find('=');
  PECAN_VALIDATE(
      equals != std::string::npos && equals > 0,
      ConfigError,
      "{}: not of the form key.path=value; write for example --set training.train_iters=100",
      where);
  const std::optional<YAML::Node> value = load(setting.substr(equals + 1), where);
  Node node;
  node.where = where;
  PECAN_VALIDATE(value && !value->IsNull(),
                 ConfigError,
                 "{}: {} has no value, so nothing would be set; give one ('' for an empty text) or "
                 "leave the setting out",
                 where,
                 shortened(std::string_view(setting).substr(0, equals)));
  node = Converter(where, false).convert(*value, where);

  std::string_view path = std::string_view(setting).substr(0, equals);
  PECAN_VALIDATE(std::ranges::count(path, '.') < kMaxDepth,
                 ConfigError,
                 "{}: a path of more than {} parts, but no key lies that deep; write for example "
                 "--set training.train_iters=100",
                 where,
                 kMaxDepth);
  while (true) {
    const std::size_t dot = path.rfind('.');
    Node parent;
    parent.kind = Node::Kind::kMap;
    parent.where = where;
    parent.keys.emplace_back(dot == std::string_view::npos ? path : path.substr(dot + 1));
    parent.items.push_back(std::move(node));
    node = std::move(parent);
    if (dot == std::string_view::npos) return node;
    path = path.substr(0, dot);
  }
}

void merge(Node& base, Node over) {
  if (over.kind == Node::Kind::kMap && base.kind == Node::Kind::kMap) {
    for (std::size_t i = 0; i < over.keys.size(); ++i) {
      const auto it = std::find(base.keys.begin(), base.keys.end(), over.keys[i]);
      if (it == base.keys.end()) {
        base.keys.push_back(std::move(over.keys[i]));
        base.items.push_back(std::move(over.items[i]));
      } else {
        merge(base.items[static_cast<std::size_t>(it - base.keys.begin())],
              std::move(over.items[i]));
      }
    }
  } else if (over.kind != Node::Kind::kNull) {
    base = std::move(over);
  }
}

}  // namespace pecan::config::detail
