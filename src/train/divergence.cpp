#include "train/divergence.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <pecan/ops/reduce.hpp>

namespace pecan::train {

void LossWindow::accept(double loss) {
  losses_.push_back(loss);
  if (losses_.size() > kSize) losses_.pop_front();
}

double LossWindow::mean() const {
  if (losses_.empty()) return 0;
  return std::accumulate(losses_.begin(), losses_.end(), 0.0) / double(losses_.size());
}

double LossWindow::deviation() const {
  if (losses_.size() < 2) return 0;
  const double center = mean();
  double squares = 0;
  for (const double loss : losses_) squares += (loss - center) * (loss - center);
  return std::sqrt(squares / double(losses_.size() - 1));
}

bool LossWindow::is_spike(double loss, double sigmas) const {
  return sigmas > 0 && losses_.size() >= kLeast && loss > mean() + sigmas * deviation();
}

std::string LossWindow::describe_spike(double loss, double sigmas) const {
  return fmt::format(
      "has loss {:.6g}, more than training.spiky_loss_sigmas={} standard deviations ({:.4g}) above "
      "the mean {:.6g} of the last {}",
      loss,
      sigmas,
      deviation(),
      mean(),
      size());
}

std::string describe_non_finite(const StepRecord& record) {
  return fmt::format("has loss {} and {} non-finite gradient values; {}",
                     record.loss,
                     record.non_finite,
                     record.bad_tensor.empty()
                         ? "computed once more it has none, so a fault of the hardware may have "
                           "come and gone"
                         : "the first bad tensor is " + record.bad_tensor);
}

TensorProbe::TensorProbe(const parallel::ParamSet& params,
                         const std::vector<parallel::ParamSpec>& specs,
                         const model::Activations& activations)
    : params_(params),
      specs_(specs),
      activations_(activations),
      num_layers_(std::int64_t(activations.attention.size())),
      // Embedding, two parts a layer, loss; backward has fewer.
      num_orders_(2 * num_layers_ + 2) {
  std::map<std::string, std::int64_t> index;
  for (std::size_t i = 0; i < specs.size(); ++i) index[specs[i].name] = std::int64_t(i);
  for (const parallel::Param& param : params.params())
    spec_of_param_.push_back(index.at(param.spec.name));
}

void TensorProbe::note(
    Phase phase, std::int64_t order, std::int64_t spec, std::int64_t bad, std::int64_t of) {
  const std::int64_t place =
      ((std::int64_t(micro_) * 3 + std::int64_t(phase)) * num_orders_ + order) *
          std::int64_t(specs_.size()) +
      spec;
  if (bad > 0 && place < first_.place) first_ = {place, bad, of};
}

void TensorProbe::look(
    Context& ctx, Phase phase, std::int64_t order, std::int64_t spec, ConstTensorView x) {
  note(phase, order, spec, ops::count_non_finite(ctx, x), x.shape.num_elements());
}

void TensorProbe::arm(Context& ctx) {
  armed_ = true;
  micro_ = 0;
  first_ = {};
  for (std::size_t i = 0; i < spec_of_param_.size(); ++i)
    look(ctx, Phase::kWeight, 0, spec_of_param_[i], params_.params()[i].weight.flat());
}

void TensorProbe::before_forward(Context& ctx, int stage) {
  // What the stage before has left: its input is this one's.
  if (!armed_ || stage == 0) return;
  const std::size_t input = 2 * std::size_t(stage - 1);
  if (input > 0)
    look(ctx, Phase::kForward, std::int64_t(input) - 1, 0, activations_.stream_tH[input - 1]);
  look(ctx, Phase::kForward, std::int64_t(input), 0, activations_.stream_tH[input]);
}

void TensorProbe::loss(double value) {
  if (armed_ && !std::isfinite(value)) note(Phase::kForward, 2 * num_layers_ + 1, 0, 1, 1);
}

void TensorProbe::after_backward(Context& ctx, int stage) {
  // What follows in backward is spoilt by what was found.
  if (!armed_ || first_.bad > 0) return;
  for (std::size_t i = 0; i < spec_of_param_.size(); ++i) {
    const parallel::Param& param = params_.params()[i];
    if (param.spec.first_stage == stage)
      look(ctx, Phase::kBackward, num_layers_ + 1 - stage, spec_of_param_[i], param.grad.flat());
  }
}

std::string TensorProbe::report(Context& ctx, comm::Group& world) const {
  const comm::Tag tag{comm::Purpose::kStepFlags};
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  const auto least = [&](std::int64_t value) {
    world.all_reduce(ctx, view_of(std::span(&value, 1)), comm::ReduceOp::kMin, tag).wait();
    return value;
  };
  const std::int64_t place = least(first_.place);
  if (place == kNone) return {};
  const std::int64_t rank = least(first_.place == place ? world.rank().value : kNone);
  std::int64_t counts[2] = {0, 0};
  if (rank == world.rank().value) {
    counts[0] = first_.bad;
    counts[1] = first_.of;
  }
  world.all_reduce(ctx, view_of(std::span(counts)), comm::ReduceOp::kSum, tag).wait();
  return fmt::format("{}, on rank {} ({} of {} values are not finite)",
                     describe(place),
                     rank,
                     counts[0],
                     counts[1]);
}

std::string TensorProbe::describe(std::int64_t place) const {
  const auto num_specs = std::int64_t(specs_.size());
  const parallel::ParamSpec& spec = specs_[std::size_t(place % num_specs)];
  const std::int64_t order = place / num_specs % num_orders_;
  const std::int64_t pass = place / num_specs / num_orders_;
  const std::string micro = fmt::format("of micro-batch {}", pass / 3);
  std::string owner;
  if (spec.layer != kNoLayer) owner = fmt::format(" (layer {}", spec.layer);
  if (spec.is_expert()) owner += fmt::format(", expert {}", spec.expert);
  if (!owner.empty()) owner += ")";
  switch (Phase(pass % 3)) {
    case Phase::kWeight:
      return fmt::format("the weight {}{}, before forward", spec.name, owner);
    case Phase::kForward:
      if (order == 2 * num_layers_ + 1) return fmt::format("the loss, in forward {}", micro);
      if (order == 0) return fmt::format("the output of the embedding, in forward {}", micro);
      return fmt::format("the output of {} of layer {}, in forward {}",
                         order % 2 == 1 ? "attention" : "mlp",
                         (order - 1) / 2,
                         micro);
    case Phase::kBackward:
      return fmt::format("the gradient of {}{}, in backward {}", spec.name, owner, micro);
  }
  throw InternalError("an unknown phase of a step");
}

}  // namespace pecan::train
