/// The part of cuBLAS that Pecan calls. Products are made in float by oneDNN, those of double by
/// plain loops; which types go together is NVIDIA's table for each function, and everything outside
/// of it is refused.

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <dnnl.h>
#include <fmt/format.h>

#include "checker.hpp"
#include "errors.hpp"
#include "memory.hpp"
#include "report.hpp"
#include "streams.hpp"

struct cublasContext {
  cudaStream_t stream = nullptr;
  cublasPointerMode_t pointer_mode = CUBLAS_POINTER_MODE_HOST;
  cublasMath_t math_mode = CUBLAS_DEFAULT_MATH;
};

namespace pecan::emulation {
namespace {

constexpr std::size_t kGroupedAlignment = 16;
constexpr std::size_t kWorkspaceAlignment = 256;

std::size_t element_bytes(cudaDataType type) {
  switch (type) {
    case CUDA_R_16BF:
    case CUDA_R_16F:
      return 2;
    case CUDA_R_64F:
      return 8;
    default:
      return 4;
  }
}

bool is_16_bit(cudaDataType type) {
  return type == CUDA_R_16BF || type == CUDA_R_16F;
}

enum class Function : std::uint8_t { kPlain, kGrouped };

/// From the tables of cublasGemmEx and cublasGemmGroupedBatchedEx: a group of products of 16-bit
/// matrices has no result in float.
bool is_supported(cudaDataType a,
                  cudaDataType b,
                  cudaDataType c,
                  cublasComputeType_t compute,
                  Function function) {
  if (a != b) return false;
  const bool is_float = a == CUDA_R_32F && c == CUDA_R_32F;
  switch (compute) {
    case CUBLAS_COMPUTE_32F:
      return is_float ||
             (is_16_bit(a) && (c == a || (c == CUDA_R_32F && function == Function::kPlain)));
    case CUBLAS_COMPUTE_32F_PEDANTIC:
      if (function == Function::kGrouped) return is_float;
      return is_float || (is_16_bit(a) && (c == a || c == CUDA_R_32F));
    case CUBLAS_COMPUTE_32F_FAST_TF32:
    case CUBLAS_COMPUTE_32F_FAST_16BF:
    case CUBLAS_COMPUTE_32F_FAST_16F:
      return is_float;
    case CUBLAS_COMPUTE_64F:
      // Of grouped products too, which nothing here needs.
      return a == CUDA_R_64F && c == CUDA_R_64F && function == Function::kPlain;
    default:
      return false;
  }
}

/// M: what products are made in, float or double.
template <typename M>
M load(const void* matrix, cudaDataType type, std::size_t index) {
  switch (type) {
    case CUDA_R_16BF:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(matrix)[index]);
    case CUDA_R_16F:
      return __half2float(static_cast<const __half*>(matrix)[index]);
    default:
      return static_cast<const M*>(matrix)[index];
  }
}

template <typename M>
void store(void* matrix, cudaDataType type, std::size_t index, M value) {
  switch (type) {
    case CUDA_R_16BF:
      static_cast<__nv_bfloat16*>(matrix)[index] = __float2bfloat16(static_cast<float>(value));
      break;
    case CUDA_R_16F:
      static_cast<__half*>(matrix)[index] = __float2half(static_cast<float>(value));
      break;
    default:
      static_cast<M*>(matrix)[index] = value;
  }
}

struct Shape {
  cublasOperation_t a_operation;
  cublasOperation_t b_operation;
  int m;
  int n;
  int k;
  int lda;
  int ldb;
  int ldc;

  [[nodiscard]] bool transposes_a() const { return a_operation != CUBLAS_OP_N; }
  [[nodiscard]] bool transposes_b() const { return b_operation != CUBLAS_OP_N; }
  [[nodiscard]] int a_rows() const { return transposes_a() ? k : m; }
  [[nodiscard]] int a_columns() const { return transposes_a() ? m : k; }
  [[nodiscard]] int b_rows() const { return transposes_b() ? n : k; }
  [[nodiscard]] int b_columns() const { return transposes_b() ? k : n; }
  [[nodiscard]] bool is_valid() const {
    return m >= 0 && n >= 0 && k >= 0 && lda >= std::max(1, a_rows()) &&
           ldb >= std::max(1, b_rows()) && ldc >= std::max(1, m);
  }
};

struct Types {
  cudaDataType a;
  cudaDataType b;
  cudaDataType c;
};

/// Tells the checker of a matrix, column by column; false if it is not the device's to reach.
bool note_matrix(const void* matrix,
                 cudaDataType type,
                 int rows,
                 int columns,
                 int stride,
                 Access access,
                 std::uint32_t operation) {
  if (rows == 0 || columns == 0) return true;
  if (find_allocation(matrix) == nullptr) {
    report("library", fmt::format("a matrix of cuBLAS at {} is no memory of the device", matrix));
    return false;
  }
  const std::size_t column_bytes = static_cast<std::size_t>(rows) * element_bytes(type);
  const std::size_t stride_bytes = static_cast<std::size_t>(stride) * element_bytes(type);
  if (!lies_within(matrix,
                   stride_bytes * static_cast<std::size_t>(columns - 1) + column_bytes,
                   "a matrix of cuBLAS")) {
    return false;
  }
  for (int column = 0; column < columns; ++column) {
    note_access(static_cast<const char*>(matrix) + stride_bytes * static_cast<std::size_t>(column),
                column_bytes,
                access,
                operation);
  }
  return true;
}

template <typename M>
std::vector<M> load_matrix(
    const void* matrix, cudaDataType type, int rows, int columns, int stride) {
  std::vector<M> loaded(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
  std::size_t next = 0;
  for (int column = 0; column < columns; ++column) {
    const std::size_t start = static_cast<std::size_t>(column) * static_cast<std::size_t>(stride);
    for (int row = 0; row < rows; ++row) {
      loaded[next++] = load<M>(matrix, type, start + static_cast<std::size_t>(row));
    }
  }
  return loaded;
}

/// product = alpha op(A) op(B), all by columns without gaps.
void multiply_full(
    const Shape& shape, float alpha, const float* a, const float* b, float* product) {
  // oneDNN stores by rows: what it sees are the transposed matrices, in the opposite order.
  if (dnnl_sgemm(shape.transposes_b() ? 'T' : 'N',
                 shape.transposes_a() ? 'T' : 'N',
                 shape.n,
                 shape.m,
                 shape.k,
                 alpha,
                 b,
                 shape.b_rows(),
                 a,
                 shape.a_rows(),
                 0.0f,
                 product,
                 shape.m) != dnnl_success) {
    report("library", "oneDNN refuses a product of cuBLAS");
  }
}
void multiply_full(
    const Shape& shape, double alpha, const double* a, const double* b, double* product) {
  const auto m = static_cast<std::size_t>(shape.m), k = static_cast<std::size_t>(shape.k);
  const auto n = static_cast<std::size_t>(shape.n);
  for (std::size_t column = 0; column < n; ++column) {
    for (std::size_t i = 0; i < k; ++i) {
      const double factor = alpha * b[shape.transposes_b() ? i * n + column : column * k + i];
      for (std::size_t row = 0; row < m; ++row)
        product[column * m + row] += factor * a[shape.transposes_a() ? row * k + i : i * m + row];
    }
  }
}

/// C = alpha op(A) op(B) + beta C, all by columns. Where beta is zero C is not read.
template <typename M>
cublasStatus_t multiply(const Shape& shape,
                        const Types& types,
                        M alpha,
                        const void* a,
                        const void* b,
                        M beta,
                        void* c,
                        std::uint32_t operation) {
  if (shape.m == 0 || shape.n == 0) return CUBLAS_STATUS_SUCCESS;
  const bool reads_c = beta != 0;
  if (!note_matrix(
          a, types.a, shape.a_rows(), shape.a_columns(), shape.lda, Access::kRead, operation) ||
      !note_matrix(
          b, types.b, shape.b_rows(), shape.b_columns(), shape.ldb, Access::kRead, operation) ||
      (reads_c &&
       !note_matrix(c, types.c, shape.m, shape.n, shape.ldc, Access::kRead, operation)) ||
      !note_matrix(c, types.c, shape.m, shape.n, shape.ldc, Access::kWrite, operation)) {
    return CUBLAS_STATUS_EXECUTION_FAILED;
  }
  std::vector<M> product(static_cast<std::size_t>(shape.m) * static_cast<std::size_t>(shape.n));
  if (shape.k > 0) {
    multiply_full(shape,
                  alpha,
                  load_matrix<M>(a, types.a, shape.a_rows(), shape.a_columns(), shape.lda).data(),
                  load_matrix<M>(b, types.b, shape.b_rows(), shape.b_columns(), shape.ldb).data(),
                  product.data());
  }
  std::size_t next = 0;
  for (int column = 0; column < shape.n; ++column) {
    for (int row = 0; row < shape.m; ++row) {
      const std::size_t index =
          static_cast<std::size_t>(column) * static_cast<std::size_t>(shape.ldc) +
          static_cast<std::size_t>(row);
      const M before = reads_c ? beta * load<M>(c, types.c, index) : M(0);
      store<M>(c, types.c, index, product[next++] + before);
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}

template <typename M>
M read_scalar(cublasHandle_t handle, const void* scalar, std::uint32_t operation) {
  if (handle->pointer_mode == CUBLAS_POINTER_MODE_DEVICE) {
    note_access(scalar, sizeof(M), Access::kRead, operation);
  } else if (is_on_device(scalar)) {
    report("library", "alpha or beta of cuBLAS is on the device in CUBLAS_POINTER_MODE_HOST");
  }
  M value = 0;
  std::memcpy(&value, scalar, sizeof value);
  return value;
}

/// Like api_call, with the codes of cuBLAS.
template <typename Body>
cublasStatus_t library_call(const char* name, cublasHandle_t handle, Body body) {
  if (const auto code = count_call(name)) return static_cast<cublasStatus_t>(*code);
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  wait_for_pending(handle->stream);
  const std::scoped_lock lock(device_mutex());
  if (lost_device() != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  Stream* stream = find_stream(handle->stream);
  return stream == nullptr ? CUBLAS_STATUS_EXECUTION_FAILED : body(*stream);
}

const void* advance(const void* matrix, cudaDataType type, long long num_elements) {
  return static_cast<const char*>(matrix) +
         num_elements * static_cast<long long>(element_bytes(type));
}

/// Products of one shape, at equal distances.
struct Batch {
  Shape shape;
  Types types;
  cublasComputeType_t compute;
  const void* alpha;
  const void* a;
  const void* b;
  const void* beta;
  void* c;
  long long a_stride = 0;
  long long b_stride = 0;
  long long c_stride = 0;
  int num_products = 1;
};

cublasStatus_t multiply_batch(const char* name, cublasHandle_t handle, const Batch& batch) {
  return library_call(name, handle, [&](Stream& stream) {
    const Types& types = batch.types;
    if (batch.num_products < 0 || !batch.shape.is_valid()) return CUBLAS_STATUS_INVALID_VALUE;
    if (!is_supported(types.a, types.b, types.c, batch.compute, Function::kPlain)) {
      return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    const std::uint32_t operation = begin_operation(stream, "a product of cuBLAS");
    const auto multiply_all = [&]<typename M>(M) {
      const M alpha = read_scalar<M>(handle, batch.alpha, operation);
      const M beta = read_scalar<M>(handle, batch.beta, operation);
      for (int index = 0; index < batch.num_products; ++index) {
        const cublasStatus_t status =
            multiply<M>(batch.shape,
                        types,
                        alpha,
                        advance(batch.a, types.a, index * batch.a_stride),
                        advance(batch.b, types.b, index * batch.b_stride),
                        beta,
                        const_cast<void*>(advance(batch.c, types.c, index * batch.c_stride)),
                        operation);
        if (status != CUBLAS_STATUS_SUCCESS) return status;
      }
      return CUBLAS_STATUS_SUCCESS;
    };
    return batch.compute == CUBLAS_COMPUTE_64F ? multiply_all(double{}) : multiply_all(float{});
  });
}

}  // namespace
}  // namespace pecan::emulation

using namespace pecan::emulation;

#define PECAN_CUBLAS_API \
  extern "C" __attribute__((visibility("default"))) cublasStatus_t CUBLASWINAPI

PECAN_CUBLAS_API cublasCreate_v2(cublasHandle_t* handle) {
  if (const auto code = count_call(__func__)) return static_cast<cublasStatus_t>(*code);
  *handle = new cublasContext;
  return CUBLAS_STATUS_SUCCESS;
}
PECAN_CUBLAS_API cublasDestroy_v2(cublasHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
PECAN_CUBLAS_API cublasGetVersion_v2(cublasHandle_t, int* version) {
  *version = CUBLAS_VERSION;
  return CUBLAS_STATUS_SUCCESS;
}
PECAN_CUBLAS_API cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  if (const auto code = count_call(__func__)) return static_cast<cublasStatus_t>(*code);
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  const std::scoped_lock lock(device_mutex());
  if (find_stream(stream) == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
PECAN_CUBLAS_API cublasGetStream_v2(cublasHandle_t handle, cudaStream_t* stream) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  *stream = handle->stream;
  return CUBLAS_STATUS_SUCCESS;
}
PECAN_CUBLAS_API cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, std::size_t) {
  if (const auto code = count_call(__func__)) return static_cast<cublasStatus_t>(*code);
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  const bool is_aligned = reinterpret_cast<std::uintptr_t>(workspace) % kWorkspaceAlignment == 0;
  return is_aligned ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
PECAN_CUBLAS_API cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->pointer_mode = mode;
  return CUBLAS_STATUS_SUCCESS;
}
PECAN_CUBLAS_API cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t* mode) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  *mode = handle->pointer_mode;
  return CUBLAS_STATUS_SUCCESS;
}
PECAN_CUBLAS_API cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->math_mode = mode;
  return CUBLAS_STATUS_SUCCESS;
}
PECAN_CUBLAS_API cublasGetMathMode(cublasHandle_t handle, cublasMath_t* mode) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  *mode = handle->math_mode;
  return CUBLAS_STATUS_SUCCESS;
}
extern "C" __attribute__((visibility("default"))) const char* CUBLASWINAPI
cublasGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR:
      return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR:
      return "CUBLAS_STATUS_LICENSE_ERROR";
  }
  return "unknown status";
}
extern "C" __attribute__((visibility("default"))) const char* CUBLASWINAPI
cublasGetStatusString(cublasStatus_t status) {
  return cublasGetStatusName(status);
}

PECAN_CUBLAS_API cublasGemmStridedBatchedEx(cublasHandle_t handle,
                                            cublasOperation_t a_operation,
                                            cublasOperation_t b_operation,
                                            int m,
                                            int n,
                                            int k,
                                            const void* alpha,
                                            const void* a,
                                            cudaDataType a_type,
                                            int lda,
                                            long long a_stride,
                                            const void* b,
                                            cudaDataType b_type,
                                            int ldb,
                                            long long b_stride,
                                            const void* beta,
                                            void* c,
                                            cudaDataType c_type,
                                            int ldc,
                                            long long c_stride,
                                            int num_products,
                                            cublasComputeType_t compute,
                                            cublasGemmAlgo_t) {
  return multiply_batch(__func__,
                        handle,
                        {{a_operation, b_operation, m, n, k, lda, ldb, ldc},
                         {a_type, b_type, c_type},
                         compute,
                         alpha,
                         a,
                         b,
                         beta,
                         c,
                         a_stride,
                         b_stride,
                         c_stride,
                         num_products});
}
PECAN_CUBLAS_API cublasGemmEx(cublasHandle_t handle,
                              cublasOperation_t a_operation,
                              cublasOperation_t b_operation,
                              int m,
                              int n,
                              int k,
                              const void* alpha,
                              const void* a,
                              cudaDataType a_type,
                              int lda,
                              const void* b,
                              cudaDataType b_type,
                              int ldb,
                              const void* beta,
                              void* c,
                              cudaDataType c_type,
                              int ldc,
                              cublasComputeType_t compute,
                              cublasGemmAlgo_t) {
  return multiply_batch(__func__,
                        handle,
                        {{a_operation, b_operation, m, n, k, lda, ldb, ldc},
                         {a_type, b_type, c_type},
                         compute,
                         alpha,
                         a,
                         b,
                         beta,
                         c});
}
PECAN_CUBLAS_API cublasSgemm_v2(cublasHandle_t handle,
                                cublasOperation_t a_operation,
                                cublasOperation_t b_operation,
                                int m,
                                int n,
                                int k,
                                const float* alpha,
                                const float* a,
                                int lda,
                                const float* b,
                                int ldb,
                                const float* beta,
                                float* c,
                                int ldc) {
  return multiply_batch(__func__,
                        handle,
                        {{a_operation, b_operation, m, n, k, lda, ldb, ldc},
                         {CUDA_R_32F, CUDA_R_32F, CUDA_R_32F},
                         CUBLAS_COMPUTE_32F,
                         alpha,
                         a,
                         b,
                         beta,
                         c});
}
PECAN_CUBLAS_API cublasGemmGroupedBatchedEx(cublasHandle_t handle,
                                            const cublasOperation_t a_operations[],
                                            const cublasOperation_t b_operations[],
                                            const int m[],
                                            const int n[],
                                            const int k[],
                                            const void* alphas,
                                            const void* const a[],
                                            cudaDataType_t a_type,
                                            const int lda[],
                                            const void* const b[],
                                            cudaDataType_t b_type,
                                            const int ldb[],
                                            const void* betas,
                                            void* const c[],
                                            cudaDataType_t c_type,
                                            const int ldc[],
                                            int num_groups,
                                            const int group_sizes[],
                                            cublasComputeType_t compute) {
  return library_call(__func__, handle, [&](Stream& stream) {
    if (num_groups < 0) return CUBLAS_STATUS_INVALID_VALUE;
    if (handle->pointer_mode == CUBLAS_POINTER_MODE_DEVICE ||
        !is_supported(a_type, b_type, c_type, compute, Function::kGrouped)) {
      return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    const auto shape_of = [&](int group) -> Shape {
      return {a_operations[group],
              b_operations[group],
              m[group],
              n[group],
              k[group],
              lda[group],
              ldb[group],
              ldc[group]};
    };
    std::size_t num_products = 0;
    for (int group = 0; group < num_groups; ++group) {
      const Shape shape = shape_of(group);
      if (group_sizes[group] < 0 || !shape.is_valid()) return CUBLAS_STATUS_INVALID_VALUE;
      num_products += static_cast<std::size_t>(group_sizes[group]);
    }
    if (num_products == 0) return CUBLAS_STATUS_SUCCESS;
    // Sizes and scalars are arrays of the host, pointers to matrices are arrays of the device.
    if (!is_on_device(a) || !is_on_device(b) || !is_on_device(c)) {
      report("library",
             "cublasGemmGroupedBatchedEx takes its pointers to matrices from the device");
      return CUBLAS_STATUS_EXECUTION_FAILED;
    }
    const std::uint32_t operation = begin_operation(stream, "grouped products of cuBLAS");
    for (const void* pointers :
         {static_cast<const void*>(a), static_cast<const void*>(b), static_cast<const void*>(c)}) {
      if (!lies_within(pointers, num_products * sizeof(void*), "an array of pointers")) {
        return CUBLAS_STATUS_EXECUTION_FAILED;
      }
      note_access(pointers, num_products * sizeof(void*), Access::kRead, operation);
    }
    std::size_t product = 0;
    for (int group = 0; group < num_groups; ++group) {
      const Shape shape = shape_of(group);
      for (int index = 0; index < group_sizes[group]; ++index, ++product) {
        for (const void* matrix : {a[product], b[product], static_cast<const void*>(c[product])}) {
          if (reinterpret_cast<std::uintptr_t>(matrix) % kGroupedAlignment == 0) continue;
          report(
              "library",
              fmt::format("product {} of cublasGemmGroupedBatchedEx has a matrix at {}, which is "
                          "no multiple of {}",
                          product,
                          matrix,
                          kGroupedAlignment));
        }
        const cublasStatus_t status = multiply<float>(shape,
                                                      {a_type, b_type, c_type},
                                                      static_cast<const float*>(alphas)[group],
                                                      a[product],
                                                      b[product],
                                                      static_cast<const float*>(betas)[group],
                                                      c[product],
                                                      operation);
        if (status != CUBLAS_STATUS_SUCCESS) return status;
      }
    }
    return CUBLAS_STATUS_SUCCESS;
  });
}
