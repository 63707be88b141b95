#pragma once
/// HDF5 shard files: written and read through FileSystem by a small virtual file driver.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <pecan/core/error.hpp>
#include <pecan/core/file_system.hpp>
#include <pecan/core/ids.hpp>
#include <pecan/core/tensor.hpp>

namespace pecan::checkpoint {

/// One dataset of a shard: where in the item its bytes belong, and what they are.
struct ShardBlock {
  std::string item;     ///< StateItem::name
  std::string dataset;  ///< StateItem::dataset
  DType dtype = DType::kF32;
  Shape global_shape;
  Block block;
  Step step;               ///< version
  std::uint64_t xxh3 = 0;  ///< of the data, logical row-major little-endian
  bool operator==(const ShardBlock&) const = default;
  /// Path inside the HDF5 file: "<item>/<dataset>", and "/<offset joined by _>" where the block is
  /// not the whole item.
  [[nodiscard]] std::string dataset_path() const;
};

/// Size and checksum of a finished file.
struct FileDigest {
  std::uint64_t num_bytes = 0;
  std::uint64_t xxh3 = 0;
  bool operator==(const FileDigest&) const = default;
};

/// Creates one shard. Serial HDF5 under the process-wide lock; safe to use from the writer thread.
/// Files: default superblock, no object times, contiguous datasets, attributes global_shape,
/// offset, step, xxh3; behind them a seal over the metadata (docs/formats/checkpoint.md). Equal
/// blocks in equal order make equal files. After a failure every call returns it and writes
/// nothing.
class ShardWriter {
 public:
  ShardWriter(FileSystem& fs, std::string path);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;
  /// Creates the file (kExists if it is there).
  Status open();
  /// Writes one block; `data` holds exactly the block's bytes, block.xxh3 their checksum. It stays
  /// as it is until finish() has returned.
  Status write(const ShardBlock& block, std::span<const std::byte> data);
  /// Closes and seals the HDF5 file, and lets the device begin to write it. Nothing may be written
  /// afterwards.
  Status close();
  /// close() unless that is done; computes size and XXH3 of the whole file, fsyncs it. Data is
  /// hashed as it was given to write(), so what a disk made of it does not vouch for itself.
  Result<FileDigest> finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Reads blocks of one shard; any malformed file is a Status (kCorrupt, kNotFound), never a crash.
class ShardReader {
 public:
  ShardReader(FileSystem& fs, std::string path);
  ~ShardReader();
  ShardReader(const ShardReader&) = delete;
  ShardReader& operator=(const ShardReader&) = delete;
  /// kCorrupt unless every byte of metadata is as it was written; data is checked by read().
  Status open();
  /// Reads the block's bytes and compares dtype, shape, offset, step and XXH3 with `expected`;
  /// kCorrupt names what differs.
  Status read(const ShardBlock& expected, std::span<std::byte> destination);
  /// All datasets of the file with their attributes, sorted by path.
  Result<std::vector<ShardBlock>> list();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Size and XXH3 of a file, read in pieces.
Result<FileDigest> digest_file(FileSystem& fs, const std::string& path);

}  // namespace pecan::checkpoint
