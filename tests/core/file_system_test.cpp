#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <set>
#include <thread>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pecan/core/file_system.hpp>

#include "support/catch.hpp"
#include "support/faulty_file_system.hpp"
#include "support/memory_file_system.hpp"
#include "support/support.hpp"

namespace pecan {
namespace {

using test::MemoryFileSystem;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

Status write(FileSystem& fs,
             const std::string& path,
             const std::string& text,
             OpenMode mode = OpenMode::kCreate) {
  Result<std::unique_ptr<File>> file = fs.open(path, mode);
  return file.ok() ? file.value()->write_at(0, bytes_of(text)) : file.status();
}

std::string text_of(FileSystem& fs, const std::string& path) {
  const Result<std::string> text = read_text(fs, path);
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

/// What every file system has to do alike.
void check_conformance(FileSystem& fs, const std::string& root) {
  const std::string dir = root + "/a/b";
  REQUIRE(fs.create_directories(dir).ok());
  REQUIRE(fs.create_directories(dir).ok());
  CHECK(fs.exists(dir));
  CHECK_FALSE(fs.exists(dir + "/x"));
  CHECK(fs.open(dir + "/x", OpenMode::kRead).status().code == StatusCode::kNotFound);
  CHECK(fs.open(dir + "/x", OpenMode::kReadWrite).status().code == StatusCode::kNotFound);
  CHECK(fs.open(dir + "/none/x", OpenMode::kCreate).status().code == StatusCode::kNotFound);
  CHECK(fs.list(dir + "/none").status().code == StatusCode::kNotFound);

  auto file = fs.open(dir + "/x", OpenMode::kCreateNew);
  REQUIRE(file.ok());
  CHECK(fs.open(dir + "/x", OpenMode::kCreateNew).status().code == StatusCode::kExists);
  File& x = *file.value();
  REQUIRE(x.write_at(3, bytes_of("def")).ok());
  REQUIRE(x.write_at(0, bytes_of("ab")).ok());
  CHECK(text_of(fs, dir + "/x") == std::string("ab\0def", 6));
  CHECK(x.size().value() == 6);
  std::string buffer(10, '#');
  CHECK(x.read_at(4, std::as_writable_bytes(std::span(buffer))).value() == 2);
  CHECK(buffer == "ef########");
  CHECK(x.read_at(99, std::as_writable_bytes(std::span(buffer))).value() == 0);
  REQUIRE(x.truncate(2).ok());
  REQUIRE(x.truncate(4).ok());
  CHECK(text_of(fs, dir + "/x") == std::string("ab\0\0", 4));
  CHECK(x.sync().ok());
  CHECK_FALSE(fs.open(dir + "/x", OpenMode::kRead).value()->write_at(0, bytes_of("z")).ok());

  REQUIRE(write(fs, dir + "/x", "q", OpenMode::kReadWrite).ok());
  CHECK(text_of(fs, dir + "/x") == std::string("qb\0\0", 4));
  REQUIRE(write(fs, dir + "/y", "new").ok());
  REQUIRE(write(fs, dir + "/y", "n").ok());
  CHECK(text_of(fs, dir + "/y") == "n");
  REQUIRE(fs.rename(dir + "/y", dir + "/x").ok());
  CHECK(text_of(fs, dir + "/x") == "n");
  CHECK(fs.rename(dir + "/y", dir + "/z").code == StatusCode::kNotFound);
  REQUIRE(fs.rename(dir, root + "/a/c").ok());
  CHECK(fs.list(root + "/a").value() == std::vector<DirEntry>{{"c", true}});
  CHECK(fs.list(root + "/a/c").value() == std::vector<DirEntry>{{"x", false}});
  REQUIRE(fs.create_directories(root + "/a/d/e").ok());
  CHECK(fs.rename(root + "/a/c", root + "/a/d").code == StatusCode::kExists);
  CHECK_FALSE(fs.rename(root + "/a/c", root + "/a/c/inside").ok());
  CHECK_FALSE(fs.create_directories(root + "/a/c/x").ok());

  CHECK(fs.sync_directory(root + "/a").ok());
  CHECK(fs.sync_directory(root + "/none").code == StatusCode::kNotFound);
  CHECK(fs.remove_file(root + "/a/none").code == StatusCode::kNotFound);
  CHECK_FALSE(fs.remove_file(root + "/a/c").ok());
  CHECK(fs.remove_file(root + "/a/c/x").ok());
  CHECK(fs.list(root + "/a/c").value().empty());
  CHECK(fs.remove_all(root + "/a").ok());
  CHECK(fs.remove_all(root + "/a").ok());
  CHECK_FALSE(fs.exists(root + "/a"));

  REQUIRE(write_text_atomically(fs, root + "/t", "one").ok());
  REQUIRE(write_text_atomically(fs, root + "/t", "").ok());
  CHECK(text_of(fs, root + "/t").empty());
  CHECK(fs.list(root).value() == std::vector<DirEntry>{{"t", false}});
}

TEST_CASE("all file systems behave alike", "[file_system]") {
  SECTION("posix") {
    const test::TempDir dir;
    check_conformance(*make_posix_file_system(), dir.path());
  }
  SECTION("memory") {
    MemoryFileSystem fs;
    REQUIRE(fs.create_directories("/run").ok());
    check_conformance(fs, "/run");
  }
  SECTION("faulty without faults") {
    MemoryFileSystem inner;
    test::FaultyFileSystem fs(inner);
    REQUIRE(fs.create_directories("/run").ok());
    check_conformance(fs, "/run");
  }
}

TEST_CASE("a path's parent is that of its last name, whatever slashes end it", "[file_system]") {
  const std::pair<std::string, std::string> cases[] = {{"runs/moe", "runs"},
                                                       {"runs/moe/", "runs"},
                                                       {"runs//moe//", "runs"},
                                                       {"/a/b/c", "/a/b"},
                                                       {"moe", "."},
                                                       {"moe/", "."},
                                                       {"/moe", "/"},
                                                       {"/moe/", "/"},
                                                       {"/", "/"},
                                                       {"", "."}};
  for (const auto& [path, parent] : cases) {
    INFO(path);
    CHECK(parent_of(path) == parent);
  }
}

TEST_CASE("a file that ends within a line is told", "[file_system]") {
  MemoryFileSystem fs;
  CHECK_FALSE(ends_within_line(fs, "missing"));
  const std::pair<std::string, bool> cases[] = {
      {"", false}, {"\n", false}, {"a", true}, {"a\n", false}, {"a\nb", true}, {"a\n\n", false}};
  for (const auto& [text, cut] : cases) {
    INFO(text);
    REQUIRE(write_text_atomically(fs, "lines", text).ok());
    CHECK(ends_within_line(fs, "lines") == cut);
  }
}

TEST_CASE("posix failures say which file, why and what to try", "[file_system]") {
  const test::TempDir dir;
  const auto fs = make_posix_file_system();
  const auto missing = fs->open(dir / "none", OpenMode::kRead).status();
  CHECK(missing.message.find(dir / "none") != std::string::npos);
  CHECK(missing.message.find(std::strerror(ENOENT)) != std::string::npos);

  const Status full =
      fs->open("/dev/full", OpenMode::kReadWrite).value()->write_at(0, bytes_of("x"));
  CHECK(full.code == StatusCode::kNoSpace);
  CHECK(full.message.find("free space") != std::string::npos);
}

TEST_CASE("posix says when permission is missing", "[file_system]") {
  const test::TempDir dir;
  const auto fs = make_posix_file_system();
  REQUIRE(write(*fs, dir / "private", "x").ok());
  std::filesystem::permissions(dir.path(), std::filesystem::perms(0555));
  const int code = in_child([&] {
    // Root may write everywhere: become somebody else.
    if (geteuid() == 0 && seteuid(65534) != 0) return 100;
    return int(fs->open(dir / "new", OpenMode::kCreate).status().code);
  });
  std::filesystem::permissions(dir.path(), std::filesystem::perms(0755));
  CHECK(code == int(StatusCode::kPermission));
}

TEST_CASE("posix goes on after a short write and reports what stopped it", "[file_system]") {
  const test::TempDir dir;
  const auto fs = make_posix_file_system();
  // With a limit on file sizes the first pwrite of 2000 bytes is short and the second one fails.
  const int code = in_child([&] {
    const rlimit limit{1000, 1000};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0 || std::signal(SIGXFSZ, SIG_IGN) == SIG_ERR)
      return 100;
    return int(write(*fs, dir / "big", std::string(2000, 'x')).code);
  });
  CHECK(code == int(StatusCode::kNoSpace));
  CHECK(text_of(*fs, dir / "big") == std::string(1000, 'x'));
}

TEST_CASE("posix reads and writes through signals", "[file_system]") {
  // Opening a pipe blocks until somebody writes, so that signals interrupt it.
  struct sigaction action {};
  action.sa_handler = [](int) {};  // without SA_RESTART
  struct sigaction former {};
  sigaction(SIGALRM, &action, &former);
  const test::TempDir dir;
  const std::string fifo = dir / "fifo";
  REQUIRE(std::system(("mkfifo " + fifo).c_str()) == 0);
  const auto fs = make_posix_file_system();
  std::jthread peer([&] {
    sigset_t none;
    sigemptyset(&none);
    sigaddset(&none, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &none, nullptr);  // only the main thread is interrupted
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    static_cast<void>(make_posix_file_system()->open(fifo, OpenMode::kReadWrite));
  });
  const itimerval soon{{0, 5000}, {0, 5000}};
  const itimerval off{};
  setitimer(ITIMER_REAL, &soon, nullptr);
  const bool opened = fs->open(fifo, OpenMode::kRead).ok();
  setitimer(ITIMER_REAL, &off, nullptr);
  sigaction(SIGALRM, &former, nullptr);
  CHECK(opened);
}

TEST_CASE("memory: a crash keeps what was synced, and nothing else", "[file_system]") {
  MemoryFileSystem fs;
  REQUIRE(fs.create_directories("/d").ok());
  REQUIRE(fs.sync_directory("/").ok());
  auto file = fs.open("/d/x", OpenMode::kCreate);
  REQUIRE(file.value()->write_at(0, bytes_of("synced")).ok());
  REQUIRE(file.value()->sync().ok());
  REQUIRE(file.value()->write_at(0, bytes_of("later")).ok());

  SECTION("content without its name is lost") {
    fs.crash();
    CHECK_FALSE(fs.exists("/d/x"));
    CHECK(fs.exists("/d"));
  }
  SECTION("a name keeps the content of the last sync") {
    REQUIRE(fs.sync_directory("/d").ok());
    fs.crash();
    CHECK(text_of(fs, "/d/x") == "synced");
  }
  SECTION("a name without synced content is an empty file") {
    REQUIRE(write(fs, "/d/y", "text").ok());
    REQUIRE(fs.sync_directory("/d").ok());
    fs.crash();
    CHECK(text_of(fs, "/d/y").empty());
  }
  SECTION("renames and removals come undone") {
    REQUIRE(fs.sync_directory("/d").ok());
    REQUIRE(fs.rename("/d/x", "/d/z").ok());
    REQUIRE(fs.remove_file("/d/z").ok());
    fs.crash();
    CHECK(fs.list("/d").value() == std::vector<DirEntry>{{"x", false}});
  }
  SECTION("a process that dies loses nothing") {
    fs.restart();
    CHECK(text_of(fs, "/d/x") == "laterd");
  }
  SECTION("files from before the crash are dead") {
    fs.crash();
    CHECK_FALSE(file.value()->write_at(0, bytes_of("ghost")).ok());
    CHECK_FALSE(file.value()->size().ok());
    CHECK_FALSE(file.value()->sync().ok());
  }
}

TEST_CASE("memory: a seeded crash keeps some of what was not synced", "[file_system]") {
  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    MemoryFileSystem fs;
    auto file = fs.open("/x", OpenMode::kCreate);
    REQUIRE(file.value()->write_at(0, bytes_of("0000")).ok());
    REQUIRE(file.value()->sync().ok());
    REQUIRE(fs.sync_directory("/").ok());
    REQUIRE(file.value()->write_at(0, bytes_of("11")).ok());
    REQUIRE(file.value()->write_at(2, bytes_of("22")).ok());
    REQUIRE(fs.rename("/x", "/y").ok());
    fs.crash(seed);
    const bool renamed = fs.exists("/y");
    REQUIRE(renamed != fs.exists("/x"));
    seen.insert((renamed ? "y" : "x") + text_of(fs, renamed ? "/y" : "/x"));
  }
  // Each write whole, torn or lost, independently; under the old or the new name.
  CHECK(seen.size() == 2 * 3 * 3);
}

TEST_CASE("memory: stop_at counts every mutation and tears a write", "[file_system]") {
  MemoryFileSystem fs;
  const auto save = [&] { return write_text_atomically(fs, "/t", "0123456789"); };
  REQUIRE(save().ok());
  CHECK(fs.num_mutations() == 5);  // create, write, sync, rename, sync of the directory
  fs.stop_at(2);
  CHECK_FALSE(save().ok());
  CHECK_FALSE(fs.create_directories("/d").ok());
  fs.restart();
  CHECK(text_of(fs, "/t.tmp") == "01234");
  CHECK(fs.create_directories("/d").ok());
}

TEST_CASE("an atomic write leaves the old or the new text, wherever it stops", "[file_system]") {
  for (std::size_t n = 1; n <= 6; ++n) {
    for (std::uint64_t seed = 0; seed < 33; ++seed) {
      MemoryFileSystem fs;
      REQUIRE(write_text_atomically(fs, "/t", "old").ok());
      fs.stop_at(n);
      const bool done = write_text_atomically(fs, "/t", "new and longer").ok();
      REQUIRE(done == (n == 6));
      seed == 0 ? fs.crash() : fs.crash(seed);
      const std::string text = text_of(fs, "/t");
      CAPTURE(n, seed, text);
      CHECK((text == "new and longer" || (!done && text == "old")));
    }
  }
}

TEST_CASE("an atomic write cleans up after a failure", "[file_system]") {
  MemoryFileSystem inner;
  test::FaultyFileSystem fs(inner);
  REQUIRE(write_text_atomically(fs, "/t", "old").ok());
  for (const test::Call call :
       {test::Call::kOpen, test::Call::kWrite, test::Call::kSync, test::Call::kRename}) {
    fs.inject({.call = call, .code = StatusCode::kNoSpace});
    CHECK(write_text_atomically(fs, "/t", "new").code == StatusCode::kNoSpace);
    CHECK(fs.list("/").value() == std::vector<DirEntry>{{"t", false}});
  }
  CHECK(text_of(fs, "/t") == "old");
  CHECK(fs.num_struck() == 4);
}

TEST_CASE("faulty: each call fails when told", "[file_system]") {
  MemoryFileSystem inner;
  test::FaultyFileSystem fs(inner);
  REQUIRE(write(fs, "/x", "abcd").ok());
  fs.inject(
      {.call = test::Call::kRead, .code = StatusCode::kPermission, .nth = 2, .path_contains = "x"});
  CHECK(text_of(fs, "/x") == "abcd");
  CHECK(read_text(fs, "/x").status().code == StatusCode::kPermission);
  CHECK(text_of(fs, "/x") == "abcd");
  fs.inject({.call = test::Call::kRead, .effect = test::Effect::kFlipBit, .bit = 9});
  CHECK(text_of(fs, "/x") == "a`cd");
  CHECK(text_of(fs, "/x") == "abcd");
  test::flip_bit(fs, "/x", 9);
  CHECK(text_of(fs, "/x") == "a`cd");
  fs.inject({.call = test::Call::kWrite,
             .code = StatusCode::kNoSpace,
             .repeats = true,
             .effect = test::Effect::kHalf});
  CHECK(write(fs, "/y", "abcd").code == StatusCode::kNoSpace);
  CHECK(text_of(fs, "/y") == "ab");
  CHECK_FALSE(write(fs, "/y", "abcd").ok());
  fs.clear();
  CHECK(write(fs, "/y", "abcd").ok());
}

TEST_CASE("memory: many threads at once", "[file_system]") {
  MemoryFileSystem fs;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&fs, t] {
        for (int i = 0; i < 50; ++i) {
          static_cast<void>(
              write_text_atomically(fs, fmt::format("/t{}", t), fmt::format("{}", i)));
        }
      });
    }
  }
  for (int t = 0; t < 4; ++t) CHECK(text_of(fs, fmt::format("/t{}", t)) == "49");
}

}  // namespace
}  // namespace pecan
