# Sources of the library of kernels, for nvcc and for the emulation alike, relative to the project.
set(PECAN_KERNEL_SOURCES
  kernels/adamw.cu kernels/attention.cu kernels/bias.cu kernels/block_sparse.cu kernels/capacity.cu kernels/cross_entropy.cu kernels/default_vectors.cu
  kernels/elementwise.cu kernels/embedding.cu kernels/gelu.cu kernels/layer_norm.cu kernels/norm.cu kernels/permute.cu kernels/reduce.cu kernels/reduce_pieces.cu
  kernels/rms_norm.cu kernels/rope.cu kernels/router.cu kernels/swiglu.cu
  kernels/launch.cpp kernels/library.cpp kernels/matmul.cpp src/device/cuda/backend.cpp src/device/cuda/blas.cpp
  src/device/cuda/communicator.cpp src/ops/kernel_plan.cpp)
list(TRANSFORM PECAN_KERNEL_SOURCES PREPEND ${PROJECT_SOURCE_DIR}/)
