#pragma once
/// The seal at the end of a shard: it vouches for all that HDF5 must parse, since HDF5 trusts what
/// it parses and damaged metadata makes it leak, hang or crash. Layout in
/// docs/formats/checkpoint.md.

#include <cstdint>
#include <span>
#include <string>

#include <pecan/core/error.hpp>
#include <pecan/core/file_system.hpp>

namespace pecan::checkpoint {

/// Where a block's data lies in the file; those bytes have a checksum of their own.
struct DataRange {
  std::uint64_t offset = 0;
  std::uint64_t num_bytes = 0;
};

/// Appends the seal to a complete HDF5 file. `data`: ascending ranges without overlap inside it.
Status append_seal(File& file, std::span<const DataRange> data);

/// Size of the HDF5 file before its seal, if every byte outside the data ranges is as it was
/// sealed; kCorrupt otherwise.
Result<std::uint64_t> check_seal(File& file, const std::string& path);

}  // namespace pecan::checkpoint
