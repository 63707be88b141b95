#include "checkpoint/gathering_file.hpp"

#include <algorithm>
#include <iterator>

namespace pecan::checkpoint {
namespace {

std::uint64_t end_of(const std::pair<const std::uint64_t, std::vector<std::byte>>& run) {
  return run.first + run.second.size();
}

}  // namespace

Result<std::size_t> GatheringFile::read_at(std::uint64_t offset, std::span<std::byte> bytes) {
  if (offset >= size_) return std::size_t(0);
  bytes = bytes.first(std::size_t(std::min<std::uint64_t>(bytes.size(), size_ - offset)));
  const std::uint64_t end = offset + bytes.size();
  auto run = runs_.upper_bound(offset);
  if (run != runs_.begin()) --run;
  const bool gathered = run != runs_.end() && run->first <= offset && end <= end_of(*run);
  if (!gathered) {
    const Result<std::size_t> count = inner_->read_at(offset, bytes);
    if (!count.ok()) return count;
    std::ranges::fill(bytes.subspan(count.value()), std::byte{0});
  }
  for (; run != runs_.end() && run->first < end; ++run) {
    const std::uint64_t begin = std::max(offset, run->first);
    const std::uint64_t last = std::min(end, end_of(*run));
    if (begin >= last) continue;
    std::ranges::copy(std::span(run->second).subspan(begin - run->first, last - begin),
                      bytes.begin() + std::ptrdiff_t(begin - offset));
  }
  return bytes.size();
}

Status GatheringFile::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  if (bytes.empty()) return {};
  const std::uint64_t end = offset + bytes.size();
  size_ = std::max(size_, end);
  auto run = runs_.upper_bound(offset);
  if (run != runs_.begin() && end_of(*std::prev(run)) >= offset) {
    --run;
  } else {
    run = runs_.emplace_hint(run, offset, std::vector<std::byte>());
  }
  std::vector<std::byte>& content = run->second;
  if (end_of(*run) < end) content.resize(std::size_t(end - run->first));
  std::ranges::copy(bytes, content.begin() + std::ptrdiff_t(offset - run->first));
  // What follows and is touched joins this run.
  auto next = std::next(run);
  while (next != runs_.end() && next->first <= end) {
    if (end_of(*next) > end) {
      const std::span rest = std::span(next->second).subspan(std::size_t(end - next->first));
      content.insert(content.end(), rest.begin(), rest.end());
    }
    next = runs_.erase(next);
  }
  return {};
}

Status GatheringFile::write_behind(std::uint64_t offset, std::span<const std::byte> bytes) {
  forget(offset, offset + bytes.size());
  size_ = std::max<std::uint64_t>(size_, offset + bytes.size());
  return inner_->write_behind(offset, bytes);
}

Status GatheringFile::truncate(std::uint64_t size) {
  resized_ = true;
  if (size >= size_) {
    size_ = size;
    return {};
  }
  forget(size, size_);
  size_ = size;
  return inner_->truncate(size);
}

void GatheringFile::forget(std::uint64_t begin, std::uint64_t end) {
  auto run = runs_.lower_bound(begin);
  if (run != runs_.begin() && end_of(*std::prev(run)) > begin) --run;
  while (run != runs_.end() && run->first < end) {
    const std::uint64_t first = run->first;
    const std::vector<std::byte> content = std::move(run->second);
    run = runs_.erase(run);
    const std::span bytes(content);
    if (first < begin) {
      const auto kept = bytes.first(std::size_t(begin - first));
      runs_.emplace(first, std::vector(kept.begin(), kept.end()));
    }
    if (first + bytes.size() > end) {
      const auto kept = bytes.subspan(std::size_t(end - first));
      runs_.emplace(end, std::vector(kept.begin(), kept.end()));
    }
  }
}

Status GatheringFile::sync() {
  for (const auto& [offset, content] : runs_) {
    if (Status status = inner_->write_at(offset, content); !status.ok()) return status;
  }
  // Grown without a write at its end.
  if (resized_) {
    if (Status status = inner_->truncate(size_); !status.ok()) return status;
  }
  return inner_->sync();
}

}  // namespace pecan::checkpoint
