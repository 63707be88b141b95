#define PECAN_ISA_KERNELS kAvx2Exact
#include "ops/vector_exact.inl"
