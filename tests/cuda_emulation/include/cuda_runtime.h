#pragma once
/// Stands before NVIDIA's <cuda_runtime.h> when device code is compiled for the CPU: the toolkit's
/// own types and prototypes, and what only nvcc has, emulated. Sources need no change.

#if defined(__CUDACC__)
#error \
    "the emulation's headers are for host compilers: take tests/cuda_emulation off nvcc's include path"
#endif
/// Set where device code runs on the CPU. Only kernels/ptx.cuh may ask for it.
#define PECAN_CUDA_EMULATION 1

// The toolkit's headers may have come first, through cublas_v2.h for instance, and given these an
// empty meaning; where __shared__ is defined already they leave it alone.
#undef __host__
#undef __device__
#undef __global__
#undef __constant__
#undef __managed__
#undef __grid_constant__
#undef __shared__
#undef __launch_bounds__
#undef __cluster_dims__
#define __host__
#define __device__
#define __global__
#define __constant__
#define __managed__
#define __grid_constant__
// A block runs on one thread of the operating system: its shared memory is that thread's. Inside of
// a function thread_local implies static, and `extern __shared__ T name[]` stays a declaration.
#define __shared__ thread_local
#define __launch_bounds__(...)
#define __cluster_dims__(...)

// NVIDIA's template forgets the types of the parameters, without which no CPU can make the call.
#define cudaLaunchKernelEx pecan_emulation_untyped_launch
#include_next <cuda_runtime.h>
#undef cudaLaunchKernelEx

#include <pecan_emulation/atomics.hpp>
#include <pecan_emulation/execution.hpp>
#include <pecan_emulation/math.hpp>
#include <pecan_emulation/warp.hpp>
