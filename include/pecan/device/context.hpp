#pragma once
/// What every operator and collective is given: where, in which order, with which scratch memory
/// and threads.

#include <pecan/core/profile.hpp>

#include <pecan/device/arena.hpp>
#include <pecan/device/device.hpp>

namespace pecan::device {

/// Work that goes on while others compute, when it is given a moment.
class Background {
 public:
  Background() = default;
  virtual ~Background() = default;
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;
  /// Does what can be done without waiting. Called on the thread that calls operators, outside of
  /// their parallel regions; what it throws leaves the operator, whose outputs then hold nothing of
  /// use. It may neither call operators of the same Context nor keep any of its workspace.
  virtual void advance() = 0;
};

/// First argument of every operator. One per rank and main thread; refers to, never owns.
struct Context {
  Device device;
  Stream& stream;
  Arena& workspace;
  int threads = 1;                   ///< CPU threads an operator may use
  Background* background = nullptr;  ///< may be none
  ProfileTrack* profile = nullptr;   ///< of the main thread; none: nothing is timed

  /// Gives the background a moment; long operators do so between their tiles and at their end.
  void advance() {
    if (background != nullptr) background->advance();
  }
};

}  // namespace pecan::device

namespace pecan {
using device::Context;
}
