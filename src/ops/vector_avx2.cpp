#define PECAN_ISA_KERNELS kAvx2Kernels
#include "ops/vector_kernels.inl"
