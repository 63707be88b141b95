#pragma once
/// NCCL as Communicators.

#include <memory>

#include <pecan/device/communicator.hpp>

namespace pecan::device::cuda {

[[nodiscard]] CommunicatorId new_communicator_id();
/// Of the current device, which is `ordinal`.
[[nodiscard]] std::unique_ptr<Communicator> make_communicator(int ordinal,
                                                              const CommunicatorId& id,
                                                              int size,
                                                              int rank);

}  // namespace pecan::device::cuda
