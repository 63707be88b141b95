#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <vector>

#include <dlfcn.h>

#include <pecan/core/build_info.hpp>
#include <pecan/core/error.hpp>

#include <pecan/device/backend.hpp>

namespace pecan::device {
namespace {

constexpr const char* kLibrary = "libpecan_cuda.so";

/// Empty where none is named.
std::string named_library() {
  const char* named = std::getenv("PECAN_CUDA_LIBRARY");
  return named == nullptr ? "" : named;
}

std::vector<std::string> places() {
  if (const std::string named = named_library(); !named.empty()) return {named};
  std::vector<std::string> paths;
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    const auto folder = program.parent_path();
    for (const auto& path : {folder / kLibrary, folder.parent_path() / "lib" / kLibrary}) {
      if (std::filesystem::exists(path, error)) paths.push_back(path);
    }
  }
  paths.emplace_back(kLibrary);
  return paths;
}

/// The library brings hundreds of megabytes of others with it: where no driver would use them, no
/// program waits for them. A library that is named is loaded: it need not be for a GPU.
bool lacks_driver() {
  if (!named_library().empty()) return false;
  void* const driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver != nullptr) ::dlclose(driver);
  return driver == nullptr;
}

Result<Backend*> load() {
  if (lacks_driver())
    return Status::failure(StatusCode::kNotFound, "there is no CUDA driver on this machine");
  std::string complaint;
  for (const std::string& path : places()) {
    // Never closed: devices, and what they were asked for, refer to it until the process ends.
    void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      complaint = ::dlerror();
      continue;
    }
    const auto entry = reinterpret_cast<BackendEntry>(::dlsym(library, kBackendSymbol));
    Backend* const backend = entry == nullptr ? nullptr : entry(build_name().c_str());
    if (backend == nullptr) {
      return Status::failure(
          StatusCode::kInvalid,
          fmt::format("{} is not of the same build as this program ({}); install both together",
                      path,
                      build_name()));
    }
    return backend;
  }
  return Status::failure(
      StatusCode::kNotFound,
      fmt::format("the library of CUDA kernels cannot be loaded ({}); build with the CUDA toolkit, "
                  "or name it in PECAN_CUDA_LIBRARY",
                  complaint));
}

}  // namespace

std::string build_name() {
  const BuildInfo& info = build_info();
  return fmt::format("{} {} {}", info.version, info.git_id, info.build_type);
}

void prepare_environment() {
  // A device has a communicator for each group of ranks, and collectives of several at a time. The
  // order in which ranks begin them is free of circles; NCCL keeps to it where it is asked to.
  ::setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0);
}

Result<Device> open_cuda(int ordinal) {
  static std::mutex mutex;
  static std::optional<Result<Backend*>> loaded;
  const std::scoped_lock lock(mutex);
  if (!loaded) loaded = load();
  if (!loaded->ok()) return loaded->status();
  Backend* const backend = loaded->value();
  const Result<int> count = backend->count_devices();
  if (!count.ok()) return count.status();
  if (ordinal < 0 || ordinal >= count.value()) {
    return Status::failure(
        StatusCode::kNotFound,
        fmt::format("there is no CUDA device {}: the driver shows {}", ordinal, count.value()));
  }
  return Device{DeviceKind::kCuda, ordinal, backend};
}

}  // namespace pecan::device
