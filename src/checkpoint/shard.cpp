#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <utility>

#include <fmt/ranges.h>

#include <pecan/core/hash.hpp>

#include <pecan/checkpoint/shard.hpp>

#include "checkpoint/gathering_file.hpp"
#include "checkpoint/h5_driver.hpp"
#include "checkpoint/seal.hpp"

namespace pecan::checkpoint {
namespace {

constexpr std::size_t kDigestPieceBytes = std::size_t(4) << 20;
/// Data of this size and more starts at a multiple of kAlignmentBytes, which direct I/O and page
/// caches like.
constexpr hsize_t kAlignmentThresholdBytes = 64 << 10;
constexpr hsize_t kAlignmentBytes = 4096;

constexpr std::array kDTypes{
    DType::kF32, DType::kF64, DType::kBF16, DType::kI64, DType::kI32, DType::kU8};

H5Id copy_type(hid_t type) {
  return {H5Tcopy(type), H5Tclose, "making an element type"};
}

H5Id h5_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return copy_type(H5T_IEEE_F32LE);
    case DType::kF64:
      return copy_type(H5T_IEEE_F64LE);
    case DType::kI64:
      return copy_type(H5T_STD_I64LE);
    case DType::kI32:
      return copy_type(H5T_STD_I32LE);
    case DType::kU8:
      return copy_type(H5T_STD_U8LE);
    case DType::kBF16: {
      H5Id type = copy_type(H5T_IEEE_F32LE);
      // Sign bit 15, exponent bits 7..14 with bias 127, mantissa bits 0..6; fields before size, or
      // they would not fit.
      h5_checked(H5Tset_fields(type.get(), 15, 7, 8, 0, 7), "making bf16");
      h5_checked(H5Tset_size(type.get(), 2), "making bf16");
      return type;
    }
  }
  throw InternalError(fmt::format("{} is no element type", int(dtype)));
}

bool is_type(hid_t type, DType dtype) {
  return h5_checked(H5Tequal(type, h5_type(dtype).get()), "comparing element types") > 0;
}

using Extents = std::array<hsize_t, kMaxDims>;

H5Id make_space(std::span<const std::int64_t> extents) {
  if (extents.empty()) return {H5Screate(H5S_SCALAR), H5Sclose, "making a data space"};
  Extents dims{};
  std::ranges::transform(
      extents, dims.begin(), [](std::int64_t extent) { return hsize_t(extent); });
  return {
      H5Screate_simple(int(extents.size()), dims.data(), nullptr), H5Sclose, "making a data space"};
}

/// Extents of a data space; H5Failure where it has more dims than a Shape or extents that a Shape
/// cannot hold.
Shape shape_of(hid_t space) {
  const int num_dims = h5_checked(H5Sget_simple_extent_ndims(space), "reading the number of dims");
  if (num_dims > kMaxDims || H5Sget_simple_extent_type(space) == H5S_NULL) {
    throw H5Failure(fmt::format("it has {} dims, 0 to {} are legal", num_dims, kMaxDims));
  }
  Extents dims{};
  h5_checked(H5Sget_simple_extent_dims(space, dims.data(), nullptr), "reading the extents");
  std::array<std::int64_t, kMaxDims> extents{};
  for (int dim = 0; dim < num_dims; ++dim) {
    extents[std::size_t(dim)] = std::int64_t(dims[std::size_t(dim)]);
    if (extents[std::size_t(dim)] < 0) throw H5Failure("an extent does not fit 63 bits");
  }
  return Shape(std::span<const std::int64_t>(extents).first(std::size_t(num_dims)));
}

void write_attribute(
    hid_t dataset, const char* name, hid_t type, const H5Id& space, const void* value) {
  const H5Id attribute(H5Acreate2(dataset, name, type, space.get(), H5P_DEFAULT, H5P_DEFAULT),
                       H5Aclose,
                       "creating an attribute");
  h5_checked(H5Awrite(attribute.get(), type, value), "writing an attribute");
}

/// An attribute of 64-bit integers with at most kMaxDims values, and its data space's number of
/// dims.
struct Integers {
  int num_dims = 0;
  std::size_t count = 0;
  std::array<std::int64_t, kMaxDims> values{};
};

Integers read_attribute(hid_t dataset, const char* name, hid_t type) {
  const H5Id attribute(
      H5Aopen(dataset, name, H5P_DEFAULT), H5Aclose, fmt::format("opening attribute {}", name));
  const H5Id stored(H5Aget_type(attribute.get()), H5Tclose, "reading an attribute's type");
  const H5Id space(H5Aget_space(attribute.get()), H5Sclose, "reading an attribute's extents");
  const Shape shape = shape_of(space.get());
  if (shape.num_dims() > 1 || shape.num_elements() > kMaxDims ||
      h5_checked(H5Tequal(stored.get(), type), "comparing element types") == 0) {
    throw H5Failure(fmt::format("attribute {} has another type or extent than it should", name));
  }
  Integers integers{shape.num_dims(), std::size_t(shape.num_elements()), {}};
  if (integers.count > 0) {
    h5_checked(H5Aread(attribute.get(), type, integers.values.data()), "reading an attribute");
  }
  return integers;
}

std::int64_t read_scalar(hid_t dataset, const char* name, hid_t type) {
  const Integers integers = read_attribute(dataset, name, type);
  if (integers.num_dims != 0) throw H5Failure(fmt::format("attribute {} is no scalar", name));
  return integers.values[0];
}

Shape read_shape(hid_t dataset, const char* name) {
  const Integers integers = read_attribute(dataset, name, H5T_STD_I64LE);
  const std::span values(integers.values.data(), integers.count);
  if (integers.num_dims != 1 || std::ranges::any_of(values, [](std::int64_t v) { return v < 0; })) {
    throw H5Failure(fmt::format("attribute {} is no list of extents", name));
  }
  return Shape(values);
}

/// What a dataset says of itself; names are left empty.
ShardBlock describe(hid_t dataset) {
  const H5Id list(H5Dget_create_plist(dataset), H5Pclose, "reading the storage layout");
  if (H5Pget_layout(list.get()) != H5D_CONTIGUOUS || H5Pget_external_count(list.get()) != 0) {
    throw H5Failure("its data is not stored contiguously in this file");
  }
  const H5Id type(H5Dget_type(dataset), H5Tclose, "reading the element type");
  const H5Id space(H5Dget_space(dataset), H5Sclose, "reading the extents");
  const auto* dtype =
      std::ranges::find_if(kDTypes, [&](DType d) { return is_type(type.get(), d); });
  if (dtype == kDTypes.end()) throw H5Failure("its element type is none of Pecan's");
  ShardBlock block;
  block.dtype = *dtype;
  block.global_shape = read_shape(dataset, "global_shape");
  block.block = {read_shape(dataset, "offset"), shape_of(space.get())};
  block.step = Step(read_scalar(dataset, "step", H5T_STD_I64LE));
  block.xxh3 = std::uint64_t(read_scalar(dataset, "xxh3", H5T_STD_U64LE));
  return block;
}

bool is_link_name(const std::string& name) {
  return !name.empty() && name != "." &&
         name.find_first_of(std::string_view("/\0", 2)) == std::string::npos;
}

/// Why `block` with `num_bytes` of data cannot be in a shard; empty if it can.
std::string objection(const ShardBlock& block, std::size_t num_bytes) {
  if (!is_link_name(block.item) || !is_link_name(block.dataset)) {
    return "names must not be empty, \".\" or hold '/'";
  }
  if (!block.block.fits(block.global_shape)) {
    return fmt::format("offset {} and extent {} do not lie in shape {}",
                       block.block.offset.to_string(),
                       block.block.extent.to_string(),
                       block.global_shape.to_string());
  }
  const std::size_t expected =
      std::size_t(block.block.extent.num_elements()) * size_of(block.dtype);
  if (num_bytes != expected) return fmt::format("{} bytes were given for {}", num_bytes, expected);
  return {};
}

/// Data that was written, and where in the file it lies.
struct WrittenData {
  std::uint64_t offset = 0;
  std::span<const std::byte> bytes;
};

/// Size and checksum of the file; what `written` (ascending) holds is not read but taken as it was
/// given.
Result<FileDigest> digest(File& file, std::span<const WrittenData> written) {
  Xxh3Stream hash;
  FileDigest result;
  std::vector<std::byte> buffer(kDigestPieceBytes);
  for (;;) {
    if (!written.empty() && written.front().offset == result.num_bytes) {
      hash.update(written.front().bytes);
      result.num_bytes += written.front().bytes.size();
      written = written.subspan(1);
      continue;
    }
    std::span piece(buffer);
    if (!written.empty() && written.front().offset - result.num_bytes < piece.size())
      piece = piece.first(std::size_t(written.front().offset - result.num_bytes));
    const Result<std::size_t> count = file.read_at(result.num_bytes, piece);
    if (!count.ok()) return count.status();
    hash.update(piece.first(count.value()));
    result.num_bytes += count.value();
    if (count.value() == piece.size()) continue;
    if (written.empty()) break;
    return Status::failure(StatusCode::kIo, "the file ended before the data written to it");
  }
  result.xxh3 = hash.digest();
  return result;
}

/// H5Literate callback; exceptions must not pass through the library.
herr_t keep_name(hid_t /*group*/, const char* name, const H5L_info_t* /*info*/, void* names) {
  try {
    static_cast<std::vector<std::string>*>(names)->emplace_back(name);
  } catch (...) {  // no memory: the iteration fails
    return -1;
  }
  return 0;
}

std::vector<std::string> links_of(hid_t group) {
  std::vector<std::string> names;
  h5_checked(H5Literate(group, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, keep_name, &names),
             "listing a group");
  return names;
}

}  // namespace

std::string ShardBlock::dataset_path() const {
  std::string path = item + "/" + dataset;
  if (block != Block::whole(global_shape))
    path += fmt::format("/{}", fmt::join(block.offset.extents(), "_"));
  return path;
}

/// How much is gathered before the device is told to begin.
constexpr std::uint64_t kWritebackBytes = std::uint64_t(8) << 20;

Result<FileDigest> digest_file(FileSystem& fs, const std::string& path) {
  const Result<std::unique_ptr<File>> file = fs.open(path, OpenMode::kRead);
  if (!file.ok()) return file.status();
  return digest(*file.value(), {});
}

struct ShardWriter::Impl {
  FileSystem& fs;
  std::string path;
  std::unique_ptr<File> file{};
  H5Target target{};
  H5Id h5{};  ///< before `target` goes, after `file` came
  H5Id group_list{};
  H5Id dataset_list{};
  std::set<std::string> groups{};
  std::vector<WrittenData> written{};
  std::uint64_t written_back = 0;  ///< bytes that the device was told to write
  bool closed = false;
  Status failed{};

  Status fail(StatusCode code, const std::string& message) {
    // A failing file explains a failing library.
    failed = target.error.ok() ? Status::failure(code, fmt::format("shard {}: {}", path, message))
                               : target.error;
    return failed;
  }

  /// Runs `body` under the library's lock; failures stick.
  template <typename Body>
  Status run(Body body) {
    if (!failed.ok()) return failed;
    const H5Lock lock;
    try {
      body();
    } catch (const H5Failure& failure) {
      return fail(StatusCode::kIo, failure.what());
    }
    return target.error.ok() ? Status{} : fail(StatusCode::kIo, "");
  }

  void create() {
    const H5Id access = h5_file_access(target);
    h5_checked(H5Pset_alignment(access.get(), kAlignmentThresholdBytes, kAlignmentBytes),
               "aligning data");
    const H5Id list(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "making a file creation list");
    group_list = {H5Pcreate(H5P_GROUP_CREATE), H5Pclose, "making a group creation list"};
    dataset_list = {H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "making a dataset creation list"};
    // Without times, equal content makes equal files.
    for (const H5Id* creation : {&list, &std::as_const(group_list), &std::as_const(dataset_list)}) {
      h5_checked(H5Pset_obj_track_times(creation->get(), false), "switching object times off");
    }
    h5_checked(H5Pset_layout(dataset_list.get(), H5D_CONTIGUOUS), "choosing the layout");
    h5_checked(H5Pset_alloc_time(dataset_list.get(), H5D_ALLOC_TIME_EARLY),
               "choosing the allocation");
    h5_checked(H5Pset_fill_time(dataset_list.get(), H5D_FILL_TIME_NEVER), "switching filling off");
    h5 = {H5Fcreate(path.c_str(), H5F_ACC_TRUNC, list.get(), access.get()),
          H5Fclose,
          "creating the file"};
  }

  void ensure_group(const std::string& name) {
    if (!groups.insert(name).second) return;
    const H5Id group(H5Gcreate2(h5.get(), name.c_str(), H5P_DEFAULT, group_list.get(), H5P_DEFAULT),
                     H5Gclose,
                     fmt::format("creating group {}", name));
  }

  void write(const ShardBlock& block, std::span<const std::byte> data) {
    const std::string name = block.dataset_path();
    for (std::size_t slash = name.find('/'); slash != std::string::npos;
         slash = name.find('/', slash + 1)) {
      ensure_group(name.substr(0, slash));
    }
    const H5Id type = h5_type(block.dtype);
    const H5Id space = make_space(block.block.extent.extents());
    const H5Id dataset(H5Dcreate2(h5.get(),
                                  name.c_str(),
                                  type.get(),
                                  space.get(),
                                  H5P_DEFAULT,
                                  dataset_list.get(),
                                  H5P_DEFAULT),
                       H5Dclose,
                       fmt::format("creating dataset {}", name));
    const auto write_extents = [&](const char* attribute, const Shape& shape) {
      const std::array count{std::int64_t(shape.num_dims())};
      write_attribute(
          dataset.get(), attribute, H5T_STD_I64LE, make_space(count), shape.extents().data());
    };
    write_extents("global_shape", block.global_shape);
    write_extents("offset", block.block.offset);
    const H5Id scalar = make_space({});
    write_attribute(dataset.get(), "step", H5T_STD_I64LE, scalar, &block.step.value);
    write_attribute(dataset.get(), "xxh3", H5T_STD_U64LE, scalar, &block.xxh3);
    if (data.empty()) return;
    const haddr_t offset = H5Dget_offset(dataset.get());
    if (offset == HADDR_UNDEF) throw_h5_failure("asking where data lies");
    written.push_back({offset, data});
    target.stable = data;
    h5_checked(H5Dwrite(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, data.data()),
               fmt::format("writing dataset {}", name));
    // Data is allocated ascending; the device writes it while the next is copied and hashed.
    const std::uint64_t end = offset + data.size();
    if (end > written_back + kWritebackBytes) {
      file->start_writeback(written_back, end - written_back);
      written_back = end;
    }
  }
};

ShardWriter::ShardWriter(FileSystem& fs, std::string path)
    : impl_(std::make_unique<Impl>(Impl{fs, std::move(path)})) {}

ShardWriter::~ShardWriter() {
  const H5Lock lock;
  impl_->target.discard = true;  // a file that was not finished is worth no more writes
  impl_.reset();
}

Status ShardWriter::open() {
  Result<std::unique_ptr<File>> file = impl_->fs.open(impl_->path, OpenMode::kCreateNew);
  if (!file.ok()) return impl_->failed = file.status();
  impl_->file = std::make_unique<GatheringFile>(std::move(file).value());
  impl_->target.file = impl_->file.get();
  return impl_->run([&] { impl_->create(); });
}

Status ShardWriter::write(const ShardBlock& block, std::span<const std::byte> data) {
  PECAN_EXPECTS(impl_->file != nullptr || !impl_->failed.ok());
  if (const std::string reason = objection(block, data.size()); !reason.empty()) {
    return impl_->fail(StatusCode::kInvalid,
                       fmt::format("{} cannot be written: {}", block.dataset_path(), reason));
  }
  return impl_->run([&] { impl_->write(block, data); });
}

Status ShardWriter::close() {
  PECAN_EXPECTS(impl_->file != nullptr || !impl_->failed.ok());
  if (impl_->closed) return impl_->failed;
  impl_->closed = true;
  const Status closed = impl_->run([&] { h5_checked(impl_->h5.reset(), "closing the file"); });
  if (!closed.ok()) return closed;
  std::ranges::sort(impl_->written, {}, &WrittenData::offset);
  std::vector<DataRange> ranges;
  for (const WrittenData& data : impl_->written) ranges.push_back({data.offset, data.bytes.size()});
  impl_->failed = append_seal(*impl_->file, ranges);
  if (impl_->failed.ok()) impl_->file->start_writeback(0, 0);  // 0: to the end
  return impl_->failed;
}

Result<FileDigest> ShardWriter::finish() {
  if (Status status = close(); !status.ok()) return status;
  Result<FileDigest> result = digest(*impl_->file, impl_->written);
  // The manifest will vouch for these bytes, so they must outlive a crash of the node before anyone
  // votes for them.
  if (const Status synced = impl_->file->sync(); result.ok() && !synced.ok()) return synced;
  impl_->file.reset();
  return result;
}

struct ShardReader::Impl {
  FileSystem& fs;
  std::string path;
  std::unique_ptr<File> file{};
  H5Target target{};
  H5Id h5{};

  template <typename Body>
  Status run(const std::string& what, Body body) {
    const H5Lock lock;
    target.error = {};
    try {
      const std::string difference = body();
      if (difference.empty()) return {};
      return Status::failure(StatusCode::kCorrupt,
                             fmt::format("shard {}: {}{}", path, what, difference));
    } catch (const H5Failure& failure) {
      if (!target.error.ok()) return target.error;
      return Status::failure(StatusCode::kCorrupt,
                             fmt::format("shard {}: {}{}", path, what, failure.what()));
    }
  }

  /// Sentence about what differs from `expected`; empty if nothing does.
  std::string read(const ShardBlock& expected, std::span<std::byte> destination) {
    const H5Id dataset(
        H5Dopen2(h5.get(), expected.dataset_path().c_str(), H5P_DEFAULT), H5Dclose, "opening it");
    ShardBlock found = describe(dataset.get());
    const auto differs = [](std::string_view what, const auto& is, const auto& wanted) {
      return fmt::format("{} is {}, {} is expected", what, is, wanted);
    };
    if (found.dtype != expected.dtype) {
      return differs("the element type", name_of(found.dtype), name_of(expected.dtype));
    }
    if (found.global_shape != expected.global_shape) {
      return differs(
          "the global shape", found.global_shape.to_string(), expected.global_shape.to_string());
    }
    if (found.block.offset != expected.block.offset) {
      return differs(
          "the offset", found.block.offset.to_string(), expected.block.offset.to_string());
    }
    if (found.block.extent != expected.block.extent) {
      return differs(
          "the extent", found.block.extent.to_string(), expected.block.extent.to_string());
    }
    if (found.step != expected.step) return differs("the step", found.step, expected.step);
    if (found.xxh3 != expected.xxh3) {
      return differs("the stored checksum", to_hex(found.xxh3), to_hex(expected.xxh3));
    }
    if (!destination.empty()) {
      const H5Id type = h5_type(expected.dtype);
      h5_checked(
          H5Dread(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, destination.data()),
          "reading the data");
    }
    const std::uint64_t actual = pecan::xxh3(std::span<const std::byte>(destination));
    if (actual != expected.xxh3) {
      return differs("the checksum of the data", to_hex(actual), to_hex(expected.xxh3));
    }
    return {};
  }

  void add_dataset(hid_t object,
                   const std::string& item,
                   const std::string& name,
                   const std::string& where,
                   std::vector<ShardBlock>& blocks) const {
    ShardBlock block = describe(object);
    block.item = item;
    block.dataset = name;
    if (!block.block.fits(block.global_shape) || block.dataset_path() != where) {
      throw H5Failure(fmt::format("dataset {} contradicts its own offset and shape", where));
    }
    blocks.push_back(std::move(block));
  }

  H5Id open_object(const std::string& where) const {
    return {
        H5Oopen(h5.get(), where.c_str(), H5P_DEFAULT), H5Oclose, fmt::format("opening {}", where)};
  }

  std::vector<ShardBlock> list() const {
    std::vector<ShardBlock> blocks;
    for (const std::string& item : links_of(h5.get())) {
      for (const std::string& name : links_of(open_object(item).get())) {
        const std::string where = item + "/" + name;
        const H5Id object = open_object(where);
        if (H5Iget_type(object.get()) == H5I_DATASET) {
          add_dataset(object.get(), item, name, where, blocks);
          continue;
        }
        for (const std::string& offset : links_of(object.get())) {
          const std::string part = where + "/" + offset;
          add_dataset(open_object(part).get(), item, name, part, blocks);
        }
      }
    }
    std::ranges::sort(blocks, {}, &ShardBlock::dataset_path);
    return blocks;
  }
};

ShardReader::ShardReader(FileSystem& fs, std::string path)
    : impl_(std::make_unique<Impl>(Impl{fs, std::move(path)})) {}

ShardReader::~ShardReader() {
  const H5Lock lock;
  impl_.reset();
}

Status ShardReader::open() {
  Result<std::unique_ptr<File>> file = impl_->fs.open(impl_->path, OpenMode::kRead);
  if (!file.ok()) return file.status();
  impl_->file = std::move(file).value();
  const Result<std::uint64_t> end = check_seal(*impl_->file, impl_->path);
  if (!end.ok()) return end.status();
  impl_->target = {.file = impl_->file.get(), .num_bytes = end.value()};
  return impl_->run("", [&] {
    const H5Id access = h5_file_access(impl_->target);
    impl_->h5 = {
        H5Fopen(impl_->path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose, "opening it"};
    return std::string();
  });
}

Status ShardReader::read(const ShardBlock& expected, std::span<std::byte> destination) {
  PECAN_EXPECTS(!impl_->h5.empty());
  if (const std::string reason = objection(expected, destination.size()); !reason.empty()) {
    return Status::failure(
        StatusCode::kInvalid,
        fmt::format(
            "shard {}: {} cannot be read: {}", impl_->path, expected.dataset_path(), reason));
  }
  return impl_->run(expected.dataset_path() + ": ",
                    [&] { return impl_->read(expected, destination); });
}

Result<std::vector<ShardBlock>> ShardReader::list() {
  PECAN_EXPECTS(!impl_->h5.empty());
  std::vector<ShardBlock> blocks;
  const Status status = impl_->run("", [&] {
    blocks = impl_->list();
    return std::string();
  });
  if (!status.ok()) return status;
  return blocks;
}

}  // namespace pecan::checkpoint
