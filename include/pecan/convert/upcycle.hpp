#pragma once
/// Upcycling: the first state of a mixture of experts, made from a dense model.

#include <cstdint>
#include <string>
#include <string_view>

#include <pecan/core/file_system.hpp>
#include <pecan/core/state_catalog.hpp>

#include <pecan/config/config.hpp>

#include <pecan/model/dims.hpp>

#include <pecan/checkpoint/state_reader.hpp>

namespace pecan::convert {

/// Which neurons' weights are drawn anew.
enum class DropIndices : std::uint8_t {
  kShared,       ///< the same neurons in all matrices of an expert: whole neurons
  kIndependent,  ///< other neurons in each of its matrices
};

struct UpcycleOptions {
  double drop_ratio = 0.5;  ///< share of an expert's neurons that is drawn anew, 0 to 1
  DropIndices indices = DropIndices::kShared;
  double router_std = 0.02;  ///< of the routers' weights, > 0
  std::uint64_t seed = 1234;
};

/// How the FFN of a dense layer becomes the experts of a layer. F: its neurons, f: an expert's,
/// E: experts, K: those of a token.
struct UpcyclePlan {
  std::int64_t granularity = 1;  ///< G = F/f: expert e begins as neurons [f*(e mod G), + f)
  std::int64_t copies = 1;       ///< R = E/G: complete copies of the FFN, expert e in number e/G
  std::int64_t drawn = 0;        ///< neurons of an expert that are drawn anew, int(drop_ratio*f)
  /// Sum of a token's routing weights: exact where they are normalised, else that of a router that
  /// prefers none: K/E for softmax before the choice, 1/2 for one expert by its sigmoid.
  double weight_sum = 1;
  /// Of up_proj and of down_proj, so that the layer gives what the dense FFN gave: together
  /// G / weight_sum, equally on both where there is a gate, else on down_proj alone.
  double up_scale = 1;
  double down_scale = 1;
  double down_bias_scale = 1;  ///< 1 / weight_sum: each of the K experts adds its bias
};

/// Checks that `moe` can begin as a copy of `dense` and says how. Throws ConfigError with the
/// reason where it cannot: models that differ in more than their FFNs, widths that do not divide,
/// experts of a token that do not make up whole copies, a shared expert. Pure. Source:
/// Drop-Upcycling, arXiv 2502.19261, section 3; granularity, virtual groups and scale from arXiv
/// 2410.07524 (Megatron-LM). Differs from the sources: the scale is on the matrices in which the
/// FFN is linear, which keeps its output through any activation, where Megatron puts a third root
/// of it on the gate too; it applies at every drop_ratio; biases follow their neurons.
[[nodiscard]] UpcyclePlan plan_upcycling(const model::ModelDims& dense,
                                         const model::ModelDims& moe,
                                         const UpcycleOptions& options);

/// What was made.
struct UpcycleReport {
  UpcyclePlan plan;
  std::int64_t parameters = 0;      ///< of the mixture of experts
  std::int64_t num_files = 0;       ///< of the checkpoint
  std::uint64_t num_bytes = 0;      ///< of these
  std::uint64_t largest_bytes = 0;  ///< of the new state that was in memory at once
};

/// Writes the run directory `out`: the checkpoint of step 0, its configuration, and origin.json,
/// which says where the state came from. `dense` and `dense_dims` are of the dense run, `config`,
/// `dims` and `catalog` of the run to be, the catalog of any layout.
/// Every layer's experts are, one by one: the neurons in a random order (the dense one where none
/// is drawn), the drawn ones from the normal distribution with mean and standard deviation of the
/// weights that they replace, matrix by matrix. Routers are drawn, a row for each copy of the FFN;
/// all other parameters are copied; moments and counters are zero. A pure function of the dense
/// parameters, the options and the configuration, whatever layout wrote the ones or reads the
/// other. Memory: the state of one layer, or of the embedding, and the dense FFN of the layer in
/// double precision.
/// Throws ConfigError as plan_upcycling and for a dense checkpoint with other parameters than
/// dense_dims, CheckpointError where one cannot be read or the other not be written. Not
/// collective.
UpcycleReport upcycle(FileSystem& fs,
                      checkpoint::StateReader& dense,
                      const model::ModelDims& dense_dims,
                      const config::Config& config,
                      const model::ModelDims& dims,
                      const StateCatalog& catalog,
                      const UpcycleOptions& options,
                      const std::string& out);

/// "shared" or "independent".
[[nodiscard]] std::string_view name_of(DropIndices indices);

}  // namespace pecan::convert
