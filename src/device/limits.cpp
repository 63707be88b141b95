#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <pecan/device/device.hpp>
#include <pecan/device/limits.hpp>

namespace pecan::device {
namespace {

using Clock = std::chrono::steady_clock;

// Of sums that do not wait for each other (nor start alike, or the compiler would keep one): enough
// to fill two units of latency 6, and still all in registers.
constexpr int kChains = 12;
constexpr std::int64_t kRounds = 20'000;  // of a chain each: about 0.1 ms
constexpr int kRepeats = 30;
constexpr std::int64_t kTriadFloats = 6'291'456;  // three arrays of 24 MB
constexpr int kTriadRepeats = 5;

/// Returns what must be used, or the compiler would compute nothing.
using Burn = float (*)(std::int64_t rounds);

struct Peak {
  Burn burn;
  std::int64_t rounds;
  std::int64_t flops_a_round;
};

#if defined(__x86_64__)

__attribute__((target("avx512f"))) float burn_avx512(std::int64_t rounds) {
  __m512 sums[kChains];
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) sums[c] = _mm512_set1_ps(float(c));
  const __m512 factor = _mm512_set1_ps(0.999F), term = _mm512_set1_ps(0.001F);
  for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_fmadd_ps(sums[c], factor, term);
  }
  __m512 all = sums[0];
#pragma GCC unroll 12
  for (int c = 1; c < kChains; ++c) all = _mm512_add_ps(all, sums[c]);
  return _mm512_cvtss_f32(all);
}

__attribute__((target("avx512f,avx512bf16"))) float burn_avx512_bf16(std::int64_t rounds) {
  __m512 sums[kChains];
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) sums[c] = _mm512_set1_ps(float(c));
  const __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5F), _mm512_set1_ps(0.5F));
  for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbf16_ps(sums[c], factor, factor);
  }
  __m512 all = sums[0];
#pragma GCC unroll 12
  for (int c = 1; c < kChains; ++c) all = _mm512_add_ps(all, sums[c]);
  return _mm512_cvtss_f32(all);
}

constexpr int kTileRows = 16, kTileRowBytes = 64;  // a tile holds 16 x 16 sums, or 16 x 32 operands
constexpr int kTileChains = 4;

/// Whether this process may use tiles, of which the system asks to be told.
bool has_tiles() {
  constexpr unsigned kBf16Tiles = (1U << 22) | (1U << 24);  // Intel SDM, CPUID leaf 7, EDX
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr long kRequestPermission = 0x1023,
                 kTileData = 18;  // Linux, Documentation/arch/x86/xstate
  return (edx & kBf16Tiles) == kBf16Tiles &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

__attribute__((target("amx-tile,amx-bf16"))) float burn_tiles(std::int64_t rounds) {
  struct alignas(64) {
    std::uint8_t palette = 1, first_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  } shapes;
  for (int tile = 0; tile < 8; ++tile) {
    shapes.row_bytes[tile] = kTileRowBytes;
    shapes.rows[tile] = kTileRows;
  }
  _tile_loadconfig(&shapes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (std::int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  alignas(64) float sums[kTileRows * kTileRowBytes / 4];
  _tile_stored(0, sums, kTileRowBytes);
  _tile_release();
  return sums[0];
}

__attribute__((target("avx2,fma"))) float burn_avx2(std::int64_t rounds) {
  __m256 sums[kChains];
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) sums[c] = _mm256_set1_ps(float(c));
  const __m256 factor = _mm256_set1_ps(0.999F), term = _mm256_set1_ps(0.001F);
  for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = _mm256_fmadd_ps(sums[c], factor, term);
  }
  __m256 all = sums[0];
#pragma GCC unroll 12
  for (int c = 1; c < kChains; ++c) all = _mm256_add_ps(all, sums[c]);
  return _mm256_cvtss_f32(all);
}

#endif

/// What any processor has: products and sums of four floats.
float burn_portable(std::int64_t rounds) {
  using Four = float __attribute__((vector_size(16)));
  Four sums[kChains];
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) sums[c] = Four{float(c), 1, 1, 1};
  const Four factor = {0.999F, 0.999F, 0.999F, 0.999F}, term = {0.001F, 0.001F, 0.001F, 0.001F};
  for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * factor + term;
  }
  Four all = sums[0];
#pragma GCC unroll 12
  for (int c = 1; c < kChains; ++c) all += sums[c];
  return all[0];
}

Peak f32_peak() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {burn_avx512, kRounds, 16 * 2 * kChains};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {burn_avx2, kRounds, 8 * 2 * kChains};
#endif
  return {burn_portable, kRounds, 4 * 2 * kChains};
}

/// Of products of bf16; some processors have several ways, of which not the newest is the fastest.
std::vector<Peak> bf16_peaks() {
  std::vector<Peak> peaks;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bf16"))
    peaks.push_back({burn_avx512_bf16, kRounds, 32 * 2 * kChains});
  if (has_tiles())
    peaks.push_back({burn_tiles, kRounds / 4, std::int64_t{16} * 16 * 32 * 2 * kTileChains});
#endif
  return peaks;
}

/// Runs `work(thread)` on all threads `repeats` times; returns the seconds of the fastest.
double fastest(int threads, int repeats, const std::function<void(int)>& work) {
  double best = 0;
  Clock::time_point begin;
  int round = 0;
  std::barrier gate(threads, [&]() noexcept {
    const Clock::time_point now = Clock::now();
    const double seconds = std::chrono::duration<double>(now - begin).count();
    if (round > 1) best = round == 2 ? seconds : std::min(best, seconds);  // the first is a warm-up
    begin = now;
    ++round;
  });
  const auto body = [&](int thread) {
    for (int i = 0; i <= repeats; ++i) {
      gate.arrive_and_wait();
      work(thread);
    }
    gate.arrive_and_wait();
  };
  std::vector<std::jthread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(body, thread);
  body(0);
  return best;
}

double measure(const Peak& peak, int threads) {
  std::vector<float> results(std::size_t(threads) * 16);  // a cache line each
  const double seconds = fastest(threads, kRepeats, [&](int thread) {
    results[std::size_t(thread) * 16] += peak.burn(peak.rounds);
  });
  return double(peak.rounds * peak.flops_a_round * threads) / seconds;
}

void triad(float* a, const float* b, const float* c, std::int64_t count) {
#if defined(__x86_64__)
  // Past the caches, or each line of `a` would be read too.
  const __m128 factor = _mm_set1_ps(3);
  for (std::int64_t i = 0; i < count; i += 4)
    _mm_stream_ps(a + i, _mm_add_ps(_mm_load_ps(b + i), _mm_mul_ps(factor, _mm_load_ps(c + i))));
  _mm_sfence();
#else
  for (std::int64_t i = 0; i < count; ++i) a[i] = b[i] + 3 * c[i];
#endif
}

double measure_memory(int threads) {
  Buffer buffer(cpu(), 3 * kTriadFloats * sizeof(float));
  auto* floats = reinterpret_cast<float*>(buffer.data());
  const std::int64_t share = kTriadFloats / threads / 16 * 16;
  const double seconds = fastest(threads, kTriadRepeats, [&](int thread) {
    float* a = floats + thread * share;
    triad(a, a + kTriadFloats, a + 2 * kTriadFloats, share);
  });
  return 3.0 * double(share * threads) * sizeof(float) / seconds;
}

}  // namespace

double MachineLimits::flops(DType dtype) const {
  if (dtype == DType::kBF16) return bf16_flops;
  return dtype == DType::kF64 ? f64_flops : f32_flops;
}

MachineLimits measure_limits(int threads) {
  PECAN_EXPECTS(threads >= 1);
  MachineLimits limits;
  limits.f32_flops = measure(f32_peak(), threads);
  limits.f64_flops = limits.f32_flops / 2;
  limits.bf16_flops = limits.f32_flops;
  for (const Peak& peak : bf16_peaks())
    limits.bf16_flops = std::max(limits.bf16_flops, measure(peak, threads));
  limits.memory_bytes = measure_memory(threads);
  return limits;
}

}  // namespace pecan::device
