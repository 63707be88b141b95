#pragma once
/// HDF5 over FileSystem: the process-wide lock, checked calls, owning handles and the virtual file
/// driver.

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include <hdf5.h>

#include <pecan/core/error.hpp>
#include <pecan/core/file_system.hpp>

namespace pecan::checkpoint {

/// Holds HDF5 for this thread: every call of the library, closing handles included, happens under
/// one of these. Error printing is off meanwhile.
class H5Lock {
 public:
  H5Lock();
  ~H5Lock();
  H5Lock(const H5Lock&) = delete;
  H5Lock& operator=(const H5Lock&) = delete;

 private:
  std::lock_guard<std::mutex> lock_;
  H5E_auto2_t former_print_ = nullptr;
  void* former_data_ = nullptr;
};

/// A call of the library that failed, with the library's innermost reason.
struct H5Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void throw_h5_failure(std::string_view action);

/// `result` of a call of the library if that succeeded, else throws H5Failure.
template <typename T>
T h5_checked(T result, std::string_view action) {
  if (result < 0) throw_h5_failure(action);
  return result;
}

/// Owns one handle of any kind; empty after a move.
class H5Id {
 public:
  using Close = herr_t (*)(hid_t);
  H5Id() = default;
  /// Throws H5Failure where `id` is not valid.
  H5Id(hid_t id, Close close, std::string_view action)
      : id_(h5_checked(id, action)), close_(close) {}
  H5Id(H5Id&& other) noexcept
      : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}
  H5Id& operator=(H5Id&& other) noexcept {
    if (this != &other) {
      reset();
      id_ = std::exchange(other.id_, H5I_INVALID_HID);
      close_ = other.close_;
    }
    return *this;
  }
  ~H5Id() { reset(); }
  [[nodiscard]] hid_t get() const { return id_; }
  [[nodiscard]] bool empty() const { return id_ < 0; }
  /// Closes; the library's verdict. Nothing to do for an empty handle.
  herr_t reset() { return empty() ? 0 : close_(std::exchange(id_, H5I_INVALID_HID)); }

 private:
  hid_t id_ = H5I_INVALID_HID;
  Close close_ = nullptr;
};

/// The file under an HDF5 file, and what went wrong with it. After the first failed write all later
/// ones are dropped with success, because the library leaks and may crash when it cannot flush at
/// closing: `error` says that the file is bad.
struct H5Target {
  File* file = nullptr;
  std::uint64_t num_bytes = 0;  ///< size of the file
  bool discard = false;         ///< drop all writes from now on
  Status error;                 ///< first failure of the file
  /// Memory that stays as it is until the file is synced: writes from it may go on behind.
  std::span<const std::byte> stable{};
};

/// A file access property list that reads and writes through `target`, which must outlive the HDF5
/// file.
[[nodiscard]] H5Id h5_file_access(H5Target& target);

}  // namespace pecan::checkpoint
