#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include <nlohmann/json.hpp>

#include <pecan/core/philox.hpp>

#include <pecan/checkpoint/recovery.hpp>
#include <pecan/checkpoint/root.hpp>

#include <pecan/convert/upcycle.hpp>
#include <pecan/train/state.hpp>

#include "model/harness.hpp"
#include "support/catch.hpp"
#include "support/memory_file_system.hpp"
#include "support/support.hpp"

using namespace pecan;
using convert::DropIndices;
using convert::UpcycleOptions;
using model::ModelDims;
using test::MemoryFileSystem;

namespace {

using Matrix = std::vector<double>;

constexpr const char* kMatrices[] = {"gate_proj", "up_proj", "down_proj"};

ModelDims dense_dims(DType dtype = DType::kF64) {
  ModelDims dims = test::small_dims(dtype);
  dims.is_moe = {false, false};
  dims.num_experts = dims.topk = dims.shared_ffn = dims.expert_ffn = 0;
  dims.ffn = 40;
  dims.head_piece = 0;
  dims.padded_vocab = dims.vocab;
  return dims;
}

/// Experts as wide as the dense FFN.
ModelDims moe_dims(DType dtype = DType::kF64) {
  ModelDims dims = dense_dims(dtype);
  dims.is_moe = {true, true};
  dims.num_experts = 8;
  dims.topk = 2;
  dims.expert_ffn = dims.ffn;
  return dims;
}

StateCatalog catalog_of(const ModelDims& dims, const parallel::MeshShape& mesh = {}) {
  return train::plan_catalog(dims,
                             train::DerivedWeights::kOmitted,
                             model::plan_parameters(dims),
                             mesh,
                             parallel::Sharding::kNone);
}

/// A trained dense model, as far as anybody can tell: weights with a mean of their own for each
/// neuron, so that the statistics of a slice are not those of the whole, and moments.
class DenseState final : public StateBinding {
 public:
  explicit DenseState(const StateCatalog& catalog) : catalog_(catalog) {}
  void copy_out(ItemIndex index, const Block& block, std::span<std::byte> to) const override {
    const StateItem& item = catalog_.items[std::size_t(index.value)];
    const std::int64_t columns = item.global_shape.num_dims() == 2 ? item.global_shape[1] : 1;
    const std::int64_t extent = item.global_shape.num_dims() == 2 ? block.extent[1] : 1;
    const std::int64_t first = item.global_shape.num_dims() == 2 ? block.offset[1] : 0;
    for (std::int64_t i = 0; i < block.extent.num_elements(); ++i) {
      const std::int64_t row = block.offset[0] + i / extent;
      const std::int64_t column = first + i % extent;
      const double value = at(item, row, column, row * columns + column);
      std::byte* place = to.data() + std::size_t(i) * size_of(item.dtype);
      if (item.dtype == DType::kF64) {
        *reinterpret_cast<double*>(place) = value;
      } else if (item.dtype == DType::kF32) {
        *reinterpret_cast<float*>(place) = float(value);
      } else {
        *reinterpret_cast<std::int64_t*>(place) = 17;
      }
    }
  }
  void copy_in(ItemIndex, const Block&, std::span<const std::byte>) override {}

 private:
  static double at(const StateItem& item, std::int64_t row, std::int64_t column, std::int64_t i) {
    const double noise = philox_normal(5, stream_of(item.path()), std::uint64_t(i));
    if (item.global_shape.num_dims() == 1 && item.name.find("proj") == std::string::npos)
      return 1 + 0.2 * noise;
    const bool down = item.name.find("down_proj") != std::string::npos;
    if (item.name.find(".mlp.") == std::string::npos) return 0.4 * noise;
    return 0.3 * noise + 0.02 * double(down ? column : row);
  }
  const StateCatalog& catalog_;
};

/// Values of a parameter in a run.
Matrix read(checkpoint::StateReader& reader, const std::string& name) {
  const std::string master = name + "/master";
  const std::string path = reader.find(master) ? master : name + "/weight";
  const auto item = reader.find(path);
  REQUIRE(item.has_value());
  std::vector<std::byte> bytes(std::size_t(item->shape.num_elements()) * size_of(item->dtype));
  reader.read(path, bytes);
  Matrix values(std::size_t(item->shape.num_elements()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = item->dtype == DType::kF64
                    ? reinterpret_cast<const double*>(bytes.data())[i]
                    : double(reinterpret_cast<const float*>(bytes.data())[i]);
  }
  return values;
}

/// Weights of each neuron: rows of gate_proj and up_proj, columns of down_proj.
std::vector<Matrix> neurons(checkpoint::StateReader& reader,
                            const std::string& prefix,
                            const std::string& matrix,
                            std::int64_t hidden) {
  const Matrix values = read(reader, prefix + matrix + ".weight");
  const std::size_t width = std::size_t(hidden);
  std::vector<Matrix> rows(values.size() / width, Matrix(width));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (matrix == "down_proj") {
      rows[i % rows.size()][i / rows.size()] = values[i];
    } else {
      rows[i / width][i % width] = values[i];
    }
  }
  return rows;
}

/// A dense run and what is made of it, in memory.
struct Lab {
  explicit Lab(const ModelDims& of, const parallel::MeshShape& mesh = {}) : dims(of) {
    const StateCatalog catalog = catalog_of(dims, mesh);
    const DenseState state(catalog);
    checkpoint::write_root(fs, "dense", {}, catalog, state, 1, "{}");
  }
  convert::UpcycleReport upcycle(const ModelDims& moe,
                                 const UpcycleOptions& options,
                                 const std::string& out = "moe") {
    checkpoint::StateReader dense(fs, "dense");
    return convert::upcycle(
        fs, dense, dims, config::parse_config(""), moe, catalog_of(moe), options, out);
  }

  ModelDims dims;
  MemoryFileSystem fs;
};

/// Logits of some tokens by the model of a run on one rank.
Matrix logits(FileSystem& fs, const std::string& run, const ModelDims& dims) {
  const std::unique_ptr<comm::Group> alone = comm::make_self_group();
  test::Harness harness(dims, *alone, 1);
  checkpoint::StateReader reader(fs, run);
  for (const parallel::Param& param : harness.params.params()) {
    const Matrix values = read(reader, param.spec.name);
    const TensorView into = param.master.row_major();
    for (std::size_t i = 0; i < values.size(); ++i)
      test::Harness::set(into, std::int64_t(i), values[i]);
  }
  model::derive_weights(harness.ctx, harness.params);
  harness.gather.start(harness.ctx);
  harness.gather.finish();
  std::vector<std::int32_t> tokens;
  for (std::int64_t t = 0; t < dims.tokens(); ++t)
    tokens.push_back(std::int32_t(t * 7 % dims.vocab));
  (void)harness.transformer.forward(
      harness.ctx,
      {.tokens_T = const_view_of(std::span<const std::int32_t>(tokens)),
       .labels_T = const_view_of(std::span<const std::int32_t>(tokens)),
       .mask_T = {}});
  REQUIRE(dims.head_tokens() == dims.tokens());
  const TensorView& view = harness.activations.logits_CV;
  Matrix all;
  for (std::int64_t i = 0; i < view.num_elements(); ++i) {
    all.push_back(view.dtype == DType::kF64 ? view.as<double>()[std::size_t(i)]
                                            : double(view.as<float>()[std::size_t(i)]));
  }
  return all;
}

/// Largest difference, relative to the largest value.
double difference(const Matrix& a, const Matrix& b) {
  REQUIRE(a.size() == b.size());
  double most = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::abs(a[i] - b[i]));
    size = std::max(size, std::abs(b[i]));
  }
  REQUIRE(size > 0.1);
  return most / size;
}

/// What became of an expert's neurons, told by their contents alone.
struct Kept {
  std::vector<std::map<std::int64_t, std::int64_t>> source;  ///< by matrix: neuron -> dense neuron
  std::vector<Matrix> drawn;                                 ///< by matrix, all new values
  std::vector<Matrix> dropped;                               ///< by matrix, those they replaced
};
Kept compare(checkpoint::StateReader& dense,
             checkpoint::StateReader& moe,
             const ModelDims& dims,
             int layer,
             int expert) {
  Kept kept;
  const std::string layer_name = fmt::format("model.layers.{}.mlp.", layer);
  for (const char* matrix : kMatrices) {
    const auto before = neurons(dense, layer_name, matrix, dims.hidden);
    const auto after =
        neurons(moe, fmt::format("{}experts.{}.", layer_name, expert), matrix, dims.hidden);
    std::map<Matrix, std::int64_t> place;
    for (std::size_t n = 0; n < before.size(); ++n) place[before[n]] = std::int64_t(n);
    std::map<std::int64_t, std::int64_t> source;
    Matrix drawn, dropped;
    std::set<std::int64_t> gone;
    for (std::size_t n = 0; n < before.size(); ++n) gone.insert(std::int64_t(n));
    for (std::size_t n = 0; n < after.size(); ++n) {
      const auto found = place.find(after[n]);
      if (found == place.end()) {
        drawn.insert(drawn.end(), after[n].begin(), after[n].end());
      } else {
        source[std::int64_t(n)] = found->second;
        CHECK(gone.erase(found->second) == 1);  // no neuron comes twice
      }
    }
    for (const std::int64_t n : gone)
      dropped.insert(dropped.end(), before[std::size_t(n)].begin(), before[std::size_t(n)].end());
    kept.source.push_back(std::move(source));
    kept.drawn.push_back(std::move(drawn));
    kept.dropped.push_back(std::move(dropped));
  }
  return kept;
}

double mean(const Matrix& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / double(values.size());
}

double deviation(const Matrix& values) {
  const double centre = mean(values);
  double squares = 0;
  for (const double value : values) squares += (value - centre) * (value - centre);
  return std::sqrt(squares / double(values.size() - 1));
}

std::size_t common(const std::set<std::int64_t>& a, const std::set<std::int64_t>& b) {
  return std::size_t(std::ranges::count_if(a, [&](std::int64_t n) { return b.contains(n); }));
}

}  // namespace

TEST_CASE("drawn neurons have the statistics of those that they replace", "[upcycle]") {
  Lab lab(dense_dims());
  const ModelDims moe = moe_dims();
  const DropIndices indices = GENERATE(DropIndices::kShared, DropIndices::kIndependent);
  constexpr std::int64_t kDrawn = 18;  // int(0.47 * 40)
  const auto report = lab.upcycle(moe, {.drop_ratio = 0.47, .indices = indices});
  CHECK(report.plan.drawn == kDrawn);
  checkpoint::StateReader dense(lab.fs, "dense"), made(lab.fs, "moe");

  double mean_squares = 0, deviation_squares = 0;
  int samples = 0, permuted = 0;
  std::size_t whole = 0;
  std::vector<std::set<std::int64_t>> whole_of;
  for (int layer = 0; layer < 2; ++layer) {
    for (int expert = 0; expert < 8; ++expert) {
      const Kept kept = compare(dense, made, moe, layer, expert);
      for (std::size_t m = 0; m < 3; ++m) {
        REQUIRE(std::int64_t(kept.source[m].size()) == moe.ffn - kDrawn);
        const double n = double(kept.drawn[m].size());
        const double sigma = deviation(kept.dropped[m]);
        const double z = (mean(kept.drawn[m]) - mean(kept.dropped[m])) / (sigma / std::sqrt(n));
        const double y = (deviation(kept.drawn[m]) / sigma - 1) * std::sqrt(2 * n);
        CHECK(std::abs(z) < 5);
        CHECK(std::abs(y) < 5);
        mean_squares += z * z;
        deviation_squares += y * y;
        ++samples;
      }
      // One order for all three: where two matrices kept a neuron, it is the same one.
      std::set<std::int64_t> in_all;
      for (const auto& [neuron, source] : kept.source[0]) {
        permuted += neuron != source ? 1 : 0;
        bool everywhere = true;
        for (std::size_t m = 1; m < 3; ++m) {
          const auto other = kept.source[m].find(neuron);
          everywhere = everywhere && other != kept.source[m].end();
          if (other != kept.source[m].end()) CHECK(other->second == source);
        }
        if (everywhere) in_all.insert(source);
      }
      if (indices == DropIndices::kShared) {
        CHECK(kept.source[0] == kept.source[1]);
        CHECK(kept.source[0] == kept.source[2]);
        CHECK(in_all.size() == std::size_t(moe.ffn - kDrawn));
      }
      whole += in_all.size();
      whole_of.push_back(std::move(in_all));
    }
  }
  // Chi-squared with 48 degrees of freedom: 48 -+ 9.8. Those of the whole matrix in place of the
  // slice's, whose means differ by several times their error, would give hundreds.
  CHECK(mean_squares / samples == Approx(1).margin(5 * std::sqrt(2.0 / samples)));
  CHECK(deviation_squares / samples == Approx(1).margin(5 * std::sqrt(2.0 / samples)));
  CHECK(permuted > 16 * 20);
  // Neurons that an expert keeps whole: (1-r) F, or (1-r)^3 F of independent draws.
  const double share = indices == DropIndices::kShared ? 0.55 : 0.55 * 0.55 * 0.55;
  CHECK(double(whole) / 16 == Approx(share * 40).margin(2.5));
  // Two experts of a layer share (1-r)^2 of all neurons in expectation, hypergeometric.
  if (indices == DropIndices::kShared) {
    double pairs = 0, shared = 0;
    for (std::size_t a = 0; a < 8; ++a) {
      for (std::size_t b = 0; b < a; ++b) {
        shared += double(common(whole_of[a], whole_of[b]));
        ++pairs;
      }
    }
    CHECK(shared / pairs == Approx(40 * 0.55 * 0.55).margin(1.5));
  }
}

TEST_CASE("what is not drawn is copied, and the rest begins afresh", "[upcycle]") {
  Lab lab(dense_dims(DType::kBF16));
  ModelDims moe = moe_dims(DType::kBF16);
  moe.is_moe = {false, true};
  moe.expert_bias = true;
  moe.score_function = config::ScoreFunction::kSigmoid;
  (void)lab.upcycle(moe, {.drop_ratio = 1});
  checkpoint::StateReader dense(lab.fs, "dense"), made(lab.fs, "moe");
  const checkpoint::Manifest& manifest = made.manifest();
  CHECK(manifest.version == checkpoint::Version{});
  CHECK(manifest.full);
  CHECK(manifest.consumed_samples == 0);
  CHECK(manifest.model_fingerprint == catalog_of(moe).model_fingerprint());
  std::set<std::string> expected;
  for (const StateItem& item : catalog_of(moe).items) expected.insert(item.path());
  const std::vector<std::string> paths = made.paths();
  CHECK(std::set(paths.begin(), paths.end()) == expected);
  int copied = 0;
  for (const std::string& path : paths) {
    const auto item = made.find(path).value();
    std::vector<std::byte> bytes(std::size_t(item.shape.num_elements()) * size_of(item.dtype));
    made.read(path, bytes);
    if (!path.ends_with("/master")) {
      CHECK(std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; }));
    } else if (dense.find(path)) {
      std::vector<std::byte> before(bytes.size());
      dense.read(path, before);
      CHECK(bytes == before);
      ++copied;
    }
  }
  // The dense layer's FFN, both layers' attention and norms, embedding and last norm.
  CHECK(copied == 3 + 2 * 8 + 2);
  // With r = 1 nothing of the FFN is left.
  for (const auto& source : compare(dense, made, moe, 1, 3).source) CHECK(source.empty());
  // No two experts are drawn alike.
  const std::string up = "model.layers.1.mlp.experts.{}.up_proj.weight";
  for (int e = 1; e < 8; ++e) {
    CHECK(difference(read(made, fmt::format(fmt::runtime(up), e)),
                     read(made, fmt::format(fmt::runtime(up), 0))) > 0.1);
  }
  // N(0, 0.02) for the router: 96 values.
  const Matrix router = read(made, "model.layers.1.mlp.gate.weight");
  CHECK(deviation(router) == Approx(0.02).epsilon(5 / std::sqrt(2 * 96.0)));
  CHECK(std::abs(mean(router)) < 5 * 0.02 / std::sqrt(96.0));
  const auto origin = nlohmann::json::parse(read_text(lab.fs, "moe/origin.json").value());
  CHECK(origin["from"]["run_id"] == dense.manifest().run_id);
  CHECK(origin["drop_ratio"] == 1);
  CHECK(config::parse_config(read_text(lab.fs, "moe/config.yaml").value()) ==
        config::parse_config(""));
}

TEST_CASE("without redrawn neurons the model computes what the dense one did", "[upcycle]") {
  ModelDims dense = dense_dims();
  ModelDims moe = moe_dims();
  UpcycleOptions options{.drop_ratio = 0, .router_std = 1};  // a router with opinions
  double scale = 1;
  SECTION("copies") {}
  SECTION("one expert a token") {
    moe.topk = 1;
  }
  SECTION("sigmoid scores and a factor on the weights") {
    moe.score_function = config::ScoreFunction::kSigmoid;
    moe.router_scaling = 2.5;
    moe.num_groups = 4;
    moe.group_topk = 2;
    scale = 1 / 2.5;
  }
  SECTION("two parts, one copy a token") {
    moe.expert_ffn = 20;
    scale = 2;
  }
  SECTION("four parts, two copies a token, some layers dense") {
    moe.expert_ffn = 10;
    moe.num_experts = 16;
    moe.topk = 8;
    moe.is_moe = {false, true};
    scale = 4;
  }
  SECTION("without a gate, with biases") {
    dense.gated_ffn = moe.gated_ffn = false;
    dense.linear_bias = moe.linear_bias = true;
    moe.expert_ffn = 20;
    moe.router_scaling = 2;
    scale = 1;  // 2 parts over a sum of 2
  }
  SECTION("softmax over all experts, of a router without opinions") {
    moe.router_pre_softmax = true;
    moe.expert_ffn = 20;
    options.router_std = 1e-14;
    scale = 8.0 * 2 / 2;
  }
  SECTION("one expert by its sigmoid, of a router without opinions") {
    moe.score_function = config::ScoreFunction::kSigmoid;
    moe.topk = 1;
    options.router_std = 1e-14;
    scale = 2;
  }
  Lab lab(dense);
  const convert::UpcyclePlan plan = lab.upcycle(moe, options).plan;
  CHECK(plan.up_scale * plan.down_scale == Approx(scale));
  CHECK(difference(logits(lab.fs, "moe", moe), logits(lab.fs, "dense", dense)) < 1e-12);
}

TEST_CASE("copies are exact to the bit where nothing is scaled", "[upcycle]") {
  Lab lab(dense_dims(DType::kF32));
  const ModelDims moe = moe_dims(DType::kF32);
  (void)lab.upcycle(moe, {.drop_ratio = 0});
  checkpoint::StateReader dense(lab.fs, "dense"), made(lab.fs, "moe");
  for (const char* matrix : kMatrices) {
    const Matrix before = read(dense, fmt::format("model.layers.1.mlp.{}.weight", matrix));
    for (int e = 0; e < 8; ++e)
      CHECK(read(made, fmt::format("model.layers.1.mlp.experts.{}.{}.weight", e, matrix)) ==
            before);
  }
  CHECK(difference(logits(lab.fs, "moe", moe), logits(lab.fs, "dense", lab.dims)) < 1e-5);
  // Redrawn neurons are seen in the logits.
  (void)lab.upcycle(moe, {.drop_ratio = 0.5}, "half");
  CHECK(difference(logits(lab.fs, "half", moe), logits(lab.fs, "dense", lab.dims)) > 0.01);
}

TEST_CASE("parts of the FFN are cut, drawn and scaled one by one", "[upcycle]") {
  Lab lab(dense_dims());
  ModelDims moe = moe_dims();
  moe.expert_ffn = 10;
  moe.topk = 4;
  (void)lab.upcycle(moe, {.drop_ratio = 0.5, .router_std = 0.1});
  checkpoint::StateReader dense(lab.fs, "dense"), made(lab.fs, "moe");
  // gate_proj has no factor, so contents tell.
  const auto before = neurons(dense, "model.layers.0.mlp.", "gate_proj", moe.hidden);
  for (int e = 0; e < 8; ++e) {
    const auto after =
        neurons(made, fmt::format("model.layers.0.mlp.experts.{}.", e), "gate_proj", moe.hidden);
    int kept = 0;
    for (const Matrix& neuron : after) {
      const auto found = std::ranges::find(before, neuron);
      if (found == before.end()) continue;
      CHECK((found - before.begin()) / 10 == e % 4);
      ++kept;
    }
    CHECK(kept == 5);
  }
  // Rows of the router: one for each copy, four times.
  const Matrix router = read(made, "model.layers.0.mlp.gate.weight");
  for (std::size_t e = 0; e < 8; ++e) {
    for (std::size_t i = 0; i < 12; ++i) CHECK(router[e * 12 + i] == router[e / 4 * 48 + i]);
  }
  CHECK(router[0] != router[48]);
}

TEST_CASE("an upcycled state follows from dense parameters, configuration and seed alone",
          "[upcycle]") {
  const UpcycleOptions options{.drop_ratio = 0.5};
  Lab lab(dense_dims());
  (void)lab.upcycle(moe_dims(), options, "first");
  (void)lab.upcycle(moe_dims(), options, "again");
  (void)lab.upcycle(moe_dims(), {.drop_ratio = 0.5, .seed = 99}, "other");
  // Written by two ranks that shared every matrix.
  ModelDims padded = dense_dims();
  padded.padded_vocab = 20;
  Lab shared(padded, {.world = 2, .tp = 2, .dp = 1, .etp = 1, .ep = 1, .edp = 2});
  (void)shared.upcycle(moe_dims(), options, "first");
  const auto contents = [](FileSystem& fs, const std::string& run) {
    checkpoint::StateReader reader(fs, run);
    std::map<std::string, Matrix> all;
    for (const std::string& path : reader.paths()) {
      if (path.ends_with("/weight")) all[path] = read(reader, path.substr(0, path.size() - 7));
    }
    return all;
  };
  const auto first = contents(lab.fs, "first");
  CHECK(first == contents(lab.fs, "again"));
  CHECK(first == contents(shared.fs, "first"));
  const auto other = contents(lab.fs, "other");
  int differing = 0;
  for (const auto& [path, values] : first) differing += values != other.at(path) ? 1 : 0;
  CHECK(differing == 2 * (1 + 8 * 3));  // routers and experts
  // Experts are not drawn alike.
  CHECK(first.at("model.layers.0.mlp.experts.0.up_proj.weight/weight") !=
        first.at("model.layers.0.mlp.experts.1.up_proj.weight/weight"));
}

TEST_CASE("any layout continues from an upcycled state", "[upcycle]") {
  Lab lab(dense_dims());
  const ModelDims dims = moe_dims();
  (void)lab.upcycle(dims, {.drop_ratio = 0.5});
  checkpoint::StateReader made(lab.fs, "moe");
  const std::string name = "model.layers.1.mlp.experts.5.down_proj.weight";
  const Matrix whole = read(made, name);
  train::TrainPlan plan;
  plan.mesh = {.world = 4, .tp = 2, .dp = 2, .etp = 2, .ep = 2, .edp = 1};
  plan.dims = test::laid_out(dims, {.world = 4, .tp = 2, .ep = 2, .etp = 2});
  plan.dims.padded_vocab = 20;
  plan.specs = model::plan_parameters(plan.dims);
  plan.catalog = catalog_of(plan.dims, plan.mesh);
  std::vector<std::string> found(4);
  comm::run_thread_group(4, [&](comm::Group& world) {
    device::Stream stream{device::cpu()};
    device::Arena no_workspace;
    Context ctx{device::cpu(), stream, no_workspace};
    train::TrainState state(ctx, plan, world.rank());
    const checkpoint::Recovered recovered =
        checkpoint::recover(lab.fs,
                            "moe",
                            checkpoint::ResumeMode::kFromFailure,
                            "",
                            plan.catalog,
                            state.binding(),
                            ctx,
                            world);
    std::string& text = found[std::size_t(world.rank().value)];
    text = fmt::format("fresh {} step {} of {} damages {};",
                       recovered.report.fresh,
                       recovered.report.plan.recovery.step,
                       recovered.identity.incarnation,
                       recovered.report.damages.size());
    for (const parallel::Param& param : state.params().params()) {
      if (param.spec.name != name) continue;
      const Block block = param.owned_block();
      const TensorView values = param.master.row_major();
      bool equal = true;
      for (std::int64_t i = 0; i < values.num_elements(); ++i) {
        const std::int64_t row = block.offset[0] + i / block.extent[1];
        const std::int64_t column = block.offset[1] + i % block.extent[1];
        equal = equal && values.as<double>()[std::size_t(i)] ==
                             whole[std::size_t(row * dims.expert_ffn + column)];
      }
      text += fmt::format(" {} of {}", equal, values.num_elements());
    }
  });
  // Experts 4 to 7 are on the second expert-parallel position, each on two ranks.
  int holders = 0;
  for (const std::string& text : found) {
    CHECK(text.starts_with("fresh false step 0 of 1 damages 0;"));
    holders += text.ends_with(" true of 240") ? 1 : 0;
  }
  CHECK(holders == 2);
}

TEST_CASE("independent indices where nothing is drawn are refused", "[upcycle]") {
  CHECK_THROWS_WITH(
      convert::plan_upcycling(dense_dims(),
                              moe_dims(),
                              {.drop_ratio = 0, .indices = convert::DropIndices::kIndependent}),
      Catch::Contains("independent indices have no effect where no neuron is drawn anew"));
}

TEST_CASE("a conversion that is cut short leaves no run, and can be done again", "[upcycle]") {
  Lab lab(dense_dims());
  const ModelDims moe = moe_dims();
  const std::size_t before = lab.fs.num_mutations();
  (void)lab.upcycle(moe, {}, "whole");
  const std::size_t total = lab.fs.num_mutations() - before;
  checkpoint::StateReader whole(lab.fs, "whole");
  const Matrix expected = read(whole, "model.layers.1.mlp.experts.5.up_proj.weight");
  const std::string config_text = read_text(lab.fs, "whole/config.yaml").value();
  int unfinished = 0;
  for (std::size_t stop = 1; stop <= total; stop += 7) {
    const std::string out = fmt::format("cut-{}", stop);
    lab.fs.stop_at(stop);
    try {
      (void)lab.upcycle(moe, {}, out);
    } catch (const CheckpointError&) {
    }
    // The node goes down, or the process alone, which leaves what it wrote.
    if (stop % 2 == 0) {
      lab.fs.crash();
    } else {
      lab.fs.restart();
    }
    std::optional<checkpoint::StateReader> reader;
    try {
      reader.emplace(lab.fs, out);
    } catch (const CheckpointError&) {
      ++unfinished;
      (void)lab.upcycle(moe, {}, out);
      reader.emplace(lab.fs, out);
    }
    CHECK(read_text(lab.fs, out + "/config.yaml").value() == config_text);
    CHECK(lab.fs.exists(out + "/origin.json"));
    CHECK(read(*reader, "model.layers.1.mlp.experts.5.up_proj.weight") == expected);
  }
  CHECK(unfinished > 10);
  CHECK_THROWS_WITH(lab.upcycle(moe, {}, "whole"), Catch::Contains("holds an earlier run"));
}

TEST_CASE("a damaged dense checkpoint is refused by name", "[upcycle]") {
  Lab lab(dense_dims());
  const std::string base = "dense/checkpoints/step-00000000/";
  const auto entries = lab.fs.list(base.substr(0, base.size() - 1));
  REQUIRE(entries.ok());
  for (const DirEntry& entry : entries.value()) {
    if (!entry.name.ends_with(".state.h5")) continue;
    const std::unique_ptr<File> file = lab.fs.open(base + entry.name, OpenMode::kReadWrite).value();
    // Moments are not read, so that one place might not be missed.
    for (std::uint64_t at = 1000; at < file->size().value(); at += 1000) {
      std::vector<std::byte> byte(1);
      REQUIRE(file->read_at(at, byte).ok());
      byte[0] ^= std::byte{1};
      REQUIRE(file->write_at(at, byte).ok());
    }
  }
  CHECK_THROWS_AS(lab.upcycle(moe_dims(), {}), CheckpointError);
  CHECK_THROWS_WITH(checkpoint::StateReader(lab.fs, "moe"),
                    Catch::Contains("has no whole checkpoint"));
  CHECK_THROWS_WITH(checkpoint::StateReader(lab.fs, "dense", Step{3}),
                    Catch::Contains("no whole checkpoint of step 3"));
  CHECK_THROWS_WITH(checkpoint::StateReader(lab.fs, "nowhere"),
                    Catch::Contains("holds no checkpoints"));
}

TEST_CASE("models that upcycling cannot make are refused with the reason", "[upcycle]") {
  ModelDims dense = dense_dims();
  ModelDims moe = moe_dims();
  UpcycleOptions options;
  std::string reason;
  SECTION("not dense") {
    dense = moe_dims();
    reason = "has 8 experts already";
  }
  SECTION("nothing to make") {
    moe = dense_dims();
    reason = "num_experts=0";
  }
  SECTION("hidden") {
    moe.hidden = 16;
    reason = "model.hidden_size=16, but 12 in the dense run";
  }
  SECTION("layers") {
    moe.num_layers = 3;
    reason = "model.num_layers=3, but 2";
  }
  SECTION("vocabulary") {
    moe.vocab = 20;
    reason = "the vocabulary=20, but 19";
  }
  SECTION("heads") {
    moe.kv_groups = 4;
    reason = "model.num_query_groups=4, but 2";
  }
  SECTION("rotary base, which no shape tells") {
    moe.rotary_base = 5e5;
    reason = "model.rotary_base=500000, but 10000";
  }
  SECTION("norm") {
    moe.normalization = config::Normalization::kLayerNorm;
    reason = "model.normalization is not that of the dense run";
  }
  SECTION("gate") {
    moe.gated_ffn = false;
    reason = "model.swiglu=false, but true";
  }
  SECTION("dense layers of another width") {
    moe.is_moe = {false, true};
    moe.ffn = 80;
    reason = "model.ffn_hidden_size=80, but 40";
  }
  SECTION("a shared expert") {
    moe.shared_ffn = 40;
    reason = "moe_shared_expert_intermediate_size=40";
  }
  SECTION("experts that are no part of the FFN") {
    moe.expert_ffn = 24;
    reason = "moe_ffn_hidden_size=24 does not divide the dense run's model.ffn_hidden_size=40";
  }
  SECTION("wider experts") {
    moe.expert_ffn = 80;
    reason = "moe_ffn_hidden_size=80 does not divide";
  }
  SECTION("copies that are not whole") {
    moe.expert_ffn = 8;
    reason = "num_experts=8 is not divisible by 5";
  }
  SECTION("tokens that would lack parts") {
    moe.expert_ffn = 10;
    reason = "moe_router_topk=2 is not divisible by 4";
  }
  SECTION("groups that cross copies") {
    moe.expert_ffn = 20;
    moe.num_groups = 8;
    reason = "moe_router_num_groups=8 makes groups of 1";
  }
  SECTION("drop ratio") {
    options.drop_ratio = 1.5;
    reason = "drop ratio 1.5";
  }
  SECTION("router") {
    options.router_std = 0;
    reason = "standard deviation of 0";
  }
  CHECK_THROWS_WITH(convert::plan_upcycling(dense, moe, options), Catch::Contains(reason));
}

TEST_CASE("a dense checkpoint must have the parameters that its configuration asks for",
          "[upcycle]") {
  Lab lab(dense_dims());
  ModelDims moe = moe_dims();
  std::string reason;
  SECTION("more") {
    lab.dims.qk_norm = moe.qk_norm = model::QkNorm::kNone;
    reason = "self_attn.k_norm.weight/weight, which its configuration does not ask for";
  }
  SECTION("fewer") {
    lab.dims.tied_embeddings = moe.tied_embeddings = false;
    reason = "no parameter lm_head.weight";
  }
  SECTION("other shapes") {
    lab.dims.ffn = moe.ffn = moe.expert_ffn = 80;
    reason = "has shape [40, 12] in the dense run, but [80, 12]";
  }
  CHECK_THROWS_WITH(lab.upcycle(moe, {}), Catch::Contains(reason));
}

TEST_CASE("the quickstart's model can begin from its dense recipe", "[upcycle]") {
  constexpr std::int64_t kVocab = 4096;
  const auto dims = [](const std::string& name) {
    const std::vector<std::string> files{PECAN_SOURCE_DIR "/configs/" + name + ".yaml"};
    return model::plan_dims(config::load_config(files, {}), kVocab);
  };
  const convert::UpcyclePlan plan =
      convert::plan_upcycling(dims("quickstart-dense"), dims("quickstart"), {});
  CHECK(plan.granularity == 2);
  CHECK(plan.copies == 8);
  CHECK(plan.drawn == 96);
  CHECK(plan.up_scale * plan.down_scale == Approx(2));
}
