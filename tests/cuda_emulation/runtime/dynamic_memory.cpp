/// Part of every module of device code: its dynamic shared memory, under the one name that the
/// project's kernels use.

#include <pecan_emulation/execution.hpp>

#include "shared_memory.hpp"

alignas(128) thread_local unsigned char dynamic_smem[kPecanEmulationSharedBytes + 64];

namespace pecan::emulation {
namespace {

unsigned char* address_on_this_thread() {
  return dynamic_smem;
}

[[maybe_unused]] const bool is_registered =
    (register_dynamic_memory(&address_on_this_thread), true);

}  // namespace
}  // namespace pecan::emulation
