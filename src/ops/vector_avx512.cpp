#define PECAN_ISA_KERNELS kAvx512Kernels
#include "ops/vector_kernels.inl"
