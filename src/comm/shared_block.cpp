#include "comm/shared_block.hpp"

#include <cerrno>
#include <cstring>
#include <random>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace pecan::comm {
namespace {

constexpr std::size_t kHeaderBytes = 4096;  // content begins with a page

Status failure(std::string_view what, int error) {
  return Status::failure(StatusCode::kIo, fmt::format("{}: {}", what, std::strerror(error)));
}

}  // namespace

Result<SharedBlock> SharedBlock::map(int fd, std::size_t num_bytes) {
  SharedBlock block;
  block.fd_ = fd;
  void* const data =
      ::mmap(nullptr, kHeaderBytes + num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return failure("it could not be mapped", errno);
  block.data_ = static_cast<std::byte*>(data);
  block.num_bytes_ = num_bytes;
  return block;
}

Result<SharedBlock> SharedBlock::create(std::size_t num_bytes) {
  const int fd = ::memfd_create("pecan-collectives", MFD_CLOEXEC);
  if (fd < 0) return failure("memfd_create failed", errno);
  if (::ftruncate(fd, off_t(kHeaderBytes + num_bytes)) != 0) {
    const int error = errno;
    ::close(fd);
    return failure(fmt::format("{} bytes could not be had", num_bytes), error);
  }
  Result<SharedBlock> block = map(fd, num_bytes);
  if (block.ok()) {
    std::random_device random;
    const std::uint64_t nonce = (std::uint64_t(random()) << 32) | random();
    std::memcpy(block.value().data_, &nonce, sizeof(nonce));
  }
  return block;
}

Result<SharedBlock> SharedBlock::attach(const Address& address) {
  const std::string path = fmt::format("/proc/{}/fd/{}", address.process, address.descriptor);
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return failure(fmt::format("{} could not be opened", path), errno);
  const auto other = [&] {
    return Status::failure(StatusCode::kNotFound,
                           fmt::format("{} is another file: have ranks process ids of their own, "
                                       "in containers of their own?",
                                       path));
  };
  struct stat facts {};
  if (::fstat(fd, &facts) != 0 || facts.st_size != off_t(kHeaderBytes) + address.num_bytes) {
    ::close(fd);
    return other();
  }
  Result<SharedBlock> block = map(fd, std::size_t(address.num_bytes));
  if (block.ok() && block.value().address().nonce != address.nonce) return other();
  return block;
}

SharedBlock::~SharedBlock() {
  if (data_ != nullptr) ::munmap(data_, kHeaderBytes + num_bytes_);
  close();
}

SharedBlock::SharedBlock(SharedBlock&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)) {}

SharedBlock& SharedBlock::operator=(SharedBlock&& other) noexcept {
  SharedBlock moved(std::move(other));
  std::swap(fd_, moved.fd_);
  std::swap(data_, moved.data_);
  std::swap(num_bytes_, moved.num_bytes_);
  return *this;
}

SharedBlock::Address SharedBlock::address() const {
  Address address{::getpid(), fd_, 0, std::int64_t(num_bytes_)};
  std::memcpy(&address.nonce, data_, sizeof(address.nonce));
  return address;
}

std::span<std::byte> SharedBlock::bytes() const {
  if (data_ == nullptr) return {};
  return {data_ + kHeaderBytes, num_bytes_};
}

Status SharedBlock::reserve(std::size_t begin, std::size_t num_bytes) {
  if (::fallocate(fd_, 0, off_t(kHeaderBytes + begin), off_t(num_bytes)) == 0) return {};
  return failure(fmt::format("{} bytes of memory could not be had", num_bytes), errno);
}

void SharedBlock::close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

}  // namespace pecan::comm
