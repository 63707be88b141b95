#include <algorithm>

#include <nlohmann/json.hpp>

#include <pecan/core/build_info.hpp>
#include <pecan/core/hash.hpp>

#include <pecan/checkpoint/root.hpp>

#include <pecan/convert/upcycle.hpp>

#include "convert/expert_state.hpp"

namespace pecan::convert {
namespace {

/// What the inspector reads in manifests of runs: no token was routed yet.
std::string manifest_extra(const config::Config& config, const model::ModelDims& dims) {
  const std::vector<std::vector<std::int64_t>> routed(
      std::size_t(dims.num_moe_layers()), std::vector<std::int64_t>(std::size_t(dims.num_experts)));
  const nlohmann::json extra{{"routed", routed},
                             {"retention",
                              {{"keep_latest_k", config.checkpoint.keep_latest_k},
                               {"save_retain_interval", config.checkpoint.save_retain_interval},
                               {"fallback_copies", config.checkpoint.fallback_copies}}}};
  return extra.dump();
}

std::string origin(const checkpoint::Manifest& dense,
                   const UpcyclePlan& plan,
                   const UpcycleOptions& options) {
  const nlohmann::ordered_json origin{{"format", "pecan-origin"},
                                      {"made_by", "upcycle"},
                                      {"from",
                                       {{"run_id", dense.run_id},
                                        {"incarnation", dense.version.incarnation.value},
                                        {"step", dense.version.step.value},
                                        {"model_fingerprint", to_hex(dense.model_fingerprint)}}},
                                      {"drop_ratio", options.drop_ratio},
                                      {"indices", name_of(options.indices)},
                                      {"drawn_neurons", plan.drawn},
                                      {"granularity", plan.granularity},
                                      {"up_scale", plan.up_scale},
                                      {"down_scale", plan.down_scale},
                                      {"down_bias_scale", plan.down_bias_scale},
                                      {"router_std", options.router_std},
                                      {"seed", options.seed},
                                      {"build", build_info().version + " " + build_info().git_id}};
  return origin.dump(2) + "\n";
}

void write_file(FileSystem& fs, const std::string& path, const std::string& text) {
  const Status status = write_text_atomically(fs, path, text);
  PECAN_VALIDATE(status.ok(), CheckpointError, "{}", status.message);
}

std::uint64_t largest_part(const StateCatalog& parts) {
  std::vector<std::uint64_t> bytes(std::size_t(parts.world_size));
  for (const StateItem& item : parts.items)
    bytes[std::size_t(item.blocks.front().holders.front().value)] += item.num_bytes();
  return std::ranges::max(bytes);
}

}  // namespace

UpcycleReport upcycle(FileSystem& fs,
                      checkpoint::StateReader& dense,
                      const model::ModelDims& dense_dims,
                      const config::Config& config,
                      const model::ModelDims& dims,
                      const StateCatalog& catalog,
                      const UpcycleOptions& options,
                      const std::string& out) {
  UpcycleReport report;
  report.plan = plan_upcycling(dense_dims, dims, options);
  const StateCatalog parts = by_layer(catalog, dims.num_layers);
  const UpcycledState state(dense, parts, dense_dims, dims, report.plan, options);
  checkpoint::refuse_used_directory(fs, out, "choose another one");
  // Before the checkpoint, whose commit makes the directory a run: what is cut short can be
  // repeated, and a run has its configuration.
  const Status made = fs.create_directories(out);
  PECAN_VALIDATE(made.ok(), CheckpointError, "{}", made.message);
  write_file(fs, out + "/origin.json", origin(dense.manifest(), report.plan, options));
  write_file(fs, out + "/config.yaml", config::dump_config(config));
  const checkpoint::Manifest manifest =
      checkpoint::write_root(fs,
                             out,
                             config.checkpoint,
                             parts,
                             state,
                             config.parallel.expert_model_parallel_size,
                             manifest_extra(config, dims));
  for (const parallel::ParamSpec& spec : model::plan_parameters(dims))
    report.parameters += spec.shape.num_elements();
  report.num_files = std::int64_t(manifest.files.size());
  for (const checkpoint::FileEntry& file : manifest.files)
    report.num_bytes += file.digest.num_bytes;
  report.largest_bytes = largest_part(parts);
  return report;
}

}  // namespace pecan::convert
