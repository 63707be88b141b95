#pragma once
/// Strong index types: an expert is not a layer, and neither is a rank.

#include <compare>
#include <cstdint>
#include <functional>

#include <fmt/format.h>

namespace pecan {

/// An integer that only converts explicitly; `Tag` tells the kinds apart.
template <typename Tag, typename Int>
struct StrongId {
  Int value{};
  constexpr StrongId() = default;
  constexpr explicit StrongId(Int v) : value(v) {}
  constexpr auto operator<=>(const StrongId&) const = default;
};

using LayerId = StrongId<struct LayerTag, std::int32_t>;
using ExpertId = StrongId<struct ExpertTag, std::int32_t>;
/// A process in the world, or a member's position in a group.
using Rank = StrongId<struct RankTag, std::int32_t>;
/// Number of optimizer updates done (a skipped one counts).
using Step = StrongId<struct StepTag, std::int64_t>;
/// Number of starts of a run, from 0.
using Incarnation = StrongId<struct IncarnationTag, std::int32_t>;

/// Layer of what belongs to none (embedding, head, whole-model collectives).
inline constexpr LayerId kNoLayer{-1};

}  // namespace pecan

template <typename Tag, typename Int>
struct std::hash<pecan::StrongId<Tag, Int>> {
  std::size_t operator()(pecan::StrongId<Tag, Int> id) const { return std::hash<Int>{}(id.value); }
};
template <typename Tag, typename Int>
struct fmt::formatter<pecan::StrongId<Tag, Int>> : fmt::formatter<Int> {
  template <typename FormatContext>
  auto format(pecan::StrongId<Tag, Int> id, FormatContext& ctx) const {
    return fmt::formatter<Int>::format(id.value, ctx);
  }
};
