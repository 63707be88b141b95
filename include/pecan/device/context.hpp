#pragma once
/// What every operator and collective is given: where, in which order, with which scratch memory
/// and threads.

#include <pecan/device/arena.hpp>
#include <pecan/device/device.hpp>

namespace pecan::device {

/// First argument of every operator. One per rank and main thread; refers to, never owns.
struct Context {
  Device device;
  Stream& stream;
  Arena& workspace;
  int threads = 1;  ///< CPU threads an operator may use
};

}  // namespace pecan::device

namespace pecan {
using device::Context;
}
