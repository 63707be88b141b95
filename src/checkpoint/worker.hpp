#pragma once
/// A background thread with a queue of jobs.

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace pecan::checkpoint {

/// Runs jobs one after the other; jobs do not throw. The destructor lets the job under way end and
/// drops the rest.
class Worker {
 public:
  /// `niceness`: how far the thread stands back behind those that compute; 0 to 19.
  explicit Worker(int niceness = 0)
      : thread_([this, niceness](const std::stop_token& stop) {
          // Of this thread alone (Linux counts niceness a thread). Refused, it runs as the others.
          if (niceness > 0) setpriority(PRIO_PROCESS, id_t(syscall(SYS_gettid)), niceness);
          run(stop);
        }) {}

  void post(std::function<void()> job) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    wake_.notify_one();
  }
  [[nodiscard]] bool idle() const {
    const std::lock_guard lock(mutex_);
    return jobs_.empty() && !running_;
  }

 private:
  void run(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (wake_.wait(lock, stop, [&] { return !jobs_.empty(); }) && !stop.stop_requested()) {
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      running_ = true;
      lock.unlock();
      job();
      lock.lock();
      running_ = false;
    }
  }

  mutable std::mutex mutex_;
  std::condition_variable_any wake_;
  std::deque<std::function<void()>> jobs_;
  bool running_ = false;
  std::jthread thread_;  ///< last: it uses all the others
};

}  // namespace pecan::checkpoint
