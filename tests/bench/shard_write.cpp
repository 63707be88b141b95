/// How fast are shards written, and at what cost of processor time? Shards of the given size, of
/// blocks of a given size, through the shard writer as it is and with all data through the page
/// cache, beside plain write + fdatasync and one large O_DIRECT write of the same bytes.
///
///   bench-shard-write FOLDER [repeats [MB [block KB [misalignment]]]]
///
/// All variants alternate within one run; ratios are taken round by round, and medians of them
/// printed. What a variant writes is durable when its clock stops; checksums are in the writer's
/// time. The folder should be on the disk to be measured, and the machine quiet.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/resource.h>
#include <unistd.h>

#include <pecan/core/file_system.hpp>
#include <pecan/core/forwarding_file_system.hpp>
#include <pecan/core/hash.hpp>

#include <pecan/checkpoint/shard.hpp>

namespace {

using namespace pecan;

void require(const Status& status) {
  if (status.ok()) return;
  fmt::print(stderr, "{}\n", status.message);
  std::exit(1);
}

void require(bool good, const char* call) {
  if (good) return;
  std::perror(call);
  std::exit(1);
}

/// Takes write_behind() for write_at(): all data goes through the page cache.
class BufferedFileSystem final : public ForwardingFileSystem {
 public:
  using ForwardingFileSystem::ForwardingFileSystem;
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override {
    Result<std::unique_ptr<File>> file = inner().open(path, mode);
    if (!file.ok()) return file;
    return std::unique_ptr<File>(std::make_unique<BufferedFile>(std::move(file).value()));
  }

 private:
  class BufferedFile final : public ForwardingFile {
   public:
    using ForwardingFile::ForwardingFile;
    Status write_behind(std::uint64_t offset, std::span<const std::byte> bytes) override {
      return write_at(offset, bytes);
    }
  };
};

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Of all threads of the process, in user and in system mode.
double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return double(t.tv_sec) + 1e-6 * double(t.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void write_plainly(const std::string& path, std::span<const std::byte> bytes, int flags) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | flags, 0666);
  require(fd >= 0, "open");
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t count = ::pwrite(fd, bytes.data() + done, bytes.size() - done, off_t(done));
    require(count > 0, "pwrite");
    done += std::size_t(count);
  }
  require(::fdatasync(fd) == 0, "fdatasync");
  ::close(fd);
}

void write_shard(FileSystem& fs,
                 const std::string& path,
                 std::span<const std::byte> bytes,
                 std::size_t block_bytes) {
  checkpoint::ShardWriter writer(fs, path);
  require(writer.open());
  for (std::size_t begin = 0; begin < bytes.size(); begin += block_bytes) {
    const auto data = bytes.subspan(begin, std::min(block_bytes, bytes.size() - begin));
    const Shape shape{std::int64_t(data.size())};
    // As persist does: the block's own checksum first, then that of the file.
    require(writer.write({fmt::format("item.{}", begin),
                          "data",
                          DType::kU8,
                          shape,
                          Block::whole(shape),
                          Step(1),
                          xxh3(data)},
                         data));
  }
  require(writer.finish().status());
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: {} FOLDER [repeats [MB [block KB [misalignment]]]]\n", argv[0]);
    return 2;
  }
  const auto argument = [&](int index, std::size_t usual) {
    return argc > index ? std::size_t(std::strtoull(argv[index], nullptr, 10)) : usual;
  };
  const std::string path = std::string(argv[1]) + "/bench-shard-write.h5";
  const std::size_t repeats = std::max<std::size_t>(1, argument(2, 9));
  const std::size_t num_bytes = argument(3, 300) << 20;
  const std::size_t block_bytes = argument(4, 4096) << 10;
  const std::size_t misalignment = argument(5, 0) % 4096;

  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(4096, num_bytes + 4096)), &std::free);
  require(memory != nullptr, "aligned_alloc");
  for (std::size_t i = 0; i < num_bytes + 4096; ++i) {
    memory.get()[i] = std::byte(i * 2654435761U >> 13);
  }
  const std::span<const std::byte> aligned(memory.get(), num_bytes);
  const std::span<const std::byte> bytes(memory.get() + misalignment, num_bytes);
  const auto posix = make_posix_file_system();
  BufferedFileSystem buffered(*posix);

  struct Variant {
    const char* name;
    std::function<void()> write;
    std::vector<double> seconds{};
    std::vector<double> cpu{};
  };
  std::vector<Variant> variants{
      {"plain write + fdatasync", [&] { write_plainly(path, aligned, 0); }},
      {"O_DIRECT, one write + fdatasync", [&] { write_plainly(path, aligned, O_DIRECT); }},
      {"shard writer, page cache", [&] { write_shard(buffered, path, bytes, block_bytes); }},
      {"shard writer", [&] { write_shard(*posix, path, bytes, block_bytes); }}};
  for (std::size_t round = 0; round < repeats; ++round) {
    for (std::size_t i = 0; i < variants.size(); ++i) {
      // Each variant comes at every place of a round, since disks slow down after a burst.
      Variant& variant = variants[(i + round) % variants.size()];
      ::sync();
      const double cpu = cpu_seconds();
      const double start = wall_seconds();
      variant.write();
      variant.seconds.push_back(wall_seconds() - start);
      variant.cpu.push_back(cpu_seconds() - cpu);
      require(::unlink(path.c_str()) == 0, "unlink");
    }
  }
  fmt::print("{} MB in blocks of {} KB, memory {} bytes off a page, {} rounds\n\n",
             num_bytes >> 20,
             block_bytes >> 10,
             misalignment,
             repeats);
  fmt::print("| variant | GB/s | of plain write, round by round | CPU ms |\n");
  fmt::print("| --- | --- | --- | --- |\n");
  for (const Variant& variant : variants) {
    std::vector<double> ratios;
    for (std::size_t round = 0; round < repeats; ++round) {
      ratios.push_back(variants[0].seconds[round] / variant.seconds[round]);
    }
    const auto [least, most] = std::ranges::minmax(ratios);
    fmt::print("| {} | {:.2f} | {:.2f} ({:.2f} to {:.2f}) | {:.0f} |\n",
               variant.name,
               double(num_bytes) / median(variant.seconds) / 1e9,
               median(ratios),
               least,
               most,
               1e3 * median(variant.cpu));
  }
  return 0;
}
