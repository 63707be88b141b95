#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include <nlohmann/json.hpp>

#include <pecan/core/hash.hpp>
#include <pecan/core/text.hpp>

#include <pecan/checkpoint/manifest.hpp>

namespace pecan::checkpoint {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kManifestFormat = "pecan-manifest";
/// Lists and objects inside each other; ours need eight, and the trainer's object a few.
constexpr int kMaxDepth = 64;
constexpr std::string_view kRankIndexFormat = "pecan-rank-index";

// The document ends in this, and the checksum covers every byte before it: no bit of the text is
// unguarded.
constexpr std::string_view kSealBegin = ",\"xxh3\":\"";
constexpr std::size_t kHashDigits = 16;
constexpr std::string_view kSealEnd = "\"}\n";

std::string seal(const Json& document) {
  std::string text = document.dump();
  text.pop_back();
  const std::string hash = to_hex(xxh3(text));
  return text.append(kSealBegin).append(hash).append(kSealEnd);
}

/// The sealed text's body if the seal is intact.
std::optional<std::string_view> unseal(std::string_view text) {
  const std::size_t seal_size = kSealBegin.size() + kHashDigits + kSealEnd.size();
  if (text.size() < seal_size) return {};
  const std::string_view body = text.substr(0, text.size() - seal_size);
  const std::string expected = fmt::format("{}{}{}", kSealBegin, to_hex(xxh3(body)), kSealEnd);
  if (text.substr(body.size()) != expected) return {};
  return body;
}

std::string_view kind_name(FileKind kind) {
  return kind == FileKind::kState ? "state" : "experts";
}

// ---- writing

Json to_array(const Shape& shape) {
  return Json(shape.extents());
}

Json json_of(Version version) {
  return Json::array({version.incarnation.value, version.step.value});
}

Json json_of(const std::vector<FileEntry>& files) {
  Json list = Json::array();
  for (const FileEntry& file : files) {
    list.push_back(Json{{"name", file.name},
                        {"kind", kind_name(file.kind)},
                        {"writer", file.writer.value},
                        {"bytes", file.digest.num_bytes},
                        {"xxh3", to_hex(file.digest.xxh3)}});
  }
  return list;
}

bool same_item(const BlockEntry& a, const BlockEntry& b) {
  const auto key = [](const BlockEntry& entry) {
    const ShardBlock& block = entry.block;
    return std::tie(
        entry.unit, entry.group, block.dtype, block.dataset, block.item, block.global_shape);
  };
  return key(a) == key(b);
}

/// Blocks of one item in a row share its description: [name, dataset, dtype, unit, group, shape,
/// [blocks]].
Json json_of(const std::vector<BlockEntry>& entries, Version version) {
  Json items = Json::array();
  const BlockEntry* previous = nullptr;
  for (const BlockEntry& entry : entries) {
    const ShardBlock& block = entry.block;
    PECAN_VALIDATE(block.step == version.step,
                   InternalError,
                   "block {} of step {} is listed as written at step {}",
                   block.dataset_path(),
                   block.step,
                   version.step);
    if (previous == nullptr || !same_item(*previous, entry)) {
      items.push_back(Json::array({block.item,
                                   block.dataset,
                                   name_of(block.dtype),
                                   entry.unit.value,
                                   name_of(entry.group),
                                   to_array(block.global_shape),
                                   Json::array()}));
    }
    Json part = Json::array({entry.file, to_hex(block.xxh3)});
    if (block.block != Block::whole(block.global_shape)) {
      part.push_back(to_array(block.block.offset));
      part.push_back(to_array(block.block.extent));
    }
    items.back().back().push_back(std::move(part));
    previous = &entry;
  }
  return items;
}

// ---- reading

struct Malformed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A value and the way to it, for messages. Parents outlive their children.
class Node {
 public:
  explicit Node(const Json& root) : json_(root) {}

  [[nodiscard]] Node operator[](const char* key) const {
    if (!json_.is_object()) fail("is no object");
    const auto it = json_.find(key);
    if (it == json_.end()) fail(fmt::format("has no \"{}\"", key));
    return {*it, this, key, 0};
  }
  [[nodiscard]] Node operator[](std::size_t index) const {
    if (index >= size()) fail(fmt::format("has no element {}", index));
    return {json_[index], this, nullptr, index};
  }
  [[nodiscard]] bool has(const char* key) const { return json_.is_object() && json_.contains(key); }
  [[nodiscard]] std::size_t size() const {
    if (!json_.is_array()) fail("is no list");
    return json_.size();
  }
  [[nodiscard]] std::string string() const {
    if (!json_.is_string()) fail("is no string");
    return json_.get<std::string>();
  }
  [[nodiscard]] bool boolean() const {
    if (!json_.is_boolean()) fail("is neither true nor false");
    return json_.get<bool>();
  }
  /// An integer in [0, limit].
  template <typename Int>
  [[nodiscard]] Int number(Int limit = std::numeric_limits<Int>::max()) const {
    if (!json_.is_number_unsigned() || json_.get<std::uint64_t>() > std::uint64_t(limit)) {
      fail(fmt::format("is no integer from 0 to {}", limit));
    }
    return json_.get<Int>();
  }
  /// A finite number that is not negative.
  [[nodiscard]] double real() const {
    const double value = json_.is_number() ? json_.get<double>() : -1;
    if (!std::isfinite(value) || value < 0) fail("is no number of at least 0");
    return value;
  }
  [[nodiscard]] std::uint64_t hash() const {
    return translate([&] { return from_hex(string()); });
  }
  [[nodiscard]] Shape shape() const {
    if (size() > std::size_t(kMaxDims)) fail(fmt::format("has more than {} dims", kMaxDims));
    std::array<std::int64_t, kMaxDims> extents{};
    for (std::size_t dim = 0; dim < size(); ++dim)
      extents[dim] = (*this)[dim].number<std::int64_t>();
    const Shape shape(std::span<const std::int64_t>(extents).first(size()));
    static_cast<void>(translate([&] { return shape.num_elements(); }));  // countable
    return shape;
  }
  /// The text of an object.
  [[nodiscard]] std::string object_text() const {
    if (!json_.is_object()) fail("is no object");
    return json_.dump();
  }
  /// Runs `body`, whose errors are about this value.
  template <typename Body>
  auto translate(Body body) const -> decltype(body()) {
    try {
      return body();
    } catch (const Error& error) {
      fail(error.what());
    }
  }
  [[noreturn]] void fail(const std::string& why) const {
    throw Malformed(fmt::format("{} {}", path(), why));
  }

 private:
  Node(const Json& json, const Node* parent, const char* key, std::size_t index)
      : json_(json), parent_(parent), key_(key), index_(index) {}
  [[nodiscard]] std::string path() const {
    if (parent_ == nullptr) return "$";
    return parent_->path() +
           (key_ != nullptr ? fmt::format(".{}", key_) : fmt::format("[{}]", index_));
  }

  const Json& json_;
  const Node* parent_ = nullptr;
  const char* key_ = nullptr;
  std::size_t index_ = 0;
};

template <typename Element>
auto list_of(const Node& list, Element element) {
  std::vector<decltype(element(std::declval<const Node&>()))> elements;
  elements.reserve(list.size());
  for (std::size_t i = 0; i < list.size(); ++i) elements.push_back(element(list[i]));
  return elements;
}

/// A name that is one part of a path.
std::string name_at(const Node& node) {
  std::string name = node.string();
  if (name.empty() || name == "." || name == ".." ||
      name.find_first_of(std::string_view("/\0", 2)) != std::string::npos) {
    node.fail(fmt::format("is \"{}\", which is no name", shortened(name)));
  }
  return name;
}

Version version_at(const Node& node) {
  return {Incarnation(node[std::size_t(0)].number<std::int32_t>()),
          Step(node[1].number<std::int64_t>())};
}

RoleGroup group_at(const Node& node) {
  return node.translate([&] { return role_group_from_name(node.string()); });
}

UnitIndex unit_at(const Node& node, std::size_t num_units) {
  if (num_units == 0) node.fail("is a unit, but none are listed");
  return UnitIndex(node.number(std::int32_t(num_units - 1)));
}

std::vector<FileEntry> files_at(const Node& node, int world_size) {
  std::set<std::string> names;
  return list_of(node, [&](const Node& entry) {
    FileEntry file;
    file.name = name_at(entry["name"]);
    if (!names.insert(file.name).second)
      entry.fail(fmt::format("repeats the file {}", shortened(file.name)));
    const Node kind = entry["kind"];
    file.kind =
        kind.string() == kind_name(FileKind::kState) ? FileKind::kState : FileKind::kExperts;
    if (kind.string() != kind_name(file.kind)) kind.fail("is neither \"state\" nor \"experts\"");
    file.writer = Rank(entry["writer"].number(std::int32_t(world_size - 1)));
    file.digest = {entry["bytes"].number<std::uint64_t>(), entry["xxh3"].hash()};
    return file;
  });
}

std::vector<BlockEntry> blocks_at(const Node& items,
                                  std::size_t num_files,
                                  std::size_t num_units,
                                  Step step) {
  std::vector<BlockEntry> entries;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const Node item = items[i];
    BlockEntry entry;
    entry.block.item = name_at(item[std::size_t(0)]);
    entry.block.dataset = name_at(item[1]);
    entry.block.dtype = item[2].translate([&] { return dtype_from_name(item[2].string()); });
    entry.unit = unit_at(item[3], num_units);
    entry.group = group_at(item[4]);
    entry.block.global_shape = item[5].shape();
    entry.block.step = step;
    const Node parts = item[6];
    for (std::size_t p = 0; p < parts.size(); ++p) {
      const Node part = parts[p];
      if (num_files == 0) part.fail("is a block, but there are no files");
      entry.file = part[std::size_t(0)].number(int(num_files - 1));
      entry.block.xxh3 = part[1].hash();
      entry.block.block = part.size() == 2 ? Block::whole(entry.block.global_shape)
                                           : Block{part[2].shape(), part[3].shape()};
      if (!entry.block.block.fits(entry.block.global_shape))
        part.fail("does not lie in the item's shape");
      entries.push_back(entry);
    }
  }
  return entries;
}

RankIndex rank_index_at(const Node& root) {
  RankIndex index;
  index.version = version_at(root["version"]);
  // One more rank than this must be countable.
  index.rank = Rank(root["rank"].number(std::numeric_limits<std::int32_t>::max() - 1));
  index.files = files_at(root["files"], index.rank.value + 1);
  // The units' names stand in the manifest alone.
  index.blocks = blocks_at(root["items"],
                           index.files.size(),
                           std::size_t(std::numeric_limits<std::int32_t>::max()),
                           index.version.step);
  return index;
}

StateUnit unit_description_at(const Node& node) {
  StateUnit unit;
  unit.name = node[std::size_t(0)].string();
  if (node.size() > 1) {
    unit.layer = LayerId(node[1].number<std::int32_t>());
    unit.expert = ExpertId(node[2].number<std::int32_t>());
  }
  return unit;
}

Manifest manifest_at(const Node& root) {
  Manifest manifest;
  manifest.run_id = root["run_id"].string();
  manifest.version = version_at(root["version"]);
  manifest.lineage = list_of(root["lineage"], [](const Node& entry) {
    LineageEntry start;
    start.incarnation = Incarnation(entry["incarnation"].number<std::int32_t>());
    start.fresh = !entry.has("parent");
    if (!start.fresh) start.parent = version_at(entry["parent"]);
    return start;
  });
  manifest.world_size = root["world_size"].number<int>();
  if (manifest.world_size == 0) root["world_size"].fail("is no number of ranks");
  manifest.model_fingerprint = root["model_fingerprint"].hash();
  manifest.consumed_samples = root["consumed_samples"].number<std::int64_t>();
  manifest.full = root["full"].boolean();
  manifest.first_budget = root["first_budget"].number<int>();
  manifest.build = root["build"].string();
  manifest.units = list_of(root["units"], unit_description_at);
  const std::size_t num_units = manifest.units.size();
  manifest.copies = list_of(root["copies"], [&](const Node& copy) {
    return UnitCopy{
        unit_at(copy[std::size_t(0)], num_units),
        group_at(copy[1]),
        {Incarnation(copy[2].number<std::int32_t>()), Step(copy[3].number<std::int64_t>())},
        copy[4].hash()};
  });
  if (root.has("ages")) {
    manifest.ages = list_of(root["ages"], [](const Node& age) { return age.number<int>(); });
    if (manifest.ages.size() + 1 != num_units)
      root["ages"].fail(fmt::format("is not of the {} units but the first", num_units));
  }
  if (root.has("budget")) {
    const Node budget = root["budget"];
    manifest.budget = {budget["experts_per_checkpoint"].number<int>(),
                       budget["experts_per_snapshot"].number<int>(),
                       budget["lost"].real(),
                       budget["lost_at_k"].real(),
                       budget["share"].real()};
    if (manifest.budget.checkpoint == 0) budget.fail("has no experts in a checkpoint");
  }
  manifest.files = files_at(root["files"], manifest.world_size);
  manifest.blocks =
      blocks_at(root["items"], manifest.files.size(), num_units, manifest.version.step);
  if (root.has("extra")) manifest.extra_json = root["extra"].object_text();
  return manifest;
}

/// Checks seal, syntax, format and version, then reads by `read`; failures become Statuses.
template <typename Value>
Result<Value> parse(const std::string& text, std::string_view format, Value (*read)(const Node&)) {
  const auto corrupt = [&](const std::string& why) {
    return Status::failure(StatusCode::kCorrupt,
                           fmt::format("this is no intact {}: {}", format, why));
  };
  const std::optional<std::string_view> body = unseal(text);
  if (!body) return corrupt("its bytes contradict the checksum at its end");
  if (nests_deeper(text, kMaxDepth))
    return corrupt(fmt::format("it is nested more than {} levels deep", kMaxDepth));
  try {
    const Json document = Json::parse(text);
    const Node root(document);
    if (root["format"].string() != format)
      root["format"].fail(fmt::format("is not \"{}\"", format));
    if (const int version = root["format_version"].number<int>(); version > kFormatVersion) {
      return Status::failure(
          StatusCode::kInvalid,
          fmt::format("format version {} is newer than {}, the newest that this program "
                      "reads; use the version of Pecan that wrote it",
                      version,
                      kFormatVersion));
    }
    return read(root);
  } catch (const Malformed& error) {
    return corrupt(error.what());
  } catch (const nlohmann::json::exception& error) {
    return corrupt(shortened(error.what()));  // ends in what was read last, however long
  }
}

Json header(std::string_view format, Version version) {
  return Json{
      {"format", format}, {"format_version", kFormatVersion}, {"version", json_of(version)}};
}

/// An item's dataset in the order of UnitCopy::digest.
auto digest_order(const BlockEntry& entry) {
  const auto offset = entry.block.block.offset.extents();
  return std::pair(entry.block.item + "/" + entry.block.dataset,
                   std::vector<std::int64_t>(offset.begin(), offset.end()));
}

std::uint64_t digest_of(std::vector<const BlockEntry*> entries) {
  std::ranges::sort(entries, {}, [](const BlockEntry* entry) { return digest_order(*entry); });
  Xxh3Stream hash;
  for (const BlockEntry* entry : entries) {
    std::array<std::byte, 8> little_endian{};
    for (std::size_t i = 0; i < 8; ++i)
      little_endian[i] = std::byte(entry->block.xxh3 >> (8 * i) & 0xFF);
    hash.update(little_endian);
  }
  return hash.digest();
}

}  // namespace

std::string to_json(const RankIndex& index) {
  Json root = header(kRankIndexFormat, index.version);
  root["rank"] = index.rank.value;
  root["files"] = json_of(index.files);
  root["items"] = json_of(index.blocks, index.version);
  return seal(root);
}

std::string to_json(const Manifest& manifest) {
  Json root = header(kManifestFormat, manifest.version);
  root["run_id"] = manifest.run_id;
  root["lineage"] = Json::array();
  for (const LineageEntry& start : manifest.lineage) {
    Json entry{{"incarnation", start.incarnation.value}};
    if (!start.fresh) entry["parent"] = json_of(start.parent);
    root["lineage"].push_back(std::move(entry));
  }
  root["world_size"] = manifest.world_size;
  root["model_fingerprint"] = to_hex(manifest.model_fingerprint);
  root["consumed_samples"] = manifest.consumed_samples;
  root["full"] = manifest.full;
  root["first_budget"] = manifest.first_budget;
  if (!manifest.ages.empty()) root["ages"] = manifest.ages;
  if (const ExpertBudget& budget = manifest.budget; budget.checkpoint > 0) {
    root["budget"] = Json{{"experts_per_checkpoint", budget.checkpoint},
                          {"experts_per_snapshot", budget.snapshot},
                          {"lost", budget.lost},
                          {"lost_at_k", budget.lost_at_k},
                          {"share", budget.share}};
  }
  root["build"] = manifest.build;
  if (!manifest.extra_json.empty()) {
    Json extra = Json::parse(manifest.extra_json, nullptr, false);
    PECAN_VALIDATE(
        extra.is_object(), InternalError, "extra_json is no JSON object: {}", manifest.extra_json);
    root["extra"] = std::move(extra);
  }
  root["units"] = Json::array();
  for (const StateUnit& unit : manifest.units) {
    Json entry = Json::array({unit.name});
    if (unit.is_expert()) entry.insert(entry.end(), {unit.layer.value, unit.expert.value});
    root["units"].push_back(std::move(entry));
  }
  root["copies"] = Json::array();
  for (const UnitCopy& copy : manifest.copies) {
    root["copies"].push_back(Json::array({copy.unit.value,
                                          name_of(copy.group),
                                          copy.version.incarnation.value,
                                          copy.version.step.value,
                                          to_hex(copy.digest)}));
  }
  root["files"] = json_of(manifest.files);
  root["items"] = json_of(manifest.blocks, manifest.version);
  return seal(root);
}

Result<RankIndex> parse_rank_index(const std::string& text) {
  return parse<RankIndex>(text, kRankIndexFormat, rank_index_at);
}

Result<Manifest> parse_manifest(const std::string& text) {
  return parse<Manifest>(text, kManifestFormat, manifest_at);
}

std::uint64_t copy_digest(const std::vector<BlockEntry>& blocks, UnitIndex unit, RoleGroup group) {
  std::vector<const BlockEntry*> entries;
  for (const BlockEntry& entry : blocks) {
    if (entry.unit == unit && entry.group == group) entries.push_back(&entry);
  }
  return digest_of(std::move(entries));
}

std::vector<UnitCopy> written_copies(const std::vector<BlockEntry>& blocks, Version version) {
  std::map<std::pair<UnitIndex, RoleGroup>, std::vector<const BlockEntry*>> by_group;
  for (const BlockEntry& entry : blocks) by_group[{entry.unit, entry.group}].push_back(&entry);
  std::vector<UnitCopy> copies;
  for (auto& [key, entries] : by_group) {
    copies.push_back({key.first, key.second, version, digest_of(std::move(entries))});
  }
  return copies;
}

std::string step_directory_name(Step step) {
  return fmt::format("step-{:08}", step.value);
}

}  // namespace pecan::checkpoint
