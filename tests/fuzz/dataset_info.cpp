/// PREFIX.json beside a token dataset that is whole.
///
/// Promises: a DataError or a description whose numbers stand in the text as integers, agree with
/// the dataset and are possible; never a converted, wrapped or rounded one.

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>

#include <pecan/data/indexed_dataset.hpp>

#include "fuzz.hpp"

namespace {

using pecan::fuzz::expect;

constexpr int kDocuments = 2;
constexpr int kTokens = 3;

void write_file(const std::string& path, std::string_view bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  expect(fd >= 0 && ::write(fd, bytes.data(), bytes.size()) == ssize_t(bytes.size()),
         "a temporary file can be written");
  ::close(fd);
}

/// A dataset of two documents with three tokens of 16 bits.
class Files {
 public:
  Files() {
    std::string folder =
        access("/dev/shm", W_OK) == 0 ? "/dev/shm/pecan-fuzz-XXXXXX" : "/tmp/pecan-fuzz-XXXXXX";
    expect(mkdtemp(folder.data()) != nullptr, "a temporary folder can be made");
    prefix_ = folder + "/set";
    std::string index("MMIDIDX\0\0", 9);
    const auto put = [&](std::uint64_t value, int bytes) {
      for (int i = 0; i < bytes; ++i) index.push_back(char(value >> (8 * i) & 0xFF));
    };
    put(1, 8);  // version
    put(8, 1);  // u16
    put(2, 8);  // sequences
    put(3, 8);  // document boundaries
    put(1, 4);  // lengths
    put(2, 4);
    put(0, 8);  // starts in bytes
    put(2, 8);
    for (const unsigned boundary : {0U, 1U, 2U}) put(boundary, 8);
    write_file(prefix_ + ".idx", index);
    write_file(prefix_ + ".bin", std::string_view("\1\0\2\0\3\0", 6));
  }
  ~Files() {
    for (const char* suffix : {".idx", ".bin", ".json"}) unlink((prefix_ + suffix).c_str());
    rmdir(prefix_.substr(0, prefix_.rfind('/')).c_str());
  }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;
  [[nodiscard]] const std::string& prefix() const { return prefix_; }

 private:
  std::string prefix_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Files files;
  const std::string_view text = pecan::fuzz::text_of(data, size);
  write_file(files.prefix() + ".json", text);
  try {
    const pecan::data::IndexedDataset set(files.prefix());
    expect(set.info().has_value(), "a description that is there is read or refused");
    const pecan::data::DatasetInfo& info = *set.info();
    const nlohmann::json json = nlohmann::json::parse(text);
    for (const char* key : {"bytes", "documents", "tokens", "vocab_size"})
      expect(json.at(key).is_number_integer(), "only integers are numbers of things");
    expect(json.at("bytes") == info.bytes && info.bytes >= 0, "bytes as written, and possible");
    expect(json.at("documents") == kDocuments && info.documents == kDocuments, "documents");
    expect(json.at("tokens") == kTokens && info.tokens == kTokens, "tokens");
    expect(json.at("vocab_size") == info.vocab_size && info.vocab_size >= 0,
           "the vocabulary's size as written, and possible");
  } catch (const pecan::DataError& error) {
    expect(error.what()[0] != '\0', "a refusal says why");
  }
  return 0;
}
