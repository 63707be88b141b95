#include <array>
#include <functional>
#include <string_view>

#include <nlohmann/json.hpp>

#include <pecan/core/hash.hpp>

#include <pecan/checkpoint/manifest.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::checkpoint {
namespace {

using Json = nlohmann::json;

BlockEntry entry(int file,
                 int unit,
                 RoleGroup group,
                 const std::string& item,
                 const std::string& dataset,
                 Block block,
                 std::uint64_t hash) {
  ShardBlock b{item, dataset, DType::kF32, {8, 6}, std::move(block), Step(40), hash};
  return {file, UnitIndex(unit), group, b};
}

Manifest example() {
  Manifest m;
  m.run_id = "run \"7\" é";
  m.version = {Incarnation(2), Step(40)};
  m.lineage = {{Incarnation(0), true, {}}, {Incarnation(2), false, {Incarnation(0), Step(20)}}};
  m.world_size = 2;
  m.model_fingerprint = 0xFEDCBA9876543210;
  m.consumed_samples = std::int64_t(1) << 62;
  m.full = true;
  m.build = "0.1.0 abc";
  m.units = {{"non_expert", kNoLayer, ExpertId(-1)},
             {"layers.1.experts.0", LayerId(1), ExpertId(0)}};
  m.copies = {{UnitIndex(0), RoleGroup::kWeight, {Incarnation(2), Step(40)}, 1},
              {UnitIndex(1), RoleGroup::kMoments, {Incarnation(0), Step(20)}, ~std::uint64_t(0)}};
  m.files = {{"rank-00000.state.h5", FileKind::kState, Rank(0), {1234, 5}},
             {"rank-00001.experts.h5", FileKind::kExperts, Rank(1), {~std::uint64_t(0), 6}}};
  m.blocks = {entry(0, 0, RoleGroup::kWeight, "norm", "weight", Block::whole({8, 6}), 11),
              entry(0, 0, RoleGroup::kWeight, "embed", "weight", {{0, 0}, {4, 6}}, 12),
              entry(1, 0, RoleGroup::kWeight, "embed", "weight", {{4, 0}, {4, 6}}, 13),
              entry(1, 1, RoleGroup::kMoments, "up", "exp_avg", Block::whole({8, 6}), 0)};
  m.blocks[3].block.dtype = DType::kBF16;
  m.extra_json = R"({"z":1,"layout":{"ep":4},"a":[1.5,-2]})";
  return m;
}

RankIndex example_index() {
  const Manifest m = example();
  return {m.version, Rank(1), m.files, m.blocks};
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

/// A manifest's text with one member changed and the seal made anew, by the documented recipe.
std::string resealed(const std::string& text, const std::function<void(Json&)>& change) {
  Json document = Json::parse(text);
  document.erase("xxh3");
  change(document);
  std::string body = document.dump();
  body.pop_back();
  return body + ",\"xxh3\":\"" + to_hex(xxh3(body)) + "\"}\n";
}

TEST_CASE("a manifest survives writing and reading", "[manifest]") {
  const Manifest m = example();
  const std::string text = to_json(m);
  const Manifest back = parse_manifest(text).value();
  CHECK(back.run_id == m.run_id);
  CHECK(back.version == m.version);
  CHECK(back.lineage == m.lineage);
  CHECK(back.world_size == m.world_size);
  CHECK(back.model_fingerprint == m.model_fingerprint);
  CHECK(back.consumed_samples == m.consumed_samples);
  CHECK(back.full == m.full);
  CHECK(back.build == m.build);
  CHECK(back.units == m.units);
  CHECK(back.copies == m.copies);
  CHECK(back.files == m.files);
  CHECK(back.blocks == m.blocks);
  CHECK(back.extra_json == m.extra_json);
  CHECK(to_json(back) == text);

  const Manifest empty = parse_manifest(to_json(Manifest{})).value();
  CHECK(empty.extra_json.empty());
  CHECK(empty.blocks.empty());
}

TEST_CASE("a rank's index survives writing and reading", "[manifest]") {
  const RankIndex index = example_index();
  const RankIndex back = parse_rank_index(to_json(index)).value();
  CHECK(back.version == index.version);
  CHECK(back.rank == index.rank);
  CHECK(back.files == index.files);
  CHECK(back.blocks == index.blocks);
}

TEST_CASE("the text is the documented JSON", "[manifest]") {
  RankIndex index = example_index();
  index.rank = Rank(3);
  index.files.resize(1);
  index.blocks.resize(2);
  const std::string body =
      R"({"format":"pecan-rank-index","format_version":1,"version":[2,40],"rank":3,"files":[{"name":)"
      R"("rank-00000.state.h5","kind":"state","writer":0,"bytes":1234,"xxh3":"0000000000000005"}],"items":[)"
      R"(["norm","weight","f32",0,"weight",[8,6],[[0,"000000000000000b"]]],)"
      R"(["embed","weight","f32",0,"weight",[8,6],[[0,"000000000000000c",[0,0],[4,6]]]]])";
  CHECK(to_json(index) == body + R"(,"xxh3":")" + to_hex(xxh3(body)) + "\"}\n");
}

TEST_CASE("every flipped bit and every cut is found", "[manifest]") {
  const std::string manifest = to_json(example());
  const std::string index = to_json(example_index());
  const auto found = [](const std::string& text) {
    return parse_manifest(text).status().code == StatusCode::kCorrupt &&
           parse_rank_index(text).status().code == StatusCode::kCorrupt;
  };
  int missed = 0;
  for (const std::string& text : {manifest, index}) {
    for (std::size_t bit = 0; bit < text.size() * 8; ++bit) {
      std::string flipped = text;
      flipped[bit / 8] = char(flipped[bit / 8] ^ (1 << (bit % 8)));
      missed += found(flipped) ? 0 : 1;
    }
    for (std::size_t size = 0; size < text.size(); ++size)
      missed += found(text.substr(0, size)) ? 0 : 1;
    missed += found(text + "\n") ? 0 : 1;
    missed += found(" " + text) ? 0 : 1;
  }
  CHECK(missed == 0);
}

TEST_CASE("what does not fit the schema is named by its path", "[manifest]") {
  const std::string text = to_json(example());
  const auto message = [&](const std::function<void(Json&)>& change) {
    const Status status = parse_manifest(resealed(text, change)).status();
    CHECK(status.code == StatusCode::kCorrupt);
    return status.message;
  };
  CHECK(parse_manifest(resealed(text, [](Json&) {})).ok());
  CHECK(contains(message([](Json& j) { j.erase("copies"); }), "$ has no \"copies\""));
  CHECK(contains(message([](Json& j) { j["format"] = "pecan-rank-index"; }), "$.format is not"));
  CHECK(contains(message([](Json& j) { j["version"] = {1}; }), "$.version has no element 1"));
  CHECK(contains(message([](Json& j) { j["world_size"] = 0; }), "$.world_size"));
  CHECK(contains(message([](Json& j) { j["world_size"] = -1; }), "$.world_size"));
  CHECK(contains(message([](Json& j) { j["world_size"] = 1; }),
                 "$.files[1].writer is no integer from 0 to 0"));
  CHECK(contains(message([](Json& j) { j["full"] = 1; }), "$.full"));
  CHECK(contains(message([](Json& j) { j["consumed_samples"] = 1.5; }), "$.consumed_samples"));
  CHECK(contains(message([](Json& j) { j["model_fingerprint"] = "FF"; }), "$.model_fingerprint"));
  CHECK(contains(message([](Json& j) { j["lineage"][1]["parent"] = nullptr; }),
                 "$.lineage[1].parent"));
  CHECK(contains(message([](Json& j) { j["copies"][1][0] = 2; }),
                 "$.copies[1][0] is no integer from 0 to 1"));
  CHECK(contains(message([](Json& j) { j["copies"][1][1] = "bias"; }),
                 "$.copies[1][1] \"bias\" is no role group"));
  CHECK(contains(message([](Json& j) { j["units"] = Json::array(); }), "none are listed"));
  CHECK(contains(message([](Json& j) { j["files"][1]["name"] = "../x"; }), "$.files[1].name"));
  CHECK(
      contains(message([](Json& j) { j["files"][1]["name"] = j["files"][0]["name"]; }), "repeats"));
  CHECK(contains(message([](Json& j) { j["files"][0]["kind"] = "other"; }), "$.files[0].kind"));
  CHECK(contains(message([](Json& j) { j["items"][0][0] = "a/b"; }), "$.items[0][0]"));
  CHECK(contains(message([](Json& j) { j["items"][0][2] = "f16"; }),
                 "$.items[0][2] \"f16\" is no element type"));
  CHECK(contains(message([](Json& j) {
                   j["items"][0][5] = {1, 1, 1, 1, 1};
                 }),
                 "$.items[0][5] has more than 4 dims"));
  CHECK(contains(message([](Json& j) { j["items"][0][5] = {1LL << 62, 4}; }), "$.items[0][5]"));
  CHECK(contains(message([](Json& j) { j["items"][1][6][1][0] = 2; }), "$.items[1][6][1][0]"));
  CHECK(contains(message([](Json& j) {
                   j["items"][1][6][1][2] = {5, 0};
                 }),
                 "$.items[1][6][1] does not lie"));
  CHECK(contains(message([](Json& j) { j["items"][1][6][1][3] = {4}; }),
                 "$.items[1][6][1] does not lie"));
  CHECK(contains(message([](Json& j) { j["files"] = Json::array(); }), "there are no files"));
  CHECK(contains(message([](Json& j) { j["extra"] = 3; }), "$.extra is no object"));
  CHECK(contains(message([](Json& j) { j = Json{{"x", 1}}; }), "$ has no \"format\""));
}

TEST_CASE("a rank that cannot be one of a world is refused", "[manifest]") {
  const auto ranked = [](std::int64_t rank) {
    return resealed(to_json(example_index()), [&](Json& j) { j["rank"] = rank; });
  };
  CHECK(parse_rank_index(ranked(2147483646)).ok());
  CHECK(contains(parse_rank_index(ranked(2147483647)).status().message,
                 "$.rank is no integer from 0 to 2147483646"));
}

TEST_CASE("nesting without end is refused before anything recurses", "[manifest]") {
  std::string text = resealed(to_json(example()), [](Json& j) {
    j["extra"] = Json{{"x", "deep"}};
  });
  const auto nested = [&](std::size_t levels) {
    std::string body = text.substr(0, text.rfind(",\"xxh3\""));
    body.replace(body.find("\"deep\""), 6, std::string(levels, '[') + std::string(levels, ']'));
    return parse_manifest(body + ",\"xxh3\":\"" + to_hex(xxh3(body)) + "\"}\n");
  };
  CHECK(nested(62).ok());
  CHECK(contains(nested(63).status().message, "it is nested more than 64 levels deep"));
  CHECK(contains(nested(1'000'000).status().message, "it is nested more than 64 levels deep"));
}

TEST_CASE("a newer format is refused by its number", "[manifest]") {
  const std::string newer = resealed(to_json(example()), [](Json& j) { j["format_version"] = 2; });
  const Status status = parse_manifest(newer).status();
  CHECK(status.code == StatusCode::kInvalid);
  CHECK(contains(status.message, "format version 2 is newer than 1"));
}

TEST_CASE("what contradicts itself is not written", "[manifest]") {
  Manifest m = example();
  m.extra_json = "[1]";
  CHECK_THROWS_AS(to_json(m), InternalError);
  m = example();
  m.blocks[0].block.step = Step(39);
  CHECK_THROWS_AS(to_json(m), InternalError);
}

TEST_CASE("a copy's digest is the hash of its checksums in a fixed order", "[manifest]") {
  std::vector<BlockEntry> blocks = example().blocks;
  blocks.push_back(entry(1, 0, RoleGroup::kWeight, "embed", "weight", {{10, 0}, {4, 6}}, 14));
  // embed at 0, 4 and 10 (numbers, not texts), then norm.
  const std::array<std::uint64_t, 4> hashes{12, 13, 14, 11};
  const std::uint64_t expected = xxh3(std::as_bytes(std::span(hashes)));
  CHECK(copy_digest(blocks, UnitIndex(0), RoleGroup::kWeight) == expected);
  std::ranges::reverse(blocks);
  CHECK(copy_digest(blocks, UnitIndex(0), RoleGroup::kWeight) == expected);

  const Version version{Incarnation(2), Step(40)};
  const std::vector<UnitCopy> copies = written_copies(blocks, version);
  REQUIRE(copies.size() == 2);
  CHECK(copies[0] == UnitCopy{UnitIndex(0), RoleGroup::kWeight, version, expected});
  CHECK(copies[1].unit == UnitIndex(1));
  CHECK(copies[1].digest == copy_digest(blocks, UnitIndex(1), RoleGroup::kMoments));
}

TEST_CASE("directories of steps sort by step", "[manifest]") {
  CHECK(step_directory_name(Step(120)) == "step-00000120");
  CHECK(step_directory_name(Step(0)) == "step-00000000");
  CHECK(step_directory_name(Step(1234567890)) == "step-1234567890");
}

TEST_CASE("many blocks stay compact", "[manifest]") {
  constexpr int kNumBlocks = 20'000;
  Manifest m = example();
  m.blocks.clear();
  for (int i = 0; i < kNumBlocks; ++i) {
    const std::string item =
        fmt::format("model.layers.{}.mlp.experts.{}.gate_proj.weight", i / 1000, i % 1000);
    m.blocks.push_back(entry(
        i % 2, i % 2, RoleGroup::kMoments, item, "exp_avg_sq", Block::whole({8, 6}), xxh3(item)));
  }
  const std::string text = to_json(m);
  CHECK(text.size() < 130 * kNumBlocks);
  CHECK((parse_manifest(text).value().blocks == m.blocks));
}

}  // namespace
}  // namespace pecan::checkpoint
