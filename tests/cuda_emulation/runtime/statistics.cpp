#include "statistics.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <vector>

#include <fmt/format.h>
#include <pecan_emulation/control.hpp>

#include "report.hpp"
#include "scheduler.hpp"
#include "settings.hpp"
#include "streams.hpp"

namespace pecan::emulation {
namespace {

constexpr std::size_t kSectorBytes = 32;
constexpr std::size_t kBankBytes = 4;
constexpr std::size_t kNumBanks = 32;
constexpr unsigned kLanes = 32;
/// Shared memory moves this much at a time: wider accesses are made by part of the warp after part.
constexpr std::size_t kPassBytes = kBankBytes * kNumBanks;

struct LaneAccess {
  std::size_t offset;
  std::uint8_t lane;
  std::uint8_t num_bytes;
};

struct RequestKey {
  const void* kernel;
  const void* code;
  std::uint32_t warp;
  std::uint32_t occurrence;
  bool operator==(const RequestKey&) const = default;
};
struct HashOfRequest {
  std::size_t operator()(const RequestKey& key) const {
    return reinterpret_cast<std::size_t>(key.code) * 31 + key.warp * std::size_t{1000003} +
           key.occurrence * std::size_t{7919};
  }
};

struct Counting {
  bool is_on = false;
  std::unordered_map<std::uint64_t, std::uint32_t> occurrences;  ///< by instruction and thread
  std::unordered_map<RequestKey, std::vector<LaneAccess>, HashOfRequest> requests;
  /// By kernel and instruction.
  std::map<std::pair<const void*, const void*>, LineStatistics> lines;
};

void print_at_exit();

Counting& counting() {
  static auto* counts = [] {
    auto* made = new Counting;
    made->is_on = !settings().statistics_file.empty();
    if (made->is_on) std::atexit(print_at_exit);
    return made;
  }();
  return *counts;
}

void count_sectors(const std::vector<LaneAccess>& accesses, LineStatistics& line) {
  std::vector<std::size_t> sectors;
  std::vector<std::pair<std::size_t, std::size_t>> distinct;
  for (const LaneAccess& access : accesses) {
    const std::size_t last = (access.offset + access.num_bytes - 1) / kSectorBytes;
    for (std::size_t sector = access.offset / kSectorBytes; sector <= last; ++sector) {
      sectors.push_back(sector);
    }
    distinct.emplace_back(access.offset, access.num_bytes);
  }
  const auto remove_equal = [](auto& list) {
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
  };
  remove_equal(sectors);
  remove_equal(distinct);
  std::size_t num_bytes = 0;
  for (const auto& [_, bytes] : distinct) num_bytes += bytes;
  line.num_transfers += sectors.size();
  line.num_ideal += (num_bytes + kSectorBytes - 1) / kSectorBytes;
}

void count_bank_passes(const std::vector<LaneAccess>& accesses, LineStatistics& line) {
  const std::size_t bytes = std::max<std::size_t>(kBankBytes, accesses.front().num_bytes);
  const std::size_t lanes_a_pass = kPassBytes / bytes;
  for (std::size_t first = 0; first < kLanes; first += lanes_a_pass) {
    std::vector<std::size_t> words;
    for (const LaneAccess& access : accesses) {
      if (access.lane < first || access.lane >= first + lanes_a_pass) continue;
      const std::size_t last = (access.offset + access.num_bytes - 1) / kBankBytes;
      for (std::size_t word = access.offset / kBankBytes; word <= last; ++word) {
        words.push_back(word);
      }
    }
    if (words.empty()) continue;
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    std::size_t in_bank[kNumBanks] = {};
    for (const std::size_t word : words) ++in_bank[word % kNumBanks];
    line.num_transfers += *std::max_element(std::begin(in_bank), std::end(in_bank));
    ++line.num_ideal;
  }
}

void print_at_exit() {
  const std::string file = settings().statistics_file;
  FILE* output = file == "-" ? stderr : std::fopen(file.c_str(), "a");
  if (output == nullptr) return;
  for (const LineStatistics& line : stop_statistics()) {
    fmt::print(output,
               "{}\t{}\t{} {}\t{} requests\t{} {}\t{} at best\n",
               line.kernel,
               line.source,
               line.is_shared ? "shared" : "global",
               line.is_write ? "write" : "read",
               line.num_requests,
               line.num_transfers,
               line.is_shared ? "passes" : "sectors",
               line.num_ideal);
  }
  if (output != stderr) std::fclose(output);
}

}  // namespace

void record_statistics(
    std::size_t offset, bool is_shared, std::size_t num_bytes, bool is_write, const void* code) {
  Counting& counts = counting();
  if (!counts.is_on) return;
  const unsigned thread = running.position.thread;
  const std::uint64_t instruction_of_thread =
      reinterpret_cast<std::uint64_t>(code) ^ std::uint64_t{thread} << 48;
  const std::uint32_t occurrence = counts.occurrences[instruction_of_thread]++;
  const void* kernel = running_kernel();
  counts.requests[{kernel, code, thread / kLanes, occurrence}].push_back(
      {offset, static_cast<std::uint8_t>(thread % kLanes), static_cast<std::uint8_t>(num_bytes)});
  LineStatistics& line = counts.lines[{kernel, code}];
  line.is_shared = is_shared;
  line.is_write = is_write;
}

void flush_statistics() {
  Counting& counts = counting();
  if (!counts.is_on) return;
  for (const auto& [key, accesses] : counts.requests) {
    LineStatistics& line = counts.lines[{key.kernel, key.code}];
    ++line.num_requests;
    if (line.is_shared) {
      count_bank_passes(accesses, line);
    } else {
      count_sectors(accesses, line);
    }
  }
  counts.requests.clear();
  counts.occurrences.clear();
}

void start_statistics() {
  const std::scoped_lock lock(device_mutex());
  counting().lines.clear();
  counting().is_on = true;
}

std::vector<LineStatistics> stop_statistics() {
  const std::scoped_lock lock(device_mutex());
  flush_statistics();
  Counting& counts = counting();
  counts.is_on = false;
  std::map<std::tuple<std::string, std::string, bool, bool>, LineStatistics> by_line;
  for (const auto& [place, line] : counts.lines) {
    const std::string kernel = kernel_name(place.first), source = source_of(place.second);
    LineStatistics& sum = by_line[{kernel, source, line.is_shared, line.is_write}];
    sum.kernel = kernel;
    sum.source = source;
    sum.is_shared = line.is_shared;
    sum.is_write = line.is_write;
    sum.num_requests += line.num_requests;
    sum.num_transfers += line.num_transfers;
    sum.num_ideal += line.num_ideal;
  }
  counts.lines.clear();
  std::vector<LineStatistics> result;
  for (auto& [_, line] : by_line) result.push_back(std::move(line));
  return result;
}

}  // namespace pecan::emulation
