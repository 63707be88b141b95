#pragma once
/// The whole decoder once more, in double and plain loops in the order of the formulas; shares no
/// code with the engine.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include <pecan/model/dims.hpp>

namespace pecan::test {

using Matrix = std::vector<std::vector<double>>;

/// Parameters, and biases of routers, by name, row-major.
using Weights = std::map<std::string, std::vector<double>>;

class ReferenceModel {
 public:
  ReferenceModel(const model::ModelDims& dims, const Weights& weights) : d_(dims), w_(weights) {}

  /// What a batch may say of its tokens; empty: positions count from the sequence's start, which
  /// all tokens see.
  std::vector<std::int32_t> positions;
  std::vector<std::int32_t> document_starts;
  /// Default vectors [E, H] by layer: before the micro-batch (none: zeros), and after it. Those in
  /// `held` are used as they are.
  std::map<std::int64_t, Matrix> vectors_before, vectors_after, vectors_held;

  /// Mean cross entropy over all tokens plus the balancing losses with their coefficients, of one
  /// micro-batch.
  double objective(const std::vector<std::int32_t>& tokens,
                   const std::vector<std::int32_t>& labels) {
    balancing_ = 0;
    dropped_ = 0;
    Matrix x;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      x.push_back(row("model.embed_tokens.weight", tokens[t], d_.hidden));
      if (d_.position_embedding == config::PositionEmbedding::kLearnedAbsolute) {
        const auto learned = row("model.embed_positions.weight", position_of(t), d_.hidden);
        for (std::size_t i = 0; i < learned.size(); ++i) x[t][i] += learned[i];
      }
    }
    for (std::int64_t layer = 0; layer < d_.num_layers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer);
      add(x, attention(prefix + ".self_attn", norm(x, prefix + ".input_layernorm")));
      const Matrix normed = norm(x, prefix + ".post_attention_layernorm");
      if (d_.is_moe[std::size_t(layer)]) {
        add(x, moe(layer, prefix + ".mlp", normed));
        if (d_.shared_ffn > 0) add(x, mlp(prefix + ".mlp.shared_expert", normed, d_.shared_ffn));
      } else {
        add(x, mlp(prefix + ".mlp", normed, d_.ffn));
      }
    }
    x = norm(x, "model.norm");
    const Matrix logits =
        product(x, d_.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", d_.vocab);
    cross_entropy_ = 0;
    for (std::size_t t = 0; t < x.size(); ++t) {
      cross_entropy_ += log_sum_exp(logits[t]) - logits[t][std::size_t(labels[t])];
    }
    return cross_entropy_ / double(x.size()) + balancing_;
  }
  [[nodiscard]] double cross_entropy_sum() const { return cross_entropy_; }
  /// Slots over capacity in all layers.
  [[nodiscard]] std::int64_t dropped() const { return dropped_; }

 private:
  std::vector<double> row(const std::string& name, std::int64_t index, std::int64_t width) const {
    const auto& all = w_.at(name);
    return {all.begin() + index * width, all.begin() + (index + 1) * width};
  }

  static void add(Matrix& x, const Matrix& y) {
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t i = 0; i < x[t].size(); ++i) x[t][i] += y[t][i];
    }
  }

  static double log_sum_exp(const std::vector<double>& v) {
    double largest = v[0];
    for (const double value : v) largest = std::max(largest, value);
    double sum = 0;
    for (const double value : v) sum += std::exp(value - largest);
    return largest + std::log(sum);
  }

  Matrix product(const Matrix& x, const std::string& name, std::int64_t outputs) const {
    Matrix y(x.size(), std::vector<double>(std::size_t(outputs), 0));
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::int64_t o = 0; o < outputs; ++o) {
        const auto weights = row(name, o, std::int64_t(x[t].size()));
        y[t][std::size_t(o)] = std::inner_product(x[t].begin(), x[t].end(), weights.begin(), 0.0);
      }
    }
    return y;
  }

  /// y = x W^T + b.
  Matrix linear(const Matrix& x, const std::string& name, std::int64_t outputs) const {
    Matrix y = product(x, name + ".weight", outputs);
    if (d_.linear_bias) {
      for (auto& token : y) {
        for (std::size_t o = 0; o < token.size(); ++o) token[o] += w_.at(name + ".bias")[o];
      }
    }
    return y;
  }

  void normalise(std::vector<double>& v, const std::string& name) const {
    const bool centred = d_.normalization == config::Normalization::kLayerNorm;
    const double size = double(v.size());
    const double mean = centred ? std::accumulate(v.begin(), v.end(), 0.0) / size : 0.0;
    double mean_square = 0;
    for (const double value : v) mean_square += (value - mean) * (value - mean) / size;
    for (std::size_t i = 0; i < v.size(); ++i) {
      v[i] = (v[i] - mean) * w_.at(name + ".weight")[i] / std::sqrt(mean_square + d_.norm_epsilon);
      if (centred) v[i] += w_.at(name + ".bias")[i];
    }
  }

  Matrix norm(Matrix x, const std::string& name) const {
    for (auto& token : x) normalise(token, name);
    return x;
  }

  [[nodiscard]] std::int64_t position_of(std::size_t t) const {
    return positions.empty() ? std::int64_t(t) % d_.sequence : positions[t];
  }

  std::vector<double> head_of(const std::vector<double>& token, std::int64_t head) const {
    return {token.begin() + head * d_.head_dim, token.begin() + (head + 1) * d_.head_dim};
  }

  std::vector<double> rotated(const std::vector<double>& v, std::int64_t position) const {
    std::vector<double> out(v.size());
    const std::size_t half = v.size() / 2;
    for (std::size_t i = 0; i < half; ++i) {
      const double angle =
          double(position) * std::pow(d_.rotary_base, -2.0 * double(i) / double(v.size()));
      out[i] = v[i] * std::cos(angle) - v[i + half] * std::sin(angle);
      out[i + half] = v[i + half] * std::cos(angle) + v[i] * std::sin(angle);
    }
    return out;
  }

  Matrix attention(const std::string& prefix, const Matrix& x) const {
    Matrix q = linear(x, prefix + ".q_proj", d_.heads * d_.head_dim);
    Matrix k = linear(x, prefix + ".k_proj", d_.kv_groups * d_.head_dim);
    const Matrix v = linear(x, prefix + ".v_proj", d_.kv_groups * d_.head_dim);
    if (d_.qk_norm == model::QkNorm::kWhole) {
      q = norm(q, prefix + ".q_norm");
      k = norm(k, prefix + ".k_norm");
    }
    Matrix out(x.size(), std::vector<double>(std::size_t(d_.heads * d_.head_dim), 0));
    const auto prepared =
        [&](const Matrix& m, const char* norm_name, std::size_t t, std::int64_t head) {
          std::vector<double> values = head_of(m[t], head);
          if (d_.qk_norm == model::QkNorm::kPerHead) normalise(values, prefix + norm_name);
          if (d_.position_embedding != config::PositionEmbedding::kRope) return values;
          return rotated(values, position_of(t));
        };
    for (std::size_t t = 0; t < x.size(); ++t) {
      std::size_t first = t / std::size_t(d_.sequence) * std::size_t(d_.sequence);
      if (!document_starts.empty()) first += std::size_t(document_starts[t]);
      for (std::int64_t head = 0; head < d_.heads; ++head) {
        const std::int64_t group = head / (d_.heads / d_.kv_groups);
        const auto query = prepared(q, ".q_norm", t, head);
        std::vector<double> scores;
        for (std::size_t s = first; s <= t; ++s) {
          const auto key = prepared(k, ".k_norm", s, group);
          scores.push_back(std::inner_product(query.begin(), query.end(), key.begin(), 0.0) /
                           std::sqrt(double(d_.head_dim)));
        }
        const double total = log_sum_exp(scores);
        for (std::size_t s = first; s <= t; ++s) {
          const auto value = head_of(v[s], group);
          for (std::int64_t i = 0; i < d_.head_dim; ++i) {
            out[t][std::size_t(head * d_.head_dim + i)] +=
                std::exp(scores[s - first] - total) * value[std::size_t(i)];
          }
        }
      }
    }
    return linear(out, prefix + ".o_proj", d_.hidden);
  }

  Matrix mlp(const std::string& prefix, const Matrix& x, std::int64_t ffn) const {
    Matrix h = linear(x, prefix + ".up_proj", ffn);
    const Matrix gate = d_.gated_ffn ? linear(x, prefix + ".gate_proj", ffn) : h;
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t i = 0; i < h[t].size(); ++i) {
        const double g = gate[t][i];
        if (d_.gated_ffn) {
          h[t][i] *= g / (1 + std::exp(-g));
        } else {
          h[t][i] =
              g / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g)));
        }
      }
    }
    return linear(h, prefix + ".down_proj", d_.hidden);
  }

  /// Indices of the `count` largest, in descending order, equal ones by lower index.
  static std::vector<std::size_t> largest(const std::vector<double>& values, std::size_t count) {
    std::vector<std::size_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(
        order.begin(), order.end(), [&](auto a, auto b) { return values[a] > values[b]; });
    order.resize(count);
    return order;
  }

  /// Scores with those of all groups but the best put out of reach.
  std::vector<double> within_groups(std::vector<double> scores) const {
    const std::size_t size = scores.size() / std::size_t(d_.num_groups);
    std::vector<double> sums;
    for (std::size_t first = 0; first < scores.size(); first += size) {
      const std::vector<double> members(scores.begin() + std::ptrdiff_t(first),
                                        scores.begin() + std::ptrdiff_t(first + size));
      sums.push_back(0);
      for (const std::size_t e : largest(members, std::size_t(d_.topk / d_.group_topk)))
        sums.back() += members[e];
    }
    const auto best = largest(sums, std::size_t(d_.group_topk));
    for (std::size_t e = 0; e < scores.size(); ++e) {
      if (std::find(best.begin(), best.end(), e / size) == best.end()) scores[e] = -1e300;
    }
    return scores;
  }

  /// One token's way through the router.
  struct Routing {
    std::vector<std::size_t> experts;
    std::vector<double> weights;
    std::vector<double> probabilities;  ///< of all experts, for the auxiliary loss
    std::vector<std::size_t> balanced;  ///< experts that the auxiliary loss counts
  };
  Routing route(std::int64_t layer, std::size_t t, const std::vector<double>& logits) const {
    const std::size_t k = std::size_t(d_.topk);
    const bool sigmoid = d_.score_function == config::ScoreFunction::kSigmoid;
    Routing routing;
    std::vector<double> scores, s;
    double sum = 0;
    for (const double logit : logits) {
      s.push_back(sigmoid ? 1 / (1 + std::exp(-logit)) : std::exp(logit - log_sum_exp(logits)));
      sum += s.back();
    }
    for (std::size_t e = 0; e < s.size(); ++e) {
      routing.probabilities.push_back(s[e] / sum);
      scores.push_back(sigmoid || d_.router_pre_softmax ? s[e] : logits[e]);
    }
    routing.balanced = largest(scores, k);
    if (d_.expert_bias) {
      const auto& bias = w_.at("model.layers." + std::to_string(layer) + ".mlp.gate.expert_bias");
      for (std::size_t e = 0; e < s.size(); ++e) scores[e] += bias[e];
    }
    routing.experts = largest(d_.num_groups > 0 ? within_groups(scores) : scores, k);
    if (d_.force_balance) {
      for (std::size_t i = 0; i < k; ++i)
        routing.experts[i] = (std::size_t(layer) + t * k + i) % s.size();
      routing.balanced = routing.experts;
    }
    double chosen = 0;
    for (const std::size_t e : routing.experts) chosen += s[e];
    const bool normalised = sigmoid ? k > 1 : !d_.router_pre_softmax;
    for (const std::size_t e : routing.experts)
      routing.weights.push_back(d_.router_scaling * (normalised ? s[e] / chosen : s[e]));
    return routing;
  }

  void add_default_vectors(std::int64_t layer,
                           const Matrix& sums,
                           const std::vector<Routing>& routings,
                           const std::vector<std::vector<bool>>& reached,
                           Matrix& y) {
    Matrix vectors(sums.size(), std::vector<double>(std::size_t(d_.hidden), 0));
    if (vectors_before.contains(layer)) vectors = vectors_before.at(layer);
    for (std::size_t e = 0; e < sums.size(); ++e) {
      if (sums[e].back() == 0) continue;
      for (std::size_t h = 0; h < vectors[e].size(); ++h) {
        const double mean = sums[e][h] / sums[e].back();
        vectors[e][h] = d_.default_beta * vectors[e][h] + (1 - d_.default_beta) * mean;
      }
    }
    vectors_after[layer] = vectors;
    if (vectors_held.contains(layer)) vectors = vectors_held.at(layer);
    for (std::size_t t = 0; t < y.size(); ++t) {
      for (std::size_t e = 0; e < sums.size(); ++e) {
        if (reached[t][e]) continue;
        const double weight = d_.router_scaling * routings[t].probabilities[e];
        for (std::size_t h = 0; h < y[t].size(); ++h) y[t][h] += weight * vectors[e][h];
      }
    }
  }

  Matrix moe(std::int64_t layer, const std::string& prefix, const Matrix& x) {
    const Matrix logits = product(x, prefix + ".gate.weight", d_.num_experts);
    const std::size_t experts = std::size_t(d_.num_experts);
    const double tokens = double(x.size());
    std::vector<Routing> routings;
    std::vector<double> counts(experts, 0), probabilities(experts, 0);
    double z = 0;
    for (std::size_t t = 0; t < x.size(); ++t) {
      const double total = log_sum_exp(logits[t]);
      z += total * total / tokens;
      routings.push_back(route(layer, t, logits[t]));
      for (const std::size_t e : routings[t].balanced) counts[e] += 1;
      for (std::size_t e = 0; e < experts; ++e) probabilities[e] += routings[t].probabilities[e];
    }
    Matrix y(x.size(), std::vector<double>(std::size_t(d_.hidden), 0));
    Matrix sums(experts, std::vector<double>(std::size_t(d_.hidden) + 1, 0));
    std::vector<std::vector<bool>> reached(x.size(), std::vector<bool>(experts, false));
    for (std::size_t e = 0; e < experts; ++e) {
      // The tokens that chose e, in order, with their weights.
      std::vector<std::size_t> choosers;
      std::vector<double> weights;
      for (std::size_t t = 0; t < x.size(); ++t) {
        for (std::size_t i = 0; i < routings[t].experts.size(); ++i) {
          if (routings[t].experts[i] != e) continue;
          choosers.push_back(t);
          weights.push_back(routings[t].weights[i]);
        }
      }
      std::size_t room = choosers.size();
      if (d_.capacity_factor > 0) {
        const double even = tokens * double(d_.topk) / double(experts);
        room = std::min(room, std::size_t(std::ceil(even * d_.capacity_factor)));
      }
      dropped_ += std::int64_t(choosers.size() - room);
      std::vector<std::size_t> first_come(choosers.size());
      std::iota(first_come.begin(), first_come.end(), 0);
      first_come.resize(room);
      const bool by_weight = d_.drop_policy == config::TokenDropPolicy::kProbs;
      for (const std::size_t i : by_weight ? largest(weights, room) : first_come) {
        const std::size_t t = choosers[i];
        const Matrix result = mlp(prefix + ".experts." + std::to_string(e), {x[t]}, d_.expert_ffn);
        for (std::size_t h = 0; h < result[0].size(); ++h) {
          y[t][h] += weights[i] * result[0][h];
          sums[e][h] += weights[i] * result[0][h];
        }
        sums[e].back() += weights[i];
        reached[t][e] = true;
      }
    }
    if (d_.default_vectors) add_default_vectors(layer, sums, routings, reached, y);
    const double aux = double(d_.num_experts) / (double(d_.topk) * tokens * tokens) *
                       std::inner_product(counts.begin(), counts.end(), probabilities.begin(), 0.0);
    balancing_ += d_.aux_loss_coeff * aux + d_.z_loss_coeff * z;
    return y;
  }

  const model::ModelDims& d_;
  const Weights& w_;
  double balancing_ = 0;
  double cross_entropy_ = 0;
  std::int64_t dropped_ = 0;
};

}  // namespace pecan::test
