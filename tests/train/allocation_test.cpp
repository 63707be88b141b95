#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

#include <dlfcn.h>

#include "train/lab.hpp"

/// Counts big blocks that anything in this process asks the C library for: malloc and its kin are
/// replaced by calls of the same functions by their other names. What oneDNN itself asks for is
/// counted apart and not limited. A sanitizer has its own.
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)

namespace pecan::test {
namespace {

constexpr std::size_t kBigBlock = 32 << 10;

std::atomic<std::int64_t> big_blocks{0};
std::atomic<std::int64_t> big_blocks_of_products{0};

void note_block(std::size_t num_bytes, const void* caller) {
  if (num_bytes < kBigBlock) return;
  Dl_info library{};
  const bool by_onednn = dladdr(caller, &library) != 0 && library.dli_fname != nullptr &&
                         std::strstr(library.dli_fname, "libdnnl") != nullptr;
  (by_onednn ? big_blocks_of_products : big_blocks).fetch_add(1, std::memory_order_relaxed);
}

}  // namespace
}  // namespace pecan::test

extern "C" {
void* __libc_malloc(std::size_t num_bytes);
void* __libc_calloc(std::size_t count, std::size_t num_bytes);
void* __libc_realloc(void* block, std::size_t num_bytes);
void* __libc_memalign(std::size_t alignment, std::size_t num_bytes);

void* malloc(std::size_t num_bytes) noexcept {
  pecan::test::note_block(num_bytes, __builtin_return_address(0));
  return __libc_malloc(num_bytes);
}
void* calloc(std::size_t count, std::size_t num_bytes) noexcept {
  pecan::test::note_block(count * num_bytes, __builtin_return_address(0));
  return __libc_calloc(count, num_bytes);
}
void* realloc(void* block, std::size_t num_bytes) noexcept {
  pecan::test::note_block(num_bytes, __builtin_return_address(0));
  return __libc_realloc(block, num_bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t num_bytes) noexcept {
  pecan::test::note_block(num_bytes, __builtin_return_address(0));
  return __libc_memalign(alignment, num_bytes);
}
void* memalign(std::size_t alignment, std::size_t num_bytes) noexcept {
  pecan::test::note_block(num_bytes, __builtin_return_address(0));
  return __libc_memalign(alignment, num_bytes);
}
int posix_memalign(void** block, std::size_t alignment, std::size_t num_bytes) noexcept {
  pecan::test::note_block(num_bytes, __builtin_return_address(0));
  *block = __libc_memalign(alignment, num_bytes);
  return *block == nullptr ? ENOMEM : 0;
}
}

namespace pecan::test {
namespace {

struct Blocks {
  std::int64_t own, of_products;
};

/// Big blocks that a run of one rank asks for, all told.
Blocks blocks_of_run(Lab& lab, std::vector<std::string> settings, int steps) {
  static int number = 0;
  settings.push_back(fmt::format("training.train_iters={}", steps));
  settings.push_back("optimizer.lr_decay_iters=100");
  const config::Config config = lab.config(settings);
  const train::RunOptions options{.run_directory = lab.path(fmt::format("run-{}", number++))};
  const Blocks before{big_blocks, big_blocks_of_products};
  ExitCode code{};
  comm::run_thread_group(
      1, [&](comm::Group& world) { code = train::run(config, options, lab.fs(), world); });
  CHECK(code == ExitCode::kDone);
  return {big_blocks - before.own, big_blocks_of_products - before.of_products};
}

}  // namespace

TEST_CASE("training asks for no big block in a step", "[allocation]") {
  Lab lab;
  for (const char* const dtype : {"false", "true"}) {
    for (const int threads : {1, 2}) {
      // The rows of any tensor of tokens, even in bf16, are a big block.
      const std::vector<std::string> settings = {fmt::format("training.bf16={}", dtype),
                                                 fmt::format("training.threads={}", threads),
                                                 "parallel.expert_model_parallel_size=1",
                                                 "model.hidden_size=64",
                                                 "moe.moe_ffn_hidden_size=64",
                                                 "training.seq_length=128",
                                                 "training.micro_batch_size=4",
                                                 "training.global_batch_size=8",
                                                 "checkpoint.save_interval=0",
                                                 "checkpoint.save_retain_interval=0"};
      CAPTURE(dtype, threads);
      blocks_of_run(lab, settings, 2);  // what is kept for the rest of the process
      const Blocks few = blocks_of_run(lab, settings, 2);
      const Blocks many = blocks_of_run(lab, settings, 8);
      CAPTURE(few.own, many.own, few.of_products, many.of_products);
      CHECK(few.own > 0);  // the arena and the parameters: blocks are seen
      CHECK(many.own == few.own);
    }
  }
}

}  // namespace pecan::test

#endif
