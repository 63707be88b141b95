#include "checkpoint/lineage.hpp"

#include <algorithm>
#include <random>

#include <nlohmann/json.hpp>

#include <pecan/core/hash.hpp>
#include <pecan/core/log.hpp>
#include <pecan/core/text.hpp>

namespace pecan::checkpoint {
namespace {

std::string lock_path(const std::string& run_directory) {
  return run_directory + "/lock.json";
}

}  // namespace

std::string to_json(const LockState& state) {
  nlohmann::json json{{"format", "pecan-lock"},
                      {"run_id", state.run_id},
                      {"incarnation", state.incarnation.value},
                      {"owner", state.owner},
                      {"heartbeat", state.heartbeat},
                      {"clean", state.clean}};
  json["xxh3"] = to_hex(xxh3(json.dump()));
  return json.dump() + "\n";
}

std::optional<LockState> parse_lock(const std::string& text) {
  constexpr int kMaxDepth = 8;  // written out again below, which recurses
  if (nests_deeper(text, kMaxDepth)) return {};
  try {
    nlohmann::json json = nlohmann::json::parse(text);
    const std::string seal = json.at("xxh3").get<std::string>();
    json.erase("xxh3");
    if (seal != to_hex(xxh3(json.dump()))) return {};
    return LockState{json.at("run_id").get<std::string>(),
                     Incarnation{json.at("incarnation").get<std::int32_t>()},
                     json.at("owner").get<std::string>(),
                     json.at("heartbeat").get<std::int64_t>(),
                     json.at("clean").get<bool>()};
  } catch (const nlohmann::json::exception&) {
    return {};
  }
}

FormerHolder RunLock::await_holder(FileSystem& fs,
                                   const std::string& run_directory,
                                   const LockOptions& options) {
  const auto read = [&] { return read_text(fs, lock_path(run_directory)); };
  const Result<std::string> first = read();
  if (!first.ok() && first.status().code == StatusCode::kNotFound) return {};
  PECAN_VALIDATE(
      first.ok(), CheckpointError, "the run's lock cannot be read: {}", first.status().message);
  FormerHolder former{true, parse_lock(first.value())};
  if (former.state && former.state->clean) return former;

  const auto poll = std::min<std::chrono::milliseconds>(
      options.takeover / 10 + std::chrono::milliseconds(1), std::chrono::milliseconds(100));
  const auto end = std::chrono::steady_clock::now() + options.takeover;
  while (std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(poll);
    const Result<std::string> now = read();
    if (now.ok() && now.value() == first.value()) continue;
    if (now.ok()) former.state = parse_lock(now.value());
    if (former.state && former.state->clean) return former;
    throw CheckpointError(
        fmt::format("another process is using the run directory {} (incarnation {}, its heartbeat "
                    "advances); stop it first, or choose another --run-dir",
                    run_directory,
                    former.state ? former.state->incarnation.value : -1));
  }
  return former;
}

RunLock::RunLock(FileSystem& fs,
                 const std::string& run_directory,
                 const std::string& run_id,
                 Incarnation incarnation,
                 const LockOptions& options)
    : fs_(fs),
      path_(lock_path(run_directory)),
      period_(options.heartbeat),
      state_{run_id, incarnation, random_hex(), 0, false} {
  Status status = write();
  PECAN_VALIDATE(
      status.ok(), CheckpointError, "the run's lock cannot be written: {}", status.message);
  // Of two processes that found the lock free at the same time, the one that wrote last has it.
  status = check();
  PECAN_VALIDATE(status.ok(), CheckpointError, "{}", status.message);
  thread_ = std::jthread([this](const std::stop_token& stop) { beat(stop); });
}

RunLock::~RunLock() {
  thread_.request_stop();
  thread_.join();
  if (!check().ok()) return;  // no longer ours to release
  const std::lock_guard lock(mutex_);
  state_.clean = true;
  const Status status = write();
  if (!status.ok()) {
    PECAN_LOG(kWarn,
              "[checkpoint] the run's lock was not released ({}); the next start waits for it",
              status.message);
  }
}

Status RunLock::check() {
  const std::lock_guard lock(mutex_);
  const Result<std::string> text = read_text(fs_, path_);
  if (!text.ok()) return text.status();
  const std::optional<LockState> current = parse_lock(text.value());
  if (!current || current->owner == state_.owner) return {};
  fenced_ = true;
  return Status::failure(
      StatusCode::kExists,
      fmt::format("incarnation {} has taken over the run; this one ({}) must not write any more",
                  current->incarnation,
                  state_.incarnation));
}

void RunLock::beat(const std::stop_token& stop) {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      if (wake_.wait_for(lock, stop, period_, [] { return false; }) || stop.stop_requested())
        return;
    }
    // A lock that cannot be read or written now may be so again at the next beat.
    if (!check().ok()) {
      if (fenced_) return;
      continue;
    }
    const std::lock_guard lock(mutex_);
    ++state_.heartbeat;
    static_cast<void>(write());
  }
}

Status RunLock::write() {
  return write_text_atomically(fs_, path_, to_json(state_));
}

std::string random_hex() {
  std::random_device device;
  return to_hex((std::uint64_t(device()) << 32) | device());
}

bool in_lineage(Version version, const std::vector<LineageEntry>& lineage) {
  for (std::size_t i = 0; i < lineage.size(); ++i) {
    if (lineage[i].incarnation != version.incarnation) continue;
    return i + 1 == lineage.size() || version <= lineage[i + 1].parent;
  }
  return false;
}

}  // namespace pecan::checkpoint
