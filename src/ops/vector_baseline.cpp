#define PECAN_ISA_KERNELS kBaselineKernels
#include "ops/vector_kernels.inl"
