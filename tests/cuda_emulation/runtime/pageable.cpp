#include "pageable.hpp"

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include "report.hpp"

namespace pecan::emulation {
namespace {

struct Reading {
  std::uint32_t stream;
  std::uint32_t number;  ///< of the operation in its stream
  const void* from;
  std::vector<unsigned char> content;  ///< when the copy was issued
};
// Never destroyed: programs end with copies under way.
std::vector<Reading>& readings() {
  static auto* all = new std::vector<Reading>;
  return *all;
}

bool is_mapped(const void* address, std::size_t num_bytes) {
  const auto page = static_cast<std::uintptr_t>(getpagesize());
  const auto begin = reinterpret_cast<std::uintptr_t>(address) / page * page;
  const std::size_t length = reinterpret_cast<std::uintptr_t>(address) + num_bytes - begin;
  std::vector<unsigned char> states((length + page - 1) / page);
  return mincore(reinterpret_cast<void*>(begin), length, states.data()) == 0;
}

bool is_unchanged(const Reading& reading) {
  return is_mapped(reading.from, reading.content.size()) &&
         std::memcmp(reading.from, reading.content.data(), reading.content.size()) == 0;
}

}  // namespace

void begin_reading(const Stream& stream, const void* from, std::size_t num_bytes) {
  const auto* bytes = static_cast<const unsigned char*>(from);
  readings().push_back({stream.id, stream.num_operations, from, {bytes, bytes + num_bytes}});
}

void end_reading(const Clock& waited) {
  std::erase_if(readings(), [&](const Reading& reading) {
    if (waited.of(reading.stream) < reading.number) return false;
    if (!is_unchanged(reading)) {
      report("race",
             fmt::format("the host changes or frees {} bytes of pageable memory at {}, unordered "
                         "with a copy (stream {}), which reads them by itself",
                         reading.content.size(),
                         reading.from,
                         reading.stream));
    }
    return true;
  });
}

}  // namespace pecan::emulation
