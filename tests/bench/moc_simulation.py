#!/usr/bin/env python3
"""The inequalities that MoC's text prints about its simulation and its measured cases (docs/reproduction.md, Simulation).

Its constants: A800 with 312 TFLOPS, snapshots at 1 GB/s; H100 with 989 TFLOPS, snapshots at 2 GB/s; both at 20 % of the peak;
a LLaMA-like MoE of hidden 2048, 24 layers, FFN 4x, one expert a GPU and layer, 1/8 of them saved. What it does not state, and
this file varies: tokens of a GPU and step, top-k, whether FFNs are gated, and communication, which is left out.

With --bin, counts of parameters are checked against pecan-plan, and the simulator is run with the figures of one point.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

GPUS = {"A800": (312e12, 1e9), "H100": (989e12, 2e9)}  # FLOP/s at the peak, snapshot bytes/s
UTILISATION = 0.2
LAYERS, HIDDEN, VOCABULARY = 24, 2048, 32000
SAVED = 1 / 8
SIZES = (16, 32, 64, 128, 256, 512, 1024)


class Model:
    """Parameters of the LLaMA-like model, and what a GPU of `gpus` computes and copies."""

    def __init__(self, gated, topk):
        self.expert = (3 if gated else 2) * HIDDEN * 4 * HIDDEN
        attention = 4 * HIDDEN * HIDDEN
        self.non_expert = LAYERS * (attention + 2 * HIDDEN) + HIDDEN + 2 * VOCABULARY * HIDDEN
        self.active = LAYERS * (attention + topk * self.expert) + VOCABULARY * HIDDEN  # that multiply a token

    def step_s(self, gpu, tokens):
        """Forward and backward: 6 FLOP a parameter and token."""
        return 6 * self.active * tokens / (UTILISATION * GPUS[gpu][0])

    def base_s(self, gpu, gpus):
        """Full snapshot of rank 0: all non-expert weights, its share of their optimizer state, its experts."""
        num_bytes = 2 * self.non_expert + 12 * self.non_expert / gpus + 14 * LAYERS * self.expert
        return num_bytes / GPUS[gpu][1]

    def moc_s(self, gpu, gpus):
        """PEC, everything split evenly: 24 N / 8 experts over N GPUs."""
        return (14 * self.non_expert / gpus + 14 * LAYERS * self.expert * SAVED) / GPUS[gpu][1]

    def tokens_for(self, gpu, seconds):
        return seconds / self.step_s(gpu, 1)


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def header(*cells):
    row(*cells)
    row(*["---"] + ["---:"] * (len(cells) - 1))


def simulated():
    """For which tokens of a GPU and step each inequality holds."""
    print("Tokens of a GPU and step for which the inequality holds\n")
    header("model", "Base-Async not hidden below 1024 A800", "nor at 1024 H100", "MoC-Async hidden above 64 A800", "and above 64 H100", "all")
    found = []
    for gated in (True, False):
        for topk in (1, 2):
            model = Model(gated, topk)
            a800 = min(model.tokens_for("A800", model.base_s("A800", d)) for d in SIZES if d < 1024)
            h100 = min(model.tokens_for("H100", model.base_s("H100", d)) for d in SIZES)
            moc_a800, moc_h100 = (max(model.tokens_for(gpu, model.moc_s(gpu, d)) for d in SIZES if d > 64) for gpu in GPUS)
            low, high = max(moc_a800, moc_h100), min(a800, h100)
            found.append((low, high))
            row(f"{'gated' if gated else 'plain'} FFN, top-{topk}", f"< {a800:,.0f}", f"< {h100:,.0f}", f">= {moc_a800:,.0f}",
                f">= {moc_h100:,.0f}", f"{low:,.0f} to {high:,.0f}" if low < high else "never")
    print()
    tokens = 32768
    model = Model(True, 1)
    print(f"Seconds with {tokens} tokens of a GPU and step (gated FFN, top-1)\n")
    header("GPUs", *[f"{what}, {gpu}" for gpu in GPUS for what in ("F&B", "Base-Async snapshot", "MoC-Async snapshot")])
    for gpus in SIZES:
        row(gpus, *[f"{value:.2f}" for gpu in GPUS
                    for value in (model.step_s(gpu, tokens), model.base_s(gpu, gpus), model.moc_s(gpu, gpus))])
    wanted = model.base_s("A800", 1024)
    sent = 4 * LAYERS * tokens * HIDDEN * 2
    print(f"\nThat Base-Async is hidden at 1024 A800 needs F&B of {wanted:.1f} s: {wanted - model.step_s('A800', tokens):.1f} s of communication, "
          f"{sent / 1e9:.1f} GB of dispatch at {sent / 1e9 / (wanted - model.step_s('A800', tokens)):.2f} GB/s a GPU, and less at 512.\n")
    return all(low < high for low, high in found)


def measured():
    """Case 2 and 3: GPT-350M-16E on 16 GPUs, by the simulation's constants."""
    expert = 2 * 1024 * 4096 + 4096 + 1024
    non_expert = (50257 + 2048) * 1024 + 24 * (4 * (1024 * 1024 + 1024) + 4 * 1024) + 12 * expert + 12 * 16 * 1024 + 2 * 1024
    active = 24 * 4 * 1024 * 1024 + 24 * 2 * 1024 * 4096 + 50257 * 1024
    step_s = 6 * active * 256 * 2048 / 16 / (UTILISATION * GPUS["A800"][0])

    def snapshot_s(experts, always=0):
        """`always` of an expert's 14 bytes stand in every checkpoint; split evenly over 16 ranks."""
        num_bytes = 14 * non_expert + 12 * expert * (16 * always + experts * (14 - always))
        return num_bytes / 16 / GPUS["A800"][1]

    print("GPT-350M-16E on 16 A800, batch 256 x 2048, everything split evenly, seconds\n")
    header("what", "F&B", *[f"K = {k}" for k in (1, 2, 3, 4, 8, 16)])
    for what, always in (("snapshot, 14 B rotate", 0), ("snapshot, 10 B rotate", 4)):
        row(what, f"{step_s:.2f}", *[f"{snapshot_s(k, always):.2f}" for k in (1, 2, 3, 4, 8, 16)])
    most = max(k for k in range(1, 17) if snapshot_s(k) <= step_s)
    print(f"\nHidden up to K = {most}, published only K < 4: that needs F&B between {snapshot_s(3):.2f} and {snapshot_s(4):.2f} s, or a "
          f"snapshot rate between {snapshot_s(3) / step_s:.2f} and {snapshot_s(4) / step_s:.2f} GB/s.")
    print(f"Published I_ckpt 2.3 -> 1.2, a ratio of {2.3 / 1.2:.2f}; bytes of a full one over K = 4: "
          f"{snapshot_s(16) / snapshot_s(4):.2f} if 14 bytes rotate, {snapshot_s(16) / snapshot_s(4, 4):.2f} if 10 do.\n")
    return snapshot_s(3) / step_s < 1


def with_programs(folder):
    """The same counts by pecan-plan, and what the simulator makes of the point of 64 A800."""
    gpus, tokens = 64, 32768
    model = Model(True, 1)
    config = f"""
model: {{num_layers: {LAYERS}, hidden_size: {HIDDEN}, num_attention_heads: 16, vocab_size: {VOCABULARY}, make_vocab_size_divisible_by: 1,
         untie_embeddings_and_output_weights: true}}
moe: {{num_experts: {gpus}, moe_ffn_hidden_size: {4 * HIDDEN}, moe_layer_freq: 1, moe_router_topk: 1, moe_router_pre_softmax: true}}
parallel: {{expert_model_parallel_size: {gpus}, use_distributed_optimizer: true}}
training: {{bf16: true, seq_length: 2048, micro_batch_size: 1, global_batch_size: {gpus * tokens // 2048}, train_iters: 2000}}
checkpoint: {{save_interval: 10, pec: {{experts_per_checkpoint: {gpus // 8}}}}}
"""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(config)
        file.flush()
        common = ["--config", file.name, "--world", str(gpus), "--json"]
        made = json.loads(subprocess.run([folder / "pecan-plan", *common], check=True, capture_output=True, text=True).stdout)
        routers = LAYERS * gpus * HIDDEN  # left out above
        counts = made["parameters"]
        if (counts["expert"], counts["non_expert"]) != (LAYERS * gpus * model.expert, model.non_expert + routers):
            print(f"pecan-plan counts {counts}, this file {LAYERS * gpus * model.expert} and {model.non_expert + routers}", file=sys.stderr)
            return False
        print(f"pecan-plan simulate with the figures of {gpus} A800, a save every 10 of 2000 steps, a failure every 2 hours\n")
        header("what", "O_save, s", "ETTR", "95 % interval")
        for what, experts, seconds in (("Base-Async", gpus, model.base_s("A800", gpus)), ("MoC-Async", gpus // 8, model.moc_s("A800", gpus))):
            step_s = model.step_s("A800", tokens)
            full = ["--full-snapshot-s", f"{model.base_s('A800', gpus) if experts == gpus else model.moc_s('A800', gpus) / SAVED}"]
            command = [folder / "pecan-plan", "simulate", *common, "--set", f"checkpoint.pec.experts_per_checkpoint={experts}", "--mtbf", "7200",
                       "--restart-s", "300", "--step-s", str(step_s), "--snapshot-s", str(seconds), *full, "--trials", "100"]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["simulation"]["result"]["ettr"]
            row(what, f"{max(0, seconds - step_s):.1f}", f"{result['mean']:.3f}", f"{result['low']:.3f} to {result['high']:.3f}")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, help="folder of pecan-plan")
    arguments = parser.parse_args()
    holds = [simulated(), measured()]
    if arguments.bin:
        holds.append(with_programs(arguments.bin))
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
