#include "kernels/reduce_pieces.cuh"
#include "kernels/reduce_pieces.hpp"

namespace pecan::kernels {
namespace {

bool aligned_to_16(const void* memory) {
  return reinterpret_cast<std::uintptr_t>(memory) % 16 == 0;
}

template <typename T, typename Combine>
void reduce(cudaStream_t stream,
            const device::MemberPieces& pieces,
            std::byte* output,
            Index count) {
  constexpr Index kElementsOfBlock = kPieceThreads * 16 / Index(sizeof(T));
  PECAN_EXPECTS(pieces.stride % sizeof(T) == 0);
  const bool aligned = aligned_to_16(pieces.own) && aligned_to_16(pieces.others) &&
                       aligned_to_16(output) && pieces.stride % 16 == 0;
  launch(reduce_pieces_kernel<T, Combine>,
         blocks_of(count, kElementsOfBlock),
         kPieceThreads,
         0,
         stream,
         reinterpret_cast<const T*>(pieces.own),
         reinterpret_cast<const T*>(pieces.others),
         Index(pieces.stride / sizeof(T)),
         pieces.member,
         pieces.num_members,
         Combine{},
         aligned,
         count,
         reinterpret_cast<T*>(output));
}

template <typename T>
void reduce(cudaStream_t stream,
            device::Reduction reduction,
            const device::MemberPieces& pieces,
            std::byte* output,
            Index count) {
  switch (reduction) {
    case device::Reduction::kSum:
      if constexpr (sizeof(T) > 1) return reduce<T, InOrderSum>(stream, pieces, output, count);
      throw InternalError("u8 is not summed");
    case device::Reduction::kMax:
      return reduce<T, InOrderMax>(stream, pieces, output, count);
    case device::Reduction::kMin:
      return reduce<T, InOrderMin>(stream, pieces, output, count);
  }
}

}  // namespace

void reduce_in_order(cudaStream_t stream,
                     DType dtype,
                     device::Reduction reduction,
                     const device::MemberPieces& pieces,
                     std::byte* output,
                     std::int64_t num_elements) {
  switch (dtype) {
    case DType::kF32:
      return reduce<float>(stream, reduction, pieces, output, num_elements);
    case DType::kF64:
      return reduce<double>(stream, reduction, pieces, output, num_elements);
    case DType::kI64:
      return reduce<std::int64_t>(stream, reduction, pieces, output, num_elements);
    case DType::kI32:
      return reduce<std::int32_t>(stream, reduction, pieces, output, num_elements);
    case DType::kU8:
      return reduce<std::uint8_t>(stream, reduction, pieces, output, num_elements);
    case DType::kBF16:
      return reduce<Bf16>(stream, reduction, pieces, output, num_elements);
  }
}

}  // namespace pecan::kernels
