#include "checkpoint/segment.hpp"

#include <array>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pecan/core/hash.hpp>

#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/support.hpp"

using namespace pecan;
using namespace pecan::checkpoint;

namespace {

const SegmentName kName{"0123456789abcdef", "node-7.cluster", Rank{3}, 1};
constexpr std::size_t kHeaderBytes = 72;
constexpr std::size_t kCommitWord = 64;

/// What one commit is given, and the payload that belongs to it.
struct Generation {
  Manifest header;
  RankIndex index;
  std::vector<std::byte> payload;
  std::vector<std::size_t> offsets;

  explicit Generation(std::int64_t step) {
    header.run_id = kName.run_id;
    header.version = {Incarnation{1}, Step{step}};
    header.lineage = {{Incarnation{1}, true, {}}};
    header.world_size = 4;
    header.extra_json = R"({"layout":{"ep":4}})";
    index.version = header.version;
    index.rank = kName.rank;
    add("model.embed_tokens.weight", 0, DType::kF32, {3}, Block::whole({3}));
    add("model.layers.0.mlp.experts.0.up_proj.weight", 1, DType::kBF16, {9, 7}, {{2, 0}, {5, 7}});
    add("model.layers.0.mlp.experts.0", 1, DType::kI64, Shape{}, Block::whole(Shape{}));
    add("empty", 0, DType::kU8, {0}, Block::whole({0}));
    add("model.layers.0.mlp.experts.1.up_proj.weight", 2, DType::kF64, {8}, Block::whole({8}));
    index.files = {memory_file(index.rank, payload.size())};
  }

  void add(const std::string& item, int unit, DType dtype, const Shape& shape, const Block& block) {
    while (payload.size() % 64 != 0) payload.push_back(std::byte{0});
    const std::size_t begin = payload.size();
    const std::size_t num_bytes = std::size_t(block.extent.num_elements()) * size_of(dtype);
    for (std::size_t i = 0; i < num_bytes; ++i)
      payload.push_back(std::byte(xxh3(fmt::format("{} {} {}", item, i, index.version.step))));
    offsets.push_back(begin);
    ShardBlock entry{item, "weight", dtype, shape, block, index.version.step, 0};
    entry.xxh3 = xxh3(std::span<const std::byte>(payload).subspan(begin));
    index.blocks.push_back({0, UnitIndex{unit}, RoleGroup::kWeight, entry});
  }

  void fill(const Segment& segment) const {
    std::memcpy(segment.payload().data(), payload.data(), payload.size());
  }
  void store(Segment& segment) const {
    segment.begin();
    fill(segment);
    REQUIRE(segment.commit(header, index).ok());
  }
};

/// Bytes of the file up to the end of the payload, and changes of it by hand.
struct RawFile {
  std::string path;
  std::vector<std::byte> bytes;

  explicit RawFile(const std::string& from) : path(from) {
    std::ifstream file(path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    const auto all = std::as_bytes(std::span(text));
    bytes.assign(all.begin(), all.end());
  }
  [[nodiscard]] std::uint64_t word(std::size_t offset) const {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < 8; ++i) value |= std::uint64_t(bytes[offset + i]) << (8 * i);
    return value;
  }
  void set_word(std::size_t offset, std::uint64_t value) {
    for (std::size_t i = 0; i < 8; ++i) bytes[offset + i] = std::byte(value >> (8 * i) & 0xFF);
  }
  void reseal() { set_word(kCommitWord, xxh3(std::span<const std::byte>(bytes).first(64))); }
  void write(const std::string& to) const {
    std::ofstream(to, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
  }
};

Result<StoredSegment> read(const std::string& path) {
  return read_segment(*make_posix_file_system(), path);
}

/// Number of the segment's blocks that are as the generation has them; -1 if any differs without
/// being refused.
int good_blocks(const StoredSegment& segment, const Generation& generation) {
  int good = 0;
  for (std::size_t i = 0; i < segment.index.blocks.size(); ++i) {
    const ShardBlock& block = segment.index.blocks[i].block;
    std::vector<std::byte> bytes(std::size_t(block.block.extent.num_elements()) *
                                 size_of(block.dtype));
    if (!read_block(segment, i, bytes).ok()) continue;
    if (!std::ranges::equal(
            bytes, std::span(generation.payload).subspan(generation.offsets[i], bytes.size())))
      return -1;
    ++good;
  }
  return good;
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a segment's name says whose it is, and nothing else is a name", "[segment]") {
  CHECK(kName.file_name() == "pecan.0123456789abcdef.node-7.cluster.r00003.b1");
  CHECK(SegmentName::parse(kName.file_name()) == kName);
  const SegmentName large{"a", "b.r00001.b0", Rank{1234567}, 12};
  CHECK(SegmentName::parse(large.file_name()) == large);
  for (const char* text : {"",
                           "pecan",
                           "pecan.run.host.r00003.b",
                           "pecan.run.host.r00003",
                           "pecan.run.host.r3.b1",
                           "pecan.run.host.r00003.b01",
                           "pecan.run.host.r00003.b-1",
                           "pecan.run.host.r-0003.b1",
                           "pecan.run.host.r000003.b1",
                           "pecan.run.host.r00003.b1.tmp",
                           "pecan.run.host.r00003.b1 ",
                           "pecan.run.host.r99999999999.b1",
                           "pecan..host.r00003.b1",
                           "pecan.run..r00003.b1",
                           "pecan.run.r00003.b1",
                           "pecan.r/n.host.r00003.b1",
                           "pecan.run.ho st.r00003.b1",
                           "Pecan.run.host.r00003.b1"}) {
    CAPTURE(text);
    CHECK_FALSE(SegmentName::parse(text));
  }
  const SegmentName here{"run", this_host(), Rank{0}, 0};
  CHECK(SegmentName::parse(here.file_name()) == here);
}

TEST_CASE("a segment's bytes are the documented ones", "[segment]") {
  const test::TempDir dir;
  const Generation generation(120);
  Segment segment(dir.path(), kName, 1000, 5);
  generation.store(segment);
  const RawFile raw(dir / kName.file_name());
  CHECK(raw.bytes.size() == Segment::file_bytes(1000, 5));
  CHECK(std::memcmp(raw.bytes.data(), "PcnMemo1", 8) == 0);
  CHECK(raw.word(8) == 1);
  const std::string run = to_json(generation.header), blocks = to_json(generation.index);
  CHECK(raw.word(16) == 4096);
  CHECK(raw.word(24) == run.size());
  CHECK(raw.word(32) == blocks.size());
  CHECK(std::memcmp(&raw.bytes[4096], (run + blocks).data(), run.size() + blocks.size()) == 0);
  CHECK(raw.word(56) == xxh3(run + blocks));
  const std::size_t payload = raw.word(40);
  CHECK(payload % 4096 == 0);
  CHECK(payload == raw.bytes.size() - 1000);
  CHECK(raw.word(48) == generation.payload.size());
  CHECK(raw.word(48) == 4 * 64 + 64);  // 12, 70, 8, 0 and 64 bytes, the 70 in two lines
  CHECK(std::memcmp(&raw.bytes[payload], generation.payload.data(), generation.payload.size()) ==
        0);
  CHECK(raw.word(64) == xxh3(std::span<const std::byte>(raw.bytes).first(64)));
}

TEST_CASE("what was committed is read back, after the owner is gone too", "[segment]") {
  const test::TempDir dir;
  const std::string path = dir / kName.file_name();
  const Generation first(120), second(140);
  {
    Segment segment(dir.path(), kName, 1000, 5);
    CHECK(read(path).status().code == StatusCode::kNotFound);
    first.store(segment);
    CHECK(good_blocks(read(path).value(), first) == 5);
    segment.begin();
    CHECK(read(path).status().code == StatusCode::kNotFound);
    second.store(segment);
  }
  const StoredSegment stored = read(path).value();
  CHECK(stored.name == kName);
  CHECK(stored.header.version == second.header.version);
  CHECK(stored.header.run_id == kName.run_id);
  CHECK(stored.header.extra_json == second.header.extra_json);
  CHECK((stored.index.blocks == second.index.blocks));
  CHECK(good_blocks(stored, second) == 5);

  Segment next(dir.path(), kName, 1000, 5);
  first.store(next);
  CHECK(good_blocks(stored, second) == 5);  // who reads keeps what it reads
  CHECK(good_blocks(read(path).value(), first) == 5);
  next.begin();
  CHECK(read(path).status().code == StatusCode::kNotFound);
  CHECK(next.remove().ok());
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("a process that stops after any instruction leaves a whole snapshot or none",
          "[segment]") {
  const test::TempDir dir;
  const std::string path = dir / kName.file_name();
  const Generation former(120), next(140);
  Segment segment(dir.path(), kName, 1000, 5);
  former.store(segment);
  // A child replaces the snapshot, stopped after each of its instructions: what others then see is
  // what its death there would leave.
  const pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(77);
    raise(SIGSTOP);
    segment.begin();
    next.fill(segment);
    if (!segment.commit(next.header, next.index).ok()) _exit(1);
    raise(SIGSTOP);
    _exit(0);
  }
  int state = 0;
  waitpid(child, &state, 0);
  if (WIFEXITED(state) && WEXITSTATUS(state) == 77) {
    WARN("skipped: this system does not let a process trace its child");
    return;
  }
  REQUIRE(WIFSTOPPED(state));
  const std::size_t num_description_bytes =
      to_json(next.header).size() + to_json(next.index).size();
  const std::byte* const file = segment.payload().data() - RawFile(path).word(40);
  const std::byte* const payload = segment.payload().data();
  const std::size_t num_payload_bytes = next.payload.size();
  const std::size_t payload_begin = kHeaderBytes + num_description_bytes;
  const auto visible = [&] {
    std::vector<std::byte> bytes(payload_begin + num_payload_bytes);
    std::memcpy(bytes.data(), file, kHeaderBytes);
    std::memcpy(&bytes[kHeaderBytes], file + 4096, num_description_bytes);
    std::memcpy(&bytes[payload_begin], payload, num_payload_bytes);
    return bytes;
  };
  std::vector<std::byte> seen = visible();
  std::vector<std::string> phases{"former"};
  int num_states = 0;
  int mixed = 0;
  while (true) {
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0 ||
        waitpid(child, &state, 0) != child || !WIFSTOPPED(state) || WSTOPSIG(state) == SIGSTOP) {
      break;
    }
    // Compared in place: only few instructions store here.
    if (std::memcmp(file, seen.data(), kHeaderBytes) == 0 &&
        std::memcmp(file + 4096, &seen[kHeaderBytes], num_description_bytes) == 0 &&
        std::memcmp(payload, &seen[payload_begin], num_payload_bytes) == 0) {
      continue;
    }
    seen = visible();
    ++num_states;
    const Result<StoredSegment> stored = read(path);
    std::string phase = "none";
    if (stored.ok()) {
      const bool is_next = stored.value().header.version == next.header.version;
      if (good_blocks(stored.value(), is_next ? next : former) != 5) ++mixed;
      phase = is_next ? "next" : "former";
    } else if (stored.status().code != StatusCode::kNotFound) {
      ++mixed;
    }
    if (phase != phases.back()) phases.push_back(phase);
  }
  CHECK(WIFSTOPPED(state));  // at its end, not dead
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  CHECK(mixed == 0);
  CHECK(phases == std::vector<std::string>{"former", "none", "next"});
  CHECK(num_states > 10);
}

TEST_CASE("every flipped bit is found", "[segment]") {
  const test::TempDir dir;
  const std::string path = dir / kName.file_name();
  const Generation generation(120);
  {
    Segment segment(dir.path(), kName, 1000, 5);
    generation.store(segment);
  }
  const auto fs = make_posix_file_system();
  const std::size_t payload = RawFile(path).word(40);
  const std::size_t description = RawFile(path).word(24) + RawFile(path).word(32);
  int missed = 0;
  const auto flip_all = [&](std::size_t begin, std::size_t num_bytes, auto found) {
    for (std::size_t bit = 8 * begin; bit < 8 * (begin + num_bytes); ++bit) {
      test::flip_bit(*fs, path, bit);
      missed += found() ? 0 : 1;
      test::flip_bit(*fs, path, bit);
    }
  };
  const auto refused = [&] { return read(path).status().code == StatusCode::kCorrupt; };
  flip_all(0, kHeaderBytes, refused);
  flip_all(4096, description, refused);
  const StoredSegment stored = read(path).value();
  for (std::size_t i = 0; i < generation.offsets.size(); ++i) {
    const ShardBlock& block = generation.index.blocks[i].block;
    flip_all(payload + generation.offsets[i],
             std::size_t(block.block.extent.num_elements()) * size_of(block.dtype),
             [&] { return good_blocks(stored, generation) == 4; });
  }
  CHECK(missed == 0);
  CHECK(good_blocks(stored, generation) == 5);

  test::flip_bit(*fs, path, 8 * (payload + generation.offsets[1]));
  std::vector<std::byte> bytes(70);
  const Status status = read_block(stored, 1, bytes);
  CHECK(status.code == StatusCode::kCorrupt);
  CHECK(contains(status.message, path));
  CHECK(contains(status.message,
                 "model.layers.0.mlp.experts.0.up_proj.weight/weight/2_0 of step 120"));
}

TEST_CASE("a file of any length is a snapshot or refused", "[segment]") {
  const test::TempDir dir, copies;
  const Generation generation(120);
  Segment segment(dir.path(), kName, 1000, 5);
  generation.store(segment);
  RawFile raw(dir / kName.file_name());
  const std::string copy = copies / kName.file_name();
  const std::size_t end = raw.word(40) + raw.word(48);
  raw.bytes.resize(end);
  raw.write(copy);
  CHECK(good_blocks(read(copy).value(), generation) == 5);
  const auto code_of = [&](std::size_t num_bytes) {
    std::filesystem::resize_file(copy, num_bytes);
    return read(copy).status().code;
  };
  CHECK(code_of(end - 1) == StatusCode::kCorrupt);
  CHECK(code_of(raw.word(40)) == StatusCode::kCorrupt);
  CHECK(code_of(5000) == StatusCode::kCorrupt);
  CHECK(code_of(4096) == StatusCode::kCorrupt);
  CHECK(code_of(72) == StatusCode::kCorrupt);
  CHECK(code_of(71) == StatusCode::kCorrupt);
  CHECK(code_of(1) == StatusCode::kCorrupt);
  CHECK(code_of(0) == StatusCode::kNotFound);  // an owner that was killed at once
  CHECK(code_of(8'000'000) == StatusCode::kNotFound);
}

TEST_CASE("a header that lies is refused, with whatever numbers", "[segment]") {
  const test::TempDir dir, copies;
  const Generation generation(120);
  Segment segment(dir.path(), kName, 1000, 5);
  generation.store(segment);
  const RawFile genuine(dir / kName.file_name());
  const std::string copy = copies / kName.file_name();
  for (std::size_t word = 16; word < kCommitWord; word += 8) {
    const std::uint64_t truth = genuine.word(word);
    for (const std::uint64_t lie : {std::uint64_t(0),
                                    std::uint64_t(1),
                                    truth - 1,
                                    truth + 1,
                                    truth + 64,
                                    std::uint64_t(genuine.bytes.size()),
                                    std::uint64_t(genuine.bytes.size()) + 1,
                                    std::uint64_t(1) << 63,
                                    ~std::uint64_t(0),
                                    ~std::uint64_t(0) - truth + 1}) {
      if (lie == truth) continue;
      RawFile raw = genuine;
      raw.set_word(word, lie);
      raw.reseal();
      raw.write(copy);
      CAPTURE(word, lie);
      const Result<StoredSegment> stored = read(copy);
      // A payload that begins elsewhere is for the blocks' checksums to find.
      if (word == 40 && stored.ok()) {
        CHECK(good_blocks(stored.value(), generation) < 5);
      } else {
        CHECK(stored.status().code == StatusCode::kCorrupt);
      }
    }
  }
}

TEST_CASE("a newer format is refused by its number, and another file by its name", "[segment]") {
  const test::TempDir dir, copies;
  Segment segment(dir.path(), kName, 1000, 5);
  Generation(120).store(segment);
  RawFile raw(dir / kName.file_name());
  raw.write(copies / "pecan.txt");
  CHECK(read(copies / "pecan.txt").status().code == StatusCode::kInvalid);
  raw.set_word(8, 2);
  raw.reseal();
  raw.write(copies / kName.file_name());
  const Status status = read(copies / kName.file_name()).status();
  CHECK(status.code == StatusCode::kInvalid);
  CHECK(contains(status.message, "format version 2, newer than 1"));
  CHECK(read(copies / "pecan.run.host.r00000.b0").status().code == StatusCode::kNotFound);
}

TEST_CASE("a snapshot that contradicts its name or itself is refused", "[segment]") {
  const test::TempDir dir;
  Segment segment(dir.path(), kName, 1000, 5);
  const auto message = [&](const std::function<void(Generation&)>& change) {
    Generation generation(120);
    change(generation);
    generation.store(segment);
    const Status status = read(segment.path()).status();
    CHECK(status.code == StatusCode::kCorrupt);
    return status.message;
  };
  CHECK(contains(message([](Generation& g) { g.header.run_id = "other"; }),
                 "another run than its content, other"));
  CHECK(contains(message([](Generation& g) { g.index.rank = Rank{2}; }),
                 "$.files[0].writer is no integer from 0 to 2"));
  CHECK(contains(message([](Generation& g) {
                   g.index.rank = Rank{2};
                   g.index.files[0].writer = Rank{2};
                 }),
                 "another rank than its content, 2"));
  CHECK(contains(message([](Generation& g) { g.header.world_size = 3; }), "of rank 3 of 3"));
  CHECK(contains(message([](Generation& g) { g.header.version.step = Step{121}; }),
                 "of steps 121 and 120"));
  CHECK(contains(message([](Generation& g) { g.header.version.incarnation = Incarnation{2}; }),
                 "start 3 and 2"));
  CHECK(contains(message([](Generation& g) { g.index.files[0].name = "rank-00003.state.h5"; }),
                 "not said to be in memory"));

  Generation(120).store(segment);
  SegmentName other = kName;
  other.buffer = 2;
  other.rank = Rank{1};
  std::filesystem::rename(segment.path(), dir / other.file_name());
  CHECK(contains(read(dir / other.file_name()).status().message, "another rank"));
}

TEST_CASE("what changes while it is read is no damage", "[segment]") {
  const test::TempDir dir;
  Segment segment(dir.path(), kName, 1000, 5);
  Generation(120).store(segment);
  const auto posix = make_posix_file_system();
  test::FaultyFileSystem fs(*posix);
  // The header is read first, and again where something is wrong.
  fs.inject({.call = test::Call::kRead, .effect = test::Effect::kFlipBit, .bit = 300});
  CHECK(read_segment(fs, segment.path()).status().code == StatusCode::kNotFound);
  fs.inject({.call = test::Call::kRead, .nth = 2, .effect = test::Effect::kFlipBit, .bit = 300});
  CHECK(read_segment(fs, segment.path()).status().code == StatusCode::kCorrupt);
  fs.inject({.call = test::Call::kRead, .code = StatusCode::kIo, .nth = 2});
  CHECK(read_segment(fs, segment.path()).status().code == StatusCode::kIo);
  CHECK(read_segment(fs, segment.path()).ok());
}

TEST_CASE("the description has room for every block, or there is no snapshot", "[segment]") {
  const test::TempDir dir;
  constexpr int kNumBlocks = 2000;
  Generation wide(120);
  wide.index.blocks.clear();
  const std::int64_t most = std::numeric_limits<std::int64_t>::max() / 1'000'000;
  for (int i = 0; i < kNumBlocks; ++i) {
    const std::string item =
        fmt::format("model.layers.{}.mlp.experts.{}.gate_proj.weight", 1000 + i, 10'000);
    ShardBlock block{item,
                     "absorbed_moments",
                     DType::kBF16,
                     {99, 99, 99, most},
                     {{98, 98, 98, most - 1}, {1, 1, 1, 1}},
                     Step{120},
                     ~std::uint64_t(0)};
    wide.index.blocks.push_back({0, UnitIndex{2147483646}, RoleGroup::kMoments, block});
  }
  const std::size_t bytes_per_block = to_json(wide.index).size() / kNumBlocks;
  CHECK(bytes_per_block > 180);  // so wide are they
  CHECK(bytes_per_block < 200);
  std::string tokens = R"({"routed":[)";
  for (int layer = 0; layer < 60; ++layer) {
    tokens += layer == 0 ? "[0" : ",[0";
    for (int expert = 1; expert < 256; ++expert) tokens += ",9999999999999";
    tokens += "]";
  }
  wide.header.extra_json = tokens + "]}";
  wide.payload.clear();
  Segment segment(dir.path(), kName, 64 * kNumBlocks, kNumBlocks);
  wide.store(segment);
  CHECK(read(segment.path()).value().offsets.size() == kNumBlocks);

  SegmentName other = kName;
  other.buffer = 0;
  Segment narrow(dir.path(), other, 64 * kNumBlocks, 1);
  wide.header.extra_json = fmt::format(R"({{"text":"{}"}})", std::string(1'000'000, 'x'));
  narrow.begin();
  const Status status = narrow.commit(wide.header, wide.index);
  CHECK(status.code == StatusCode::kNoSpace);
  CHECK(contains(status.message, "step 120"));
  CHECK(read(narrow.path()).status().code == StatusCode::kNotFound);
}

TEST_CASE("a buffer for full snapshots shrinks", "[segment]") {
  const test::TempDir dir;
  const Generation generation(120);
  Segment segment(dir.path(), kName, 1'000'000, 5);
  generation.store(segment);
  segment.begin();
  REQUIRE(segment.shrink_payload(320).ok());
  CHECK(segment.payload().size() == 320);
  CHECK(std::filesystem::file_size(segment.path()) == Segment::file_bytes(320, 5));
  generation.store(segment);
  CHECK(good_blocks(read(segment.path()).value(), generation) == 5);
  segment.begin();
  REQUIRE(segment.shrink_payload(319).ok());
  CHECK_THROWS_AS(segment.commit(generation.header, generation.index), InternalError);
}

TEST_CASE("a buffer that cannot be made says why and what to try", "[segment]") {
  const test::TempDir dir;
  const auto message = [&](const std::string& directory, SegmentName name, std::size_t bytes) {
    try {
      const Segment segment(directory, name, bytes, 5);
    } catch (const CheckpointError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const std::string large = message(dir.path(), kName, std::size_t(1) << 50);
  CHECK(contains(large, dir.path()));
  CHECK(contains(large, fmt::format("{} bytes", Segment::file_bytes(std::size_t(1) << 50, 5))));
  CHECK(contains(large, "bytes free"));
  CHECK(contains(large, "experts_per_snapshot"));
  const std::string missing = message(dir / "none", kName, 1);
  CHECK(contains(missing, dir / "none"));
  CHECK(contains(missing, "checkpoint.memory_dir must be there"));
  SegmentName odd = kName;
  odd.run_id = "../run";
  CHECK(contains(message(dir.path(), odd, 1), "run id \"../run\""));
}
