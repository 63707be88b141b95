#pragma once
/// What wants to know how far forward and backward are.

#include <pecan/device/context.hpp>

namespace pecan::parallel {

/// Stages as in ParamSpec: 0 the embedding, 1 + i layer i, the last the head.
class StageListener {
 public:
  StageListener() = default;
  virtual ~StageListener() = default;
  StageListener(const StageListener&) = delete;
  StageListener& operator=(const StageListener&) = delete;
  /// The stage is about to read its weights.
  virtual void before_forward(Context& /*ctx*/, int /*stage*/) {}
  /// The stage is about to read its weights and to add to its gradients.
  virtual void before_backward(Context& /*ctx*/, int /*stage*/) {}
  /// No later stage of backward adds to gradients whose first stage this is.
  virtual void after_backward(Context& /*ctx*/, int /*stage*/) {}
};

}  // namespace pecan::parallel
