#pragma once
/// Functions of a warp: the lanes named in the mask meet, and the last to come computes for all.

#include <bit>
#include <cstring>

#include <pecan_emulation/execution.hpp>

namespace pecan::emulation {

template <typename Function>
void for_each_lane(std::uint32_t lanes, Function function) {
  for (; lanes != 0; lanes &= lanes - 1) function(std::countr_zero(lanes));
}

enum class ShuffleKind : std::uint8_t { kIndex, kUp, kDown, kXor };

template <typename T>
struct Shuffle {
  T value;
  T result;
  int argument;
  int width;
};

/// Lane from which `lane` reads; outside of its segment of `width` lanes it reads itself.
template <ShuffleKind kKind>
constexpr int source_lane(int lane, int argument, int width) {
  const int first = lane & ~(width - 1);
  switch (kKind) {
    case ShuffleKind::kIndex:
      return first | (argument & (width - 1));
    case ShuffleKind::kUp:
      return lane - argument < first ? lane : lane - argument;
    case ShuffleKind::kDown:
      return lane + argument >= first + width ? lane : lane + argument;
    case ShuffleKind::kXor:
      return (lane ^ argument) >= first + width ? lane : lane ^ argument;
  }
  return lane;
}

template <typename T, ShuffleKind kKind>
void shuffle_lanes(void* const* operands, std::uint32_t lanes) {
  for_each_lane(lanes, [&](int lane) {
    auto* own = static_cast<Shuffle<T>*>(operands[lane]);
    const int source = source_lane<kKind>(lane, own->argument, own->width);
    if (source >= 0 && source < warpSize && (lanes >> source & 1) != 0) {
      own->result = static_cast<const Shuffle<T>*>(operands[source])->value;
    } else {
      std::memset(static_cast<void*>(&own->result), 0xFF, sizeof own->result);
      report_absent_lane();
    }
  });
}

template <ShuffleKind kKind, typename T>
T shuffle(std::uint32_t mask, T value, int argument, int width, std::source_location where) {
  static_assert(std::is_trivially_copyable_v<T>);
  Shuffle<T> operand{value, value, argument, width};
  meet_warp(mask, &operand, &shuffle_lanes<T, kKind>, MemoryOrder::kNone, where);
  return operand.result;
}

struct Vote {
  bool predicate;
  std::uint32_t ballot;
};

inline void collect_votes(void* const* operands, std::uint32_t lanes) {
  std::uint32_t ballot = 0;
  for_each_lane(lanes, [&](int lane) {
    if (static_cast<const Vote*>(operands[lane])->predicate) ballot |= 1u << lane;
  });
  for_each_lane(lanes, [&](int lane) { static_cast<Vote*>(operands[lane])->ballot = ballot; });
}

inline std::uint32_t vote(std::uint32_t mask, bool predicate, std::source_location where) {
  Vote operand{predicate, 0};
  meet_warp(mask, &operand, &collect_votes, MemoryOrder::kNone, where);
  return operand.ballot;
}

template <typename T, typename Operation>
void reduce_lanes(void* const* operands, std::uint32_t lanes) {
  T result = *static_cast<const T*>(operands[std::countr_zero(lanes)]);
  for_each_lane(lanes & (lanes - 1), [&](int lane) {
    result = Operation{}(result, *static_cast<const T*>(operands[lane]));
  });
  for_each_lane(lanes, [&](int lane) { *static_cast<T*>(operands[lane]) = result; });
}

template <typename Operation, typename T>
T reduce(std::uint32_t mask, T value, std::source_location where) {
  meet_warp(mask, &value, &reduce_lanes<T, Operation>, MemoryOrder::kNone, where);
  return value;
}

template <typename T>
struct Match {
  T value;
  std::uint32_t equal;
};

template <typename T>
void match_lanes(void* const* operands, std::uint32_t lanes) {
  for_each_lane(lanes, [&](int lane) {
    auto* own = static_cast<Match<T>*>(operands[lane]);
    own->equal = 0;
    for_each_lane(lanes, [&](int other) {
      if (static_cast<const Match<T>*>(operands[other])->value == own->value) {
        own->equal |= 1u << other;
      }
    });
  });
}

struct Add {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(a + b);
  }
};
struct Least {
  template <typename T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Greatest {
  template <typename T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct And {
  unsigned operator()(unsigned a, unsigned b) const { return a & b; }
};
struct Or {
  unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};
struct ExclusiveOr {
  unsigned operator()(unsigned a, unsigned b) const { return a ^ b; }
};

}  // namespace pecan::emulation

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu,
                       std::source_location where = std::source_location::current()) {
  char nothing = 0;
  pecan::emulation::meet_warp(
      mask, &nothing, &pecan::emulation::only_meet, pecan::emulation::MemoryOrder::kOrdered, where);
}
template <typename T>
T __shfl_sync(unsigned mask,
              T value,
              int source,
              int width = warpSize,
              std::source_location where = std::source_location::current()) {
  using pecan::emulation::ShuffleKind;
  return pecan::emulation::shuffle<ShuffleKind::kIndex>(mask, value, source, width, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask,
                 T value,
                 unsigned delta,
                 int width = warpSize,
                 std::source_location where = std::source_location::current()) {
  using pecan::emulation::ShuffleKind;
  return pecan::emulation::shuffle<ShuffleKind::kUp>(
      mask, value, static_cast<int>(delta), width, where);
}
template <typename T>
T __shfl_down_sync(unsigned mask,
                   T value,
                   unsigned delta,
                   int width = warpSize,
                   std::source_location where = std::source_location::current()) {
  using pecan::emulation::ShuffleKind;
  return pecan::emulation::shuffle<ShuffleKind::kDown>(
      mask, value, static_cast<int>(delta), width, where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask,
                  T value,
                  int lane_mask,
                  int width = warpSize,
                  std::source_location where = std::source_location::current()) {
  using pecan::emulation::ShuffleKind;
  return pecan::emulation::shuffle<ShuffleKind::kXor>(mask, value, lane_mask, width, where);
}
inline unsigned __ballot_sync(unsigned mask,
                              int predicate,
                              std::source_location where = std::source_location::current()) {
  return pecan::emulation::vote(mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask,
                      int predicate,
                      std::source_location where = std::source_location::current()) {
  return pecan::emulation::vote(mask, predicate != 0, where) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned mask,
                      int predicate,
                      std::source_location where = std::source_location::current()) {
  return pecan::emulation::vote(mask, predicate == 0, where) == 0 ? 1 : 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask,
                          T value,
                          std::source_location where = std::source_location::current()) {
  pecan::emulation::Match<T> operand{value, 0};
  pecan::emulation::meet_warp(mask,
                              &operand,
                              &pecan::emulation::match_lanes<T>,
                              pecan::emulation::MemoryOrder::kNone,
                              where);
  return operand.equal;
}

#define PECAN_EMULATION_REDUCE(name, T, Operation)                                            \
  inline T name(                                                                              \
      unsigned mask, T value, std::source_location where = std::source_location::current()) { \
    return pecan::emulation::reduce<pecan::emulation::Operation>(mask, value, where);         \
  }
PECAN_EMULATION_REDUCE(__reduce_add_sync, int, Add)
PECAN_EMULATION_REDUCE(__reduce_add_sync, unsigned, Add)
PECAN_EMULATION_REDUCE(__reduce_min_sync, int, Least)
PECAN_EMULATION_REDUCE(__reduce_min_sync, unsigned, Least)
PECAN_EMULATION_REDUCE(__reduce_max_sync, int, Greatest)
PECAN_EMULATION_REDUCE(__reduce_max_sync, unsigned, Greatest)
PECAN_EMULATION_REDUCE(__reduce_and_sync, unsigned, And)
PECAN_EMULATION_REDUCE(__reduce_or_sync, unsigned, Or)
PECAN_EMULATION_REDUCE(__reduce_xor_sync, unsigned, ExclusiveOr)
#undef PECAN_EMULATION_REDUCE
