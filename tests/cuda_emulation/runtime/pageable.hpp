#pragma once
/// Pageable host memory that copies to the device read by themselves, as on machines whose GPU
/// reads it without a staging copy: it stays as it is until the host has waited for the copy.

#include <cstddef>

#include "streams.hpp"

namespace pecan::emulation {

/// The stream's newest operation reads the memory. Under the device's mutex, as the next.
void begin_reading(const Stream& stream, const void* from, std::size_t num_bytes);
/// The host has waited for what the clock counts: a finding where memory has changed meanwhile, or
/// is gone.
void end_reading(const Clock& waited);

}  // namespace pecan::emulation
