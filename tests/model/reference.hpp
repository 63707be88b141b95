#pragma once
/// The whole decoder once more, in double and plain loops in the order of the formulas; shares no
/// code with the engine.

#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include <pecan/model/dims.hpp>

namespace pecan::test {

using Matrix = std::vector<std::vector<double>>;

/// Parameters by name, row-major.
using Weights = std::map<std::string, std::vector<double>>;

class ReferenceModel {
 public:
  ReferenceModel(const model::ModelDims& dims, const Weights& weights) : d_(dims), w_(weights) {}

  /// Mean cross entropy over all tokens plus the balancing losses with their coefficients, of one
  /// micro-batch.
  double objective(const std::vector<std::int32_t>& tokens,
                   const std::vector<std::int32_t>& labels) {
    balancing_ = 0;
    Matrix x;
    for (const std::int32_t token : tokens)
      x.push_back(row("model.embed_tokens.weight", token, d_.hidden));
    for (std::int64_t layer = 0; layer < d_.num_layers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer);
      add(x, attention(prefix + ".self_attn", norm(x, prefix + ".input_layernorm.weight")));
      const Matrix normed = norm(x, prefix + ".post_attention_layernorm.weight");
      if (d_.is_moe[std::size_t(layer)]) {
        add(x, moe(prefix + ".mlp", normed));
        if (d_.shared_ffn > 0) add(x, mlp(prefix + ".mlp.shared_expert", normed, d_.shared_ffn));
      } else {
        add(x, mlp(prefix + ".mlp", normed, d_.ffn));
      }
    }
    x = norm(x, "model.norm.weight");
    const Matrix logits =
        product(x, d_.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", d_.vocab);
    cross_entropy_ = 0;
    for (std::size_t t = 0; t < x.size(); ++t) {
      cross_entropy_ += log_sum_exp(logits[t]) - logits[t][std::size_t(labels[t])];
    }
    return cross_entropy_ / double(x.size()) + balancing_;
  }
  [[nodiscard]] double cross_entropy_sum() const { return cross_entropy_; }

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

  void normalise(std::vector<double>& v, const std::string& name) const {
    double mean_square = 0;
    for (const double value : v) mean_square += value * value / double(v.size());
    for (std::size_t i = 0; i < v.size(); ++i)
      v[i] *= w_.at(name)[i] / std::sqrt(mean_square + d_.norm_epsilon);
  }

  Matrix norm(Matrix x, const std::string& name) const {
    for (auto& token : x) normalise(token, name);
    return x;
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
    const Matrix q = product(x, prefix + ".q_proj.weight", d_.heads * d_.head_dim);
    const Matrix k = product(x, prefix + ".k_proj.weight", d_.kv_groups * d_.head_dim);
    const Matrix v = product(x, prefix + ".v_proj.weight", d_.kv_groups * d_.head_dim);
    Matrix out(x.size(), std::vector<double>(std::size_t(d_.heads * d_.head_dim), 0));
    const auto prepared =
        [&](const Matrix& m, const char* norm_name, std::size_t t, std::int64_t head) {
          std::vector<double> values = head_of(m[t], head);
          if (d_.qk_norm == model::QkNorm::kPerHead) normalise(values, prefix + norm_name);
          return rotated(values, std::int64_t(t) % d_.sequence);
        };
    for (std::size_t t = 0; t < x.size(); ++t) {
      const std::size_t first = t / std::size_t(d_.sequence) * std::size_t(d_.sequence);
      for (std::int64_t head = 0; head < d_.heads; ++head) {
        const std::int64_t group = head / (d_.heads / d_.kv_groups);
        const auto query = prepared(q, ".q_norm.weight", t, head);
        std::vector<double> scores;
        for (std::size_t s = first; s <= t; ++s) {
          const auto key = prepared(k, ".k_norm.weight", s, group);
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
    return product(out, prefix + ".o_proj.weight", d_.hidden);
  }

  Matrix mlp(const std::string& prefix, const Matrix& x, std::int64_t ffn) const {
    Matrix gate = product(x, prefix + ".gate_proj.weight", ffn);
    const Matrix up = product(x, prefix + ".up_proj.weight", ffn);
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t i = 0; i < gate[t].size(); ++i)
        gate[t][i] = gate[t][i] / (1 + std::exp(-gate[t][i])) * up[t][i];
    }
    return product(gate, prefix + ".down_proj.weight", d_.hidden);
  }

  Matrix moe(const std::string& prefix, const Matrix& x) {
    const Matrix logits = product(x, prefix + ".gate.weight", d_.num_experts);
    const std::size_t experts = std::size_t(d_.num_experts);
    Matrix y(x.size(), std::vector<double>(std::size_t(d_.hidden), 0));
    std::vector<double> counts(experts, 0), probabilities(experts, 0);
    double z = 0;
    for (std::size_t t = 0; t < x.size(); ++t) {
      const double total = log_sum_exp(logits[t]);
      z += total * total / double(x.size());
      for (std::size_t e = 0; e < experts; ++e) probabilities[e] += std::exp(logits[t][e] - total);
      std::vector<std::size_t> order(experts);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(
          order.begin(), order.end(), [&](auto a, auto b) { return logits[t][a] > logits[t][b]; });
      order.resize(std::size_t(d_.topk));
      std::vector<double> chosen;
      for (const std::size_t e : order) chosen.push_back(logits[t][e]);
      const double denominator = d_.router_pre_softmax ? total : log_sum_exp(chosen);
      for (const std::size_t e : order) {
        counts[e] += 1;
        const double weight = std::exp(logits[t][e] - denominator) * d_.router_scaling;
        const Matrix result = mlp(prefix + ".experts." + std::to_string(e), {x[t]}, d_.expert_ffn);
        for (std::size_t i = 0; i < result[0].size(); ++i) y[t][i] += weight * result[0][i];
      }
    }
    const double tokens = double(x.size());
    const double aux = double(d_.num_experts) / (double(d_.topk) * tokens * tokens) *
                       std::inner_product(counts.begin(), counts.end(), probabilities.begin(), 0.0);
    balancing_ += d_.aux_loss_coeff * aux + d_.z_loss_coeff * z;
    return y;
  }

  const model::ModelDims& d_;
  const Weights& w_;
  double balancing_ = 0;
  double cross_entropy_ = 0;
};

}  // namespace pecan::test
