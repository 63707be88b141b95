#pragma once
/// Memory without a name that processes of one machine map together.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <pecan/core/error.hpp>

namespace pecan::comm {

/// A mapping of a memory file that never has a name, so that nothing is left of it when the last
/// process that maps it ends, by whatever signal. Move-only.
class SharedBlock {
 public:
  /// What another process of this machine needs to find the block.
  struct Address {
    std::int64_t process = 0;
    std::int64_t descriptor = -1;
    std::int64_t nonce = 0;  ///< tells the block from another file that can be found there
    std::int64_t num_bytes = 0;
  };

  SharedBlock() = default;
  /// Makes a block of `num_bytes` of content, zeroed; its memory is not reserved yet.
  static Result<SharedBlock> create(std::size_t num_bytes);
  /// Maps the block of another process of this user, which must not have closed it.
  static Result<SharedBlock> attach(const Address& address);
  ~SharedBlock();
  SharedBlock(SharedBlock&& other) noexcept;
  SharedBlock& operator=(SharedBlock&& other) noexcept;
  SharedBlock(const SharedBlock&) = delete;
  SharedBlock& operator=(const SharedBlock&) = delete;

  [[nodiscard]] Address address() const;
  [[nodiscard]] std::span<std::byte> bytes() const;
  /// Takes the memory of these bytes of content, so that no later access can fail; near the
  /// caller's cores where memory has places.
  Status reserve(std::size_t begin, std::size_t num_bytes);
  /// The block can be attached to no more; mappings stay.
  void close();

 private:
  static Result<SharedBlock> map(int fd, std::size_t num_bytes);

  int fd_ = -1;
  std::byte* data_ = nullptr;  // the nonce first, content from kHeaderBytes
  std::size_t num_bytes_ = 0;  // of content
};

}  // namespace pecan::comm
