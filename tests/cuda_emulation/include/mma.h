#pragma once
/// nvcuda::wmma on a CPU, instead of NVIDIA's <mma.h>, which is for nvcc alone. How a fragment's
/// elements lie among the lanes is unspecified: here they are scattered, so that nothing can depend
/// on it.

#include <cstddef>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

/// This lane's part of a matrix of a product of m x k by k x n elements.
template <typename Use, int kM, int kN, int kK, typename T, typename Layout = void>
struct fragment {
  static_assert((kM == 16 && kN == 16 && kK == 16) || (kM == 32 && kN == 8 && kK == 16) ||
                    (kM == 8 && kN == 32 && kK == 16),
                "tensor cores have no such shape for 16-bit types");
  static constexpr int kRows = std::is_same_v<Use, matrix_b> ? kK : kM;
  static constexpr int kColumns = std::is_same_v<Use, matrix_a> ? kK : kN;
  static constexpr int num_elements = kRows * kColumns / warpSize;
  using element_type = T;
  T x[num_elements];

  /// Place in the matrix, row by row, of an element: an odd factor permutes a power of two.
  static constexpr int place(int lane, int element) {
    return (lane * num_elements + element) * 37 % (kRows * kColumns);
  }
};

namespace detail {

inline void meet(std::source_location where) {
  char nothing = 0;
  pecan::emulation::meet_warp(0xFFFFFFFFu,
                              &nothing,
                              &pecan::emulation::only_meet,
                              pecan::emulation::MemoryOrder::kNone,
                              where);
}

template <typename Fragment>
std::size_t offset(int element, unsigned stride, bool by_rows) {
  const int place = Fragment::place(static_cast<int>(pecan::emulation::lane_id()), element);
  const auto row = static_cast<std::size_t>(place / Fragment::kColumns);
  const auto column = static_cast<std::size_t>(place % Fragment::kColumns);
  return by_rows ? row * stride + column : column * stride + row;
}

template <typename Fragment, typename T>
void load(Fragment& fragment, const T* address, unsigned stride, bool by_rows) {
  for (int element = 0; element < Fragment::num_elements; ++element) {
    fragment.x[element] = address[offset<Fragment>(element, stride, by_rows)];
  }
}

template <typename A, typename B, typename C, typename D>
struct Product {
  const A* a;
  const B* b;
  const C* c;
  D* d;

  /// All products of the warp in float, added in order of k; as on the device the result is rounded
  /// at the end, though there in an order of its own.
  static void compute(void* const* operands, std::uint32_t) {
    static float a_MK[A::kRows * A::kColumns];
    static float b_KN[B::kRows * B::kColumns];
    static float c_MN[C::kRows * C::kColumns];
    for (int lane = 0; lane < warpSize; ++lane) {
      const auto* own = static_cast<const Product*>(operands[lane]);
      for (int i = 0; i < A::num_elements; ++i) {
        a_MK[A::place(lane, i)] = static_cast<float>(own->a->x[i]);
      }
      for (int i = 0; i < B::num_elements; ++i) {
        b_KN[B::place(lane, i)] = static_cast<float>(own->b->x[i]);
      }
      for (int i = 0; i < C::num_elements; ++i) {
        c_MN[C::place(lane, i)] = static_cast<float>(own->c->x[i]);
      }
    }
    for (int row = 0; row < C::kRows; ++row) {
      for (int k = 0; k < A::kColumns; ++k) {
        const float factor = a_MK[row * A::kColumns + k];
        for (int column = 0; column < C::kColumns; ++column) {
          c_MN[row * C::kColumns + column] += factor * b_KN[k * B::kColumns + column];
        }
      }
    }
    using Result = typename D::element_type;
    for (int lane = 0; lane < warpSize; ++lane) {
      auto* own = static_cast<Product*>(operands[lane]);
      for (int i = 0; i < D::num_elements; ++i) {
        own->d->x[i] = static_cast<Result>(c_MN[D::place(lane, i)]);
      }
    }
  }
};

}  // namespace detail

template <typename Fragment, typename T>
void fill_fragment(Fragment& fragment, T value) {
  for (auto& element : fragment.x) element = value;
}

template <typename Use, int kM, int kN, int kK, typename T, typename Layout>
void load_matrix_sync(fragment<Use, kM, kN, kK, T, Layout>& fragment,
                      const T* address,
                      unsigned stride,
                      std::source_location where = std::source_location::current()) {
  static_assert(!std::is_same_v<Use, accumulator>, "an accumulator is loaded with its layout");
  detail::meet(where);
  pecan::emulation::check_matrix(address, stride * sizeof(T), where);
  detail::load(fragment, address, stride, std::is_same_v<Layout, row_major>);
}
template <int kM, int kN, int kK, typename T>
void load_matrix_sync(fragment<accumulator, kM, kN, kK, T>& fragment,
                      const T* address,
                      unsigned stride,
                      layout_t layout,
                      std::source_location where = std::source_location::current()) {
  detail::meet(where);
  pecan::emulation::check_matrix(address, stride * sizeof(T), where);
  detail::load(fragment, address, stride, layout == mem_row_major);
}
template <int kM, int kN, int kK, typename T>
void store_matrix_sync(T* address,
                       const fragment<accumulator, kM, kN, kK, T>& source,
                       unsigned stride,
                       layout_t layout,
                       std::source_location where = std::source_location::current()) {
  using Fragment = fragment<accumulator, kM, kN, kK, T>;
  detail::meet(where);
  pecan::emulation::check_matrix(address, stride * sizeof(T), where);
  for (int element = 0; element < Fragment::num_elements; ++element) {
    address[detail::offset<Fragment>(element, stride, layout == mem_row_major)] = source.x[element];
  }
}
template <typename D, typename A, typename B, typename C>
void mma_sync(D& d,
              const A& a,
              const B& b,
              const C& c,
              std::source_location where = std::source_location::current()) {
  using Product = detail::Product<A, B, C, D>;
  Product product{&a, &b, &c, &d};
  pecan::emulation::meet_warp(
      0xFFFFFFFFu, &product, &Product::compute, pecan::emulation::MemoryOrder::kNone, where);
}

}  // namespace nvcuda::wmma
