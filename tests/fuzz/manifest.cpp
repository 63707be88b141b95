/// A manifest and a rank's index.
///
/// Each input is read as it is, where only its checksum can be reached, and once more with a
/// checksum that fits, as a file of another version or of a writer with a mistake would have. The
/// mutator edits the JSON document's values, since bytes flipped in a text mostly end in a syntax
/// error. Promises: a value or kCorrupt (kInvalid for a newer format), no exception; what was read,
/// written again, reads as the same.

#include <random>

#include <nlohmann/json.hpp>

#include <pecan/core/hash.hpp>

#include <pecan/checkpoint/manifest.hpp>

#include "fuzz.hpp"

namespace {

using Json = nlohmann::ordered_json;
using pecan::StatusCode;
using pecan::fuzz::expect;

/// The text with its last '}' replaced by the checksum's entry.
std::string sealed(std::string_view text) {
  std::string body(text.substr(0, text.find_last_of('}')));
  // Seeds are whole files: their own checksum goes.
  if (const std::size_t seal = body.rfind(",\"xxh3\":\"");
      seal != std::string::npos && body.size() - seal == 26)
    body.resize(seal);
  const std::string hash = pecan::to_hex(pecan::xxh3(std::string_view(body)));
  return body + ",\"xxh3\":\"" + hash + "\"}\n";
}

template <typename Value>
void check(const pecan::Result<Value>& result, pecan::Result<Value> (*parse)(const std::string&)) {
  if (!result.ok()) {
    const StatusCode code = result.status().code;
    expect(code == StatusCode::kCorrupt || code == StatusCode::kInvalid, "what a refusal is");
    expect(!result.status().message.empty() && result.status().message.size() < 4096,
           "a refusal says why at readable length");
    return;
  }
  const std::string text = to_json(result.value());
  const pecan::Result<Value> again = parse(text);
  expect(again.ok(), again.ok() ? "" : again.status().message);
  expect(to_json(again.value()) == text, "what was read and written reads as the same");
}

void collect(Json& node, std::vector<Json*>& nodes) {
  nodes.push_back(&node);
  if (node.is_structured()) {
    for (Json& child : node) collect(child, nodes);
  }
}

Json interesting(std::mt19937& rng) {
  switch (rng() % 12) {
    case 0:
      return nullptr;
    case 1:
      return -1;
    case 2:
      return 0;
    case 3:
      return std::uint64_t(1) << (rng() % 64);
    case 4:
      return (std::uint64_t(1) << (rng() % 63 + 1)) - 1;
    case 5:
      return 1e300;
    case 6:
      return "";
    case 7:
      return std::string(1, '\0') + "/..";
    case 8:
      return Json::array();
    case 9:
      return Json::object();
    case 10: {
      // Deep enough to find recursion, little enough for the size limit.
      Json deep = 1;
      for (unsigned i = rng() % 2000; i-- > 0;) deep = Json::array({std::move(deep)});
      return deep;
    }
    default:
      return int(rng() % 16);
  }
}

void edit(Json& document, std::mt19937& rng) {
  std::vector<Json*> nodes;
  collect(document, nodes);
  Json& node = *nodes[rng() % nodes.size()];
  switch (rng() % 5) {
    case 0:
      if (node.is_structured() && !node.empty()) {
        node.erase(std::next(node.begin(), std::ptrdiff_t(rng() % node.size())));
        break;
      }
      [[fallthrough]];
    case 1:
      node = interesting(rng);
      break;
    case 2:
      node = Json(*nodes[rng() % nodes.size()]);
      break;
    case 3:
      if (node.is_array()) {
        node.push_back(node.empty() ? interesting(rng) : Json(node[rng() % node.size()]));
        break;
      }
      [[fallthrough]];
    default:
      if (node.is_number_integer()) {
        node = node.get<std::uint64_t>() + std::uint64_t(rng() % 3) - 1;
      } else {
        node = interesting(rng);
      }
  }
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data,
                                               std::size_t size,
                                               std::size_t max_size,
                                               unsigned seed) {
  std::mt19937 rng(seed);
  if (rng() % 4 != 0) {
    Json document = Json::parse(pecan::fuzz::text_of(data, size), nullptr, false);
    if (!document.is_discarded()) {
      if (document.is_object()) document.erase("xxh3");
      for (unsigned edits = 1 + rng() % 3; edits-- > 0;) edit(document, rng);
      const std::string text =
          document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
      if (text.size() <= max_size && !text.empty()) {
        std::memcpy(data, text.data(), text.size());
        return text.size();
      }
    }
  }
  return LLVMFuzzerMutate(data, size, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string raw(pecan::fuzz::text_of(data, size));
  for (const std::string& text : {raw, sealed(raw)}) {
    check(pecan::checkpoint::parse_manifest(text), pecan::checkpoint::parse_manifest);
    check(pecan::checkpoint::parse_rank_index(text), pecan::checkpoint::parse_rank_index);
  }
  return 0;
}
