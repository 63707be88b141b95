#pragma once
/// The state of an upcycled model, made item by item from a dense one.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <pecan/core/state_catalog.hpp>

#include <pecan/checkpoint/state_reader.hpp>

#include <pecan/convert/upcycle.hpp>

namespace pecan::convert {

/// `catalog` as if a rank held each layer, one what comes before the first and one what follows the
/// last, with whole items: what is made and written at a time.
[[nodiscard]] StateCatalog by_layer(StateCatalog catalog, std::int64_t num_layers);

/// Makes any item of an upcycled model; all of it follows from the dense parameters and the
/// options. Keeps the FFN of one dense layer in memory.
class UpcycledState final : public StateBinding {
 public:
  /// Arguments outlive the object; `catalog` is by_layer. ConfigError unless the dense run has
  /// exactly the parameters that the items need, in their shapes.
  UpcycledState(checkpoint::StateReader& dense,
                const StateCatalog& catalog,
                const model::ModelDims& dense_dims,
                const model::ModelDims& dims,
                const UpcyclePlan& plan,
                const UpcycleOptions& options);
  void copy_out(ItemIndex item,
                const Block& block,
                std::span<std::byte> destination) const override;
  void copy_in(ItemIndex item, const Block& block, std::span<const std::byte> source) override;

 private:
  /// A parameter of a dense FFN, in double.
  struct DenseMatrix {
    std::string name;
    std::vector<double> values;
  };
  /// Where the neurons of an expert come from.
  struct Neurons {
    LayerId layer;
    ExpertId expert;
    std::vector<std::int64_t> source;  ///< neuron of the dense FFN, by neuron of the expert
  };

  void check_parameters() const;
  void make_router(const StateItem& item, std::span<std::byte> destination) const;
  void make_expert(const StateItem& item, std::span<std::byte> destination) const;
  void copy_dense(const StateItem& item, std::span<std::byte> destination) const;
  [[nodiscard]] const std::vector<double>& dense_matrix(LayerId layer,
                                                        const std::string& name) const;
  [[nodiscard]] const Neurons& neurons_of(const StateUnit& unit) const;
  /// By neuron of the expert, whether the matrix's weights of it are drawn anew.
  [[nodiscard]] std::vector<bool> drawn_of(const StateUnit& unit, const std::string& matrix) const;

  checkpoint::StateReader& dense_;
  const StateCatalog& catalog_;
  const model::ModelDims& dense_dims_;
  const model::ModelDims& dims_;
  const UpcyclePlan& plan_;
  const UpcycleOptions& options_;
  // Of the layer and expert that are being made: items come in the catalog's order.
  mutable LayerId cached_layer_ = kNoLayer;
  mutable std::vector<DenseMatrix> cached_;
  mutable std::optional<Neurons> neurons_;
};

}  // namespace pecan::convert
