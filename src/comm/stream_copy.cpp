#include "comm/stream_copy.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pecan::comm {

void stream_copy(std::span<const std::byte> from, std::span<std::byte> to) {
  const std::byte* source = from.data();
  std::byte* target = to.data();
  std::size_t left = from.size();
#if defined(__SSE2__)
  constexpr std::size_t kLine = 64;
  const std::size_t head =
      std::min(left, (kLine - reinterpret_cast<std::uintptr_t>(target) % kLine) % kLine);
  if (head > 0) std::memcpy(target, source, head);
  source += head, target += head, left -= head;
  for (; left >= kLine; source += kLine, target += kLine, left -= kLine) {
    const auto* line = reinterpret_cast<const __m128i*>(source);
    auto* written = reinterpret_cast<__m128i*>(target);
    const __m128i a = _mm_loadu_si128(line), b = _mm_loadu_si128(line + 1);
    const __m128i c = _mm_loadu_si128(line + 2), d = _mm_loadu_si128(line + 3);
    _mm_stream_si128(written, a);
    _mm_stream_si128(written + 1, b);
    _mm_stream_si128(written + 2, c);
    _mm_stream_si128(written + 3, d);
  }
  // Such stores are not ordered with later ones by which other threads are told of them.
  _mm_sfence();
#endif
  if (left > 0) std::memcpy(target, source, left);
}

}  // namespace pecan::comm
