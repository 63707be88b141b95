#pragma once
/// The end of a family of groups, raised by any thread and seen by every member's polling.

#include <atomic>
#include <mutex>
#include <string>

#include <pecan/core/error.hpp>

namespace pecan::comm {

/// A CommError that is the consequence of an abort raised elsewhere.
class AbortedError : public CommError {
 public:
  using CommError::CommError;
};

/// Thread-safe. Shared by all members that one abort ends: the threads of a Thread world, one
/// process of an MPI world.
class AbortFlag {
 public:
  /// The first reason stays.
  void raise(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (raised_) return;
    reason_ = reason;
    raised_ = true;
  }
  [[nodiscard]] bool raised() const { return raised_; }
  /// AbortedError with the reason, if raised.
  void check() const {
    if (raised_) throw AbortedError(fmt::format("communication was aborted: {}", reason_));
  }

 private:
  std::mutex mutex_;
  std::string reason_;  ///< constant once raised_
  std::atomic<bool> raised_ = false;
};

}  // namespace pecan::comm
