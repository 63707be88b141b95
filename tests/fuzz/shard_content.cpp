/// A sealed HDF5 file whose content no writer of ours made.
///
/// The input is a recipe: datasets with their names, types, extents, storage layouts, links and
/// attributes. The library itself writes them, so that its own metadata is sound (see shard.cpp for
/// why flipped metadata is not tried), then the file is sealed and read by our reader. That is what
/// a shard of another program, of another version or of a mistaken writer looks like. Promises:
/// every call answers with a Status and throws nothing; a block that reads with success has the
/// type, extents and checksum that were asked for; nothing outside of the file is opened.

#include <fuzzer/FuzzedDataProvider.h>

#include <pecan/core/hash.hpp>

#include <pecan/checkpoint/shard.hpp>

#include "checkpoint/h5_driver.hpp"
#include "checkpoint/seal.hpp"
#include "fuzz.hpp"

namespace {

using namespace pecan;
using namespace pecan::checkpoint;
using fuzz::expect;

constexpr std::uint64_t kMaxDataBytes = 4096;

/// A file system that counts openings of paths other than the shard's.
class Watched final : public FileSystem {
 public:
  std::vector<std::byte> bytes;
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode /*mode*/) override {
    expect(path == "/s.h5", "only the shard itself is opened");
    return std::unique_ptr<File>(std::make_unique<fuzz::BytesFile>(bytes));
  }
  Status create_directories(const std::string& /*path*/) override { return {}; }
  Result<std::vector<DirEntry>> list(const std::string& /*path*/) override {
    return std::vector<DirEntry>{};
  }
  bool exists(const std::string& /*path*/) override { return true; }
  Status rename(const std::string& /*from*/, const std::string& /*to*/) override { return {}; }
  Status remove_file(const std::string& /*path*/) override { return {}; }
  Status remove_all(const std::string& /*path*/) override { return {}; }
  Status sync_directory(const std::string& /*path*/) override { return {}; }
};

class Recipe {
 public:
  Recipe(const std::uint8_t* data, std::size_t size) : data_(data, size) {}

  /// Writes the file; calls that the library refuses leave their object out.
  void write(H5Target& target) {
    const H5Id access = h5_file_access(target);
    const H5Id file(
        H5Fcreate("/s.h5", H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), H5Fclose, "creating");
    for (int i = data_.ConsumeIntegralInRange(0, 4); i-- > 0 && data_.remaining_bytes() > 0;) {
      const char* item = data_.PickValueInArray({"a", "b", "layers.0.w"});
      const char* dataset = data_.PickValueInArray({"weight", "exp_avg", "0_0"});
      std::string path = item;
      if (data_.ConsumeIntegralInRange(0, 7) > 0) path += std::string("/") + dataset;
      switch (data_.ConsumeIntegralInRange(0, 3)) {
        case 0:
          path += "/" + std::to_string(data_.ConsumeIntegralInRange(-1, 3)) + "_0";
          break;
        case 1:
          if (data_.ConsumeBool()) path += "/x/y";
          break;
        default:
          break;
      }
      add(file.get(), path);
    }
  }

  FuzzedDataProvider& data() { return data_; }

 private:
  H5Id plist(hid_t cls) { return {H5Pcreate(cls), H5Pclose, "making a list"}; }

  void add(hid_t file, const std::string& path) {
    const H5Id links = plist(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(links.get(), 1);
    switch (data_.ConsumeIntegralInRange(0, 9)) {
      case 0:
        H5Lcreate_soft(data_.PickValueInArray({"/a/weight", "/a", "/", "/none", "."}),
                       file,
                       path.c_str(),
                       links.get(),
                       H5P_DEFAULT);
        return;
      case 1:
        H5Lcreate_external("/dev/zero", "/a", file, path.c_str(), links.get(), H5P_DEFAULT);
        return;
      case 2:
        H5Lcreate_hard(file,
                       data_.PickValueInArray({"/", "/a", "/a/weight"}),
                       file,
                       path.c_str(),
                       links.get(),
                       H5P_DEFAULT);
        return;
      default:
        add_dataset(file, path, links.get());
    }
  }

  hid_t type() {
    return data_.PickValueInArray({H5T_IEEE_F32LE,
                                   H5T_IEEE_F64LE,
                                   H5T_STD_I64LE,
                                   H5T_STD_I32LE,
                                   H5T_STD_U8LE,
                                   H5T_STD_I64BE,
                                   H5T_STD_U64LE,
                                   H5T_C_S1,
                                   H5T_NATIVE_OPAQUE,
                                   H5T_STD_REF_OBJ,
                                   H5T_IEEE_F32BE});
  }

  H5Id space(int max_dims) {
    std::array<hsize_t, 8> dims{};
    const int num_dims = data_.ConsumeIntegralInRange(-1, max_dims);
    if (num_dims < 0) return {H5Screate(H5S_NULL), H5Sclose, "making a space"};
    if (num_dims == 0) return {H5Screate(H5S_SCALAR), H5Sclose, "making a space"};
    for (int d = 0; d < num_dims; ++d) {
      dims[std::size_t(d)] = data_.ConsumeIntegralInRange(0, 31) == 0
                                 ? data_.ConsumeIntegral<std::uint64_t>()
                                 : data_.ConsumeIntegralInRange<std::uint64_t>(0, 6);
    }
    return {H5Screate_simple(num_dims, dims.data(), nullptr), H5Sclose, "making a space"};
  }

  void add_dataset(hid_t file, const std::string& path, hid_t links) {
    const H5Id shape = space(6);
    const H5Id list = plist(H5P_DATASET_CREATE);
    const hid_t element = type();
    // Late allocation: an extent of 2^60 then costs nothing to write down.
    switch (data_.ConsumeIntegralInRange(0, 7)) {
      case 0:
        H5Pset_layout(list.get(), H5D_COMPACT);
        break;
      case 1: {
        const std::array<hsize_t, 4> chunk{2, 2, 2, 2};
        H5Pset_chunk(
            list.get(), std::clamp(H5Sget_simple_extent_ndims(shape.get()), 1, 4), chunk.data());
        break;
      }
      case 2:
        H5Pset_external(list.get(), "/dev/zero", 0, H5F_UNLIMITED);
        break;
      default:
        if (data_.ConsumeBool()) H5Pset_alloc_time(list.get(), H5D_ALLOC_TIME_LATE);
    }
    const hssize_t elements = H5Sget_simple_extent_npoints(shape.get());
    const bool is_small = elements >= 0 && std::uint64_t(elements) <= kMaxDataBytes;
    if (!is_small) H5Pset_alloc_time(list.get(), H5D_ALLOC_TIME_LATE);
    const hid_t dataset =
        H5Dcreate2(file, path.c_str(), element, shape.get(), links, list.get(), H5P_DEFAULT);
    if (dataset < 0) return;
    const H5Id owner(dataset, H5Dclose, "owning a dataset");
    for (const char* name : {"global_shape", "offset", "step", "xxh3"})
      add_attribute(dataset, name);
  }

  void add_attribute(hid_t dataset, const char* name) {
    const int kind = data_.ConsumeIntegralInRange(0, 15);
    if (kind == 0) return;
    const bool is_list = name[0] == 'g' || name[0] == 'o';
    const hid_t element = kind == 1 ? type() : name[0] == 'x' ? H5T_STD_U64LE : H5T_STD_I64LE;
    H5Id shape;
    std::vector<std::int64_t> values(4096 / 8);
    if (kind == 2) {
      shape = space(3);
      if (H5Sget_simple_extent_npoints(shape.get()) > 400) return;
    } else if (is_list) {
      const hsize_t count = data_.ConsumeIntegralInRange<hsize_t>(0, 5);
      shape = {H5Screate_simple(1, &count, nullptr), H5Sclose, "making a space"};
    } else {
      shape = {H5Screate(H5S_SCALAR), H5Sclose, "making a space"};
    }
    for (std::size_t i = 0; i < 5; ++i) {
      values[i] = data_.ConsumeIntegralInRange(0, 15) == 0
                      ? data_.ConsumeIntegral<std::int64_t>()
                      : data_.ConsumeIntegralInRange<std::int64_t>(0, 6);
    }
    const hid_t attribute =
        H5Acreate2(dataset, name, element, shape.get(), H5P_DEFAULT, H5P_DEFAULT);
    if (attribute < 0) return;
    const H5Id owner(attribute, H5Aclose, "owning an attribute");
    H5Awrite(attribute, element, values.data());
  }

  FuzzedDataProvider data_;
};

void check_status(const Status& status) {
  expect(status.ok() || status.code == StatusCode::kCorrupt || status.code == StatusCode::kInvalid,
         status.message);
  expect(status.ok() || status.message.find("/s.h5") != std::string::npos,
         "a refusal names the shard");
}

void read_block(ShardReader& reader, const ShardBlock& block) {
  std::int64_t elements = 0;
  try {
    elements = block.block.extent.num_elements();
  } catch (const ShapeError&) {  // the plan never asks for more than can be counted
    return;
  }
  if (elements > std::int64_t(kMaxDataBytes)) return;
  std::vector<std::byte> data(std::size_t(elements) * size_of(block.dtype));
  const Status status = reader.read(block, data);
  check_status(status);
  if (status.ok())
    expect(xxh3(std::span<const std::byte>(data)) == block.xxh3, "what is read fits its checksum");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Watched fs;
  Recipe recipe(data, size);
  {
    const H5Lock lock;
    fuzz::BytesFile file(fs.bytes);
    H5Target target{.file = &file};
    try {
      recipe.write(target);
    } catch (const H5Failure&) {  // a recipe that the library cannot cook
      return 0;
    }
    expect(append_seal(file, {}).ok(), "any file can be sealed");
  }
  ShardReader reader(fs, "/s.h5");
  const Status opened = reader.open();
  check_status(opened);
  if (!opened.ok()) return 0;
  const Result<std::vector<ShardBlock>> list = reader.list();
  check_status(list.status());
  if (list.ok()) {
    for (const ShardBlock& block : list.value()) read_block(reader, block);
  }
  for (const char* item : {"a", "b", "layers.0.w"}) {
    const Shape shape{3, 2};
    read_block(reader, {item, "weight", DType::kI64, shape, Block::whole(shape), Step(1), 0});
    read_block(reader, {item, "weight", DType::kF32, shape, {{1, 0}, {2, 2}}, Step(1), 0});
  }
  return 0;
}
