#pragma once
/// Asynchronous copies into shared memory; see include/pecan_emulation/ptx.hpp.

namespace pecan::emulation {

/// A block starts: copies for which nobody waited are gone.
void forget_copies();

}  // namespace pecan::emulation
