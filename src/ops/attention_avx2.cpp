#define PECAN_ISA_KERNELS kAvx2Attention
#include "ops/attention_kernels.inl"
