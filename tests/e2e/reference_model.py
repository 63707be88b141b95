#!/usr/bin/python3
"""The held-out loss of trained checkpoints, once more: a forward pass in numpy, in double precision.

usage: reference_model.py --bin DIR --mpiexec PATH [VARIANT...]

For each variant of the model: a few steps of training, a full checkpoint, which h5py reads, and the
forward pass by the formulas of the papers and of the Hugging Face models. The loss must agree with
the run's own held-out loss to 2e-7, a few roundings of fp32.
"""

import argparse
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

try:
    import h5py
    import numpy as np
except ImportError as error:
    print(f"skipped: {error}; install python3-h5py and python3-numpy")
    sys.exit(77)

ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,vader", "OMP_NUM_THREADS": "1",
}
VOCABULARY, LENGTH, LAYERS = 97, 24, 3

BASE = {
    "model": {"num_layers": LAYERS, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 48,
              "vocab_size": VOCABULARY, "make_vocab_size_divisible_by": 64, "init_method_std": 0.1},
    "moe": {"num_experts": 8, "moe_ffn_hidden_size": 24, "moe_router_topk": 2, "moe_aux_loss_coeff": 0.01,
            "dispatch_buffer_factor": 4},
    "training": {"seq_length": LENGTH, "micro_batch_size": 2, "global_batch_size": 8, "train_iters": 10},
    "optimizer": {"lr": 0.02, "lr_decay_style": "constant"},
    "checkpoint": {"save_interval": 10},
}
# What differs from BASE, and on how many ranks (all expert-parallel) the variant is trained.
VARIANTS = {
    "gqa": (1, {"model": {"num_query_groups": 2}}),
    "qk_norm": (2, {"model": {"num_query_groups": 2, "qk_layernorm": True}}),
    "qk_norm_across_heads": (1, {"model": {"qk_layernorm": True, "qk_layernorm_across_heads": True}}),
    "shared_expert": (2, {"moe": {"moe_shared_expert_intermediate_size": 40, "moe_layer_freq": [0, 1, 1]}}),
    "softmax_first": (1, {"model": {"untie_embeddings_and_output_weights": True, "kv_channels": 12},
                          "moe": {"moe_router_pre_softmax": True, "moe_router_topk_scaling_factor": 1.5}}),
    "default_vectors": (2, {"moe": {"moe_router_pre_softmax": True, "moe_router_topk_scaling_factor": 1.5,
                                    "default_vectors": {"enabled": True, "beta": 0.7}}}),
    "sigmoid_bias": (2, {"moe": {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True,
                                 "moe_router_bias_update_rate": 0.02, "moe_router_topk_scaling_factor": 2.5}}),
    "sigmoid_groups": (1, {"moe": {"moe_router_score_function": "sigmoid", "moe_router_num_groups": 4,
                                   "moe_router_group_topk": 2, "moe_router_topk": 4}}),
    "gpt": (2, {"model": {"normalization": "LayerNorm", "swiglu": False, "disable_bias_linear": False,
                          "position_embedding_type": "learned_absolute", "max_position_embeddings": 30},
                "moe": {"moe_router_topk": 1, "moe_router_pre_softmax": True, "moe_layer_freq": 2}}),
}


def merged(base, changes):
    return {section: {**base.get(section, {}), **changes.get(section, {})} for section in {**base, **changes}}


def write_dataset(prefix, tokens):
    """One document a sequence of Megatron's indexed dataset, tokens as u16."""
    lengths = np.array([len(t) for t in tokens], "<i4")
    starts = (np.cumsum(lengths, dtype=np.int64) - lengths).astype("<i8") * 2
    pathlib.Path(f"{prefix}.bin").write_bytes(np.concatenate(tokens).astype("<u2").tobytes())
    pathlib.Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(tokens), len(tokens) + 1) + lengths.tobytes()
        + starts.tobytes() + np.arange(len(tokens) + 1, dtype="<i8").tobytes())


def random_text(generator, documents):
    """Documents of a Markov chain, so that there is something to learn."""
    successors = generator.integers(0, VOCABULARY, size=(VOCABULARY, 3))
    result = []
    for _ in range(documents):
        token, text = int(generator.integers(VOCABULARY)), []
        for _ in range(int(generator.integers(20, 90))):
            text.append(token)
            token = int(successors[token, generator.integers(3)])
        result.append(np.array(text))
    return result


def load_checkpoint(run):
    """All weights, router biases and default vectors of the newest checkpoint, in double precision, by name."""
    folder = max((run / "checkpoints").glob("step-*[0-9]"))
    state = {}

    def collect(name, node):
        if isinstance(node, h5py.Dataset) and name.rsplit("/", 1)[-1] in ("weight", "expert_bias", "default_vector"):
            assert node.attrs["step"] == 10, name
            state[name.removesuffix("/weight")] = np.asarray(node[()], dtype=np.float64)

    for shard in sorted(folder.glob("rank-*.h5")):
        with h5py.File(shard, "r") as file:
            file.visititems(collect)
    return state


def softmax(x):
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Reference:
    """The decoder of one configuration."""

    def __init__(self, config, state):
        self.model, self.moe, self.state = config["model"], config["moe"], state
        self.heads = self.model["num_attention_heads"]
        self.groups = self.model.get("num_query_groups", self.heads)
        self.size = self.model.get("kv_channels", self.model["hidden_size"] // self.heads)
        self.epsilon = 1e-5

    def linear(self, name, x):
        y = x @ self.state[f"{name}.weight"].T
        return y + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else y

    def norm(self, name, x):
        weight = self.state[f"{name}.weight"]
        if self.model.get("normalization") == "LayerNorm":
            centred = x - x.mean(axis=-1, keepdims=True)
            scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.epsilon)
            return scaled * weight + self.state[f"{name}.bias"]
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.epsilon) * weight

    def rotate(self, x):
        """x[tokens, heads, size]: element i turns with element i + size / 2."""
        half = self.size // 2
        angles = np.outer(np.arange(len(x)), 10000.0 ** (-np.arange(half) / half))[:, None, :]
        first, second = x[..., :half], x[..., half:]
        return np.concatenate([first * np.cos(angles) - second * np.sin(angles),
                               second * np.cos(angles) + first * np.sin(angles)], axis=-1)

    def attention(self, name, x):
        q, k, v = (self.linear(f"{name}.{p}_proj", x) for p in "qkv")
        if self.model.get("qk_layernorm_across_heads"):
            q, k = self.norm(f"{name}.q_norm", q), self.norm(f"{name}.k_norm", k)
        q = q.reshape(len(x), self.heads, self.size)
        k, v = (y.reshape(len(x), self.groups, self.size) for y in (k, v))
        if self.model.get("qk_layernorm") and not self.model.get("qk_layernorm_across_heads"):
            q, k = self.norm(f"{name}.q_norm", q), self.norm(f"{name}.k_norm", k)
        if self.model.get("position_embedding_type", "rope") == "rope":
            q, k = self.rotate(q), self.rotate(k)
        share = self.heads // self.groups
        k, v = (np.repeat(y, share, axis=1) for y in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(self.size)
        scores[:, np.triu(np.ones((len(x), len(x)), dtype=bool), 1)] = -np.inf
        return self.linear(f"{name}.o_proj", np.einsum("hts,shd->thd", softmax(scores), v).reshape(len(x), -1))

    def mlp(self, name, x):
        up = self.linear(f"{name}.up_proj", x)
        if self.model.get("swiglu", True):
            gate = self.linear(f"{name}.gate_proj", x)
            return self.linear(f"{name}.down_proj", gate * sigmoid(gate) * up)
        gelu = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        return self.linear(f"{name}.down_proj", gelu)

    def choose(self, name, logits):
        """Chosen experts of one token and their weights."""
        k, scale = self.moe["moe_router_topk"], self.moe.get("moe_router_topk_scaling_factor", 1.0)
        by_sigmoid = self.moe.get("moe_router_score_function") == "sigmoid"
        scores = sigmoid(logits) if by_sigmoid else logits
        for_choice = scores + self.state.get(f"{name}.gate/expert_bias", 0.0)
        groups = self.moe.get("moe_router_num_groups", 0)
        if groups:
            kept = self.moe["moe_router_group_topk"]
            by_group = for_choice.reshape(groups, -1)
            best = np.sort(by_group, axis=1)[:, ::-1][:, :k // kept].sum(axis=1)
            outside = np.argsort(-best, kind="stable")[kept:]
            by_group = by_group.copy()
            by_group[outside] = -np.inf
            for_choice = by_group.reshape(-1)
        chosen = np.argsort(-for_choice, kind="stable")[:k]
        if by_sigmoid:
            weights = scores[chosen]
            if k > 1:
                weights = weights / (weights.sum() + 1e-20)
        elif self.moe.get("moe_router_pre_softmax"):
            weights = softmax(logits)[chosen]
        else:
            weights = softmax(logits[chosen])
        return chosen, weights * scale

    def moe_ffn(self, name, x):
        y = np.zeros_like(x)
        for t, logits in enumerate(x @ self.state[f"{name}.gate.weight"].T):
            for expert, weight in zip(*self.choose(name, logits)):
                y[t] += weight * self.mlp(f"{name}.experts.{expert}", x[t])
            if self.moe.get("default_vectors"):
                y[t] += self.instead_of_others(name, logits)
        if self.moe.get("moe_shared_expert_intermediate_size"):
            y += self.mlp(f"{name}.shared_expert", x)
        return y

    def instead_of_others(self, name, logits):
        """What stands for the experts that a token is not sent to: their default vectors, by the weights they would have had."""
        chosen, _ = self.choose(name, logits)
        weights = softmax(logits) * self.moe.get("moe_router_topk_scaling_factor", 1.0)
        return sum(weights[e] * self.state[f"{name}.experts.{e}/default_vector"] for e in range(len(weights)) if e not in chosen)

    def has_experts(self, layer):
        frequency = self.moe.get("moe_layer_freq", 1)
        return frequency[layer] == 1 if isinstance(frequency, list) else layer % frequency == 0

    def losses(self, tokens, labels):
        """Cross entropy of each label, in nats."""
        x = self.state["model.embed_tokens.weight"][tokens]
        if self.model.get("position_embedding_type") == "learned_absolute":
            x = x + self.state["model.embed_positions.weight"][:len(tokens)]
        for layer in range(LAYERS):
            name = f"model.layers.{layer}"
            x = x + self.attention(f"{name}.self_attn", self.norm(f"{name}.input_layernorm", x))
            normed = self.norm(f"{name}.post_attention_layernorm", x)
            x = x + (self.moe_ffn if self.has_experts(layer) else self.mlp)(f"{name}.mlp", normed)
        untied = self.model.get("untie_embeddings_and_output_weights")
        head = self.state["lm_head.weight" if untied else "model.embed_tokens.weight"]
        logits = self.norm("model.norm", x) @ head.T
        return np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + logits.max(axis=1) \
            - logits[np.arange(len(labels)), labels]


def held_out_loss(reference, text):
    """Mean over every token but the first, in windows that begin at the last token of the one before."""
    total = 0.0
    for first in range(0, len(text) - 1, LENGTH):
        window = text[first:first + LENGTH + 1]
        total += reference.losses(window[:-1], window[1:]).sum()
    return total / (len(text) - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--mpiexec", default="mpirun")
    parser.add_argument("variants", nargs="*", metavar="VARIANT")
    arguments = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory(prefix="pecan-reference-") as name:
        folder = pathlib.Path(name)
        generator = np.random.default_rng(5)
        text = random_text(generator, 60)
        write_dataset(folder / "train", text[:52])
        write_dataset(folder / "valid", text[52:])
        for variant in arguments.variants or VARIANTS:
            ranks, changes = VARIANTS[variant]
            config = merged(BASE, changes)
            config["parallel"] = {"expert_model_parallel_size": ranks}
            config["data"] = {"data_path": str(folder / "train"), "valid_data_path": str(folder / "valid")}
            (folder / f"{variant}.yaml").write_text(json.dumps(config))
            run = folder / variant
            done = subprocess.run(
                [arguments.mpiexec, "-n", str(ranks), str(arguments.bin / "pecan-train"), "--config",
                 str(folder / f"{variant}.yaml"), "--run-dir", str(run)],
                env={**os.environ, **ENVIRONMENT}, text=True, timeout=60, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode != 0:
                print(f"FAILED {variant}: exit code {done.returncode}\n{done.stdout}")
                failed.append(variant)
                continue
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            observed = [r for r in records if r.get("kind") == "valid"][-1]["valid_loss"]
            state = load_checkpoint(run)
            expected = held_out_loss(Reference(config, state), np.concatenate(text[52:]))
            good = abs(observed - expected) <= 2e-7 * abs(expected)
            bias = max((np.abs(v).max() for k, v in state.items() if k.endswith("expert_bias")), default=None)
            print(f"{'ok    ' if good else 'FAILED'} {variant}: {ranks} ranks, held-out loss {observed:.7f}, "
                  f"reference {expected:.7f}, difference {abs(observed - expected) / expected:.1e}"
                  + ("" if bias is None else f", largest router bias {bias:.2f}"), flush=True)
            if not good:
                failed.append(variant)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
