#include "core/direct_writer.hpp"

#include <cerrno>
#include <filesystem>
#include <functional>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/support.hpp"

namespace pecan {
namespace {

using Bytes = std::vector<std::byte>;
constexpr std::size_t kLeast = DirectWriter::kLeastBytes;

Bytes pattern(std::size_t num_bytes, std::uint32_t seed) {
  Bytes bytes(num_bytes);
  for (std::byte& byte : bytes) {
    seed = seed * 1664525 + 1013904223;
    byte = std::byte(seed >> 24);
  }
  return bytes;
}

/// Memory that begins `misalignment` bytes behind a multiple of 64 KiB.
class Source {
 public:
  Source(const Bytes& bytes, std::size_t misalignment)
      : memory_(bytes.size() + 2 * kAlignment), num_bytes_(bytes.size()) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    begin_ = (kAlignment - address % kAlignment) % kAlignment + misalignment;
    std::ranges::copy(bytes, memory_.begin() + std::ptrdiff_t(begin_));
  }
  [[nodiscard]] std::span<const std::byte> bytes() const {
    return std::span(memory_).subspan(begin_, num_bytes_);
  }

 private:
  static constexpr std::size_t kAlignment = 65536;
  Bytes memory_;
  std::size_t num_bytes_;
  std::size_t begin_ = 0;
};

/// A device that asks for what a strict one does, on any file system; or as a test says. What it is
/// told is for the test to read once the writes have been waited for.
class FakeCalls : public DirectCalls {
 public:
  std::size_t memory_alignment = 512;
  int open_error = 0;
  std::string other_path;                       ///< opened instead, if not empty
  std::function<ssize_t(std::size_t)> verdict;  ///< bytes that a write may take, or -errno
  std::atomic<bool> held = false;               ///< writes wait while it is set
  std::size_t num_written = 0;
  int num_refused = 0;

  int open(const char* path) override {
    errno = open_error;
    if (open_error != 0) return -1;
    return ::open(other_path.empty() ? path : other_path.c_str(), O_WRONLY | O_CLOEXEC);
  }
  ssize_t write(int fd, std::span<const std::byte> bytes, std::uint64_t offset) override {
    held.wait(true);
    const bool strict = offset % 4096 == 0 && bytes.size() % 4096 == 0 &&
                        reinterpret_cast<std::uintptr_t>(bytes.data()) % memory_alignment == 0;
    const ssize_t most = !strict ? -EINVAL : verdict ? verdict(bytes.size()) : SSIZE_MAX;
    if (most < 0) {
      ++num_refused;
      errno = int(-most);
      return -1;
    }
    const ssize_t count =
        DirectCalls::write(fd, bytes.first(std::min(bytes.size(), std::size_t(most))), offset);
    num_written += std::size_t(std::max<ssize_t>(count, 0));
    return count;
  }
  void release() {
    held = false;
    held.notify_all();
  }
};

/// A file system whose large writes go through fake calls.
struct Lab {
  test::TempDir dir;
  FakeCalls* calls = nullptr;
  std::unique_ptr<FileSystem> fs;

  Lab() {
    auto fake = std::make_unique<FakeCalls>();
    calls = fake.get();
    fs = make_posix_file_system(std::make_shared<DirectWriter>(std::move(fake)));
  }
  std::unique_ptr<File> create(const std::string& name = "f") {
    return fs->open(dir / name, OpenMode::kCreate).value();
  }
  Bytes content(const std::string& name = "f") {
    const std::string text = read_text(*fs, dir / name).value();
    const auto bytes = std::as_bytes(std::span(text));
    return {bytes.begin(), bytes.end()};
  }
};

TEST_CASE("whole blocks go round the page cache, the rest keeps its exact length",
          "[direct_writer]") {
  struct Case {
    std::uint64_t offset;
    std::size_t num_bytes;
    std::size_t whole;  // bytes of the blocks of 4096 that lie inside
  };
  const std::vector<Case> cases{{0, kLeast, kLeast},
                                {4096, kLeast + 1, kLeast},
                                {8192, kLeast + 4095, kLeast},
                                {0, kLeast - 1, 0},
                                {1, kLeast, kLeast - 4096},
                                {4095, kLeast + 1, kLeast},
                                {512, kLeast + 512, kLeast - 4096},
                                {4096, 3 * DirectWriter::kBounceBytes + 17, 3 << 20}};
  if (::sysconf(_SC_PAGESIZE) != 4096) WARN("pages are not of 4096 bytes: blocks are larger");
  for (const Case& c : cases) {
    for (const std::size_t misalignment : {0, 8, 64, 512}) {
      CAPTURE(c.offset, c.num_bytes, misalignment);
      Lab lab;
      const auto file = lab.create();
      // What lies around it belongs to others, and must stay.
      Bytes expected = pattern(c.offset + c.num_bytes + 5000, 1);
      REQUIRE(file->write_at(0, expected).ok());
      const Bytes data = pattern(c.num_bytes, 2);
      const Source source(data, misalignment);
      REQUIRE(file->write_behind(c.offset, source.bytes()).ok());
      REQUIRE(file->sync().ok());
      std::ranges::copy(data, expected.begin() + std::ptrdiff_t(c.offset));
      CHECK((lab.content() == expected));
      CHECK(lab.calls->num_refused == 0);
      if (::sysconf(_SC_PAGESIZE) == 4096) CHECK(lab.calls->num_written == c.whole);
    }
  }
}

TEST_CASE("the operating system's own calls store the same bytes", "[direct_writer]") {
  const test::TempDir dir;
  const auto fs = make_posix_file_system();
  for (const std::size_t misalignment : {0, 64, 512}) {
    const auto file = fs->open(dir / "f", OpenMode::kCreate).value();
    Bytes expected;
    std::vector<std::unique_ptr<Source>> sources;
    for (const std::size_t num_bytes : {kLeast, kLeast + 1, 2 * kLeast - 1, std::size_t(5000011)}) {
      expected.resize((expected.size() + 4095) / 4096 * 4096);
      const Bytes data = pattern(num_bytes, std::uint32_t(num_bytes));
      sources.push_back(std::make_unique<Source>(data, misalignment));
      REQUIRE(file->write_behind(expected.size(), sources.back()->bytes()).ok());
      expected.insert(expected.end(), data.begin(), data.end());
      // Into the gap behind, as a library does with its metadata.
      const Bytes note = pattern(9, 3);
      REQUIRE(file->write_at(expected.size(), note).ok());
      expected.insert(expected.end(), note.begin(), note.end());
      CHECK(file->size().value() == expected.size());
    }
    REQUIRE(file->sync().ok());
    const std::string text = read_text(*fs, dir / "f").value();
    CHECK(std::ranges::equal(std::as_bytes(std::span(text)), expected));
  }
}

TEST_CASE("a file system that refuses gets the same bytes through the page cache",
          "[direct_writer]") {
  Lab lab;
  const Bytes data = pattern(3 * kLeast + 77, 4);
  const Source source(data, 512);
  std::size_t direct = 0;
  int refused = 0;
  SECTION("at opening") {
    lab.calls->open_error = EINVAL;
  }
  SECTION("at every write") {
    lab.calls->verdict = [](std::size_t) { return -EINVAL; };
    refused = 2;  // for the memory's alignment, which may be the reason, and for good
  }
  SECTION("memory that is not aligned to blocks") {
    lab.calls->memory_alignment = 4096;
    direct = 3 * kLeast;
    refused = 1;
  }
  SECTION("after a while") {
    lab.calls->verdict = [n = 0](std::size_t) mutable { return n++ == 0 ? 8192 : -EOPNOTSUPP; };
    direct = 8192;
    refused = 2;
  }
  SECTION("with short writes of whole blocks") {
    lab.calls->verdict = [](std::size_t) { return 4096 * 5; };
    direct = 3 * kLeast;
  }
  SECTION("with a short write within a block") {
    lab.calls->verdict = [](std::size_t) { return 4096 + 512; };
    direct = 4096 + 512;
  }
  SECTION("by writing nothing") {
    lab.calls->verdict = [](std::size_t) { return 0; };
  }
  const auto file = lab.create();
  REQUIRE(file->write_behind(0, source.bytes()).ok());
  REQUIRE(file->sync().ok());
  CHECK((lab.content() == data));
  CHECK(lab.calls->num_written == direct);
  CHECK(lab.calls->num_refused == refused);
  // The next write is not tried where the first was refused for good.
  const int before = lab.calls->num_refused;
  REQUIRE(file->write_behind(0, source.bytes()).ok());
  REQUIRE(file->sync().ok());
  CHECK(lab.calls->num_refused == before);
}

TEST_CASE("a failed write behind is reported by the next calls, of its file alone",
          "[direct_writer]") {
  Lab lab;
  const Bytes data = pattern(kLeast, 5);
  lab.calls->verdict = [n = 0](std::size_t size) mutable {
    return n++ == 0 ? -ENOSPC : ssize_t(size);
  };
  const auto bad = lab.create("bad");
  const auto good = lab.create("good");
  REQUIRE(bad->write_behind(0, data).ok());
  REQUIRE(good->write_behind(0, data).ok());
  const Status status = bad->sync();
  CHECK(status.code == StatusCode::kNoSpace);
  CHECK(status.message.find(lab.dir / "bad") != std::string::npos);
  CHECK(bad->sync().code == StatusCode::kNoSpace);
  CHECK(bad->write_at(0, data).code == StatusCode::kNoSpace);
  CHECK(bad->write_behind(0, data).code == StatusCode::kNoSpace);
  CHECK(bad->truncate(0).code == StatusCode::kNoSpace);
  CHECK(good->sync().ok());
  CHECK((lab.content("good") == data));
}

TEST_CASE("other calls see a write that is under way as done", "[direct_writer]") {
  Lab lab;
  const auto file = lab.create();
  const Bytes first = pattern(8192, 6);
  const Bytes data = pattern(kLeast + 5, 7);
  REQUIRE(file->write_at(0, first).ok());
  lab.calls->held = true;
  REQUIRE(file->write_behind(8192, data).ok());
  CHECK(file->size().value() == 8192 + data.size());
  // What does not touch it does not wait for it.
  Bytes read(8192);
  CHECK(file->read_at(0, read).value() == 8192);
  CHECK((read == first));
  const Bytes note = pattern(3, 8);
  CHECK(file->write_at(8192 + data.size(), note).ok());
  CHECK(file->size().value() == 8192 + data.size() + 3);

  const auto released = [&](auto call) {
    std::jthread other([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      lab.calls->release();
    });
    return call();
  };
  Bytes expected = first;
  expected.insert(expected.end(), data.begin(), data.end());
  expected.insert(expected.end(), note.begin(), note.end());
  SECTION("reads") {
    Bytes all(expected.size());
    CHECK(released([&] { return file->read_at(0, all); }).value() == all.size());
    CHECK((all == expected));
  }
  SECTION("writes") {
    CHECK(released([&] { return file->write_at(9000, note); }).ok());
    std::ranges::copy(note, expected.begin() + 9000);
  }
  SECTION("large writes") {
    const Bytes later = pattern(kLeast, 9);
    CHECK(released([&] { return file->write_behind(4096, later); }).ok());
    CHECK(file->sync().ok());
    std::ranges::copy(later, expected.begin() + 4096);
  }
  SECTION("cuts") {
    CHECK(released([&] { return file->truncate(100); }).ok());
    expected.resize(100);
  }
  SECTION("closing") {
    auto second = lab.create("second");
    lab.calls->held = true;
    REQUIRE(second->write_behind(0, data).ok());
    released([&] {
      second.reset();
      return 0;
    });
    CHECK((lab.content("second") == data));
  }
  CHECK(file->sync().ok());
  CHECK((lab.content() == expected));
}

TEST_CASE("the gap in front of a write that is under way reads as zeros", "[direct_writer]") {
  Lab lab;
  const auto file = lab.create();
  const Bytes first = pattern(10, 13);
  const Bytes data = pattern(kLeast, 14);
  REQUIRE(file->write_at(0, first).ok());
  lab.calls->held = true;
  REQUIRE(file->write_behind(8192, data).ok());
  Bytes read(8192, std::byte{0xFF});
  CHECK(file->read_at(0, read).value() == 8192);
  Bytes expected = first;
  expected.resize(8192);
  CHECK((read == expected));
  CHECK(file->read_at(8192 + kLeast, read).value() == 0);
  lab.calls->release();
  CHECK(file->sync().ok());
}

TEST_CASE("a large write never goes to another file of the same name, nor to one opened to be read",
          "[direct_writer]") {
  Lab lab;
  const Bytes data = pattern(kLeast, 10);
  lab.create("other");
  lab.calls->other_path = lab.dir / "other";
  const auto file = lab.create();
  REQUIRE(file->write_behind(0, data).ok());
  REQUIRE(file->sync().ok());
  CHECK((lab.content() == data));
  CHECK(lab.content("other").empty());
  CHECK(lab.calls->num_written == 0);
  lab.calls->other_path.clear();
  const auto reader = lab.fs->open(lab.dir / "other", OpenMode::kRead).value();
  CHECK_FALSE(reader->write_behind(0, data).ok());
  CHECK(lab.content("other").empty());
}

TEST_CASE("files of several threads share one writer", "[direct_writer]") {
  Lab lab;
  const Bytes data = pattern(kLeast + 3, 11);
  std::array<bool, 4> good{};
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < good.size(); ++t) {
      threads.emplace_back([&, t] {
        const auto file = lab.create(fmt::format("{}", t));
        good[t] = file->write_behind(0, data).ok() && file->write_behind(1 << 20, data).ok() &&
                  file->sync().ok();
      });
    }
  }
  Bytes expected = data;
  expected.resize(1 << 20);
  expected.insert(expected.end(), data.begin(), data.end());
  for (std::size_t t = 0; t < good.size(); ++t) {
    CHECK(good[t]);
    CHECK((lab.content(fmt::format("{}", t)) == expected));
  }
}

TEST_CASE("faults strike large writes as well", "[direct_writer]") {
  Lab lab;
  test::FaultyFileSystem fs(*lab.fs);
  const Bytes data = pattern(kLeast, 12);
  const auto file = fs.open(lab.dir / "f", OpenMode::kCreate).value();
  REQUIRE(file->write_behind(0, data).ok());
  REQUIRE(file->sync().ok());
  CHECK(lab.calls->num_written == kLeast);
  fs.inject({.call = test::Call::kWrite, .code = StatusCode::kNoSpace});
  CHECK(file->write_behind(0, data).code == StatusCode::kNoSpace);
  fs.inject({.call = test::Call::kWrite, .effect = test::Effect::kFlipBit, .bit = 3});
  CHECK(file->write_behind(0, data).ok());
  Bytes flipped = data;
  flipped[0] ^= std::byte{8};
  CHECK((lab.content() == flipped));
}

}  // namespace
}  // namespace pecan
