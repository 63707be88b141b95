#include "ops/vector_kernels.hpp"

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

Isa widest_isa() {
  static const Isa widest = supports(Isa::kAvx512) ? Isa::kAvx512
                            : supports(Isa::kAvx2) ? Isa::kAvx2
                                                   : Isa::kBaseline;
  return widest;
}

const IsaKernels& isa_kernels() {
  return isa_kernels(widest_isa());
}

const ExactKernels& exact_kernels() {
  return exact_kernels(widest_isa());
}

}  // namespace pecan::ops::detail
