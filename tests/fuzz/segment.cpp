/// A buffer of snapshots in memory.
///
/// Each input is read as it is, and once more with checksums that fit (of both texts, of the
/// description, and the commit word), as a file of another version or of a writer with a mistake
/// would have. Promises: a snapshot or a Status that says why, no exception; every block of a
/// snapshot lies in the file.

#include "checkpoint/segment.hpp"

#include <pecan/core/hash.hpp>

#include "fuzz.hpp"

namespace {

using namespace pecan;
using fuzz::expect;

constexpr std::size_t kHeaderBytes = 72;
constexpr const char* kPath = "/dev/shm/pecan.run.node.r00003.b1";

std::uint64_t word_at(const std::vector<std::byte>& bytes, std::size_t offset) {
  std::uint64_t word = 0;
  std::memcpy(&word, bytes.data() + offset, sizeof(word));
  return word;
}

/// Corrects the checksum that ends a text of the description.
void seal_text(std::span<std::byte> text) {
  constexpr std::size_t kTail = 28, kDigits = 16, kBehind = 3;
  if (text.size() < kTail) return;
  const std::string digits =
      to_hex(xxh3(std::span<const std::byte>(text).first(text.size() - kTail)));
  std::memcpy(&text[text.size() - kBehind - kDigits], digits.data(), kDigits);
}

void seal(std::vector<std::byte>& bytes) {
  if (bytes.size() < kHeaderBytes) return;
  const std::uint64_t begin = word_at(bytes, 16), run = word_at(bytes, 24),
                      blocks = word_at(bytes, 32);
  const auto all = std::span<const std::byte>(bytes);
  if (begin <= bytes.size() && run <= bytes.size() - begin &&
      blocks <= bytes.size() - begin - run) {
    seal_text(std::span(bytes).subspan(begin, run));
    seal_text(std::span(bytes).subspan(begin + run, blocks));
    const std::uint64_t hash = xxh3(all.subspan(begin, run + blocks));
    std::memcpy(bytes.data() + 56, &hash, sizeof(hash));
  }
  const std::uint64_t hash = xxh3(all.first(64));
  std::memcpy(bytes.data() + 64, &hash, sizeof(hash));
}

void check(fuzz::OneFile& file) {
  const Result<checkpoint::StoredSegment> stored = checkpoint::read_segment(file, kPath);
  if (!stored.ok()) {
    const StatusCode code = stored.status().code;
    expect(code == StatusCode::kCorrupt || code == StatusCode::kInvalid ||
               code == StatusCode::kNotFound,
           "what a refusal is");
    expect(!stored.status().message.empty() && stored.status().message.size() < 4096,
           "a refusal says why at readable length");
    return;
  }
  const checkpoint::StoredSegment& segment = stored.value();
  expect(segment.offsets.size() == segment.index.blocks.size(), "every block has a place");
  for (std::size_t i = 0; i < segment.offsets.size(); ++i) {
    const checkpoint::ShardBlock& block = segment.index.blocks[i].block;
    const std::size_t num_bytes =
        std::size_t(block.block.extent.num_elements()) * size_of(block.dtype);
    expect(segment.offsets[i] <= file.bytes.size() &&
               num_bytes <= file.bytes.size() - segment.offsets[i],
           "every block lies in the file");
    std::vector<std::byte> bytes(num_bytes);
    const Status status = checkpoint::read_block(segment, i, bytes);
    expect(status.ok() == (xxh3(bytes) == block.xxh3), "a block is what its checksum says");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::OneFile file;
  const auto input = std::as_bytes(std::span(data, size));
  file.bytes.assign(input.begin(), input.end());
  check(file);
  seal(file.bytes);
  check(file);
  return 0;
}
