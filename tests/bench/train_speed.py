#!/usr/bin/python3
"""How fast does Pecan train configuration A beside PyTorch? Runs both alternately and prints ratios pair by pair.

Configuration A: 4 layers, hidden 256, 8 heads, sequence 256, vocabulary 8192 tied, batch 8, 8 experts top-2, SwiGLU 512, AdamW, clipping: 15 million
parameters, about 41 MFLOP a token. PyTorch gets the fastest of its settings: its BLAS is tried with each of OpenBLAS's kernels first.

  tests/bench/train_speed.py --bin build/release/bin --work runs/speed [--pairs 5] [--rows f32-2,f32-1,bf16-2,ranks-2,ranks-4] [--kernel NAME]

Needs python3-torch and libopenblas0-openmp (tools/install-dependencies bench). The machine should be quiet; each run is raised in priority where the
system allows it. Prints Markdown tables. Results are printed as they come; nothing is asserted.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import e2e  # noqa: E402

CONFIG = """
model: {num_layers: 4, hidden_size: 256, num_attention_heads: 8, normalization: LayerNorm, position_embedding_type: learned_absolute, max_position_embeddings: 256}
moe: {num_experts: 8, moe_ffn_hidden_size: 512, moe_router_topk: 2, moe_aux_loss_coeff: 0.01}
training: {micro_batch_size: 8, global_batch_size: 8, seq_length: 256}
optimizer: {lr: 3.0e-4, weight_decay: 0.1, clip_grad: 1.0}
data: {data_path: DATA_train, tokenizer_model: DATA.tokenizer.model}
checkpoint: {save_interval: 1000000}
logging: {log_interval: 1000000, level: error}
"""
TOKENS = 8 * 256
MFLOP_A_TOKEN = 41
WARM_UP, STEPS = 5, 20
# Of rows: bf16, threads of a rank, ranks, and the row of PyTorch that it is compared with.
ROWS = {
    "f32-2": (False, 2, 1), "f32-1": (False, 1, 1), "bf16-2": (True, 2, 1), "bf16-1": (True, 1, 1),
    "ranks-2": (False, 1, 2), "ranks-4": (False, 1, 4),
}
KERNELS = ("", "Haswell", "SkylakeX", "Cooperlake")
# Big blocks stay with the process instead of going back to the system at each step.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456"}
RAISED = ["setsid", "-w", "bash", "-c", 'echo -20 > /proc/self/autogroup 2>/dev/null; exec nice -n -20 "$@"', "_"]


def run(command, environment):
    """Standard output; the program ends with a message if the command fails."""
    process = subprocess.Popen(RAISED + [str(c) for c in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{errors[-2000:]}{output[-500:]}")
    return output


def torch_step(bf16, threads, kernel):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    environment |= MALLOC | {"OMP_NUM_THREADS": str(threads)}
    openmp = next(pathlib.Path("/usr/lib").glob("*/openblas-openmp"), None)
    if openmp:
        environment["LD_LIBRARY_PATH"] = str(openmp)
    if kernel:
        environment["OPENBLAS_CORETYPE"] = kernel
    peer = pathlib.Path(__file__).resolve().parent / "torch_peer.py"
    return json.loads(run(["/usr/bin/python3", peer, "--threads", threads, *(["--bf16"] if bf16 else [])], environment).splitlines()[-1])


class Pecan:
    def __init__(self, arguments):
        self.bin = arguments.bin
        self.work = arguments.work
        self.folder = self.work / "run"
        self.work.mkdir(parents=True, exist_ok=True)
        text = self.work / "text.txt"
        generator = random.Random(1)
        words = ["".join(generator.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(generator.randint(2, 9))) for _ in range(20000)]
        text.write_text("\n\n".join(" ".join(generator.choice(words) for _ in range(400)) for _ in range(700)))
        for old in self.work.glob("data*"):
            old.unlink()
        run([self.bin / "pecan-data", "prepare", "--input", text, "--document-separator", "blank-line", "--output", self.work / "data",
             "--vocab-size", 8192], os.environ)
        (self.work / "config.yaml").write_text(CONFIG.replace("DATA", str(self.work / "data")))

    def step(self, bf16, threads, ranks):
        self.train(bf16, threads, ranks, self.work / "config.yaml", WARM_UP + STEPS)
        steps = [r for r in map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines()) if r.get("kind") == "step"]
        return statistics.median(r["step_ms"] for r in steps[WARM_UP:]) / 1e3

    def train(self, bf16, threads, ranks, config, steps, settings=(), options=()):
        """A fresh run in self.folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        command = [self.bin / "pecan-train", "--config", config, "--run-dir", self.folder, *options]
        pairs = [f"training.train_iters={steps}", f"training.threads={threads}", f"training.bf16={str(bf16).lower()}", *settings]
        environment = {**os.environ, **e2e.ENVIRONMENT, "OMPI_MCA_ess_singleton_isolated": "1"}
        environment.pop("OMP_NUM_THREADS", None)
        if ranks > 1:
            command = ["mpirun", "-n", ranks, "--bind-to", "none", *command]
            pairs += [f"parallel.expert_model_parallel_size={ranks}", f"training.micro_batch_size={8 // ranks}", "moe.dispatch_buffer_factor=4"]
        run(command + [word for pair in pairs for word in ("--set", pair)], environment)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--kernel", choices=KERNELS, help="of OpenBLAS, in place of trying each")
    arguments = parser.parse_args()
    arguments.bin = arguments.bin.resolve()
    arguments.work = arguments.work.resolve()
    pecan = Pecan(arguments)
    kernel = arguments.kernel
    if kernel is None:
        kernel = min(KERNELS, key=lambda name: torch_step(False, 1, name)["step_s"])
    print(f"PyTorch's OpenBLAS runs with {'its own choice of kernels' if not kernel else 'OPENBLAS_CORETYPE=' + kernel}.\n")
    print("| row | Pecan, tokens/s | other, tokens/s | ratio, median | pairs |\n| --- | ---: | ---: | ---: | --- |", flush=True)
    for name in arguments.rows.split(","):
        bf16, threads, ranks = ROWS[name]
        ours, other = [], []
        for _ in range(arguments.pairs):
            if ranks == 1:
                peer = torch_step(bf16, threads, kernel)
                other.append(peer["step_s"])
            else:
                other.append(pecan.step(bf16, 2, 1))
            ours.append(pecan.step(bf16, threads, ranks))
        ratios = [b / a for a, b in zip(ours, other)]
        what = f"PyTorch {peer['torch']}" if ranks == 1 else "1 rank of 2 threads"
        print(f"| {'bf16' if bf16 else 'fp32'}, {ranks} rank{'s' * (ranks > 1)} of {threads} thread{'s' * (threads > 1)} | "
              f"{TOKENS / statistics.median(ours):.0f} ({TOKENS / statistics.median(ours) * MFLOP_A_TOKEN / 1e3:.0f} GFLOP/s) | "
              f"{TOKENS / statistics.median(other):.0f} ({what}) | {statistics.median(ratios):.2f} | "
              f"{' '.join(f'{r:.2f}' for r in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
