#pragma once
/// The device that tests of operators and devices run on.

#include <cstdlib>
#include <stdexcept>
#include <string>

#include <pecan/device/backend.hpp>
#include <pecan/device/device.hpp>

namespace pecan::test {

/// The CPU; where PECAN_TEST_DEVICE=cuda device 0 of the library that PECAN_CUDA_LIBRARY names
/// (tests/kernels).
inline device::Device test_device() {
  static const device::Device found = [] {
    const char* name = std::getenv("PECAN_TEST_DEVICE");
    if (name == nullptr || std::string(name) != "cuda") return device::cpu();
    const Result<device::Device> opened = device::open_cuda(0);
    if (!opened.ok()) throw std::runtime_error(opened.status().message);
    return opened.value();
  }();
  return found;
}

}  // namespace pecan::test
