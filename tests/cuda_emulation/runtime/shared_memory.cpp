#include "shared_memory.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

#include <dlfcn.h>
#include <fmt/format.h>
#include <link.h>

#include "checker.hpp"
#include "report.hpp"
#include "scheduler.hpp"

// The dynamic linker's own way to thread-local memory of a module; allocates it if need be.
extern "C" void* __tls_get_addr(std::size_t* module_and_offset);

namespace pecan::emulation {
namespace {

constexpr std::size_t kCanaryBytes = 64;
constexpr int kCanary = 0xA5;
constexpr int kFill = 0xFF;

struct Module {
  std::size_t tls_id = 0;
  std::size_t tls_bytes = 0;
  unsigned char* (*dynamic_address)() = nullptr;
};

std::mutex registered_mutex;
// Not destroyed: modules may be unloaded late.
auto& registered = *new std::map<const void*, unsigned char* (*)()>;

unsigned char* dynamic_memory = nullptr;

const void* module_base(const void* code) {
  Dl_info info;
  return dladdr(code, &info) == 0 ? nullptr : info.dli_fbase;
}

Module find_module(const void* kernel) {
  struct Search {
    std::uintptr_t kernel;
    Module found;
  } search{reinterpret_cast<std::uintptr_t>(kernel), {}};
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        auto* wanted = static_cast<Search*>(data);
        bool holds_kernel = false;
        std::size_t tls_bytes = 0;
        for (int index = 0; index < info->dlpi_phnum; ++index) {
          const auto& header = info->dlpi_phdr[index];
          if (header.p_type == PT_LOAD &&
              wanted->kernel - (info->dlpi_addr + header.p_vaddr) < header.p_memsz) {
            holds_kernel = true;
          }
          if (header.p_type == PT_TLS) tls_bytes = header.p_memsz;
        }
        if (!holds_kernel) return 0;
        wanted->found.tls_id = info->dlpi_tls_modid;
        wanted->found.tls_bytes = tls_bytes;
        return 1;
      },
      &search);
  const std::scoped_lock lock(registered_mutex);
  if (const auto found = registered.find(module_base(kernel)); found != registered.end()) {
    search.found.dynamic_address = found->second;
  }
  return search.found;
}

}  // namespace

void register_dynamic_memory(unsigned char* (*address)()) {
  const std::scoped_lock lock(registered_mutex);
  registered[module_base(reinterpret_cast<const void*>(address))] = address;
}

void begin_kernel_memory(const void* kernel, std::size_t dynamic_bytes) {
  static auto& modules = *new std::unordered_map<const void*, Module>;
  auto found = modules.find(kernel);
  if (found == modules.end()) found = modules.emplace(kernel, find_module(kernel)).first;
  const Module& module = found->second;
  dynamic_memory = module.dynamic_address == nullptr ? nullptr : module.dynamic_address();
  if (!is_checking() || module.tls_bytes == 0) return;
  std::size_t module_and_offset[] = {module.tls_id, 0};
  const auto base = reinterpret_cast<std::uintptr_t>(__tls_get_addr(module_and_offset));
  const auto dynamic = reinterpret_cast<std::uintptr_t>(dynamic_memory);
  if (dynamic != 0 && dynamic - base >= module.tls_bytes) {
    fmt::print(stderr, "cuda emulation: kernels share dynamic_smem with another library\n");
    std::abort();
  }
  set_shared_memory({base, base + module.tls_bytes},
                    {dynamic, dynamic + (dynamic == 0 ? 0 : dynamic_bytes)});
}

void begin_block_memory(std::size_t dynamic_bytes) {
  if (dynamic_memory != nullptr) {
    std::memset(dynamic_memory, kFill, dynamic_bytes);
    std::memset(dynamic_memory + dynamic_bytes, kCanary, kCanaryBytes);
  }
  forget_shared_content();
}

void end_block_memory(std::size_t dynamic_bytes) {
  if (dynamic_memory == nullptr) return;
  const unsigned char* end = dynamic_memory + dynamic_bytes;
  if (std::all_of(end, end + kCanaryBytes, [](unsigned char byte) { return byte == kCanary; })) {
    return;
  }
  running.is_paused = true;
  report("memory",
         fmt::format("{} wrote past its {} bytes of dynamic shared memory",
                     describe_position(),
                     dynamic_bytes));
  running.is_paused = false;
}

}  // namespace pecan::emulation
