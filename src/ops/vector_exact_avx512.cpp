#define PECAN_ISA_KERNELS kAvx512Exact
#include "ops/vector_exact.inl"
