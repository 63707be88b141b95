/// The .idx file of a token dataset, against a second reader written from the format's description
/// (docs/formats/dataset.md) alone.
///
/// The input is the index. The .bin file is made as long as the index asks for where that is
/// little, so that inputs get past the comparison of the two. Promises: the reader accepts exactly
/// what the format allows, refuses all else by DataError, and gives every token as it is stored.

#include <limits>
#include <optional>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <pecan/data/indexed_dataset.hpp>

#include "fuzz.hpp"

namespace {

using pecan::fuzz::expect;

constexpr std::uint64_t kMaxTokenBytes = 1 << 16;

/// PREFIX.idx and PREFIX.bin, on a file system in memory where there is one.
class Files {
 public:
  Files() {
    std::string folder =
        access("/dev/shm", W_OK) == 0 ? "/dev/shm/pecan-fuzz-XXXXXX" : "/tmp/pecan-fuzz-XXXXXX";
    expect(mkdtemp(folder.data()) != nullptr, "a temporary folder can be made");
    folder_ = folder;
    index_ = make(prefix() + ".idx");
    tokens_ = make(prefix() + ".bin");
  }
  ~Files() {
    for (const char* name : {"/set.idx", "/set.bin"}) unlink((folder_ + name).c_str());
    rmdir(folder_.c_str());
  }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;
  [[nodiscard]] std::string prefix() const { return folder_ + "/set"; }
  void write(const std::uint8_t* data, std::size_t size, const std::vector<std::uint8_t>& tokens) {
    fill(index_, data, size);
    fill(tokens_, tokens.data(), tokens.size());
  }

 private:
  static int make(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    expect(fd >= 0, "a temporary file can be made");
    return fd;
  }
  static void fill(int fd, const std::uint8_t* data, std::size_t size) {
    expect(ftruncate(fd, off_t(size)) == 0 && pwrite(fd, data, size, 0) == ssize_t(size),
           "a temporary file can be written");
  }
  std::string folder_;
  int index_ = -1;
  int tokens_ = -1;
};

struct Index {
  int code = 0;
  std::uint64_t element_bytes = 0;
  std::vector<std::int64_t> lengths;
  std::uint64_t documents = 0;
  std::uint64_t token_bytes = 0;
};

std::uint64_t little_endian(const std::uint8_t* data, std::size_t count) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < count; ++i) value |= std::uint64_t(data[i]) << (8 * i);
  return value;
}

/// The index if it is legal.
std::optional<Index> read_index(const std::uint8_t* data, std::size_t size) {
  if (size < 34 || std::memcmp(data, "MMIDIDX\0\0", 9) != 0 || little_endian(data + 9, 8) != 1)
    return {};
  constexpr std::array<std::uint64_t, 9> kBytes{0, 1, 1, 2, 4, 8, 0, 0, 2};
  Index index;
  index.code = data[17];
  if (index.code > 8 || kBytes[std::size_t(index.code)] == 0) return {};
  index.element_bytes = kBytes[std::size_t(index.code)];
  const std::uint64_t sequences = little_endian(data + 18, 8);
  const std::uint64_t boundaries = little_endian(data + 26, 8);
  if (sequences > size || boundaries > size || boundaries == 0) return {};
  if (34 + 12 * sequences + 8 * boundaries != size) return {};
  for (std::uint64_t s = 0; s < sequences; ++s) {
    const auto length = std::int32_t(little_endian(data + 34 + 4 * s, 4));
    const std::uint64_t start = little_endian(data + 34 + 4 * sequences + 8 * s, 8);
    if (length < 0 || start != index.token_bytes) return {};
    index.lengths.push_back(length);
    index.token_bytes += index.element_bytes * std::uint64_t(length);
  }
  std::uint64_t previous = 0;
  for (std::uint64_t d = 0; d < boundaries; ++d) {
    const std::uint64_t boundary = little_endian(data + 34 + 12 * sequences + 8 * d, 8);
    if ((d == 0 && boundary != 0) || boundary < previous || boundary > sequences) return {};
    previous = boundary;
  }
  if (previous != sequences) return {};
  index.documents = boundaries - 1;
  return index;
}

/// Bytes of tokens that the lengths ask for, whatever else is wrong with the index: else a .bin
/// file of the wrong size would be what is refused, and nothing behind it tried.
std::uint64_t wanted_bytes(const std::uint8_t* data, std::size_t size) {
  if (size < 34 || data[17] == 0 || data[17] > 8) return 0;
  constexpr std::array<std::uint64_t, 9> kBytes{0, 1, 1, 2, 4, 8, 8, 4, 2};
  const std::uint64_t sequences =
      std::min<std::uint64_t>(little_endian(data + 18, 8), (size - 34) / 4);
  std::uint64_t bytes = 0;
  for (std::uint64_t s = 0; s < sequences; ++s)
    bytes += kBytes[data[17]] * little_endian(data + 34 + 4 * s, 4);
  return bytes;
}

std::int64_t stored_token(const Index& index, const std::uint8_t* at) {
  const std::uint64_t bits = little_endian(at, index.element_bytes);
  switch (index.code) {
    case 2:
      return std::int8_t(bits);
    case 3:
      return std::int16_t(bits);
    case 4:
      return std::int32_t(bits);
    case 5:
      return std::int64_t(bits);
    default:
      return std::int64_t(bits);  // unsigned
  }
}

/// Every single token, so that one that is no id does not hide the others.
void compare(const pecan::data::IndexedDataset& set,
             const Index& index,
             const std::vector<std::uint8_t>& tokens) {
  expect(set.num_sequences() == std::int64_t(index.lengths.size()), "the number of sequences");
  expect(set.num_documents() == std::int64_t(index.documents), "the number of documents");
  std::int64_t start = 0;
  for (std::size_t s = 0; s < index.lengths.size(); ++s) {
    expect(set.length(std::int64_t(s)) == index.lengths[s], "the length of a sequence");
    expect(set.start(std::int64_t(s)) == start, "the start of a sequence");
    start += index.lengths[s];
  }
  expect(set.num_tokens() == start, "the number of tokens");
  for (std::int64_t t = 0; t < std::min<std::int64_t>(start, 64); ++t) {
    const std::int64_t stored =
        stored_token(index, tokens.data() + std::uint64_t(t) * index.element_bytes);
    std::int32_t token = -1;
    try {
      set.read(t, std::span(&token, 1));
      expect(token == stored, "a token is read as it is stored");
    } catch (const pecan::DataError&) {
      expect(stored < 0 || stored > std::numeric_limits<std::int32_t>::max(),
             "only what is no token id is refused");
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Files files;
  std::optional<Index> index = read_index(data, size);
  std::vector<std::uint8_t> tokens;
  if (const std::uint64_t bytes = wanted_bytes(data, size); bytes <= kMaxTokenBytes) {
    tokens.resize(bytes);
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = data[i * 7 % size];
  } else {
    index.reset();  // legal but for tokens that are not there
  }
  files.write(data, size, tokens);
  try {
    const pecan::data::IndexedDataset set(files.prefix());
    expect(index.has_value(), "an index that breaks the format is refused");
    compare(set, *index, tokens);
  } catch (const pecan::DataError& error) {
    expect(!index.has_value(), error.what());
  }
  return 0;
}
