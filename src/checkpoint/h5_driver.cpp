#include "checkpoint/h5_driver.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <new>
#include <span>

#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

namespace pecan::checkpoint {
namespace {

std::mutex& library_mutex() {
  static std::mutex mutex;
  return mutex;
}

/// What the library keeps for one open file; `base` comes first, since it is handed around as
/// H5FD_t*.
struct DriverFile {
  H5FD_t base{};
  H5Target* target = nullptr;
  haddr_t end_of_allocation = 0;
};
struct DriverInfo {
  H5Target* target;
};

DriverFile& driver_file(H5FD_t* file) {
  return *reinterpret_cast<DriverFile*>(file);
}
const DriverFile& driver_file(const H5FD_t* file) {
  return *reinterpret_cast<const DriverFile*>(file);
}

/// Keeps the first failure.
herr_t fail(H5Target& target, const Status& status) {
  if (target.error.ok()) target.error = status;
  return -1;
}

/// Runs a change of the file; see H5Target for why a failure counts as success here.
template <typename Change>
herr_t change(H5Target& target, Change apply) {
  if (target.discard) return 0;
  if (const Status status = apply(); !status.ok()) {
    fail(target, status);
    target.discard = true;
  }
  return 0;
}

H5FD_t* driver_open(const char* /*name*/,
                    unsigned /*flags*/,
                    hid_t access,
                    haddr_t /*max_address*/) {
  const auto* info = static_cast<const DriverInfo*>(H5Pget_driver_info(access));
  auto* file = info == nullptr ? nullptr : new (std::nothrow) DriverFile;
  if (file == nullptr) return nullptr;
  file->target = info->target;
  return &file->base;
}

herr_t driver_close(H5FD_t* file) {
  delete &driver_file(file);
  return 0;
}

int driver_compare(const H5FD_t* a, const H5FD_t* b) {
  const File* left = driver_file(a).target->file;
  const File* right = driver_file(b).target->file;
  return int(std::less<>{}(right, left)) - int(std::less<>{}(left, right));
}

herr_t driver_query(const H5FD_t* /*file*/, unsigned long* flags) {
  if (flags != nullptr) {
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA;
  }
  return 0;
}

haddr_t driver_get_eoa(const H5FD_t* file, H5FD_mem_t /*type*/) {
  return driver_file(file).end_of_allocation;
}

herr_t driver_set_eoa(H5FD_t* file, H5FD_mem_t /*type*/, haddr_t address) {
  driver_file(file).end_of_allocation = address;
  return 0;
}

haddr_t driver_get_eof(const H5FD_t* file, H5FD_mem_t /*type*/) {
  return driver_file(file).target->num_bytes;
}

/// Whether [address, address + size) lies in what the library has allocated; damaged metadata may
/// point anywhere.
bool in_range(const DriverFile& file, haddr_t address, std::size_t size) {
  return address <= file.end_of_allocation && size <= file.end_of_allocation - address;
}

herr_t driver_read(H5FD_t* file,
                   H5FD_mem_t /*type*/,
                   hid_t /*transfer*/,
                   haddr_t address,
                   std::size_t size,
                   void* buffer) {
  if (!in_range(driver_file(file), address, size)) return -1;
  H5Target& target = *driver_file(file).target;
  const std::span bytes(static_cast<std::byte*>(buffer), size);
  const Result<std::size_t> count = target.file->read_at(address, bytes);
  if (!count.ok()) return fail(target, count.status());
  std::ranges::fill(bytes.subspan(count.value()), std::byte{0});
  return 0;
}

bool lies_in(std::span<const std::byte> part, std::span<const std::byte> whole) {
  const std::less_equal<> ordered;
  return ordered(whole.data(), part.data()) &&
         ordered(part.data() + part.size(), whole.data() + whole.size());
}

herr_t driver_write(H5FD_t* file,
                    H5FD_mem_t /*type*/,
                    hid_t /*transfer*/,
                    haddr_t address,
                    std::size_t size,
                    const void* buffer) {
  if (!in_range(driver_file(file), address, size)) return -1;
  H5Target& target = *driver_file(file).target;
  return change(target, [&] {
    target.num_bytes = std::max<std::uint64_t>(target.num_bytes, address + size);
    const std::span bytes(static_cast<const std::byte*>(buffer), size);
    // The library's own buffers are not: it hands on the caller's where nothing is converted.
    return lies_in(bytes, target.stable) ? target.file->write_behind(address, bytes)
                                         : target.file->write_at(address, bytes);
  });
}

/// Nothing is buffered here; the writer syncs when the file is whole.
herr_t driver_flush(H5FD_t* /*file*/, hid_t /*transfer*/, hbool_t /*closing*/) {
  return 0;
}

herr_t driver_truncate(H5FD_t* file, hid_t /*transfer*/, hbool_t /*closing*/) {
  const haddr_t end = driver_file(file).end_of_allocation;
  H5Target& target = *driver_file(file).target;
  if (end == target.num_bytes) return 0;
  return change(target, [&] {
    target.num_bytes = end;
    return target.file->truncate(end);
  });
}

hid_t driver_id() {
  static const H5FD_class_t driver = [] {
    H5FD_class_t c{};
#if H5_VERSION_GE(1, 13, 0)
    c.version = H5FD_CLASS_VERSION;
    c.value = H5FD_class_value_t(
        502);  // of the range for drivers that are not registered with the library's authors
#endif
    c.name = "pecan";
    c.maxaddr = (haddr_t(1) << 63) - 1;
    c.fc_degree = H5F_CLOSE_STRONG;
    c.fapl_size = sizeof(DriverInfo);
    c.open = driver_open;
    c.close = driver_close;
    c.cmp = driver_compare;
    c.query = driver_query;
    c.get_eoa = driver_get_eoa;
    c.set_eoa = driver_set_eoa;
    c.get_eof = driver_get_eof;
    c.read = driver_read;
    c.write = driver_write;
    c.flush = driver_flush;
    c.truncate = driver_truncate;
    constexpr H5FD_mem_t kFreeLists[] = H5FD_FLMAP_DICHOTOMY;
    std::ranges::copy(kFreeLists, c.fl_map);
    return c;
  }();
  static const hid_t id = h5_checked(H5FDregister(&driver), "registering the file driver");
  return id;
}

/// H5Ewalk2 callback: the entry walked last is the innermost.
herr_t keep_reason(unsigned /*index*/, const H5E_error2_t* error, void* reason) {
  try {
    if (error->desc != nullptr) *static_cast<std::string*>(reason) = error->desc;
  } catch (...) {  // no memory for the reason: the failure is reported without one
    return -1;
  }
  return 0;
}

}  // namespace

H5Lock::H5Lock() : lock_(library_mutex()) {
  H5Eget_auto2(H5E_DEFAULT, &former_print_, &former_data_);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

H5Lock::~H5Lock() {
  H5Eset_auto2(H5E_DEFAULT, former_print_, former_data_);
}

void throw_h5_failure(std::string_view action) {
  std::string reason;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_reason, &reason);
  throw H5Failure(
      fmt::format("{} failed in HDF5 ({})", action, reason.empty() ? "no reason given" : reason));
}

H5Id h5_file_access(H5Target& target) {
  H5Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "making a file access list");
  const DriverInfo info{&target};
  h5_checked(H5Pset_driver(access.get(), driver_id(), &info), "choosing the file driver");
  h5_checked(H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG), "choosing how files close");
  return access;
}

}  // namespace pecan::checkpoint
