#define PECAN_ISA_KERNELS kBaselineExact
#include "ops/vector_exact.inl"
