#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>
#include <thread>

#include <hdf5.h>

#include <pecan/core/forwarding_file_system.hpp>
#include <pecan/core/hash.hpp>
#include <pecan/core/philox.hpp>

#include <pecan/checkpoint/shard.hpp>

#include "checkpoint/seal.hpp"
#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/memory_file_system.hpp"
#include "support/support.hpp"

namespace pecan::checkpoint {
namespace {

using test::Call;
using test::MemoryFileSystem;
using Bytes = std::vector<std::byte>;

struct Item {
  ShardBlock block;
  Bytes data;
};

Item make_item(const std::string& name,
               const std::string& dataset,
               DType dtype,
               const Shape& shape,
               const Block& block,
               std::int64_t step) {
  Item item;
  item.data.resize(std::size_t(block.extent.num_elements()) * size_of(dtype));
  for (std::size_t i = 0; i < item.data.size(); ++i) {
    item.data[i] = std::byte(256 * philox_uniform(1, stream_of(name + dataset), i));
  }
  item.block = {name, dataset, dtype, shape, block, Step(step), xxh3(item.data)};
  return item;
}

std::vector<Item> example(std::int64_t step = 7) {
  const Shape matrix{6, 5};
  std::vector<Item> items;
  items.push_back(make_item("a", "bf16", DType::kBF16, matrix, Block::whole(matrix), step));
  items.push_back(make_item("a", "f32", DType::kF32, matrix, {{2, 0}, {3, 5}}, step));
  items.push_back(make_item("a", "f32", DType::kF32, matrix, {{5, 0}, {1, 5}}, step));
  items.push_back(
      make_item("a", "f64", DType::kF64, {1, 2, 3, 2}, Block::whole({1, 2, 3, 2}), step));
  items.push_back(make_item("layers.10.norm", "i32", DType::kI32, {9}, Block::whole({9}), step));
  items.push_back(make_item("layers.10.norm", "i64", DType::kI64, {}, Block::whole({}), step));
  items.push_back(
      make_item("layers.10.norm", "u8", DType::kU8, {0, 3}, Block::whole({0, 3}), step));
  return items;
}

Result<FileDigest> write_shard(FileSystem& fs,
                               const std::string& path,
                               const std::vector<Item>& items) {
  ShardWriter writer(fs, path);
  if (const Status status = writer.open(); !status.ok()) return status;
  for (const Item& item : items) {
    if (const Status status = writer.write(item.block, item.data); !status.ok()) return status;
  }
  return writer.finish();
}

Status read_item(FileSystem& fs, const std::string& path, const Item& item) {
  ShardReader reader(fs, path);
  if (Status status = reader.open(); !status.ok()) return status;
  Bytes data(item.data.size());
  Status status = reader.read(item.block, data);
  if (status.ok() && data != item.data) throw InternalError("wrong bytes were read with success");
  return status;
}

std::string bytes_of(FileSystem& fs, const std::string& path) {
  return read_text(fs, path).value();
}

void store(FileSystem& fs, const std::string& path, std::string_view bytes) {
  REQUIRE(
      fs.open(path, OpenMode::kCreate).value()->write_at(0, std::as_bytes(std::span(bytes))).ok());
}

bool contains(const std::string& text, std::string_view part) {
  CAPTURE(text);
  return text.find(part) != std::string::npos;
}

TEST_CASE("a shard gives back what was written", "[shard]") {
  MemoryFileSystem fs;
  std::vector<Item> items = example();
  const FileDigest digest = write_shard(fs, "/s.h5", items).value();
  const std::string bytes = bytes_of(fs, "/s.h5");
  CHECK(digest == FileDigest{bytes.size(), xxh3(bytes)});
  CHECK(digest_file(fs, "/s.h5").value() == digest);
  for (const Item& item : items) CHECK(read_item(fs, "/s.h5", item).ok());

  ShardReader reader(fs, "/s.h5");
  REQUIRE(reader.open().ok());
  std::vector<ShardBlock> expected;
  for (const Item& item : items) expected.push_back(item.block);
  CHECK(reader.list().value() == expected);
}

TEST_CASE("paths in a shard name item, dataset and offset", "[shard]") {
  const std::vector<Item> items = example();
  CHECK(items[0].block.dataset_path() == "a/bf16");
  CHECK(items[1].block.dataset_path() == "a/f32/2_0");
  CHECK(items[5].block.dataset_path() == "layers.10.norm/i64");
}

TEST_CASE("a finished shard survives a crash, an unfinished one is never complete", "[shard]") {
  const std::vector<Item> items = example();
  std::size_t num_mutations = 0;
  {
    MemoryFileSystem fs;
    REQUIRE(write_shard(fs, "/s.h5", items).ok());
    num_mutations = fs.num_mutations();
    REQUIRE(fs.sync_directory("/").ok());
    fs.crash();
    for (const Item& item : items) CHECK(read_item(fs, "/s.h5", item).ok());
  }
  for (std::size_t n = 1; n <= num_mutations; ++n) {
    MemoryFileSystem fs;
    fs.stop_at(n);
    const Status status = write_shard(fs, "/s.h5", items).status();
    CHECK(status.code == StatusCode::kIo);
    CHECK(contains(status.message, "the process has stopped"));
    fs.crash(n);
    for (const Item& item : items) static_cast<void>(read_item(fs, "/s.h5", item));
  }
}

TEST_CASE("a shard that is given up is not written to any more", "[shard]") {
  MemoryFileSystem fs;
  std::size_t before = 0;
  {
    ShardWriter writer(fs, "/s.h5");
    REQUIRE(writer.open().ok());
    for (const Item& item : example()) REQUIRE(writer.write(item.block, item.data).ok());
    before = fs.num_mutations();
  }
  CHECK(fs.num_mutations() == before);
}

TEST_CASE("shards of equal content are equal files", "[shard]") {
  MemoryFileSystem fs;
  REQUIRE(write_shard(fs, "/a.h5", example()).ok());
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // object times would count seconds
  REQUIRE(write_shard(fs, "/b.h5", example()).ok());
  CHECK((bytes_of(fs, "/a.h5") == bytes_of(fs, "/b.h5")));
}

TEST_CASE("data is stored once, contiguously, and larger blocks are aligned", "[shard]") {
  MemoryFileSystem fs;
  const Shape shape{300, 300};
  const std::vector<Item> items{
      make_item("w", "weight", DType::kF32, shape, Block::whole(shape), 1)};
  REQUIRE(write_shard(fs, "/s.h5", items).ok());
  const std::string bytes = bytes_of(fs, "/s.h5");
  const std::string data(reinterpret_cast<const char*>(items[0].data.data()), items[0].data.size());
  CHECK(bytes.find(data) % 4096 == 0);
  CHECK(bytes.size() < data.size() + 16384);
}

TEST_CASE("what cannot be written is refused", "[shard]") {
  MemoryFileSystem fs;
  const Item good = example()[1];
  const auto refused = [&](const ShardBlock& block, std::size_t num_bytes) {
    ShardWriter writer(fs, fmt::format("/{}.h5", fs.num_mutations()));
    REQUIRE(writer.open().ok());
    const Status status = writer.write(block, Bytes(num_bytes));
    CHECK(status.code == StatusCode::kInvalid);
    CHECK(writer.finish().status().code ==
          StatusCode::kInvalid);  // a shard that lacks a block is no shard
    return !status.ok();
  };
  ShardBlock block = good.block;
  CHECK(refused(block, good.data.size() - 1));
  block.item = "a/b";
  CHECK(refused(block, good.data.size()));
  block.item = "";
  CHECK(refused(block, good.data.size()));
  block = good.block;
  block.block.offset[0] = 4;
  CHECK(refused(block, good.data.size()));

  store(fs, "/there.h5", "x");
  CHECK(ShardWriter(fs, "/there.h5").open().code == StatusCode::kExists);
  CHECK(ShardWriter(fs, "/none/s.h5").open().code == StatusCode::kNotFound);
  ShardWriter twice(fs, "/twice.h5");
  REQUIRE(twice.open().ok());
  REQUIRE(twice.write(good.block, good.data).ok());
  CHECK(twice.write(good.block, good.data).code == StatusCode::kIo);
}

TEST_CASE("what differs from the expectation is named", "[shard]") {
  MemoryFileSystem fs;
  const std::vector<Item> items = example();
  REQUIRE(write_shard(fs, "/s.h5", items).ok());
  ShardReader reader(fs, "/s.h5");
  REQUIRE(reader.open().ok());
  const auto message = [&](const std::function<void(ShardBlock&)>& change,
                           std::size_t num_bytes,
                           StatusCode code = StatusCode::kCorrupt) {
    ShardBlock block = items[1].block;
    change(block);
    Bytes data(num_bytes);
    const Status status = reader.read(block, data);
    CHECK(status.code == code);
    CHECK(contains(status.message, "/s.h5"));
    CHECK(contains(status.message, block.dataset_path()));
    return status.message;
  };
  CHECK(contains(message([](ShardBlock& b) { b.dtype = DType::kI32; }, 60),
                 "the element type is f32, i32 is expected"));
  CHECK(contains(message(
                     [](ShardBlock& b) {
                       b.global_shape = {7, 5};
                     },
                     60),
                 "the global shape is [6, 5], [7, 5] is"));
  CHECK(contains(message(
                     [](ShardBlock& b) {
                       b.block.extent = {2, 5};
                     },
                     40),
                 "the extent is [3, 5], [2, 5] is"));
  CHECK(contains(message([](ShardBlock& b) { b.step = Step(8); }, 60),
                 "the step is 7, 8 is expected"));
  CHECK(contains(message([](ShardBlock& b) { b.xxh3 ^= 1; }, 60), "the stored checksum is"));
  CHECK(contains(message([](ShardBlock& b) { b.item = "z"; }, 60), "opening it failed"));
  CHECK(contains(message([](ShardBlock& b) { b.block.offset = {3, 0}; }, 60), "opening it failed"));
  CHECK(contains(message([](ShardBlock&) {}, 61, StatusCode::kInvalid),
                 "61 bytes were given for 60"));
}

TEST_CASE("an offset that contradicts its path is found", "[shard]") {
  MemoryFileSystem fs;
  REQUIRE(write_shard(fs, "/s.h5", example()).ok());
  std::string bytes = bytes_of(fs, "/s.h5");
  bytes[bytes.find("2_0")] = '1';
  store(fs, "/s.h5", bytes);
  REQUIRE(append_seal(*fs.open("/s.h5", OpenMode::kReadWrite).value(), {}).ok());
  Item item = example()[1];
  item.block.block.offset = {1, 0};
  CHECK(contains(read_item(fs, "/s.h5", item).message, "the offset is [2, 0], [1, 0] is expected"));
  ShardReader reader(fs, "/s.h5");
  REQUIRE(reader.open().ok());
  CHECK(contains(reader.list().status().message, "contradicts its own offset"));
}

TEST_CASE("a missing file and a foreign file are told apart", "[shard]") {
  MemoryFileSystem fs;
  store(fs, "/text.h5", "This is no HDF5 file.");
  store(fs, "/empty.h5", "");
  CHECK(ShardReader(fs, "/none.h5").open().code == StatusCode::kNotFound);
  CHECK(ShardReader(fs, "/text.h5").open().code == StatusCode::kCorrupt);
  CHECK(ShardReader(fs, "/empty.h5").open().code == StatusCode::kCorrupt);
  CHECK(digest_file(fs, "/none.h5").status().code == StatusCode::kNotFound);
  CHECK(digest_file(fs, "/empty.h5").value() == FileDigest{0, xxh3(std::string_view())});
}

TEST_CASE("a failing file system is reported as such, whichever call fails", "[shard]") {
  const std::vector<Item> items = example();
  for (const StatusCode code : {StatusCode::kNoSpace, StatusCode::kIo}) {
    for (const Call call : {Call::kOpen, Call::kWrite, Call::kTruncate, Call::kSync}) {
      for (int nth = 1;; ++nth) {
        MemoryFileSystem inner;
        test::FaultyFileSystem fs(inner);
        fs.inject({.call = call,
                   .code = code,
                   .nth = nth,
                   .effect = nth % 2 == 0 ? test::Effect::kHalf : test::Effect::kFail});
        const Status status = write_shard(fs, "/s.h5", items).status();
        if (fs.num_struck() == 0) {
          CHECK(status.ok());
          CHECK((nth > 1 || call == Call::kTruncate));
          break;
        }
        CAPTURE(int(call), nth, status.message);
        CHECK(status.code == code);
        CHECK(contains(status.message, "injected fault at /s.h5"));
      }
    }
  }
}

TEST_CASE("a failing read is no corruption", "[shard]") {
  const std::vector<Item> items = example();
  for (int nth = 1;; ++nth) {
    MemoryFileSystem inner;
    test::FaultyFileSystem fs(inner);
    REQUIRE(write_shard(fs, "/s.h5", items).ok());
    fs.inject({.call = Call::kRead, .code = StatusCode::kPermission, .nth = nth});
    const Status status = read_item(fs, "/s.h5", items[3]);
    if (fs.num_struck() == 0) break;
    CHECK(status.code == StatusCode::kPermission);
  }
}

TEST_CASE("a bit that flips on the way to the disk is found", "[shard]") {
  MemoryFileSystem inner;
  test::FaultyFileSystem fs(inner);
  const Shape shape{300, 300};
  const Item item = make_item("w", "weight", DType::kF32, shape, Block::whole(shape), 1);
  ShardWriter writer(fs, "/s.h5");
  REQUIRE(writer.open().ok());
  fs.inject({.call = Call::kWrite, .effect = test::Effect::kFlipBit, .bit = 777});
  REQUIRE(writer.write(item.block, item.data).ok());
  const FileDigest vouched = writer.finish().value();
  REQUIRE(fs.num_struck() == 1);
  const FileDigest stored = digest_file(inner, "/s.h5").value();
  CHECK(stored.num_bytes == vouched.num_bytes);
  CHECK(stored.xxh3 != vouched.xxh3);
  CHECK(contains(read_item(fs, "/s.h5", item).message, "the checksum of the data is"));
}

/// Items that a possibly damaged shard gives, none if it is refused; throws where it gives wrong
/// bytes.
std::size_t num_readable(FileSystem& fs, const std::vector<Item>& items) {
  ShardReader reader(fs, "/s.h5");
  if (!reader.open().ok()) return 0;
  std::size_t count = 0;
  for (const Item& item : items) {
    Bytes data(item.data.size());
    const bool read = reader.read(item.block, data).ok();
    if (read && data != item.data) throw InternalError("wrong bytes were read with success");
    count += read ? 1 : 0;
  }
  return reader.list().ok() ? count : 0;
}

TEST_CASE("a flipped bit costs its block, or the file, and is never missed", "[shard]") {
  MemoryFileSystem fs;
  const std::vector<Item> items = example();
  const FileDigest digest = write_shard(fs, "/s.h5", items).value();
  std::size_t num_data_bytes = 0;
  for (const Item& item : items) num_data_bytes += item.data.size();
  std::size_t refused = 0;
  std::size_t lost_one = 0;
  std::size_t unseen = 0;
  for (std::uint64_t byte = 0; byte < digest.num_bytes; ++byte) {
    const std::uint64_t bit = 8 * byte + byte * 5 % 8;
    test::flip_bit(fs, "/s.h5", bit);
    const std::size_t count = num_readable(fs, items);
    refused += count == 0 ? 1 : 0;
    lost_one += count == items.size() - 1 ? 1 : 0;
    unseen += digest_file(fs, "/s.h5").value() == digest ? 1 : 0;
    test::flip_bit(fs, "/s.h5", bit);
  }
  CHECK(unseen == 0);
  CHECK(lost_one == num_data_bytes);
  CHECK(refused == digest.num_bytes - num_data_bytes);
  CHECK(num_readable(fs, items) == items.size());
}

TEST_CASE("no cut makes a reader crash or lie", "[shard]") {
  MemoryFileSystem fs;
  const std::vector<Item> items = example();
  const FileDigest digest = write_shard(fs, "/s.h5", items).value();
  const std::string bytes = bytes_of(fs, "/s.h5");
  std::size_t readable = 0;
  for (std::size_t size = 0; size < bytes.size(); size += 1 + size % 37) {
    store(fs, "/s.h5", std::string_view(bytes).substr(0, size));
    readable += num_readable(fs, items);
    REQUIRE(digest_file(fs, "/s.h5").value() != digest);
  }
  CHECK(readable == 0);
}

TEST_CASE("shards are written and read from many threads", "[shard]") {
  MemoryFileSystem fs;
  std::array<bool, 4> good{};
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < good.size(); ++t) {
      threads.emplace_back([&, t] {
        const std::string path = fmt::format("/{}.h5", t);
        const std::vector<Item> items = example(std::int64_t(t));
        good[t] = write_shard(fs, path, items).ok();
        for (const Item& item : items) good[t] = good[t] && read_item(fs, path, item).ok();
      });
    }
  }
  CHECK(std::ranges::all_of(good, [](bool g) { return g; }));
}

TEST_CASE("HDF5's own driver reads the file, with its version of every type", "[shard]") {
  const test::TempDir dir;
  const auto fs = make_posix_file_system();
  const std::vector<Item> items = example();
  REQUIRE(write_shard(*fs, dir / "s.h5", items).ok());
  const hid_t file = H5Fopen((dir / "s.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  REQUIRE(file >= 0);
  const hid_t dataset = H5Dopen2(file, "a/bf16", H5P_DEFAULT);
  std::vector<float> values(30);
  // The library converts bf16 by its own rules.
  CHECK(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) >= 0);
  int wrong = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint32_t bits =
        std::uint32_t(items[0].data[2 * i]) << 16 | std::uint32_t(items[0].data[2 * i + 1]) << 24;
    wrong += std::memcmp(&bits, &values[i], 4) == 0 ? 0 : 1;
  }
  CHECK(wrong == 0);
  H5Dclose(dataset);
  H5Fclose(file);
}

/// Blocks that are large enough to go round the page cache, of odd sizes, among small ones.
std::vector<Item> large_example() {
  std::vector<Item> items;
  std::uint32_t random = 1;
  const auto add = [&](const std::string& name, DType dtype, const Shape& shape) {
    Item item;
    item.data.resize(std::size_t(shape.num_elements()) * size_of(dtype));
    for (std::byte& byte : item.data) {
      random = random * 1664525 + 1013904223;
      byte = std::byte(random >> 24);
    }
    item.block = {name, "data", dtype, shape, Block::whole(shape), Step(3), xxh3(item.data)};
    items.push_back(std::move(item));
  };
  add("odd", DType::kU8, {300007});
  add("scalar", DType::kI64, {});
  add("whole_blocks", DType::kF32, {512, 512});
  add("matrix", DType::kF32, {301, 307});
  add("small", DType::kBF16, {77});
  add("last", DType::kU8, {(3 << 20) + 1});
  return items;
}

TEST_CASE("a shard is the same file whether its data goes round the page cache or not", "[shard]") {
  const std::vector<Item> items = large_example();
  MemoryFileSystem memory;
  const FileDigest digest = write_shard(memory, "/s.h5", items).value();
  const std::string expected = bytes_of(memory, "/s.h5");
  const test::TempDir dir;
  const auto fs = make_posix_file_system();
  CHECK(write_shard(*fs, dir / "s.h5", items).value() == digest);
  CHECK((bytes_of(*fs, dir / "s.h5") == expected));
  CHECK(digest_file(*fs, dir / "s.h5").value() == digest);
  for (const Item& item : items) CHECK(read_item(*fs, dir / "s.h5", item).ok());

  const hid_t file = H5Fopen((dir / "s.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  REQUIRE(file >= 0);
  const hid_t dataset = H5Dopen2(file, "last/data", H5P_DEFAULT);
  Bytes data(items.back().data.size());
  CHECK(H5Dread(dataset, H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, data.data()) >= 0);
  CHECK((data == items.back().data));
  H5Dclose(dataset);
  H5Fclose(file);
}

TEST_CASE("large blocks are handed over to be written behind, small ones are not", "[shard]") {
  const std::vector<Item> items = large_example();
  std::set<const std::byte*> behind;
  struct Spy final : ForwardingFileSystem {
    struct SpyFile final : File {
      SpyFile(std::unique_ptr<File> i, std::set<const std::byte*>& b)
          : inner(std::move(i)), behind(b) {}
      std::unique_ptr<File> inner;
      std::set<const std::byte*>& behind;
      Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> bytes) override {
        return inner->read_at(offset, bytes);
      }
      Status write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
        return inner->write_at(offset, bytes);
      }
      Status write_behind(std::uint64_t offset, std::span<const std::byte> bytes) override {
        behind.insert(bytes.data());
        return inner->write_behind(offset, bytes);
      }
      Status truncate(std::uint64_t size) override { return inner->truncate(size); }
      Result<std::uint64_t> size() override { return inner->size(); }
      Status sync() override { return inner->sync(); }
    };
    Spy(FileSystem& fs, std::set<const std::byte*>& b) : ForwardingFileSystem(fs), behind(b) {}
    Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override {
      return std::unique_ptr<File>(
          std::make_unique<SpyFile>(inner().open(path, mode).value(), behind));
    }
    std::set<const std::byte*>& behind;
  };
  MemoryFileSystem memory;
  Spy fs(memory, behind);
  REQUIRE(write_shard(fs, "/s.h5", items).ok());
  // The caller's own memory, without a copy in between; the library gathers what is small.
  for (const Item& item : items) {
    if (item.data.size() >= 65536) CHECK(behind.count(item.data.data()) == 1);
  }
}

TEST_CASE("a shard with large blocks never vouches for what was not written", "[shard]") {
  const std::vector<Item> items = large_example();
  const test::TempDir dir;
  const auto posix = make_posix_file_system();
  for (int nth = 1;; ++nth) {
    test::FaultyFileSystem fs(*posix);
    fs.inject({.call = Call::kWrite,
               .code = StatusCode::kNoSpace,
               .nth = nth,
               .effect = nth % 2 == 0 ? test::Effect::kHalf : test::Effect::kFail});
    const std::string path = dir / fmt::format("{}.h5", nth);
    const Status status = write_shard(fs, path, items).status();
    if (fs.num_struck() == 0) {
      CHECK(status.ok());
      CHECK(nth > int(items.size()));
      break;
    }
    CHECK(status.code == StatusCode::kNoSpace);
    CHECK_FALSE(ShardReader(*posix, path).open().ok());
  }
}

/// Not a test but what read_shard.py runs: writes the shard that it expects.
TEST_CASE("write the example shard", "[.write-example]") {
  const char* path = std::getenv("PECAN_WRITE_SHARD");
  REQUIRE(path != nullptr);
  const auto fs = make_posix_file_system();
  static_cast<void>(fs->remove_file(path));
  std::vector<float> floats(30);
  std::vector<std::uint16_t> halves(30);
  for (std::size_t i = 0; i < floats.size(); ++i) {
    floats[i] = float(i) * 0.25F - 3.0F;  // exact in bf16
    std::uint32_t bits = 0;
    std::memcpy(&bits, &floats[i], 4);
    halves[i] = std::uint16_t(bits >> 16);
  }
  const std::int64_t count = (std::int64_t(1) << 53) + 1;
  const auto item = [](const std::string& dataset,
                       DType dtype,
                       const Block& block,
                       const Shape& shape,
                       std::span<const std::byte> data) {
    return Item{{"model.norm.weight", dataset, dtype, shape, block, Step(120), xxh3(data)},
                {data.begin(), data.end()}};
  };
  const Shape shape{6, 5};
  const Shape tall{12, 5};
  const std::span f(floats);
  REQUIRE(write_shard(*fs,
                      path,
                      {item("weight",
                            DType::kBF16,
                            Block::whole(shape),
                            shape,
                            std::as_bytes(std::span(halves))),
                       item("master", DType::kF32, {{6, 0}, {6, 5}}, tall, std::as_bytes(f)),
                       item("update_count",
                            DType::kI64,
                            Block::whole({}),
                            {},
                            std::as_bytes(std::span(&count, 1)))})
              .ok());
}

}  // namespace
}  // namespace pecan::checkpoint
