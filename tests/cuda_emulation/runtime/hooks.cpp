/// What g++ calls in code that was compiled with the checks: -fsanitize=thread at every load and
/// store, -fsanitize=undefined where it finds undefined behaviour. Their names are fixed.

#include <cstdint>
#include <cstring>
#include <string_view>

#include <fmt/format.h>

#include "checker.hpp"
#include "report.hpp"

#define PECAN_HOOK extern "C" __attribute__((visibility("default")))

using pecan::emulation::Access;
using pecan::emulation::check_access;
using pecan::emulation::check_alignment;

namespace {

void check_aligned(const void* address, std::size_t num_bytes, Access access, const void* code) {
  check_access(address, num_bytes, access, code);
  // Stacks are the host's business, and addresses that are wrong anyway have been reported.
  if (pecan::emulation::is_in_kernel && !pecan::emulation::running.is_paused) {
    check_alignment(address, num_bytes, code);
  }
}

/// Word by word, so that the statistics see what a device would do at best.
void check_range(const void* address, std::size_t num_bytes, Access access, const void* code) {
  constexpr std::size_t kWordBytes = 4;
  const auto* bytes = static_cast<const char*>(address);
  std::size_t done = 0;
  while (done < num_bytes) {
    const bool is_word = reinterpret_cast<std::uintptr_t>(bytes + done) % kWordBytes == 0 &&
                         num_bytes - done >= kWordBytes;
    const std::size_t size = is_word ? kWordBytes : 1;
    check_access(bytes + done, size, access, code);
    done += size;
  }
}

struct SourceLocation {
  const char* file;
  std::uint32_t line;
  std::uint32_t column;
};

/// Where and how, as the compiler describes a pointer that does not fit its type.
struct TypeMismatch {
  SourceLocation where;
  const void* type;
  unsigned char log_alignment;
  unsigned char kind;
};

void report_undefined(const char* kind, const char* what, const SourceLocation& where) {
  if (!pecan::emulation::is_first_at(where.file + where.line * 1000 + where.column, kind)) return;
  std::string_view file = where.file;
  if (const auto slash = file.rfind('/'); slash != file.npos) file.remove_prefix(slash + 1);
  pecan::emulation::report(
      kind,
      fmt::format("{} at {}:{}{}",
                  what,
                  file,
                  where.line,
                  pecan::emulation::is_in_kernel ? " in " + pecan::emulation::describe_position()
                                                 : std::string()));
}

}  // namespace

PECAN_HOOK void __tsan_init() {
  pecan::emulation::start_checking();
}
PECAN_HOOK void __tsan_func_entry(void*) {}
PECAN_HOOK void __tsan_func_exit() {}
PECAN_HOOK void __tsan_vptr_update(void*, void*) {}
PECAN_HOOK void __tsan_vptr_read(void*) {}

#define PECAN_ACCESS_HOOKS(bytes)                                               \
  PECAN_HOOK void __tsan_read##bytes(void* address) {                           \
    check_aligned(address, bytes, Access::kRead, __builtin_return_address(0));  \
  }                                                                             \
  PECAN_HOOK void __tsan_write##bytes(void* address) {                          \
    check_aligned(address, bytes, Access::kWrite, __builtin_return_address(0)); \
  }                                                                             \
  PECAN_HOOK void __tsan_unaligned_read##bytes(void* address) {                 \
    check_access(address, bytes, Access::kRead, __builtin_return_address(0));   \
  }                                                                             \
  PECAN_HOOK void __tsan_unaligned_write##bytes(void* address) {                \
    check_access(address, bytes, Access::kWrite, __builtin_return_address(0));  \
  }
PECAN_ACCESS_HOOKS(1)
PECAN_ACCESS_HOOKS(2)
PECAN_ACCESS_HOOKS(4)
PECAN_ACCESS_HOOKS(8)
PECAN_ACCESS_HOOKS(16)
#undef PECAN_ACCESS_HOOKS

PECAN_HOOK void __tsan_read_range(void* address, std::size_t num_bytes) {
  check_range(address, num_bytes, Access::kRead, __builtin_return_address(0));
}
PECAN_HOOK void __tsan_write_range(void* address, std::size_t num_bytes) {
  check_range(address, num_bytes, Access::kWrite, __builtin_return_address(0));
}

// The linker sends the calls of code with the checks here (--wrap).
PECAN_HOOK void* __wrap_memcpy(void* to, const void* from, std::size_t num_bytes) {
  check_range(from, num_bytes, Access::kRead, __builtin_return_address(0));
  check_range(to, num_bytes, Access::kWrite, __builtin_return_address(0));
  return std::memcpy(to, from, num_bytes);
}
PECAN_HOOK void* __wrap_memmove(void* to, const void* from, std::size_t num_bytes) {
  check_range(from, num_bytes, Access::kRead, __builtin_return_address(0));
  check_range(to, num_bytes, Access::kWrite, __builtin_return_address(0));
  return std::memmove(to, from, num_bytes);
}
PECAN_HOOK void* __wrap_memset(void* to, int value, std::size_t num_bytes) {
  check_range(to, num_bytes, Access::kWrite, __builtin_return_address(0));
  return std::memset(to, value, num_bytes);
}

// std::atomic in host code with the checks.
PECAN_HOOK void __tsan_atomic_thread_fence(int) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
PECAN_HOOK void __tsan_atomic_signal_fence(int) {
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}
#define PECAN_CHANGE_HOOK(bits, T, change)                                         \
  PECAN_HOOK T __tsan_atomic##bits##_##change(volatile T* address, T value, int) { \
    return __atomic_##change(address, value, __ATOMIC_SEQ_CST);                    \
  }
#define PECAN_ATOMIC_HOOKS(bits, T)                                                \
  PECAN_HOOK T __tsan_atomic##bits##_load(const volatile T* address, int) {        \
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);                             \
  }                                                                                \
  PECAN_HOOK void __tsan_atomic##bits##_store(volatile T* address, T value, int) { \
    __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                            \
  }                                                                                \
  PECAN_HOOK T __tsan_atomic##bits##_exchange(volatile T* address, T value, int) { \
    return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST);                  \
  }                                                                                \
  PECAN_CHANGE_HOOK(bits, T, fetch_add)                                            \
  PECAN_CHANGE_HOOK(bits, T, fetch_sub)                                            \
  PECAN_CHANGE_HOOK(bits, T, fetch_and)                                            \
  PECAN_CHANGE_HOOK(bits, T, fetch_or)                                             \
  PECAN_CHANGE_HOOK(bits, T, fetch_xor)                                            \
  PECAN_HOOK int __tsan_atomic##bits##_compare_exchange_strong(                    \
      volatile T* address, T* expected, T value, int, int) {                       \
    return __atomic_compare_exchange_n(                                            \
        address, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);      \
  }                                                                                \
  PECAN_HOOK int __tsan_atomic##bits##_compare_exchange_weak(                      \
      volatile T* address, T* expected, T value, int, int) {                       \
    return __atomic_compare_exchange_n(                                            \
        address, expected, value, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);       \
  }
PECAN_ATOMIC_HOOKS(8, std::uint8_t)
PECAN_ATOMIC_HOOKS(16, std::uint16_t)
PECAN_ATOMIC_HOOKS(32, std::uint32_t)
PECAN_ATOMIC_HOOKS(64, std::uint64_t)
#undef PECAN_ATOMIC_HOOKS
#undef PECAN_CHANGE_HOOK

PECAN_HOOK void __ubsan_handle_type_mismatch_v1(TypeMismatch* mismatch, std::uintptr_t pointer) {
  const std::uintptr_t alignment = std::uintptr_t{1} << mismatch->log_alignment;
  if (pointer == 0) {
    report_undefined("undefined", "null pointer", mismatch->where);
  } else if (pointer % alignment != 0) {
    report_undefined("alignment", "misaligned address", mismatch->where);
    if (pecan::emulation::is_in_kernel) {
      pecan::emulation::abort_kernel(cudaErrorMisalignedAddress);
    }
  } else {
    report_undefined("undefined", "object smaller than its type", mismatch->where);
  }
}
#define PECAN_UNDEFINED_HOOK(name, text)                         \
  PECAN_HOOK void __ubsan_handle_##name(SourceLocation* where) { \
    report_undefined("undefined", text, *where);                 \
  }
PECAN_UNDEFINED_HOOK(out_of_bounds, "index outside of its array")
PECAN_UNDEFINED_HOOK(add_overflow, "signed overflow")
PECAN_UNDEFINED_HOOK(sub_overflow, "signed overflow")
PECAN_UNDEFINED_HOOK(mul_overflow, "signed overflow")
PECAN_UNDEFINED_HOOK(negate_overflow, "signed overflow")
PECAN_UNDEFINED_HOOK(divrem_overflow, "division by zero, or its overflow")
PECAN_UNDEFINED_HOOK(shift_out_of_bounds, "shift by too much, or of too much")
#undef PECAN_UNDEFINED_HOOK
