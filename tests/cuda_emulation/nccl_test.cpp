/// NCCL's emulation: ranks as threads with streams of their own, and as processes.

#include <array>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nccl.h>
#include <pecan_emulation/control.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include "support/catch.hpp"

using namespace pecan::emulation;

namespace {

/// A communicator and a stream of one rank, on a device; device memory is freed with it.
class Rank {
 public:
  Rank(ncclUniqueId id, int rank, int num_ranks) : rank_(rank), num_ranks_(num_ranks) {
    is_joined_ = cudaSetDevice(rank) == cudaSuccess &&
                 ncclCommInitRank(&communicator_, num_ranks, id, rank) == ncclSuccess &&
                 cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == cudaSuccess;
  }
  ~Rank() {
    if (communicator_ != nullptr) ncclCommDestroy(communicator_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
    for (void* address : memory_) cudaFree(address);
  }
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  [[nodiscard]] bool is_joined() const { return is_joined_; }
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int num_ranks() const { return num_ranks_; }
  [[nodiscard]] ncclComm_t communicator() const { return communicator_; }
  [[nodiscard]] cudaStream_t stream() const { return stream_; }
  [[nodiscard]] ncclResult_t error() const {
    ncclResult_t error = ncclSuccess;
    ncclCommGetAsyncError(communicator_, &error);
    return error;
  }
  void abort() {
    ncclCommAbort(communicator_);
    communicator_ = nullptr;
  }

  template <typename T>
  T* upload(const std::vector<T>& values) {
    void* address = nullptr;
    cudaMalloc(&address, values.size() * sizeof(T));
    memory_.push_back(address);
    cudaMemcpyAsync(
        address, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice, stream_);
    return static_cast<T*>(address);
  }
  template <typename T>
  std::vector<T> download(const T* address, std::size_t size) {
    std::vector<T> values(size);
    cudaMemcpyAsync(values.data(), address, size * sizeof(T), cudaMemcpyDeviceToHost, stream_);
    cudaStreamSynchronize(stream_);
    return values;
  }

 private:
  int rank_;
  int num_ranks_;
  bool is_joined_ = false;
  ncclComm_t communicator_ = nullptr;
  cudaStream_t stream_ = nullptr;
  std::vector<void*> memory_;
};

/// What went wrong on a rank, or "".
using Body = std::function<std::string(Rank&)>;

/// Runs the body on each rank, which have a device each; returns what each said.
std::vector<std::string> run_on_threads(int num_ranks, const Body& body) {
  set_num_devices(num_ranks);
  ncclUniqueId id;
  REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  std::vector<std::string> said(static_cast<std::size_t>(num_ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank) {
    threads.emplace_back([&, rank] {
      Rank own(id, rank, num_ranks);
      said[static_cast<std::size_t>(rank)] = own.is_joined() ? body(own) : "cannot join";
    });
  }
  for (std::thread& thread : threads) thread.join();
  return said;
}

void expect_silence(const std::vector<std::string>& said) {
  for (const std::string& text : said) CHECK(text.empty());
}

/// Waits without blocking, as a watchdog does.
void wait_for_error(const Rank& own) {
  while (own.error() == ncclSuccess) std::this_thread::yield();
}

class ShortTimeout {
 public:
  ShortTimeout() { set_nccl_timeout_ms(100); }
  ~ShortTimeout() { set_nccl_timeout_ms(60000); }
  ShortTimeout(const ShortTimeout&) = delete;
  ShortTimeout& operator=(const ShortTimeout&) = delete;
};

std::string run_all_collectives(Rank& own) {
  const int n = own.num_ranks();
  const int r = own.rank();
  // More than one piece of the ranks' file.
  constexpr std::size_t kSize = 200000;
  std::vector<float> values(kSize);
  for (std::size_t i = 0; i < kSize; ++i)
    values[i] = static_cast<float>(r + static_cast<int>(i % 7));
  float* data = own.upload(values);
  ncclAllReduce(data, data, kSize, ncclFloat32, ncclSum, own.communicator(), own.stream());
  const std::vector<float> sums = own.download(data, kSize);
  for (std::size_t i = 0; i < kSize; ++i) {
    const auto expected = static_cast<float>(n * (n - 1) / 2 + n * static_cast<int>(i % 7));
    if (sums[i] != expected) return fmt::format("sum {} at {}, not {}", sums[i], i, expected);
  }

  constexpr std::size_t kShare = 1000;
  std::vector<int> whole(kShare * static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < whole.size(); ++i) whole[i] = static_cast<int>(i) * (r + 1);
  int* all = own.upload(whole);
  int* share = own.upload(std::vector<int>(kShare));
  ncclReduceScatter(all, share, kShare, ncclInt32, ncclMax, own.communicator(), own.stream());
  ncclAllGather(share, all, kShare, ncclInt32, own.communicator(), own.stream());
  const std::vector<int> gathered = own.download(all, whole.size());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (gathered[i] != static_cast<int>(i) * n) return fmt::format("gathered {}", gathered[i]);
  }

  std::vector<__nv_bfloat16> halves(64, __float2bfloat16(static_cast<float>(r)));
  __nv_bfloat16* average = own.upload(halves);
  ncclAllReduce(average, average, 64, ncclBfloat16, ncclAvg, own.communicator(), own.stream());
  const float mean = __bfloat162float(own.download(average, 64)[5]);
  if (mean != static_cast<float>(n - 1) / 2) return fmt::format("average {}", mean);

  double* one = own.upload(std::vector<double>{static_cast<double>(r)});
  const int root = n - 1;
  ncclReduce(one, one, 1, ncclFloat64, ncclMin, root, own.communicator(), own.stream());
  ncclBroadcast(one, one, 1, ncclFloat64, root, own.communicator(), own.stream());
  if (own.download(one, 1)[0] != 0) return "the least rank is not 0";

  // Each rank sends (r + p) times 30000 values to p; nothing to itself if r is 0.
  std::vector<float*> received;
  ncclGroupStart();
  for (int p = 0; p < n; ++p) {
    const auto size = static_cast<std::size_t>(r + p) * 30000;
    const auto content = static_cast<float>(100 * r + p);
    const float* sent = own.upload(std::vector<float>(size + 1, content));
    received.push_back(own.upload(std::vector<float>(size + 1)));
    ncclSend(sent, size, ncclFloat32, p, own.communicator(), own.stream());
    ncclRecv(received.back(), size, ncclFloat32, p, own.communicator(), own.stream());
  }
  ncclGroupEnd();
  for (int p = 0; p < n; ++p) {
    const auto size = static_cast<std::size_t>(r + p) * 30000;
    for (const float value : own.download(received[static_cast<std::size_t>(p)], size)) {
      if (value != static_cast<float>(100 * p + r)) return fmt::format("received {}", value);
    }
  }
  return own.error() == ncclSuccess ? "" : "an error";
}

}  // namespace

TEST_CASE("collectives among threads") {
  const int num_ranks = GENERATE(1, 2, 3);
  expect_silence(run_on_threads(num_ranks, run_all_collectives));
  CHECK(take_findings().empty());
}

TEST_CASE("collectives among processes") {
  constexpr int kNumRanks = 3;
  set_num_devices(kNumRanks);
  ncclUniqueId id;
  REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  std::vector<pid_t> children;
  for (int rank = 0; rank < kNumRanks; ++rank) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      std::string said = "cannot join";
      {
        Rank own(id, rank, kNumRanks);
        if (own.is_joined()) said = run_all_collectives(own);
      }
      if (!said.empty()) fmt::print(stderr, "rank {}: {}\n", rank, said);
      _exit(said.empty() && take_findings().empty() ? 0 : 1);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
  }
}

TEST_CASE("a collective with an absent rank is pending, and can be aborted") {
  const auto body = [](Rank& own) -> std::string {
    if (own.rank() == 1) {
      // Takes no part, and sees that the other one has given up.
      wait_for_error(own);
      return own.error() == ncclRemoteError ? "" : "no remote error";
    }
    float* data = own.upload(std::vector<float>(8, 1.0f));
    cudaEvent_t event = nullptr;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (ncclAllReduce(data, data, 8, ncclFloat32, ncclSum, own.communicator(), own.stream()) !=
        ncclSuccess) {
      return "not issued";
    }
    cudaEventRecord(event, own.stream());
    if (cudaStreamQuery(own.stream()) != cudaErrorNotReady) return "the stream is ready";
    if (cudaEventQuery(event) != cudaErrorNotReady) return "the event is ready";
    own.abort();
    const bool is_over =
        cudaEventSynchronize(event) == cudaSuccess && cudaStreamQuery(own.stream()) == cudaSuccess;
    cudaEventDestroy(event);
    return is_over ? "" : "the stream waits after the abort";
  };
  expect_silence(run_on_threads(2, body));
  CHECK(take_findings().empty());
}

TEST_CASE("a collective with an absent rank fails in time") {
  const ShortTimeout timeout;
  const auto body = [](Rank& own) -> std::string {
    if (own.rank() == 1) {
      wait_for_error(own);
      return "";
    }
    float* data = own.upload(std::vector<float>(8, 1.0f));
    ncclAllReduce(data, data, 8, ncclFloat32, ncclSum, own.communicator(), own.stream());
    if (cudaStreamSynchronize(own.stream()) != cudaSuccess) return "the stream failed";
    if (own.error() != ncclRemoteError) return "no remote error";
    const ncclResult_t next =
        ncclAllReduce(data, data, 8, ncclFloat32, ncclSum, own.communicator(), own.stream());
    return next == ncclRemoteError ? "" : "the next one was taken";
  };
  expect_silence(run_on_threads(2, body));
}

TEST_CASE("a rank that never comes") {
  const ShortTimeout timeout;
  ncclUniqueId id;
  REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  ncclComm_t communicator = nullptr;
  CHECK(ncclCommInitRank(&communicator, 2, id, 0) == ncclRemoteError);
}

TEST_CASE("ranks that share a device are refused") {
  constexpr int kNumRanks = 3;
  set_num_devices(2);
  const bool blocks = GENERATE(true, false);
  CAPTURE(blocks);
  // Ranks 0 and 2 are on device 0.
  const auto join = [&](ncclUniqueId id, int rank) {
    cudaSetDevice(rank % 2);
    ncclComm_t communicator = nullptr;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = blocks ? 1 : 0;
    ncclResult_t result = ncclCommInitRankConfig(&communicator, kNumRanks, id, rank, &config);
    while (result == ncclInProgress) {
      std::this_thread::yield();
      ncclCommGetAsyncError(communicator, &result);
    }
    if (communicator != nullptr) ncclCommAbort(communicator);
    return result;
  };
  ncclUniqueId id;
  REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  std::array<ncclResult_t, kNumRanks> results{};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kNumRanks; ++rank) {
    threads.emplace_back([&, rank] { results[static_cast<std::size_t>(rank)] = join(id, rank); });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(results == std::array{ncclInvalidUsage, ncclRemoteError, ncclInvalidUsage});
  if (!blocks) {
    CHECK_THAT(ncclGetLastError(nullptr),
               Catch::StartsWith("Duplicate GPU detected : rank ") &&
                   Catch::EndsWith("both on CUDA device 0"));
  }
  CHECK(take_findings().empty());
}

TEST_CASE("unlike collectives are found") {
  struct Case {
    const char* name;
    std::function<void(Rank&, float*)> call;
  };
  const std::vector<Case> cases = {
      {"counts",
       [](Rank& own, float* data) {
         const std::size_t count = own.rank() == 0 ? 8 : 7;
         ncclAllReduce(data, data, count, ncclFloat32, ncclSum, own.communicator(), own.stream());
       }},
      {"types",
       [](Rank& own, float* data) {
         const auto type = own.rank() == 0 ? ncclFloat32 : ncclInt32;
         ncclAllReduce(data, data, 8, type, ncclSum, own.communicator(), own.stream());
       }},
      {"reductions",
       [](Rank& own, float* data) {
         const auto reduction = own.rank() == 0 ? ncclMax : ncclSum;
         ncclAllReduce(data, data, 8, ncclFloat32, reduction, own.communicator(), own.stream());
       }},
      {"roots",
       [](Rank& own, float* data) {
         ncclBroadcast(data, data, 8, ncclFloat32, own.rank(), own.communicator(), own.stream());
       }},
      {"kinds",
       [](Rank& own, float* data) {
         if (own.rank() == 0) {
           ncclAllReduce(data, data, 8, ncclFloat32, ncclSum, own.communicator(), own.stream());
         } else {
           ncclBroadcast(data, data, 8, ncclFloat32, 0, own.communicator(), own.stream());
         }
       }},
      {"sizes of a message",
       [](Rank& own, float* data) {
         if (own.rank() == 0) {
           ncclSend(data, 8, ncclFloat32, 1, own.communicator(), own.stream());
         } else {
           ncclRecv(data, 6, ncclFloat32, 0, own.communicator(), own.stream());
         }
       }},
  };
  for (const Case& unlike : cases) {
    INFO(unlike.name);
    expect_silence(run_on_threads(2, [&](Rank& own) -> std::string {
      float* data = own.upload(std::vector<float>(8, 1.0f));
      unlike.call(own, data);
      cudaStreamSynchronize(own.stream());
      wait_for_error(own);
      return "";
    }));
    const std::vector<std::string> findings = take_findings();
    REQUIRE(!findings.empty());
    CHECK(findings.front().starts_with("library: rank "));
  }
}

TEST_CASE("buffers of a collective are device memory of its size") {
  expect_silence(run_on_threads(1, [](Rank& own) -> std::string {
    std::vector<float> host(8);
    if (ncclAllReduce(
            host.data(), host.data(), 8, ncclFloat32, ncclSum, own.communicator(), own.stream()) !=
        ncclInvalidArgument) {
      return "host memory was taken";
    }
    float* data = own.upload(host);
    return ncclAllReduce(data, data, 9, ncclFloat32, ncclSum, own.communicator(), own.stream()) ==
                   ncclInvalidArgument
               ? ""
               : "an overrun was taken";
  }));
  CHECK(take_findings().size() >= 2);
}
