#define PECAN_ISA_KERNELS kBaselineAttention
#include "ops/attention_kernels.inl"
