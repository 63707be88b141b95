#!/usr/bin/python3
"""How does the time of a step grow with experts, sequence, threads and ranks, and how far is a larger shape from the products' own rate?

Configuration A of train_speed.py is varied in one respect at a time; the settings of a group run in turns, each run at raised priority, and ratios are
medians of those of each round. The group `large` is a model of hidden size 768 with 12 layers, every second of which has 8 experts.

  tests/bench/growth.py --bin build/bench/bin --work runs/growth [--rounds 3] [--groups experts,sequence,threads,ranks,large]

The folder of --bin holds bench-products too, for the rate of one large product (group `large`). Prints Markdown tables; nothing is asserted.
"""
import argparse
import json
import pathlib
import os
import re
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import train_speed  # noqa: E402

FIRST, LAST = 4, 9  # steps that are recorded
TOKENS = 4096       # of a step in the groups experts and sequence
LARGE = """
model: {num_layers: 12, hidden_size: 768, ffn_hidden_size: 3072, num_attention_heads: 12, max_position_embeddings: 512, normalization: LayerNorm,
        position_embedding_type: learned_absolute, swiglu: false, disable_bias_linear: false, make_vocab_size_divisible_by: 128}
moe: {num_experts: 8, moe_router_topk: 1, moe_router_pre_softmax: true, moe_layer_freq: 2, moe_aux_loss_coeff: 0.01}
training: {micro_batch_size: 4, global_batch_size: 4, seq_length: 512}
optimizer: {lr: 3.0e-4, weight_decay: 0.1, clip_grad: 1.0}
data: {data_path: DATA_train, tokenizer_model: DATA.tokenizer.model}
checkpoint: {save_interval: 1000000}
logging: {log_interval: 1000000, level: error}
"""


def batch(sequence):
    return [f"training.seq_length={sequence}", f"model.max_position_embeddings={sequence}",
            f"training.micro_batch_size={TOKENS // sequence}", f"training.global_batch_size={TOKENS // sequence}"]


def expert_settings(count):
    return batch(256) + [f"moe.num_experts={count}"]


# Of each group: its settings as name, --set pairs, threads, ranks.
GROUPS = {
    "experts": [(f"{count} experts", expert_settings(count), 2, 1) for count in (8, 16, 32, 64, 128)],
    "sequence": [(f"{TOKENS // length} x {length}", batch(length), 2, 1) for length in (256, 512, 1024, 2048, 4096)],
    "threads": [("1 thread", [], 1, 1), ("2 threads", [], 2, 1)],
    "ranks": [("1 rank x 2 threads", [], 2, 1), ("2 ranks x 1 thread", [], 1, 2), ("4 ranks x 1 thread", [], 1, 4)],
}


class Profiled:
    """The sums of one run's trace of rank 0, per recorded step."""

    def __init__(self, pecan, config, settings, threads, ranks, bf16=False):
        pecan.train(bf16, threads, ranks, config, LAST, settings, ["--profile", "--profile-steps", f"{FIRST}:{LAST}"])
        self.table = (pecan.folder / "profile/operators.txt").read_text()
        trace = json.loads((pecan.folder / "profile/rank-00000.trace.json").read_text())
        spans = [e for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == 0 and e["tid"] == 0]
        self.step_ms = statistics.median(e["dur"] for e in spans if e["cat"] == "step") / 1e3
        self.update_ms = statistics.median(e["dur"] for e in spans if e["cat"] == "phase" and e["name"] == "update") / 1e3
        self.gflops = float(re.search(r"([0-9.]+) GFLOP/s", self.table).group(1))


def ratios_to_first(rounds, value):
    """Of each setting the median over rounds of its value over the first setting's."""
    return [statistics.median(value(one[s]) / value(one[0]) for one in rounds) for s in range(len(rounds[0]))]


def growth(pecan, name, rounds):
    settings = GROUPS[name]
    results = [[Profiled(pecan, pecan.work / "config.yaml", pairs, threads, ranks) for _, pairs, threads, ranks in settings] for _ in range(rounds)]
    whole = ratios_to_first(results, lambda r: r.step_ms)
    rest = ratios_to_first(results, lambda r: r.step_ms - r.update_ms)
    print(f"| {name} | step, ms | of it update, ms | step over the first | without the update |\n| --- | ---: | ---: | ---: | ---: |")
    for s, (label, *_) in enumerate(settings):
        print(f"| {label} | {statistics.median(one[s].step_ms for one in results):.0f} | {statistics.median(one[s].update_ms for one in results):.0f} | "
              f"{whole[s]:.2f} | {rest[s]:.2f} |", flush=True)
    print(flush=True)


def large_product(pecan, bf16):
    """GFLOP/s of the product 2048 x 768 -> 3072 by the fastest kernels there, forward."""
    output = train_speed.run([pecan.bin / "bench-products", 2, 3], dict(os.environ))
    best = 0.0
    in_bf16 = False
    for line in output.splitlines():
        in_bf16 = (in_bf16 or "oneDNN" in line) and "dnnl_sgemm" not in line
        if "2048 x 768 -> 3072 | forward" in line and in_bf16 == bf16:
            best = max(best, *(float(cell) for cell in re.findall(r" (\d+) \|", line.split("forward")[1])))
    return best


def large(pecan, rounds):
    config = pecan.work / "large.yaml"
    config.write_text(LARGE.replace("DATA", str(pecan.work / "data")))
    print("| hidden 768, 12 layers | tokens/s | GFLOP/s | one product, GFLOP/s | share |\n| --- | ---: | ---: | ---: | ---: |", flush=True)
    for bf16 in (False, True):
        shares, runs, products = [], [], []
        for _ in range(rounds):
            products.append(large_product(pecan, bf16))
            runs.append(Profiled(pecan, config, [], 2, 1, bf16))
            shares.append(runs[-1].gflops / products[-1])
        print(f"| {'bf16' if bf16 else 'fp32'} | {4 * 512 / statistics.median(r.step_ms for r in runs) * 1e3:.0f} | "
              f"{statistics.median(r.gflops for r in runs):.0f} | {statistics.median(products):.0f} | {statistics.median(shares):.0%} |", flush=True)
        (pecan.work / f"large-{'bf16' if bf16 else 'fp32'}.txt").write_text(runs[-1].table)
    print(f"\ntables of the operators: {pecan.work}/large-*.txt")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", default=",".join([*GROUPS, "large"]))
    arguments = parser.parse_args()
    arguments.bin = arguments.bin.resolve()
    arguments.work = arguments.work.resolve()
    pecan = train_speed.Pecan(arguments)
    for name in arguments.groups.split(","):
        if name == "large":
            large(pecan, arguments.rounds)
        else:
            growth(pecan, name, arguments.rounds)


if __name__ == "__main__":
    main()
