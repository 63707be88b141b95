#pragma once
/// Counter-based random numbers: a pure function of key and counter, so that every layout draws the
/// same.

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace pecan {

/// Philox4x32-10. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
/// Differs from the paper: none.
[[nodiscard]] std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                      std::array<std::uint32_t, 2> key);

/// Standard normal of (seed, stream, element), by Box-Muller in double, rounded once by the caller.
/// `stream` names what is drawn (stream_of of a parameter's name); elements of one stream are
/// independent.
[[nodiscard]] double philox_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t element);
/// Uniform in [0, 1) of (seed, stream, element), 53 random bits.
[[nodiscard]] double philox_uniform(std::uint64_t seed,
                                    std::uint64_t stream,
                                    std::uint64_t element);
/// Stream number of a name (its XXH3).
[[nodiscard]] std::uint64_t stream_of(std::string_view name);

}  // namespace pecan
