#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pecan/core/file_system.hpp>
#include <pecan/core/shared_memory.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan {
namespace {

void fill(SharedMemory& memory, const std::string& text) {
  std::memcpy(memory.bytes().data(), text.data(), text.size());
}

std::string text_of(const std::string& path) {
  const Result<std::string> text = read_text(*make_posix_file_system(), path);
  return text.ok() ? text.value() : "<none>";
}

/// Runs `body` in a child process and returns its exit code.
int in_child(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int state = 0;
  waitpid(child, &state, 0);
  return WIFEXITED(state) ? WEXITSTATUS(state) : -1;
}

TEST_CASE("shared memory is a file that outlives its owner", "[shared_memory]") {
  const test::TempDir dir;
  const std::string path = dir / "m";
  {
    SharedMemory memory = SharedMemory::create(path, 5).value();
    CHECK(memory.bytes().size() == 5);
    CHECK(text_of(path) == std::string(5, '\0'));
    fill(memory, "hello");
    CHECK(SharedMemory::is_in_use(path).value());
  }
  CHECK(text_of(path) == "hello");
  CHECK_FALSE(SharedMemory::is_in_use(path).value());
}

TEST_CASE("shared memory is reserved whole, and for its user alone", "[shared_memory]") {
  const test::TempDir dir;
  constexpr std::size_t kBytes = 3'000'001;
  const SharedMemory memory = SharedMemory::create(dir / "m", kBytes).value();
  struct stat facts {};
  REQUIRE(::stat((dir / "m").c_str(), &facts) == 0);
  CHECK(facts.st_size == kBytes);
  CHECK(facts.st_blocks * 512 >= facts.st_size);  // no holes that a full directory would not fill
  CHECK((facts.st_mode & 0777) == 0600);
}

TEST_CASE("a reader keeps the file that a new owner replaces", "[shared_memory]") {
  const test::TempDir dir;
  const std::string path = dir / "m";
  SharedMemory old = SharedMemory::create(path, 3).value();
  fill(old, "old");
  const auto reader = make_posix_file_system()->open(path, OpenMode::kRead);
  SharedMemory fresh = SharedMemory::create(path, 3).value();
  fill(fresh, "new");
  fill(old, "odd");
  std::string seen(3, '#');
  REQUIRE(reader.value()->read_at(0, std::as_writable_bytes(std::span(seen))).ok());
  CHECK(seen == "odd");
  CHECK(text_of(path) == "new");
  // The old owner's name has passed on.
  CHECK(old.remove().ok());
  CHECK(text_of(path) == "new");
  CHECK(fresh.remove().ok());
  CHECK_FALSE(std::filesystem::exists(path));
  CHECK(fresh.remove().ok());
  fill(fresh, "yes");
}

TEST_CASE("the sign of life ends with the process, however it ends", "[shared_memory]") {
  const test::TempDir dir;
  const std::string path = dir / "m";
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  const pid_t child = fork();
  if (child == 0) {
    Result<SharedMemory> memory = SharedMemory::create(path, 4);
    if (!memory.ok()) _exit(1);
    fill(memory.value(), "last");
    if (write(ready[1], "x", 1) != 1) _exit(1);
    pause();
    _exit(1);
  }
  char signal = 0;
  close(ready[1]);
  REQUIRE(read(ready[0], &signal, 1) == 1);
  close(ready[0]);
  CHECK(SharedMemory::is_in_use(path).value());
  CHECK_FALSE(SharedMemory::remove_unless_in_use(path).value());
  CHECK(std::filesystem::exists(path));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  CHECK_FALSE(SharedMemory::is_in_use(path).value());
  CHECK(text_of(path) == "last");
  CHECK(SharedMemory::remove_unless_in_use(path).value());
  CHECK_FALSE(std::filesystem::exists(path));
  CHECK(SharedMemory::is_in_use(path).status().code == StatusCode::kNotFound);
  CHECK(SharedMemory::remove_unless_in_use(path).status().code == StatusCode::kNotFound);
}

TEST_CASE("shared memory shrinks in place and gives memory back", "[shared_memory]") {
  const test::TempDir dir;
  SharedMemory memory = SharedMemory::create(dir / "m", 1'000'000).value();
  const std::byte* const begin = memory.bytes().data();
  fill(memory, "kept");
  REQUIRE(memory.shrink(4).ok());
  CHECK(memory.bytes().data() == begin);
  CHECK(memory.bytes().size() == 4);
  CHECK(text_of(dir / "m") == "kept");
  struct stat facts {};
  REQUIRE(::stat((dir / "m").c_str(), &facts) == 0);
  CHECK(facts.st_blocks * 512 <= 4096);
  CHECK(SharedMemory::is_in_use(dir / "m").value());
}

TEST_CASE("too much memory is refused with wanted and free bytes", "[shared_memory]") {
  const test::TempDir dir;
  for (const std::size_t wanted : {std::size_t(1) << 50, ~std::size_t(0)}) {
    const Status status = SharedMemory::create(dir / "m", wanted).status();
    CHECK(status.code == StatusCode::kNoSpace);
    CHECK(status.message.find(dir / "m") == 0);
    CHECK(status.message.find(fmt::format("{} bytes of memory", wanted)) != std::string::npos);
    CHECK(status.message.find("bytes free") != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(dir / "m"));
  }
}

TEST_CASE("memory that cannot be reserved is refused when it is asked for", "[shared_memory]") {
  // A limit of the process stands for a directory that fills up between question and reservation.
  const test::TempDir dir;
  const int code = in_child([&] {
    const rlimit limit{1000, 1000};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0 || std::signal(SIGXFSZ, SIG_IGN) == SIG_ERR)
      return 100;
    return int(SharedMemory::create(dir / "m", 2000).status().code);
  });
  CHECK(code == int(StatusCode::kNoSpace));
  CHECK_FALSE(std::filesystem::exists(dir / "m"));
}

TEST_CASE("a directory that is not there or not writable is named", "[shared_memory]") {
  const test::TempDir dir;
  const Status missing = SharedMemory::create(dir / "none/m", 1).status();
  CHECK(missing.code == StatusCode::kNotFound);
  CHECK(missing.message.find(dir / "none/m") != std::string::npos);
  std::filesystem::permissions(dir.path(), std::filesystem::perms(0555));
  const int code = in_child([&] {
    // Root may write everywhere: become somebody else.
    if (geteuid() == 0 && seteuid(65534) != 0) return 100;
    return int(SharedMemory::create(dir / "m", 1).status().code);
  });
  std::filesystem::permissions(dir.path(), std::filesystem::perms(0755));
  CHECK(code == int(StatusCode::kPermission));
}

TEST_CASE("what another user holds cannot be asked about", "[shared_memory]") {
  const test::TempDir dir;
  const SharedMemory memory = SharedMemory::create(dir / "m", 1).value();
  std::filesystem::permissions(dir.path(), std::filesystem::perms(0755));
  std::filesystem::permissions(dir / "m", std::filesystem::perms(0));
  const int code = in_child([&] {
    if (geteuid() == 0 && seteuid(65534) != 0) return 100;
    return int(SharedMemory::is_in_use(dir / "m").status().code);
  });
  CHECK(code == int(StatusCode::kPermission));
}

TEST_CASE("shared memory moves", "[shared_memory]") {
  const test::TempDir dir;
  SharedMemory a = SharedMemory::create(dir / "a", 1).value();
  const std::byte* const begin = a.bytes().data();
  SharedMemory b = std::move(a);
  CHECK(a.bytes().empty());  // NOLINT: empty after a move
  CHECK(a.remove().ok());
  CHECK(b.bytes().data() == begin);
  SharedMemory& same = b;
  b = std::move(same);
  CHECK(b.bytes().data() == begin);
  CHECK(SharedMemory::is_in_use(dir / "a").value());
  b = SharedMemory::create(dir / "b", 1).value();
  CHECK_FALSE(SharedMemory::is_in_use(dir / "a").value());
  b = SharedMemory();
  CHECK_FALSE(SharedMemory::is_in_use(dir / "b").value());
}

}  // namespace
}  // namespace pecan
