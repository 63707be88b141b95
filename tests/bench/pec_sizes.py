#!/usr/bin/env python3
"""Sizes and sharding of partial checkpoints beside the figures that the papers print (docs/reproduction.md).

Runs pecan-plan --json and prints three Markdown tables: sizes of checkpoints with one expert a layer, bytes of the most
loaded rank by sharding policy, and the same in the papers' arrangement (2-byte weights dealt out, 12 bytes of optimizer
state split by ZeRO), which Pecan does not write: a model of it in this file, checked against pecan-plan where both apply.
Exit code 1 if they differ.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

LAYOUTS = (("8 GPUs, DP 8, EP 8", 8, 8), ("16 GPUs, DP 16, EP 16", 16, 16), ("16 GPUs, DP 16, EP 8", 16, 8))


def plan(arguments, model, world, experts, *settings):
    command = [arguments.bin / "pecan-plan", "--config", arguments.configs / f"{model}.yaml", "--world", str(world), "--json"]
    for setting in (f"checkpoint.pec.experts_per_checkpoint={experts}", *settings):
        command += ["--set", setting]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def header(*cells):
    row(*cells)
    row(*["---"] + ["---:"] * (len(cells) - 1))


def less(new, old):
    """"-12.3": by how many percent it became less."""
    percent = round(100 * (new / old - 1), 1)
    return f"{percent:.1f}" if percent else "0"


def sizes(arguments):
    print("Share of a full checkpoint with 1 expert a layer\n")
    header("model", "parameters, M", "in experts, %", "eq6, 14 B", "weights_full, 14 B", "master_full, 14 B", "W, 14 B", "O, 14 B",
           "eq6, written", "weights_full, written", "master_full, written")
    for model in ("gpt-125m-8e", "gpt-125m-8e-all-layers", "gpt-350m-16e"):
        made = plan(arguments, model, 8, 1)
        counts, checkpoint = made["parameters"], made["checkpoint"]
        modes = [checkpoint["byte_modes"][mode] for mode in ("eq6", "weights_full", "master_full")]
        share = counts["expert"] / counts["total"]

        def rotating(num_bytes):
            """Share if so many of the 14 bytes rotate, and the others stand in every checkpoint."""
            return 1 - share * (1 - 1 / checkpoint["num_experts"]) * num_bytes / 14

        row(model, f"{counts['total'] / 1e6:.1f}", f"{100 * share:.2f}", *[f"{mode['papers_share']:.4f}" for mode in modes],
            f"{rotating(2):.4f}", f"{rotating(8):.4f}", *[f"{mode['share']:.4f}" for mode in modes])
        if model == "gpt-125m-8e-all-layers":
            half = 1 - modes[2]["papers_share"] / 2
    print(f"\nA master_full checkpoint of gpt-125m-8e-all-layers split over 2 ranks is {100 * half:.1f} % less than one full writer's.\n")


def sharding(arguments):
    print("GPT-350M-16E: MB of the most loaded rank, as pecan-plan says\n")
    header("layout", "ZeRO-1", "checkpoint", "rank0", "equal", "adaptive", "equal against rank0, %", "adaptive against equal, %",
           "max/mean of adaptive")
    for label, world, ep in LAYOUTS:
        for zero in ("false", "true"):
            made = plan(arguments, "gpt-350m-16e", world, 1, f"parallel.expert_model_parallel_size={ep}",
                        f"parallel.use_distributed_optimizer={zero}")["checkpoint"]["sharding"]
            for what, name in (("full", "full"), ("partial", "K = 1")):
                most = [made[policy][what]["max_rank_bytes"] for policy in ("rank0", "equal", "adaptive")]
                row(label, "yes" if zero == "true" else "no", name, *[f"{m / 1e6:.1f}" for m in most], less(most[1], most[0]),
                    less(most[2], most[1]), f"{made['adaptive'][what]['imbalance']:.3f}")
    print()


class Gpt:
    """Shapes of a GPT with experts in every second layer."""

    def __init__(self, config):
        keys = dict(re.findall(r"^  (\w+): ([\d.]+)$", config.read_text(), re.MULTILINE))
        hidden, ffn, self.layers, self.experts = (int(keys[k]) for k in ("hidden_size", "ffn_hidden_size", "num_layers", "num_experts"))
        self.moe_layers = self.layers // int(keys["moe_layer_freq"])
        mlp = [hidden * ffn, ffn, ffn * hidden, hidden]
        self.expert = sum(mlp)
        attention = 4 * [hidden * hidden, hidden]
        norm = [hidden, hidden]
        # As tensors, and as the modules that a framework would deal out.
        self.tensors = [int(keys["vocab_size"]) * hidden, int(keys["max_position_embeddings"]) * hidden, *norm]
        self.modules = [self.tensors[0], self.tensors[1], 2 * hidden]
        for layer in range(self.layers):
            rest = [self.experts * hidden] if layer % int(keys["moe_layer_freq"]) == 0 else mlp
            self.tensors += attention + 2 * norm + rest
            self.modules += [sum(attention), sum(rest), 2 * hidden, 2 * hidden]
        self.non_expert = sum(self.tensors)
        assert self.non_expert == sum(self.modules)


def selection(gpt, ep, experts, checkpoint):
    """(layer, expert) of a sequential checkpoint: the formula of papers on PEC."""
    for m in range(gpt.moe_layers):
        for j in range(experts):
            p = (checkpoint * experts + m * experts + j) % gpt.experts
            yield m, p % ep * (gpt.experts // ep) + p // ep


def most_loaded(gpt, world, ep, experts, policy, dealt, split, items, always=0):
    """Bytes of the most loaded rank in any phase, and of the mean. `dealt`: bytes a parameter of each tensor that replicas hold;
    `split`: bytes a parameter that replicas share evenly; `always` of these stand in every checkpoint."""
    worst = mean = 0
    for phase in range(gpt.experts // experts):
        load = [gpt.non_expert * split / world + gpt.moe_layers * gpt.experts * gpt.expert * always / world] * world
        turn = [0] * ep
        for _, expert in sorted(selection(gpt, ep, experts, phase)):
            home = expert // (gpt.experts // ep)
            replicas = range(home, world, ep)
            for rank in replicas:
                load[rank] += gpt.expert * (split - always) / len(replicas)
            writer = home if policy == "rank0" else replicas[turn[home] % len(replicas)]
            turn[home] += 1
            load[writer] += gpt.expert * sum(dealt)
        seen = load if policy == "adaptive" else [0] * world
        for size in sorted((size * part for size in items for part in dealt), reverse=True):
            rank = 0 if policy == "rank0" else min(range(world), key=lambda r: seen[r])
            load[rank] += size
            if policy == "equal":
                seen[rank] += size
        worst = max(worst, *load)
        mean = sum(load) / world
    return worst, mean


def arrangement(arguments):
    gpt = Gpt(arguments.configs / "gpt-350m-16e.yaml")
    agree = True
    for _, world, ep in LAYOUTS:
        made = plan(arguments, "gpt-350m-16e", world, 1, f"parallel.expert_model_parallel_size={ep}")
        agree &= made["parameters"]["non_expert"] == gpt.non_expert
        for policy in ("rank0", "equal", "adaptive"):
            for what, experts in (("full", gpt.experts), ("partial", 1)):
                ours, _ = most_loaded(gpt, world, ep, experts, policy, (4, 4, 4), 0, gpt.tensors)
                theirs = made["checkpoint"]["sharding"][policy][what]["max_rank_bytes"]
                if abs(ours / theirs - 1) > 1e-3:  # counters
                    print(f"{world} ranks, EP {ep}, {policy}, {what}: {ours:.0f} here, {theirs} by pecan-plan", file=sys.stderr)
                    agree = False

    print("GPT-350M-16E in the papers' arrangement: MB of the most loaded rank; 2-byte weights by policy and module, 12 bytes split\n")
    header("layout", "what rotates", "K", "baseline", "EE+EN", "EE+AN", "EE+EN against baseline, %", "EE+AN against EE+EN, %",
           "even against baseline, %")
    for label, world, ep in LAYOUTS:
        for name, always, budgets in (("nothing", 0, (16,)), ("14 B", 0, (1, 4)), ("10 B", 4, (1, 4))):
            for experts in budgets:
                most = [most_loaded(gpt, world, ep, experts, policy, (2,), 12, gpt.modules, always)
                        for policy in ("rank0", "equal", "adaptive")]
                mean = most[0][1]
                most = [m for m, _ in most]
                row(label, name, experts, *[f"{m / 1e6:.1f}" for m in most], less(most[1], most[0]), less(most[2], most[1]), less(mean, most[0]))
    return agree


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/dev/bin"), help="folder of pecan-plan")
    parser.add_argument("--configs", type=pathlib.Path, default=pathlib.Path("configs/models"))
    arguments = parser.parse_args()
    sizes(arguments)
    sharding(arguments)
    return 0 if arrangement(arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
