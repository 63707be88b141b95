#include "ops/vector_kernels.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#include <pecan/core/error.hpp>

namespace pecan::ops::detail {

extern const IsaKernels kBaselineKernels;
extern const IsaKernels kAvx2Kernels;
extern const IsaKernels kAvx512Kernels;
extern const ExactKernels kBaselineExact;
extern const ExactKernels kAvx2Exact;
extern const ExactKernels kAvx512Exact;

bool supports(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && supports(Isa::kAvx2);
  }
  return false;
#else
  return isa == Isa::kBaseline;
#endif
}

const IsaKernels& isa_kernels(Isa isa) {
  return table_of(isa, kBaselineKernels, kAvx2Kernels, kAvx512Kernels);
}

const ExactKernels& exact_kernels(Isa isa) {
  return table_of(isa, kBaselineExact, kAvx2Exact, kAvx512Exact);
}

IsaLimit isa_limit() {
  static const IsaLimit limit = [] {
    constexpr std::array<std::string_view, 5> kNames{
        "baseline", "avx2", "avx512", "avx512_bf16", "amx"};
    const char* const name = std::getenv("PECAN_MAX_ISA");
    if (name == nullptr) return IsaLimit::kAmx;
    const auto found = std::ranges::find(kNames, name);
    PECAN_VALIDATE(found != kNames.end(),
                   ConfigError,
                   "PECAN_MAX_ISA={} is no instruction set; it limits what operators use to one of "
                   "{}",
                   name,
                   fmt::join(kNames, ", "));
    return IsaLimit(found - kNames.begin());
  }();
  return limit;
}

Isa widest_isa() {
  static const Isa widest = [] {
    if (isa_limit() >= IsaLimit::kAvx512 && supports(Isa::kAvx512)) return Isa::kAvx512;
    if (isa_limit() >= IsaLimit::kAvx2 && supports(Isa::kAvx2)) return Isa::kAvx2;
    return Isa::kBaseline;
  }();
  return widest;
}

const IsaKernels& isa_kernels() {
  return isa_kernels(widest_isa());
}

const ExactKernels& exact_kernels() {
  return exact_kernels(widest_isa());
}

}  // namespace pecan::ops::detail
