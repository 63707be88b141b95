#include "convert/expert_state.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>
#include <utility>

#include <pecan/core/philox.hpp>

namespace pecan::convert {
namespace {

bool is_parameter(const StateItem& item) {
  return item.role == Role::kWeight || item.role == Role::kMaster;
}

/// Layer of "model.layers.3.…"; nothing for what belongs to none.
std::optional<std::int32_t> layer_in(std::string_view name) {
  constexpr std::string_view prefix = "model.layers.";
  if (!name.starts_with(prefix)) return {};
  std::int32_t layer = 0;
  const auto parsed =
      std::from_chars(name.data() + prefix.size(), name.data() + name.size(), layer);
  if (parsed.ec != std::errc{}) return {};
  return layer;
}

/// What follows the last layer.
bool is_of_head(std::string_view name) {
  return name.starts_with("model.norm.") || name.starts_with("lm_head.");
}

/// Calls with a value of the C++ type of a parameter's elements.
template <typename Body>
void with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kF32:
      return body(float{});
    case DType::kF64:
      return body(double{});
    case DType::kBF16:
      return body(BFloat16{});
    default:
      throw InternalError(fmt::format("a parameter of {} has no values", name_of(dtype)));
  }
}

/// Calls value(i) for each element and stores it.
template <typename Value>
void fill_values(DType dtype, std::span<std::byte> destination, Value value) {
  with_type(dtype, [&]<typename T>(T) {
    const std::span<T> elements(reinterpret_cast<T*>(destination.data()),
                                destination.size() / sizeof(T));
    for (std::size_t i = 0; i < elements.size(); ++i) elements[i] = T(value(i));
  });
}

std::vector<double> to_double(DType dtype, std::span<const std::byte> source) {
  std::vector<double> values;
  with_type(dtype, [&]<typename T>(T) {
    const std::span<const T> elements(reinterpret_cast<const T*>(source.data()),
                                      source.size() / sizeof(T));
    values.reserve(elements.size());
    for (const T& element : elements) values.push_back(double(element));
  });
  return values;
}

/// 0 .. count-1 in an order that (seed, stream) alone decides.
std::vector<std::int64_t> random_order(std::uint64_t seed,
                                       std::string_view stream,
                                       std::int64_t count) {
  const std::uint64_t number = stream_of(stream);
  std::vector<double> keys;
  for (std::int64_t i = 0; i < count; ++i)
    keys.push_back(philox_uniform(seed, number, std::uint64_t(i)));
  std::vector<std::int64_t> order(keys.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::ranges::sort(order, [&](std::int64_t a, std::int64_t b) {
    return std::pair(keys[std::size_t(a)], a) < std::pair(keys[std::size_t(b)], b);
  });
  return order;
}

struct Moments {
  double mean = 0;
  double std_dev = 0;  ///< with n - 1, as PyTorch's std; 0 for fewer than two values
};

/// Of the values that `visit` hands to its argument, always in the same order.
template <typename Visit>
Moments moments_of(Visit visit) {
  double sum = 0;
  double count = 0;
  visit([&](double value) {
    sum += value;
    ++count;
  });
  if (count < 1) return {};
  Moments moments{sum / count, 0};
  double squares = 0;
  visit([&](double value) { squares += (value - moments.mean) * (value - moments.mean); });
  if (count > 1) moments.std_dev = std::sqrt(squares / (count - 1));
  return moments;
}

/// "gate_proj.weight" of "model.layers.0.mlp.experts.3.gate_proj.weight".
std::string matrix_of(const StateItem& item, const StateUnit& unit) {
  return item.name.substr(model::expert_name(unit.layer, unit.expert).size() + 1);
}

/// Path of a dense parameter: of its master where there is one.
std::string dense_path(const checkpoint::StateReader& dense, const std::string& name) {
  const std::string master = name + "/master";
  return dense.find(master) ? master : name + "/weight";
}

/// How an expert's matrix is made of neurons: `width` weights for each, in a row or a column of it.
struct MatrixKind {
  bool of_neurons = true;  ///< false: down_proj's bias, which no neuron owns
  bool in_columns = false;
  double scale = 1;
};

MatrixKind kind_of(const std::string& matrix, const UpcyclePlan& plan) {
  if (matrix == "down_proj.bias") return {false, false, plan.down_bias_scale};
  if (matrix == "down_proj.weight") return {true, true, plan.down_scale};
  return {true, false, matrix.starts_with("up_proj.") ? plan.up_scale : 1};
}

}  // namespace

StateCatalog by_layer(StateCatalog catalog, std::int64_t num_layers) {
  catalog.world_size = int(num_layers) + 2;
  for (StateItem& item : catalog.items) {
    const std::optional<std::int32_t> layer = layer_in(item.name);
    const Rank part{layer ? *layer + 1 : is_of_head(item.name) ? std::int32_t(num_layers) + 1 : 0};
    item.blocks = {{Block::whole(item.global_shape), {part}}};
  }
  catalog.validate();
  return catalog;
}

UpcycledState::UpcycledState(checkpoint::StateReader& dense,
                             const StateCatalog& catalog,
                             const model::ModelDims& dense_dims,
                             const model::ModelDims& dims,
                             const UpcyclePlan& plan,
                             const UpcycleOptions& options)
    : dense_(dense),
      catalog_(catalog),
      dense_dims_(dense_dims),
      dims_(dims),
      plan_(plan),
      options_(options) {
  check_parameters();
}

void UpcycledState::check_parameters() const {
  std::set<std::string> wanted;
  for (const parallel::ParamSpec& spec : model::plan_parameters(dense_dims_)) {
    const std::string path = dense_path(dense_, spec.name);
    wanted.insert(path);
    const auto found = dense_.find(path);
    PECAN_VALIDATE(found.has_value(),
                   ConfigError,
                   "the dense run has no parameter {}, which its configuration asks for; give the "
                   "configuration that it was trained with",
                   spec.name);
    PECAN_VALIDATE(found->shape == spec.shape,
                   ConfigError,
                   "{} has shape {} in the dense run, but {} by its configuration; give the "
                   "configuration that it was trained with",
                   spec.name,
                   found->shape.to_string(),
                   spec.shape.to_string());
  }
  for (const std::string& path : dense_.paths()) {
    const bool parameter = path.ends_with("/weight") || path.ends_with("/master");
    PECAN_VALIDATE(!parameter || wanted.contains(path),
                   ConfigError,
                   "the dense run has {}, which its configuration does not ask for; give the "
                   "configuration that it was trained with",
                   path);
  }
}

void UpcycledState::copy_out(ItemIndex index,
                             const Block& block,
                             std::span<std::byte> destination) const {
  const StateItem& item = catalog_.items[std::size_t(index.value)];
  PECAN_EXPECTS(block == Block::whole(item.global_shape));
  if (!is_parameter(item)) {
    // Moments, counts and tables as a fresh run has them.
    std::ranges::fill(destination, std::byte{0});
    return;
  }
  if (catalog_.units[std::size_t(item.unit.value)].is_expert())
    return make_expert(item, destination);
  if (item.name.ends_with(".mlp.gate.weight")) return make_router(item, destination);
  copy_dense(item, destination);
}

void UpcycledState::copy_in(ItemIndex index,
                            const Block& /*block*/,
                            std::span<const std::byte> /*source*/) {
  throw InternalError(fmt::format("{} of an upcycled state is made, not loaded",
                                  catalog_.items[std::size_t(index.value)].path()));
}

void UpcycledState::make_router(const StateItem& item, std::span<std::byte> destination) const {
  const std::uint64_t stream = stream_of(item.name);
  const auto width = std::size_t(item.global_shape[1]);
  const auto granularity = std::size_t(plan_.granularity);
  // Experts of one copy have equal rows, so that a token takes all of them or none.
  fill_values(item.dtype, destination, [&](std::size_t i) {
    const std::size_t element = i / width / granularity * width + i % width;
    return options_.router_std * philox_normal(options_.seed, stream, element);
  });
}

const std::vector<double>& UpcycledState::dense_matrix(LayerId layer,
                                                       const std::string& name) const {
  if (layer != cached_layer_) cached_.clear();
  cached_layer_ = layer;
  const auto known = std::ranges::find(cached_, name, &DenseMatrix::name);
  if (known != cached_.end()) return known->values;
  const std::string path =
      dense_path(dense_, fmt::format("{}.mlp.{}", model::layer_name(layer), name));
  const checkpoint::StateReader::Item item = dense_.find(path).value();
  std::vector<std::byte> bytes(std::size_t(item.shape.num_elements()) * size_of(item.dtype));
  dense_.read(path, bytes);
  return cached_.emplace_back(DenseMatrix{name, to_double(item.dtype, bytes)}).values;
}

const UpcycledState::Neurons& UpcycledState::neurons_of(const StateUnit& unit) const {
  if (neurons_ && neurons_->layer == unit.layer && neurons_->expert == unit.expert)
    return *neurons_;
  const std::int64_t first = unit.expert.value % plan_.granularity * dims_.expert_ffn;
  std::vector<std::int64_t> source(std::size_t(dims_.expert_ffn));
  if (plan_.drawn > 0) {
    source = random_order(options_.seed, unit.name + ".order", dims_.expert_ffn);
  } else {
    // Nothing depends on the order then, and the copy is exact to the bit.
    std::iota(source.begin(), source.end(), std::int64_t{0});
  }
  for (std::int64_t& neuron : source) neuron += first;
  return neurons_.emplace(Neurons{unit.layer, unit.expert, std::move(source)});
}

std::vector<bool> UpcycledState::drawn_of(const StateUnit& unit, const std::string& matrix) const {
  std::string stream = unit.name + ".drawn";
  if (options_.indices == DropIndices::kIndependent)
    // A bias goes with the weights of its matrix.
    stream += "." + matrix.substr(0, matrix.find('.'));
  const std::vector<std::int64_t> order = random_order(options_.seed, stream, dims_.expert_ffn);
  std::vector<bool> drawn(order.size());
  for (std::int64_t i = 0; i < plan_.drawn; ++i) drawn[std::size_t(order[std::size_t(i)])] = true;
  return drawn;
}

void UpcycledState::make_expert(const StateItem& item, std::span<std::byte> destination) const {
  const StateUnit& unit = catalog_.units[std::size_t(item.unit.value)];
  const std::string matrix = matrix_of(item, unit);
  const std::vector<double>& dense = dense_matrix(unit.layer, matrix);
  const MatrixKind kind = kind_of(matrix, plan_);
  if (!kind.of_neurons) {
    fill_values(item.dtype, destination, [&](std::size_t i) { return kind.scale * dense[i]; });
    return;
  }
  const std::vector<std::int64_t>& source = neurons_of(unit).source;
  const std::vector<bool> drawn = drawn_of(unit, matrix);
  const std::size_t neurons = source.size();
  const auto elements = std::size_t(item.global_shape.num_elements());
  const std::size_t width = elements / neurons;
  const std::size_t dense_neurons = dense.size() / width;
  const auto neuron_of = [&](std::size_t i) { return kind.in_columns ? i % neurons : i / width; };
  const auto dense_value = [&](std::size_t i) {
    const auto neuron = std::size_t(source[neuron_of(i)]);
    return kind.in_columns ? dense[i / neurons * dense_neurons + neuron]
                           : dense[neuron * width + i % width];
  };
  const Moments moments = moments_of([&](auto take) {
    for (std::size_t i = 0; i < elements; ++i) {
      if (drawn[neuron_of(i)]) take(dense_value(i));
    }
  });
  const std::uint64_t stream = stream_of(item.name);
  // Rounded as its master would be, where it is bf16.
  fill_values(item.dtype, destination, [&](std::size_t i) {
    const double value =
        drawn[neuron_of(i)]
            ? moments.mean + moments.std_dev * philox_normal(options_.seed, stream, i)
            : dense_value(i);
    return kind.scale * value;
  });
}

void UpcycledState::copy_dense(const StateItem& item, std::span<std::byte> destination) const {
  const std::string path = dense_path(dense_, item.name);
  const auto found = dense_.find(path);
  // The models were compared, so this holds unless the catalog is of another one.
  PECAN_VALIDATE(found && found->shape == item.global_shape,
                 InternalError,
                 "{} has no counterpart of shape {} in the dense run",
                 item.name,
                 item.global_shape.to_string());
  if (found->dtype == item.dtype) {
    dense_.read(path, destination);
    return;
  }
  std::vector<std::byte> bytes(std::size_t(found->shape.num_elements()) * size_of(found->dtype));
  dense_.read(path, bytes);
  const std::vector<double> values = to_double(found->dtype, bytes);
  fill_values(item.dtype, destination, [&](std::size_t i) { return values[i]; });
}

}  // namespace pecan::convert
