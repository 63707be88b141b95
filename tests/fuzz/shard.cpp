/// A shard file as bytes: the seal, and what lies behind it.
///
/// HDF5 1.10 leaks, hangs and crashes on damaged metadata; that is known and not ours to find, and
/// the seal is there so that it never sees any. So HDF5 gets an input only where the seal says that
/// its metadata is as a writer left it. Worth finding is
///  - a seal that accepts what it should not, or the other way round: it is compared with a second
///    reader of docs/formats/checkpoint.md on every input; the mutator gives inputs a fitting
///    checksum now and then, so that the accepting half is reached with any table of ranges;
///  - damage of a genuine shard that gets through: its metadata must be refused before HDF5, its
///  data by
///    the blocks' checksums, and what reads with success must be the bytes that were written.
/// Sealed metadata that no writer of ours made is the matter of shard_content.

#include <optional>
#include <random>
#include <utility>

#include <pecan/core/hash.hpp>

#include <pecan/checkpoint/shard.hpp>

#include "checkpoint/seal.hpp"
#include "fuzz.hpp"

namespace {

using namespace pecan;
using namespace pecan::checkpoint;
using fuzz::expect;
using Bytes = std::vector<std::byte>;

struct Item {
  ShardBlock block;
  Bytes data;
};

constexpr std::size_t kTailBytes = 24;  ///< number of ranges, checksum, magic
constexpr std::string_view kMagic = "PcnSeal1";

std::vector<Item> items() {
  std::vector<Item> list;
  const auto add = [&](const char* item, DType dtype, const Shape& shape, const Block& block) {
    Item entry;
    entry.data.resize(std::size_t(block.extent.num_elements()) * size_of(dtype));
    for (std::size_t i = 0; i < entry.data.size(); ++i)
      entry.data[i] = std::byte(i * 37 + 11 * list.size());
    entry.block = {item, "weight", dtype, shape, block, Step(7), xxh3(entry.data)};
    list.push_back(std::move(entry));
  };
  add("a", DType::kF32, {6, 5}, {{2, 0}, {3, 5}});
  add("b", DType::kBF16, {4}, Block::whole({4}));
  add("c", DType::kI64, {}, Block::whole({}));
  return list;
}

const std::vector<Item>& genuine_items() {
  static const std::vector<Item> list = items();
  return list;
}

/// The shard that the products' writer makes of them.
const Bytes& genuine() {
  static const Bytes bytes = [] {
    fuzz::OneFile fs;
    ShardWriter writer(fs, "/s.h5");
    expect(writer.open().ok(), "a shard can be created");
    for (const Item& item : genuine_items())
      expect(writer.write(item.block, item.data).ok(), "a block can be written");
    expect(writer.finish().ok(), "a shard can be finished");
    return fs.bytes;
  }();
  return bytes;
}

std::uint64_t word_at(std::span<const std::byte> bytes, std::size_t offset) {
  std::uint64_t word = 0;
  for (std::size_t i = 0; i < 8; ++i) word |= std::uint64_t(bytes[offset + i]) << (8 * i);
  return word;
}

enum class Table { kLegal, kAny };

/// What the seal's checksum must be: over the table and all bytes outside of its ranges. Empty
/// unless the file's end is a seal; kLegal: with a table that is legal. kAny takes ranges that
/// overlap, fall back or leave the file as a careless reader would.
std::optional<std::uint64_t> right_checksum(std::span<const std::byte> file, Table table) {
  if (file.size() < kTailBytes) return {};
  const std::size_t tail = file.size() - kTailBytes;
  if (std::memcmp(file.data() + tail + 16, kMagic.data(), kMagic.size()) != 0) return {};
  const std::uint64_t ranges = word_at(file, tail);
  if (ranges > tail / 16) return {};
  const std::size_t end = tail - 16 * ranges;
  Bytes covered(file.begin() + std::ptrdiff_t(end), file.begin() + std::ptrdiff_t(tail));
  const auto cover = [&](std::uint64_t from, std::uint64_t to) {
    to = std::min<std::uint64_t>(to, end);
    if (from < to)
      covered.insert(
          covered.end(), file.begin() + std::ptrdiff_t(from), file.begin() + std::ptrdiff_t(to));
  };
  std::uint64_t at = 0;
  for (std::size_t i = 0; i < ranges; ++i) {
    const std::uint64_t offset = word_at(file, end + 16 * i);
    const std::uint64_t length = word_at(file, end + 16 * i + 8);
    if (table == Table::kLegal && (offset < at || offset > end || length > end - offset)) return {};
    cover(at, offset);
    at = offset + length;
  }
  cover(at, end);
  return xxh3(std::span<const std::byte>(covered));
}

/// Another value for a word of the table, or for the number of ranges.
void edit_table(std::span<std::byte> file, std::mt19937& rng) {
  const std::size_t tail = file.size() - kTailBytes;
  const std::uint64_t ranges = word_at(file, tail);
  if (ranges > tail / 16) return;
  const std::size_t words = 2 * std::size_t(ranges) + 1;
  const std::size_t at = tail - 16 * std::size_t(ranges) + 8 * (rng() % words);
  std::uint64_t word = word_at(file, at);
  switch (rng() % 4) {
    case 0:
      word += rng() % 64;
      break;
    case 1:
      word -= rng() % 64;
      break;
    case 2:
      word = rng() % (2 * file.size());
      break;
    default:
      word = ~std::uint64_t(0) >> (rng() % 64);
  }
  for (std::size_t i = 0; i < 8; ++i) file[at + i] = std::byte(word >> (8 * i) & 0xFF);
}

/// Whether only data differs from the genuine shard, by that shard's own table.
bool has_genuine_metadata(std::span<const std::byte> file) {
  const std::span<const std::byte> original = genuine();
  if (file.size() != original.size()) return false;
  const std::size_t tail = file.size() - kTailBytes;
  const std::uint64_t ranges = word_at(original, tail);
  const std::size_t table = tail - 16 * ranges;
  std::vector<bool> is_data(file.size());
  for (std::size_t i = 0; i < ranges; ++i) {
    const std::uint64_t offset = word_at(original, table + 16 * i);
    for (std::uint64_t b = 0; b < word_at(original, table + 16 * i + 8); ++b)
      is_data[offset + b] = true;
  }
  for (std::size_t i = 0; i < file.size(); ++i) {
    if (!is_data[i] && file[i] != original[i]) return false;
  }
  return true;
}

void read_all(fuzz::OneFile& fs) {
  ShardReader reader(fs, "/s.h5");
  expect(reader.open().ok(), "damaged data does not keep a shard from being opened");
  const Result<std::vector<ShardBlock>> list = reader.list();
  expect(list.ok() && list.value().size() == genuine_items().size(), "nor from being listed");
  for (const Item& item : genuine_items()) {
    Bytes data(item.data.size());
    const Status status = reader.read(item.block, data);
    expect(status.ok() == (data == item.data), "damaged data is found, whole data is read");
    expect(status.ok() || status.code == StatusCode::kCorrupt, "damaged data is corrupt");
  }
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data,
                                               std::size_t size,
                                               std::size_t max_size,
                                               unsigned seed) {
  std::mt19937 rng(seed);
  // From the genuine shard now and then: a file of some thousand bytes is not found by chance.
  if (rng() % 8 == 0 && genuine().size() <= max_size) {
    size = genuine().size();
    std::memcpy(data, genuine().data(), size);
  }
  if (rng() % 2 == 0 && size > 0) {  // a few bits, in place
    for (unsigned i = 1 + rng() % 4; i-- > 0;)
      data[rng() % size] ^= std::uint8_t(1U << (rng() % 8));
  } else {
    size = LLVMFuzzerMutate(data, size, max_size);
  }
  const std::span<std::byte> bytes(reinterpret_cast<std::byte*>(data), size);
  if (size >= kTailBytes && rng() % 4 == 0)
    std::memcpy(data + size - kMagic.size(), kMagic.data(), kMagic.size());
  if (size >= kTailBytes && rng() % 4 == 0) edit_table(bytes, rng);
  if (rng() % 3 == 0) {
    if (const std::optional<std::uint64_t> checksum = right_checksum(bytes, Table::kAny)) {
      for (unsigned i = 0; i < 8; ++i)
        data[size - 16 + i] = std::uint8_t(*checksum >> (8 * i) & 0xFF);
    }
  }
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::OneFile fs;
  fs.bytes.assign(reinterpret_cast<const std::byte*>(data),
                  reinterpret_cast<const std::byte*>(data) + size);
  const std::optional<std::uint64_t> checksum = right_checksum(fs.bytes, Table::kLegal);
  const bool intact = checksum && *checksum == word_at(fs.bytes, size - 16);
  fuzz::BytesFile file(fs.bytes);
  const Result<std::uint64_t> end = check_seal(file, "/s.h5");
  expect(end.ok() == intact, "the seal accepts what the format allows, and nothing else");
  if (!intact) {
    expect(end.status().code == StatusCode::kCorrupt, "a broken seal is corruption");
    ShardReader reader(fs, "/s.h5");
    const Status status = reader.open();
    expect(!status.ok() && status.message == end.status().message,
           "HDF5 does not see what the seal refuses");
    return 0;
  }
  expect(end.value() <= size - kTailBytes, "the file lies before its seal");
  if (has_genuine_metadata(fs.bytes)) read_all(fs);
  return 0;
}
