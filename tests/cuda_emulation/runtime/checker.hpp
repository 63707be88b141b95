#pragma once
/// The checker: for each byte of memory that the device can reach, whether it is allocated and has
/// content; for each two bytes, who wrote and who read them last. Code compiled with
/// -fsanitize=thread calls it at every access; the sanitizer's own library is not linked.

#include <cstddef>
#include <cstdint>

#include "memory.hpp"
#include "scheduler.hpp"

namespace pecan::emulation {

enum class Content : std::uint8_t { kNone, kDefined };
enum class Access : std::uint8_t { kRead, kWrite, kAtomic };

/// Whether code with the checks is loaded.
[[nodiscard]] bool is_checking();
/// Called when such code is loaded, before any memory is allocated.
void start_checking();

/// Memory at addresses that are never used again, so that late accesses are seen; nullptr if none
/// is left.
unsigned char* take_from_arena(std::size_t num_bytes, Space space);
bool is_in_device_arena(const void* address);
void mark_allocated(const void* address, std::size_t num_bytes, Content content);
/// The machine may have the pages back; the addresses stay taken.
void mark_freed(void* address, std::size_t num_bytes);
/// These do nothing where nothing is checked.
void watch_registered(const void* address, std::size_t num_bytes);
void forget_registered(const void* address);
/// An operation reads or writes memory as a whole.
void note_access(const void* address,
                 std::size_t num_bytes,
                 Access access,
                 std::uint32_t operation);

/// The memory of the module whose kernel runs; of its dynamic memory only this part is there.
void set_shared_memory(Range whole, Range dynamic);
void forget_shared_content();

/// An access of code with the checks.
void check_access(const void* address, std::size_t num_bytes, Access access, const void* code);
/// An address that no instruction of the device accepts.
void check_alignment(const void* address, std::size_t alignment, const void* code);

}  // namespace pecan::emulation
