#include "checkpoint/h5_driver.hpp"

#include <vector>

#include "support/catch.hpp"
#include "support/memory_file_system.hpp"
#include "support/support.hpp"

namespace pecan::checkpoint {
namespace {

bool prints_errors() {
  H5E_auto2_t print = nullptr;
  void* data = nullptr;
  H5Eget_auto2(H5E_DEFAULT, &print, &data);
  return print != nullptr;
}

TEST_CASE("HDF5 prints no errors while the lock is held", "[h5_driver]") {
  const bool before = prints_errors();
  {
    const H5Lock lock;
    CHECK_FALSE(prints_errors());
  }
  CHECK(prints_errors() == before);
}

TEST_CASE("a failed call says what was tried and the library's reason", "[h5_driver]") {
  const H5Lock lock;
  std::string message;
  try {
    const H5Id file(H5Fopen("/none", H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose, "opening /none");
  } catch (const H5Failure& failure) {
    message = failure.what();
  }
  CHECK(message.find("opening /none failed in HDF5 (unable to open file") == 0);
}

TEST_CASE("a handle closes once", "[h5_driver]") {
  const H5Lock lock;
  H5Id first(H5Screate(H5S_SCALAR), H5Sclose, "making a space");
  const hid_t id = first.get();
  H5Id second(std::move(first));
  CHECK(first.empty());  // NOLINT: what a move leaves is the point
  CHECK(second.get() == id);
  H5Id& alias = second;
  second = std::move(alias);
  CHECK(H5Iis_valid(id) > 0);
  second = H5Id(H5Screate(H5S_NULL), H5Sclose, "making a space");
  CHECK(H5Iis_valid(id) == 0);
  CHECK(second.reset() >= 0);
  CHECK(second.reset() >= 0);
}

TEST_CASE("what lies behind the end of a file reads as zeros", "[h5_driver]") {
  test::MemoryFileSystem fs;
  const auto file = fs.open("/f", OpenMode::kCreate).value();
  H5Target target{.file = file.get()};
  const H5Lock lock;
  const H5Id access = h5_file_access(target);
  const H5Id h5(H5Fcreate("/f", H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), H5Fclose, "creating");
  const H5Id list(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "making a list");
  REQUIRE(H5Pset_alloc_time(list.get(), H5D_ALLOC_TIME_EARLY) >= 0);
  REQUIRE(H5Pset_fill_time(list.get(), H5D_FILL_TIME_NEVER) >= 0);
  const hsize_t count = 1 << 20;
  const H5Id space(H5Screate_simple(1, &count, nullptr), H5Sclose, "making a space");
  const H5Id dataset(
      H5Dcreate2(h5.get(), "d", H5T_STD_U8LE, space.get(), H5P_DEFAULT, list.get(), H5P_DEFAULT),
      H5Dclose,
      "creating");
  std::vector<unsigned char> bytes(count, 0xFF);
  REQUIRE(H5Dread(dataset.get(), H5T_STD_U8LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()) >= 0);
  CHECK((bytes == std::vector<unsigned char>(count, 0)));
}

TEST_CASE("a file is cut or grown to what HDF5 has allocated", "[h5_driver]") {
  test::MemoryFileSystem fs;
  const auto file = fs.open("/f", OpenMode::kCreate).value();
  H5Target target{.file = file.get()};
  const H5Lock lock;
  const H5Id access = h5_file_access(target);
  H5Id h5(H5Fcreate("/f", H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), H5Fclose, "creating");
  const H5Id list(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "making a list");
  REQUIRE(H5Pset_alloc_time(list.get(), H5D_ALLOC_TIME_EARLY) >= 0);
  REQUIRE(H5Pset_fill_time(list.get(), H5D_FILL_TIME_NEVER) >= 0);
  const hsize_t count = 1 << 20;
  const H5Id space(H5Screate_simple(1, &count, nullptr), H5Sclose, "making a space");
  H5Id dataset(
      H5Dcreate2(h5.get(), "d", H5T_STD_U8LE, space.get(), H5P_DEFAULT, list.get(), H5P_DEFAULT),
      H5Dclose,
      "creating");
  REQUIRE(dataset.reset() >= 0);
  REQUIRE(h5.reset() >= 0);
  CHECK(target.error.ok());
  CHECK(file->size().value() >= count);
  CHECK(file->size().value() == target.num_bytes);
}

}  // namespace
}  // namespace pecan::checkpoint
