#pragma once
/// NVIDIA's <cuda_bf16.h> and the functions that it declares for nvcc alone.

#include_next <cuda_bf16.h>
#include <cuda_runtime.h>
#include <pecan_emulation/bf16.hpp>
