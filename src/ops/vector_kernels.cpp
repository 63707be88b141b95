#include "ops/vector_kernels.hpp"

namespace pecan::ops::detail {

extern const IsaKernels kBaselineKernels;
extern const IsaKernels kAvx2Kernels;
extern const IsaKernels kAvx512Kernels;

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
  switch (isa) {
    case Isa::kAvx2:
      return kAvx2Kernels;
    case Isa::kAvx512:
      return kAvx512Kernels;
    case Isa::kBaseline:
      break;
  }
  return kBaselineKernels;
}

const IsaKernels& isa_kernels() {
  static const IsaKernels& widest = isa_kernels(supports(Isa::kAvx512) ? Isa::kAvx512
                                                : supports(Isa::kAvx2) ? Isa::kAvx2
                                                                       : Isa::kBaseline);
  return widest;
}

}  // namespace pecan::ops::detail
