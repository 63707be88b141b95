#include <array>
#include <exception>
#include <utility>

#include <pecan/core/log.hpp>

#include <pecan/comm/group.hpp>

#include "comm/abort_flag.hpp"

namespace pecan::comm {
namespace {

/// Waits for what nobody will wait for any more; errors are logged, since nobody can catch them.
void drain(std::unique_ptr<Pending::Operation> operation) {
  if (!operation) return;
  try {
    operation->wait();
  } catch (const AbortedError&) {
    // Whoever raised the abort has reported it.
  } catch (const std::exception& error) {
    PECAN_LOG(kWarn, "[comm] a collective was given up before it was complete: {}", error.what());
  }
}

}  // namespace

std::string_view name_of(Purpose purpose) {
  static constexpr std::array<std::string_view, std::size_t(Purpose::kCount)> kNames = {
      "setup",
      "dispatch_plan",
      "dispatch",
      "combine",
      "dispatch_backward",
      "combine_backward",
      "dispatch_again",
      "combine_again",
      "tensor_gather",
      "tensor_reduce",
      "tensor_gather_backward",
      "tensor_reduce_backward",
      "routing",
      "default_vectors",
      "loss",
      "gradients",
      "parameters",
      "grad_norm",
      "loss_weight",
      "step_flags",
      "checkpoint_vote",
      "replication",
      "recovery",
      "evaluation",
      "test",
  };
  PECAN_EXPECTS(purpose < Purpose::kCount);
  return kNames[std::size_t(purpose)];
}

Pending& Pending::operator=(Pending&& other) {
  if (this != &other) drain(std::exchange(operation_, std::move(other.operation_)));
  return *this;
}

Pending::~Pending() {
  drain(std::move(operation_));
}

bool Pending::test() {
  if (!operation_) return true;
  auto operation = std::move(operation_);  // after an error there is nothing left to test
  if (operation->test()) return true;
  operation_ = std::move(operation);
  return false;
}

void Pending::wait() {
  if (const auto operation = std::move(operation_)) operation->wait();
}

}  // namespace pecan::comm
