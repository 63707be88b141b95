#pragma once
/// Reading a run's state from outside of it, item by item.

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pecan/core/file_system.hpp>
#include <pecan/core/ids.hpp>
#include <pecan/core/tensor.hpp>

#include <pecan/checkpoint/manifest.hpp>

namespace pecan::checkpoint {

/// The items that one checkpoint of a run counts on, whole, whatever layout wrote them. Takes no
/// lock and changes nothing; a run that is going on may sweep what is being read, which is reported
/// as any other damage. Holds the manifest and one block at a time.
class StateReader {
 public:
  /// Opens the checkpoint of `step`, or the newest one that a run could continue from. `fs`
  /// outlives the object. Throws CheckpointError where there is none, with what is damaged.
  StateReader(FileSystem& fs, const std::string& run_directory, std::optional<Step> step = {});
  ~StateReader();
  StateReader(const StateReader&) = delete;
  StateReader& operator=(const StateReader&) = delete;

  struct Item {
    Shape shape;
    DType dtype = DType::kF32;
  };
  [[nodiscard]] const Manifest& manifest() const;
  /// Paths "<name>/<dataset>" of all items, ascending.
  [[nodiscard]] std::vector<std::string> paths() const;
  /// What the item is; nothing where the checkpoint has no such item.
  [[nodiscard]] std::optional<Item> find(std::string_view path) const;
  /// Reads a whole item, row-major, and compares checksums; `destination` holds exactly its bytes.
  /// Throws CheckpointError for an item that is not there, or damaged.
  void read(std::string_view path, std::span<std::byte> destination);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pecan::checkpoint
