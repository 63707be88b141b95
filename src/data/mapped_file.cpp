#include "data/mapped_file.hpp"

#include <cerrno>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <pecan/core/error.hpp>
#include <pecan/core/text.hpp>

namespace pecan::data {

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  PECAN_VALIDATE(fd >= 0,
                 DataError,
                 "cannot open {}: {}; check the path and its permissions",
                 path_,
                 errno_text(errno));
  struct stat status {};
  const bool regular = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  void* address = nullptr;
  int error = 0;
  if (regular && status.st_size > 0) {
    size_ = static_cast<std::uint64_t>(status.st_size);
    address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    error = errno;
  }
  ::close(fd);  // the map keeps the file
  PECAN_VALIDATE(regular,
                 DataError,
                 "{} is not a regular file, so it cannot be mapped; give the path of a file",
                 path_);
  PECAN_VALIDATE(address != MAP_FAILED,
                 DataError,
                 "cannot map {} ({} bytes): {}; check the limit of virtual memory",
                 path_,
                 size_,
                 errno_text(error));
  data_ = static_cast<std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace pecan::data
