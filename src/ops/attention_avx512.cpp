#define PECAN_ISA_KERNELS kAvx512Attention
#include "ops/attention_kernels.inl"
