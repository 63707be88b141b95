/// The emulation against plain loops, in each variant and in each order of threads and blocks.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <pecan_emulation/control.hpp>

#include <pecan/core/error.hpp>

#include "sample_kernels.hpp"
#include "support/catch.hpp"

using namespace pecan::emulation;
using namespace pecan::emulation::test;

namespace {

constexpr int kLanes = 32;

/// Device memory with the values of a vector, freed with the object.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : size_(values.size()) {
    allocate();
    REQUIRE(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice) ==
            cudaSuccess);
  }
  explicit OnDevice(std::size_t size) : size_(size) { allocate(); }
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::vector<T> values() const {
    std::vector<T> read(size_);
    REQUIRE(cudaMemcpy(read.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost) ==
            cudaSuccess);
    return read;
  }

 private:
  void allocate() {
    void* address = nullptr;
    REQUIRE(cudaMalloc(&address, size_ * sizeof(T)) == cudaSuccess);
    data_ = static_cast<T*>(address);
  }
  std::size_t size_;
  T* data_ = nullptr;
};

std::vector<int> some_ints(int size) {
  std::vector<int> values;
  for (int i = 0; i < size; ++i) values.push_back((i * 37 + 11) % 97);
  return values;
}
std::vector<float> some_floats(int size) {
  std::vector<float> values;
  for (int i = 0; i < size; ++i) values.push_back(std::sin(0.37f * static_cast<float>(i)));
  return values;
}
std::vector<__nv_bfloat16> some_bf16(int size, float factor) {
  std::vector<__nv_bfloat16> values;
  for (int i = 0; i < size; ++i) {
    values.push_back(__float2bfloat16(std::sin(factor * static_cast<float>(i) + 0.1f)));
  }
  return values;
}

/// Runs the rest of a test case once in each order.
void in_some_order() {
  const Schedule schedule = GENERATE(Schedule::kForward, Schedule::kReverse, Schedule::kRandom);
  set_schedule(schedule, 17);
}

void expect_no_findings() {
  const std::vector<std::string> findings = take_findings();
  for (const std::string& finding : findings) UNSCOPED_INFO(finding);
  CHECK(findings.empty());
}

/// The lane that a shuffle by `width` gives, where it leaves its segment the own.
int within(int lane, int source, int width) {
  return source / width == lane / width ? source : lane;
}

}  // namespace

TEST_CASE("functions of a warp") {
  in_some_order();
  const std::vector<int> v = some_ints(kLanes);
  const OnDevice<int> values(v);
  const OnDevice<WarpResults> results(kLanes);
  run_warp_functions(results.data(), values.data());
  const std::vector<WarpResults> found = results.values();
  unsigned ballot = 0;
  unsigned bits_and = ~0u;
  unsigned bits_or = 0;
  unsigned bits_xor = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto bits = static_cast<unsigned>(v[static_cast<std::size_t>(lane)]);
    if (bits % 2 != 0) ballot |= 1u << lane;
    bits_and &= bits;
    bits_or |= bits;
    bits_xor ^= bits;
  }
  const auto at = [&](int lane) { return v[static_cast<std::size_t>(lane)]; };
  for (int lane = 0; lane < kLanes; ++lane) {
    INFO("lane " << lane);
    const WarpResults& r = found[static_cast<std::size_t>(lane)];
    CHECK(r.by_index == at(7));
    CHECK(r.up == at(lane < 3 ? lane : lane - 3));
    CHECK(r.down == at(lane + 5 >= kLanes ? lane : lane + 5));
    CHECK(r.by_xor == at(lane ^ 6));
    CHECK(r.up_in_eights == at(lane % 8 < 2 ? lane : lane - 2));
    CHECK(r.down_in_eights == at(within(lane, lane + 3, 8)));
    CHECK(r.index_in_sixteens == at(lane / 16 * 16 + 2));
    CHECK(r.xor_in_eights == at(lane ^ 5));
    CHECK(r.ballot == ballot);
    CHECK(r.any == (std::count(v.begin(), v.end(), 4) > 0 ? 1 : 0));
    CHECK(r.all == (std::all_of(v.begin(), v.end(), [](int x) { return x < 90; }) ? 1 : 0));
    CHECK(r.sum == std::accumulate(v.begin(), v.end(), 0));
    CHECK(r.least == *std::min_element(v.begin(), v.end()));
    CHECK(r.greatest == static_cast<unsigned>(*std::max_element(v.begin(), v.end())));
    CHECK(r.bits_and == bits_and);
    CHECK(r.bits_or == bits_or);
    CHECK(r.bits_xor == bits_xor);
    unsigned equal = 0;
    for (int other = 0; other < kLanes; ++other) {
      if (at(other) % 5 == at(lane) % 5) equal |= 1u << other;
    }
    CHECK(r.equal_lanes == equal);
  }
  expect_no_findings();
}

TEST_CASE("votes of a block") {
  in_some_order();
  for (const int size : {1, 31, 100, 1024}) {
    const std::vector<int> v = some_ints(size);
    const int num_odd =
        static_cast<int>(std::count_if(v.begin(), v.end(), [](int x) { return x % 2 != 0; }));
    const OnDevice<int> values(v);
    const OnDevice<int> votes(3 * v.size());
    run_block_votes(votes.data(), values.data(), static_cast<unsigned>(size));
    const std::vector<int> found = votes.values();
    for (std::size_t thread = 0; thread < v.size(); ++thread) {
      REQUIRE(found[3 * thread] == num_odd);
      REQUIRE(found[3 * thread + 1] == (num_odd > 0 ? 1 : 0));
      REQUIRE(found[3 * thread + 2] == (num_odd == size ? 1 : 0));
    }
  }
  expect_no_findings();
}

TEST_CASE("every thread of every block runs once") {
  in_some_order();
  const dim3 grid(3, 2, 4);
  const dim3 block(5, 3, 2);
  const std::size_t size = std::size_t{3} * 2 * 4 * 5 * 3 * 2;
  const OnDevice<Place> places(size);
  run_places(places.data(), grid, block);
  const std::vector<Place> found = places.values();
  std::size_t next = 0;
  for (unsigned bz = 0; bz < grid.z; ++bz) {
    for (unsigned by = 0; by < grid.y; ++by) {
      for (unsigned bx = 0; bx < grid.x; ++bx) {
        for (unsigned z = 0; z < block.z; ++z) {
          for (unsigned y = 0; y < block.y; ++y) {
            for (unsigned x = 0; x < block.x; ++x) {
              const Place& place = found[next++];
              const bool same = place.thread.x == x && place.thread.y == y && place.thread.z == z &&
                                place.block.x == bx && place.block.y == by && place.block.z == bz;
              REQUIRE(same);
            }
          }
        }
      }
    }
  }
  expect_no_findings();
}

TEST_CASE("sums through dynamic shared memory") {
  in_some_order();
  for (const int size : {1, 33, 1000}) {
    // Also more than a kernel has without asking.
    for (const std::size_t spare : {std::size_t{0}, std::size_t{100} * 1024}) {
      const std::vector<int> v = some_ints(size);
      const OnDevice<int> values(v);
      const OnDevice<int> sums(v.size());
      run_prefix_sums(sums.data(), values.data(), static_cast<unsigned>(size), spare);
      std::vector<int> expected(v.size());
      std::exclusive_scan(v.begin(), v.end(), expected.begin(), 0);
      CHECK(sums.values() == expected);
    }
  }
  expect_no_findings();
}

TEST_CASE("tensor cores") {
  in_some_order();
  constexpr int kM = 32;
  constexpr int kN = 64;
  constexpr int kK = 48;
  const auto a = some_bf16(kM * kK, 0.37f);
  const auto b = some_bf16(kN * kK, 0.11f);
  const OnDevice<__nv_bfloat16> device_a(a);
  const OnDevice<__nv_bfloat16> device_b(b);
  const OnDevice<float> device_c(kM * kN);
  run_tensor_cores(device_c.data(), device_a.data(), device_b.data(), kM, kN, kK);
  const std::vector<float> c = device_c.values();
  for (int row = 0; row < kM; ++row) {
    for (int column = 0; column < kN; ++column) {
      double expected = 0;
      double size = 0;
      for (int i = 0; i < kK; ++i) {
        const double product =
            2.0 * static_cast<double>(__bfloat162float(a[static_cast<std::size_t>(row * kK + i)])) *
            static_cast<double>(__bfloat162float(b[static_cast<std::size_t>(column * kK + i)]));
        expected += product;
        size += std::abs(product);
      }
      // Products are exact in float; each of 48 additions rounds once.
      const double found = static_cast<double>(c[static_cast<std::size_t>(row * kN + column)]);
      REQUIRE(std::abs(found - expected) <= kK * 6e-8 * size);
    }
  }
  expect_no_findings();
}

TEST_CASE("mma.m16n8k16 holds its matrices as the PTX manual says") {
  const auto a = some_bf16(16 * 16, 0.7f);
  const auto b = some_bf16(16 * 8, 0.3f);
  const auto bits = [](__nv_bfloat16 value) {
    std::uint16_t raw = 0;
    std::memcpy(&raw, &value, sizeof raw);
    return std::uint32_t{raw};
  };
  // In the manual's words: groupID is the lane over 4, threadID_in_group the rest.
  std::vector<MmaRegisters> lanes(kLanes);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane >> 2;
    const int in_group = lane % 4;
    MmaRegisters& own = lanes[static_cast<std::size_t>(lane)];
    for (int i = 0; i < 8; ++i) {  // a0 to a7, two in a register
      const bool is_upper = i < 2 || (i >= 4 && i < 6);
      const int row = is_upper ? group : group + 8;
      const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      own.a[i / 2] |= bits(a[static_cast<std::size_t>(row * 16 + column)]) << (16 * (i % 2));
    }
    for (int i = 0; i < 4; ++i) {  // b0 to b3
      const int row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      own.b[i / 2] |= bits(b[static_cast<std::size_t>(row * 8 + group)]) << (16 * (i % 2));
    }
    for (int i = 0; i < 4; ++i) own.d[i] = static_cast<float>(i);
  }
  const OnDevice<MmaRegisters> device(lanes);
  run_mma(device.data());
  const std::vector<MmaRegisters> found = device.values();
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {  // c0 to c3
      const int row = (lane >> 2) + (i < 2 ? 0 : 8);
      const int column = lane % 4 * 2 + (i & 1);
      double expected = i;
      for (int k = 0; k < 16; ++k) {
        expected +=
            static_cast<double>(__bfloat162float(a[static_cast<std::size_t>(row * 16 + k)])) *
            static_cast<double>(__bfloat162float(b[static_cast<std::size_t>(k * 8 + column)]));
      }
      REQUIRE(static_cast<double>(found[static_cast<std::size_t>(lane)].d[i]) ==
              Approx(expected).margin(1e-5));
    }
  }
  expect_no_findings();
}

TEST_CASE("atomics") {
  in_some_order();
  const std::vector<int> v = some_ints(1000);
  const OnDevice<int> values(v);
  const OnDevice<int> bins(std::vector<int>(97, 0));
  const OnDevice<unsigned> extremes(std::vector<unsigned>{1000, 0, 0});
  run_atomics(bins.data(), extremes.data(), values.data(), 1000);
  std::vector<int> expected(97, 0);
  for (const int value : v) ++expected[static_cast<std::size_t>(value)];
  CHECK(bins.values() == expected);
  CHECK(extremes.values() == std::vector<unsigned>{0, 96, 1000});
  expect_no_findings();
}

TEST_CASE("a fused multiply-add of bfloat16 rounds once") {
  // A product of 16 bits and an addend far below decide a tie that a double cannot hold.
  std::vector<__nv_bfloat16> a;
  std::vector<__nv_bfloat16> b;
  std::vector<__nv_bfloat16> c;
  for (int i = 0; i < 2000; ++i) {
    a.push_back(__float2bfloat16(std::ldexp(1.0f + static_cast<float>(i * 7 % 128) / 128, i % 40)));
    b.push_back(__float2bfloat16(1.0f + static_cast<float>(i * 11 % 128) / 128));
    c.push_back(__float2bfloat16(std::ldexp(i % 2 == 0 ? 1.0f : -1.0f, -(i * 3 % 60))));
  }
  const OnDevice<__nv_bfloat16> device_a(a);
  const OnDevice<__nv_bfloat16> device_b(b);
  const OnDevice<__nv_bfloat16> device_c(c);
  const OnDevice<__nv_bfloat16> device_y(a.size());
  run_fused(device_y.data(),
            device_a.data(),
            device_b.data(),
            device_c.data(),
            static_cast<int>(a.size()));
  const std::vector<__nv_bfloat16> y = device_y.values();
  for (std::size_t i = 0; i < a.size(); ++i) {
    // All bits fit 113: the quotient by the spacing of bfloat16 tells nearest and ties.
    using Exact = __float128;
    const Exact exact = static_cast<Exact>(__bfloat162float(a[i])) * __bfloat162float(b[i]) +
                        static_cast<Exact>(__bfloat162float(c[i]));
    const int exponent = std::ilogb(static_cast<double>(exact)) - 7;
    const Exact units = exact / static_cast<Exact>(std::ldexp(1.0, exponent));
    auto whole = static_cast<long long>(units);
    if (static_cast<Exact>(whole) > units) --whole;
    const Exact rest = units - static_cast<Exact>(whole);
    if (rest > 0.5 || (rest == 0.5 && whole % 2 != 0)) ++whole;
    const double expected = std::ldexp(static_cast<double>(whole), exponent);
    INFO("case " << i);
    REQUIRE(static_cast<double>(__bfloat162float(y[i])) == expected);
  }
}

TEST_CASE("launches are refused as the runtime refuses them") {
  CHECK(try_launch(0, 64, 0) == cudaErrorInvalidConfiguration);
  CHECK(try_launch(1, 0, 0) == cudaErrorInvalidConfiguration);
  CHECK(try_launch(1, 1025, 0) == cudaErrorInvalidConfiguration);
  CHECK(try_launch(dim3(1, 65536), 1, 0) == cudaErrorInvalidConfiguration);
  CHECK(try_launch(1, dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration);
  // Together with what a kernel declares itself, 48 KiB go without asking.
  CHECK(try_launch(1, 32, 48 * 1024) == cudaErrorInvalidValue);
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  CHECK(cudaGetLastError() == cudaSuccess);
  const OnDevice<float> memory(64);
  CHECK_THROWS_AS(run_copy(memory.data(), memory.data(), 0, nullptr), pecan::DeviceError);
  CHECK_THROWS_WITH(run_prefix_sums(nullptr, nullptr, 1, 300 * 1024),
                    Catch::Contains("invalid argument") && Catch::Contains("307208 bytes"));
  cudaGetLastError();
  expect_no_findings();
}

TEST_CASE("a fault loses the device") {
  if (!is_checked()) return;
  const OnDevice<float> memory(64);
  run_fault(memory.data(), 64);
  CHECK(take_findings().size() == 1);
  CHECK(cudaDeviceSynchronize() == cudaErrorIllegalAddress);
  void* address = nullptr;
  CHECK(cudaMalloc(&address, 4) == cudaErrorIllegalAddress);
  CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
  CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
  reset_device();
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
}

TEST_CASE("without checks overruns are found when the memory is freed") {
  if (is_checked()) return;
  {
    const OnDevice<float> memory(64);
    run_fault(memory.data(), 64);
  }
  const std::vector<std::string> findings = take_findings();
  REQUIRE(findings.size() == 1);
  CHECK(findings[0].starts_with("memory: written"));
}

TEST_CASE("calls fail where they are told to") {
  void* address = nullptr;
  inject_failures("cudaMalloc:2,cudaLaunchKernelEx:1,cudaStreamSynchronize:1:719");
  CHECK(cudaMalloc(&address, 4) == cudaSuccess);
  CHECK(cudaFree(address) == cudaSuccess);
  CHECK(cudaMalloc(&address, 4) == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaMalloc(&address, 4) == cudaSuccess);
  CHECK(cudaFree(address) == cudaSuccess);
  CHECK(try_launch(1, 1, 0) == cudaErrorLaunchOutOfResources);
  CHECK(cudaStreamSynchronize(nullptr) == cudaErrorLaunchFailure);
  // As on a device, that one stays.
  CHECK(cudaStreamSynchronize(nullptr) == cudaErrorLaunchFailure);
  reset_device();
  inject_failures("cudaMemcpy:1+");
  int value = 0;
  CHECK(cudaMemcpy(&value, &value, 4, cudaMemcpyHostToHost) == cudaErrorUnknown);
  CHECK(cudaMemcpy(&value, &value, 4, cudaMemcpyHostToHost) == cudaErrorUnknown);
  inject_failures("");
  CHECK(cudaMemcpy(&value, &value, 4, cudaMemcpyHostToHost) == cudaSuccess);
  CHECK_THROWS_AS(inject_failures("cudaMalloc"), std::invalid_argument);
  CHECK_THROWS_AS(inject_failures("cudaMalloc:x"), std::invalid_argument);
  const auto before = num_calls("cudaMalloc");
  CHECK(cudaMalloc(&address, 4) == cudaSuccess);
  CHECK(num_calls("cudaMalloc") == before + 1);
  cudaFree(address);
  cudaGetLastError();
}

TEST_CASE("memory is counted, and has an end") {
  std::size_t num_free = 0;
  std::size_t total = 0;
  REQUIRE(cudaMemGetInfo(&num_free, &total) == cudaSuccess);
  const std::size_t used = device_bytes_in_use();
  CHECK(num_free == total - used);
  void* address = nullptr;
  CHECK(cudaMalloc(&address, num_free + 1) == cudaErrorMemoryAllocation);
  CHECK(address == nullptr);
  cudaGetLastError();
  CHECK(cudaMalloc(&address, 1000) == cudaSuccess);
  CHECK(device_bytes_in_use() == used + 1000);
  // New memory is a NaN.
  float value = 0;
  std::memcpy(&value, std::array<unsigned char, 4>{0xFF, 0xFF, 0xFF, 0xFF}.data(), 4);
  CHECK(std::isnan(value));
  cudaPointerAttributes attributes{};
  CHECK(cudaPointerGetAttributes(&attributes, address) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeDevice);
  CHECK(cudaFree(address) == cudaSuccess);
  CHECK(device_bytes_in_use() == used);
  CHECK(cudaMalloc(&address, 0) == cudaSuccess);
  CHECK(address == nullptr);
}

TEST_CASE("queries can say that work goes on") {
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  REQUIRE(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
  const OnDevice<float> x(some_floats(100));
  const OnDevice<float> y(100);
  run_copy(y.data(), x.data(), 100, stream);
  CHECK(cudaStreamQuery(stream) == cudaSuccess);
  set_queries_not_ready(2);
  run_copy(y.data(), x.data(), 100, stream);
  REQUIRE(cudaEventRecord(event, stream) == cudaSuccess);
  for (const cudaError_t expected : {cudaErrorNotReady, cudaErrorNotReady, cudaSuccess}) {
    CHECK(cudaStreamQuery(stream) == expected);
    CHECK(cudaEventQuery(event) == expected);
  }
  set_queries_not_ready(0);
  // No error, although it has a code.
  CHECK(cudaGetLastError() == cudaSuccess);
  float elapsed = 0;
  CHECK(cudaEventElapsedTime(&elapsed, event, event) == cudaErrorInvalidResourceHandle);
  cudaGetLastError();
  CHECK(cudaEventDestroy(event) == cudaSuccess);
  CHECK(cudaEventQuery(event) == cudaErrorInvalidResourceHandle);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
  CHECK(cudaStreamQuery(stream) == cudaErrorInvalidResourceHandle);
  cudaGetLastError();
  expect_no_findings();
}

TEST_CASE("statistics tell strides and bank conflicts") {
  if (!is_checked()) return;
  const OnDevice<float> x(some_floats(1024));
  const OnDevice<float> y(1024);
  std::string kernel;
  const auto read_factor = [&](bool is_shared) {
    for (const LineStatistics& line : stop_statistics()) {
      if (line.is_shared == is_shared && !line.is_write) {
        CHECK(line.source.starts_with("sample_kernels.cu:"));
        kernel = line.kernel;
        return line.factor();
      }
    }
    return 0.0;
  };
  start_statistics();
  run_strided(y.data(), x.data(), 1);
  CHECK(read_factor(false) == 1);
  start_statistics();
  run_strided(y.data(), x.data(), 8);
  CHECK(read_factor(false) == 8);
  CHECK(kernel.ends_with("strided"));
  start_statistics();
  run_transpose(y.data(), x.data(), false);
  CHECK(read_factor(true) == 32);
  start_statistics();
  run_transpose(y.data(), x.data(), true);
  CHECK(read_factor(true) == 1);
  CHECK(kernel.ends_with("transpose<33>"));
  expect_no_findings();
}

TEST_CASE("products of cuBLAS") {
  cublasHandle_t handle = nullptr;
  REQUIRE(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS);
  constexpr int kM = 7;
  constexpr int kN = 5;
  constexpr int kK = 13;
  const auto a_operation = GENERATE(CUBLAS_OP_N, CUBLAS_OP_T);
  const auto b_operation = GENERATE(CUBLAS_OP_N, CUBLAS_OP_T);
  const int lda = (a_operation == CUBLAS_OP_N ? kM : kK) + 1;
  const int ldb = (b_operation == CUBLAS_OP_N ? kK : kN) + 2;
  const int ldc = kM + 3;
  const auto a = some_bf16(lda * 16, 0.37f);
  const auto b = some_bf16(ldb * 16, 0.11f);
  const std::vector<float> c = some_floats(ldc * kN);
  const OnDevice<__nv_bfloat16> device_a(a);
  const OnDevice<__nv_bfloat16> device_b(b);
  const OnDevice<float> device_c(c);
  const float alpha = 2;
  const float beta = 0.5f;
  REQUIRE(cublasGemmEx(handle,
                       a_operation,
                       b_operation,
                       kM,
                       kN,
                       kK,
                       &alpha,
                       device_a.data(),
                       CUDA_R_16BF,
                       lda,
                       device_b.data(),
                       CUDA_R_16BF,
                       ldb,
                       &beta,
                       device_c.data(),
                       CUDA_R_32F,
                       ldc,
                       CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
  const std::vector<float> found = device_c.values();
  for (int column = 0; column < kN; ++column) {
    for (int row = 0; row < ldc; ++row) {
      const auto index = static_cast<std::size_t>(column * ldc + row);
      if (row >= kM) {
        REQUIRE(found[index] == c[index]);
        continue;
      }
      double expected = 0.5 * static_cast<double>(c[index]);
      for (int i = 0; i < kK; ++i) {
        const int a_index = a_operation == CUBLAS_OP_N ? i * lda + row : row * lda + i;
        const int b_index = b_operation == CUBLAS_OP_N ? column * ldb + i : i * ldb + column;
        expected += 2.0 *
                    static_cast<double>(__bfloat162float(a[static_cast<std::size_t>(a_index)])) *
                    static_cast<double>(__bfloat162float(b[static_cast<std::size_t>(b_index)]));
      }
      REQUIRE(static_cast<double>(found[index]) == Approx(expected).margin(1e-5));
    }
  }
  CHECK(cublasDestroy(handle) == CUBLAS_STATUS_SUCCESS);
  expect_no_findings();
}

TEST_CASE("cuBLAS refuses what NVIDIA's tables leave out") {
  cublasHandle_t handle = nullptr;
  REQUIRE(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS);
  const OnDevice<float> memory(std::vector<float>(64, 0.0f));
  const float one = 1;
  const float zero = 0;
  const auto multiply = [&](cudaDataType a, cudaDataType b, cudaDataType c, int lda, auto compute) {
    return cublasGemmEx(handle,
                        CUBLAS_OP_N,
                        CUBLAS_OP_N,
                        4,
                        4,
                        4,
                        &one,
                        memory.data(),
                        a,
                        lda,
                        memory.data(),
                        b,
                        4,
                        &zero,
                        memory.data() + 32,
                        c,
                        4,
                        compute,
                        CUBLAS_GEMM_DEFAULT);
  };
  CHECK(multiply(CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF, 4, CUBLAS_COMPUTE_32F) ==
        CUBLAS_STATUS_SUCCESS);
  CHECK(multiply(CUDA_R_16BF, CUDA_R_16BF, CUDA_R_32F, 4, CUBLAS_COMPUTE_32F) ==
        CUBLAS_STATUS_SUCCESS);
  CHECK(multiply(CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, 4, CUBLAS_COMPUTE_32F) ==
        CUBLAS_STATUS_SUCCESS);
  CHECK(multiply(CUDA_R_32F, CUDA_R_16BF, CUDA_R_32F, 4, CUBLAS_COMPUTE_32F) ==
        CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK(multiply(CUDA_R_32F, CUDA_R_32F, CUDA_R_16BF, 4, CUBLAS_COMPUTE_32F) ==
        CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK(multiply(CUDA_R_64F, CUDA_R_64F, CUDA_R_64F, 4, CUBLAS_COMPUTE_32F) ==
        CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK(multiply(CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF, 4, CUBLAS_COMPUTE_16F) ==
        CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK(multiply(CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, 3, CUBLAS_COMPUTE_32F) ==
        CUBLAS_STATUS_INVALID_VALUE);
  const cublasOperation_t plain[] = {CUBLAS_OP_N};
  const int four[] = {4};
  const int one_product[] = {1};
  CHECK(cublasGemmGroupedBatchedEx(handle,
                                   plain,
                                   plain,
                                   four,
                                   four,
                                   four,
                                   &one,
                                   nullptr,
                                   CUDA_R_16BF,
                                   four,
                                   nullptr,
                                   CUDA_R_16BF,
                                   four,
                                   &zero,
                                   nullptr,
                                   CUDA_R_32F,
                                   four,
                                   1,
                                   one_product,
                                   CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK(cublasDestroy(handle) == CUBLAS_STATUS_SUCCESS);
  expect_no_findings();
}

TEST_CASE("grouped products of cuBLAS, one group empty") {
  cublasHandle_t handle = nullptr;
  REQUIRE(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS);
  // Y_e = X_e W_e^T by rows, as experts multiply: by columns Y_e^T = W_e X_e^T.
  constexpr int kIn = 24;
  constexpr int kOut = 16;
  const std::vector<int> rows = {3, 0, 17, 1};
  const int num_experts = static_cast<int>(rows.size());
  const int total = std::accumulate(rows.begin(), rows.end(), 0);
  const auto x = some_bf16(total * kIn, 0.7f);
  const auto w = some_bf16(num_experts * kOut * kIn, 1.3f);
  const OnDevice<__nv_bfloat16> device_x(x);
  const OnDevice<__nv_bfloat16> device_w(w);
  const OnDevice<__nv_bfloat16> device_y(static_cast<std::size_t>(total * kOut));
  std::vector<const void*> a;
  std::vector<const void*> b;
  std::vector<void*> c;
  int start = 0;
  for (int expert = 0; expert < num_experts; ++expert) {
    a.push_back(device_w.data() + expert * kOut * kIn);
    b.push_back(device_x.data() + start * kIn);
    c.push_back(device_y.data() + start * kOut);
    start += rows[static_cast<std::size_t>(expert)];
  }
  const OnDevice<const void*> device_a(a);
  const OnDevice<const void*> device_b(b);
  const OnDevice<void*> device_c(c);
  const auto all = [&](auto value) { return std::vector(rows.size(), value); };
  REQUIRE(cublasGemmGroupedBatchedEx(handle,
                                     all(CUBLAS_OP_T).data(),
                                     all(CUBLAS_OP_N).data(),
                                     all(kOut).data(),
                                     rows.data(),
                                     all(kIn).data(),
                                     all(1.0f).data(),
                                     device_a.data(),
                                     CUDA_R_16BF,
                                     all(kIn).data(),
                                     device_b.data(),
                                     CUDA_R_16BF,
                                     all(kIn).data(),
                                     all(0.0f).data(),
                                     device_c.data(),
                                     CUDA_R_16BF,
                                     all(kOut).data(),
                                     num_experts,
                                     all(1).data(),
                                     CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_SUCCESS);
  const std::vector<__nv_bfloat16> y = device_y.values();
  int row = 0;
  for (int expert = 0; expert < num_experts; ++expert) {
    for (int i = 0; i < rows[static_cast<std::size_t>(expert)]; ++i, ++row) {
      for (int out = 0; out < kOut; ++out) {
        double expected = 0;
        for (int in = 0; in < kIn; ++in) {
          expected +=
              static_cast<double>(__bfloat162float(x[static_cast<std::size_t>(row * kIn + in)])) *
              static_cast<double>(
                  __bfloat162float(w[static_cast<std::size_t>((expert * kOut + out) * kIn + in)]));
        }
        const auto found =
            static_cast<double>(__bfloat162float(y[static_cast<std::size_t>(row * kOut + out)]));
        REQUIRE(std::abs(found - expected) <= 1e-5 + std::abs(expected) / 256);
      }
    }
  }
  CHECK(cublasDestroy(handle) == CUBLAS_STATUS_SUCCESS);
  expect_no_findings();
}
