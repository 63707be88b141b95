#include "core/system_call.hpp"

#include <pecan/core/text.hpp>

namespace pecan {

Status failure(std::string_view action, const std::string& path, int error) {
  StatusCode code = StatusCode::kIo;
  std::string_view hint;
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      code = StatusCode::kNoSpace;
      hint = "; free space, raise the quota or keep fewer checkpoints";
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      code = StatusCode::kPermission;
      hint = "; check owner, mode and mount options";
      break;
    case ENOENT:
      code = StatusCode::kNotFound;
      hint = "; check the path";
      break;
    case EEXIST:
    case ENOTEMPTY:
      code = StatusCode::kExists;
      hint = "; remove it or choose another name";
      break;
    case EISDIR:
    case ENOTDIR:
      hint = "; a file stands where a directory is expected, or the reverse";
      break;
    case EMFILE:
    case ENFILE:
      hint = "; raise the limit of open files (ulimit -n)";
      break;
    case ENOMEM:
      code = StatusCode::kNoSpace;
      hint = "; the process has reached a limit of its memory (ulimit -v)";
      break;
    case EIO:
    case ESTALE:
      hint = "; check the disk or the network file system (dmesg)";
      break;
    default:
      break;
  }
  return Status::failure(code,
                         fmt::format("{} {} failed: {}{}", action, path, errno_text(error), hint));
}

}  // namespace pecan
