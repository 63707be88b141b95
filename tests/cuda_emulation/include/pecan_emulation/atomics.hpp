#pragma once
/// Atomic functions. One thread of the operating system runs the grid, so that a plain change is
/// atomic; the checker is told, and does not see the plain accesses. The project bans atomics on
/// floating-point numbers, whose order would change results: there are none here.

#include <pecan_emulation/execution.hpp>

#define PECAN_EMULATION_ATOMIC(name, T, changed)                                    \
  inline PECAN_EMULATION_UNCHECKED T name(T* address, T value) {                    \
    pecan::emulation::note_atomic(address, sizeof(T), __builtin_return_address(0)); \
    const T old = *address;                                                         \
    *address = static_cast<T>(changed);                                             \
    return old;                                                                     \
  }
#define PECAN_EMULATION_ATOMICS(T)                                                  \
  PECAN_EMULATION_ATOMIC(atomicAdd, T, old + value)                                 \
  PECAN_EMULATION_ATOMIC(atomicMin, T, value < old ? value : old)                   \
  PECAN_EMULATION_ATOMIC(atomicMax, T, old < value ? value : old)                   \
  PECAN_EMULATION_ATOMIC(atomicExch, T, value)                                      \
  PECAN_EMULATION_ATOMIC(atomicAnd, T, old& value)                                  \
  PECAN_EMULATION_ATOMIC(atomicOr, T, old | value)                                  \
  PECAN_EMULATION_ATOMIC(atomicXor, T, old ^ value)                                 \
  inline PECAN_EMULATION_UNCHECKED T atomicCAS(T* address, T expected, T value) {   \
    pecan::emulation::note_atomic(address, sizeof(T), __builtin_return_address(0)); \
    const T old = *address;                                                         \
    if (old == expected) *address = value;                                          \
    return old;                                                                     \
  }
PECAN_EMULATION_ATOMICS(int)
PECAN_EMULATION_ATOMICS(unsigned)
PECAN_EMULATION_ATOMICS(unsigned long long)
PECAN_EMULATION_ATOMIC(atomicSub, int, old - value)
PECAN_EMULATION_ATOMIC(atomicSub, unsigned, old - value)
PECAN_EMULATION_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
PECAN_EMULATION_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
#undef PECAN_EMULATION_ATOMICS
#undef PECAN_EMULATION_ATOMIC
