#include "train/device_choice.hpp"

#include <pecan/core/error.hpp>
#include <pecan/core/log.hpp>

#include <pecan/device/backend.hpp>

namespace pecan::train {

device::Device choose_device(config::DeviceChoice choice) {
  using config::DeviceChoice;
  if (choice == DeviceChoice::kCpu) return device::cpu();
  const Result<device::Device> opened = device::open_cuda(0);
  const std::string reason = opened.ok()
                                 ? "this version has CUDA kernels, but does not train with them yet"
                                 : opened.status().message;
  PECAN_VALIDATE(choice == DeviceChoice::kAuto,
                 NotConfigured,
                 "training.device=cuda, but {}; use auto or cpu to train on the CPU",
                 reason);
  PECAN_LOG(kInfo, "[train] training on the CPU: {}", reason);
  return device::cpu();
}

}  // namespace pecan::train
