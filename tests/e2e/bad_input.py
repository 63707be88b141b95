#!/usr/bin/python3
"""What users get wrong, case by case: exit code, and a message with the problem, the value, the reason and what to try.

usage: bad_input.py --bin DIR --mpiexec PATH [--only TEXT] [--show]

Every case runs a real program. Its message must hold the given texts, be said once, and be no crash; ';' or a text of its
own stands between what is wrong and what to try. Cases that need root, unshare or setpriv are skipped and counted without.
"""
import argparse
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import e2e  # noqa: E402

USAGE, DATA, CHECKPOINT = 2, 3, 4
TIME_LIMIT_S = 120  # a hang, on however slow a machine
PROGRAMS = ("pecan-train", "pecan-plan", "pecan-data", "pecan-inspect")
CRASHES = ("terminate called", "Segmentation", "Aborted", "internal error", "AddressSanitizer", "std::", "violated:")


class Case:
    """One wrong thing: `command` run by the shell-free `run`, the expected code and texts."""

    def __init__(self, name, code, texts, command, before=None, ranks=1, counts=1):
        self.name, self.code, self.texts, self.command = name, code, texts, command
        self.before, self.ranks, self.counts = before, ranks, counts


class Table:
    def __init__(self, lab):
        self.lab, self.cases, self.skipped, self.number = lab, [], 0, 0
        self.root = os.geteuid() == 0 and all(shutil.which(p) for p in ("unshare", "setpriv", "mount"))
        done = subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL) if self.root else None
        self.namespaces = bool(done) and done.returncode == 0

    def path(self, stem="x"):
        self.number += 1
        return self.lab.folder / f"{stem}-{self.number}"

    def file(self, content, suffix=".yaml"):
        path = pathlib.Path(f"{self.path('file')}{suffix}")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def add(self, name, code, texts, command, **more):
        self.cases.append(Case(name, code, texts, [str(c) for c in command], **more))

    # -- programs
    def train(self, *options, config=None, run_dir=None):
        return [self.lab.bin / "pecan-train", "--config", config or self.lab.config, "--run-dir", run_dir or self.path("run"),
                *options]

    def dry(self, *settings, config=None):
        words = [w for s in settings for w in ("--set", s)]
        return [self.lab.bin / "pecan-train", "--config", config or self.lab.config, "--dry-run", *words]

    def plan(self, world, *settings):
        return [self.lab.bin / "pecan-plan", "--config", self.lab.config, "--world", world,
                *[w for s in settings for w in ("--set", s)]]

    def data(self, *words):
        return [self.lab.bin / "pecan-data", *words]

    def inspect(self, *words):
        return [self.lab.bin / "pecan-inspect", *words]


def yaml(t):
    """Syntax, keys, types, ranges, contradictions."""
    def text(name, content, *texts):
        config = t.file(content)
        t.add("YAML: " + name, USAGE, [config.name, *texts], t.dry(config=config))

    text("a list that is not closed", "model: {num_layers: 2\ntraining: [", "malformed YAML", "correct the syntax")
    text("a tab for indentation", "model:\n\tnum_layers: 2\n", ":2:", "malformed YAML")
    text("a stray comma", "moe: {}\n, 2\n", "malformed YAML")
    text("a key given twice", "model: {num_layers: 2}\nmodel: {num_layers: 3}\n", ":2", "twice", "keep one")
    text("two documents", "model: {}\n---\nmodel: {}\n", "2 YAML documents", "remove the '---'")
    text("a list instead of sections", "- model\n", "not a map of sections", "start with")
    text("not UTF-8", b"data: {data_path: caf\xe9}\n", "0xe9", "not UTF-8", "save")
    text("an unset variable", "data: {data_path: '${PECAN_NOT_SET}'}\n", "PECAN_NOT_SET is not set", "set it")
    text("an alias that contains itself", "model: &a [*a]\n", "deeper than", "write the values out")
    text("no file content that means anything", "42\n", "not a map of sections")

    def key(name, setting, *texts, code=USAGE):
        t.add("key: " + name, code, texts, t.dry(setting))

    key("misspelt", "model.num_layer=2", "unknown key model.num_layer", "nearest is model.num_layers")
    key("in the wrong section", "training.num_layers=2", "unknown key training.num_layers", "model.num_layers")
    key("an unknown section", "modle.num_layers=2", "unknown key modle", "nearest")
    key("a word for a number", "model.num_layers=two", "model.num_layers=two is not an integer", "digits")
    key("a fraction for an integer", "model.num_layers=2.5", "model.num_layers=2.5 is not an integer")
    key("a list for a number", "model.num_layers=[1]", "model.num_layers is a list", "give an integer")
    key("a number for a truth value", "model.swiglu=1", "model.swiglu=1 is not a truth value", "true or false")
    key("below the range", "model.num_layers=0", "model.num_layers=0 is out of range", "at least 1")
    key("negative", "training.train_iters=-5", "training.train_iters=-5 is out of range", "use a number")
    key("beyond 64 bits", "training.train_iters=99999999999999999999", "is too large", "use at most")
    key("not finite", "optimizer.lr=.nan", "optimizer.lr=.nan is not a finite number", "use a number")
    key("an unknown word", "training.device=tpu", "training.device=tpu is not a known value", "use ")
    key("no value", "model.hidden_size=", "model.hidden_size", "has no value", "give")
    key("not key=value", "model.num_layers", "not of the form key.path=value", "write for example")
    key("a value that yaml-cpp cannot end", "model.num_layers=,2", "malformed YAML", "correct the syntax")
    key("too many experts a token", "moe.moe_router_topk=9", "moe_router_topk=9", "num_experts=8", "; ")
    key("heads that do not divide", "model.num_query_groups=3", "num_query_groups=3", "num_attention_heads=4", "; ")
    key("batches that do not divide", "training.micro_batch_size=3", "global_batch_size=4", "micro_batch_size=3", "; ")
    key("a budget above all experts", "checkpoint.pec.experts_per_checkpoint=9", "experts_per_checkpoint=9", "8", "; ")
    key("a pattern of another length", "moe.moe_layer_freq=[0,1,1]", "moe_layer_freq", "3", "2", "; ")
    key("a feature that is not there", "parallel.pipeline_model_parallel_size=2", "pipeline_model_parallel_size=2",
        "not supported", "use 1")


def flags(t):
    lab = t.lab
    t.add("flag: unknown", USAGE, ["--resum", "--help"], t.train("--resum"))
    t.add("flag: --config without a value", USAGE, ["--config", "--help"], [lab.bin / "pecan-train", "--config"])
    t.add("flag: no --config", USAGE, ["needs --config FILE", "--help"], [lab.bin / "pecan-train", "--dry-run"])
    t.add("flag: a configuration that is not there", USAGE, ["nowhere.yaml", "No such file", "--config"],
          t.dry(config=lab.folder / "nowhere.yaml"))
    t.add("flag: a folder as configuration", USAGE, [str(lab.folder), "irectory", "--config"], t.dry(config=lab.folder))
    t.add("flag: steps of a profile", USAGE, ["--profile-steps", "'9:5' is not A:B with 1 <= A <= B", "--help"],
          t.train("--profile", "--profile-steps", "9:5"))
    t.add("flag: steps without a profile", USAGE, ["--profile-steps", "--profile", "--help"], t.train("--profile-steps", "5:9"))
    t.add("flag: both ways to resume", USAGE, ["--resume", "excludes", "--help"],
          t.train("--resume-from-failure", "--resume", "/x"))
    # Where there is a driver the reason is another, but the run is refused as well.
    t.add("a device that cannot train", USAGE, ["training.device=cuda, but ", "use auto or cpu"],
          t.train("--set", "training.device=cuda"))
    t.add("flag: --world 0", USAGE, ["--world", "0", "--help"], t.plan(0))
    for option in ("--step-ms", "--copy-gb-per-s", "--write-gb-per-s", "--mtbf-hours", "--restart-s"):
        for value in ("0", "-1", "nan", "inf", "1e999", "fast"):
            t.add(f"flag: {option} {value}", USAGE, [option, f"'{value}'", "above 0", "--help"], [*t.plan(1), option, value])
    simulate = [lab.bin / "pecan-plan", "simulate", "--config", lab.config]
    sound = ["--step-s", "1", "--mtbf", "100"]
    for option, advice in (("--mtbf", "above 0"), ("--step-s", "above 0"), ("--persist-s", "from 0 on"), ("--restart-s", "from 0 on"),
                           ("--fail-at", "from 0 on"), ("--stop-at", "from 0 on"), ("--node-loss-share", "from 0 on"), ("--nodes", "from 1 on"), ("--trials", "from 2 on")):
        for value in ("-1", "nan", "often"):
            t.add(f"flag: simulate {option} {value}", USAGE, [option, f"'{value}'", advice, "--help"], [*simulate, option, value])
    t.add("flag: simulate without --config", USAGE, ["needs --config FILE", "--help"], [lab.bin / "pecan-plan", "simulate", *sound])
    t.add("flag: simulate without a step's duration", USAGE, ["duration of a step", "give --step-s"], [*simulate, "--mtbf", "100"])
    t.add("flag: simulate without failures", USAGE, ["how often something fails", "give --mtbf"], [*simulate, "--step-s", "1"])
    t.add("flag: simulate with two rates of failure", USAGE, ["--mtbf", "excludes", "--help"], [*simulate, *sound, "--node-mtbf", "100"])
    t.add("flag: simulate on nodes that do not divide", USAGE, ["4 processes do not divide over 3 nodes", "; use"],
          [*simulate, *sound, "--world", "4", "--nodes", "3"])
    t.add("flag: simulate more replicas than nodes", USAGE, ["replication_factor=3", "2 nodes", "use 1 to 2"],
          [*simulate, *sound, "--world", "4", "--nodes", "2", "--set", "checkpoint.replication_factor=3",
           "--set", "checkpoint.non_persistent_save_interval=1"])
    t.add("flag: simulate a share above 1", USAGE, ["node_loss_share=1.5", "use 0"], [*simulate, *sound, "--node-loss-share", "1.5"])
    t.add("flag: simulate from no run", CHECKPOINT, ["nowhere/metrics.jsonl", "--from-run"], [*simulate, *sound, "--from-run", "nowhere"])
    t.add("flag: an unknown view", USAGE, ["gaze", "summary", "--help"], t.inspect(lab.used, "gaze"))
    t.add("flag: show without a step", USAGE, ["STEP", "show"], t.inspect(lab.used, "show"))
    t.add("flag: a run directory and --memory", USAGE, ["DIR", "--memory", "--help"], t.inspect(lab.used, "--memory"))
    t.add("flag: --clean without --memory", USAGE, ["--clean", "--memory", "--help"], t.inspect(lab.used, "--clean", "all"))
    t.add("flag: no subcommand", USAGE, ["needs a command", "prepare", "--help"], t.data())
    for world, settings, texts in (
            (3, ["parallel.expert_model_parallel_size=3", "training.global_batch_size=3"],
             ["expert_model_parallel_size=3", "num_experts=8", "; "]),
            (2, ["parallel.expert_model_parallel_size=4"], ["expert_model_parallel_size=4", "2", "; "]),
            (3, [], ["3", "global_batch_size=4", "; "]),
            (16, [], ["16", "global_batch_size=4", "; "])):
        t.add(f"layout: {world} ranks, {' '.join(settings) or 'no expert parallelism'}", USAGE, texts,
              t.plan(world, *settings))


def corpora(t):
    lab = t.lab
    out = lambda: t.path("made")
    prepare = lambda *w: t.data("prepare", "--output", out(), "--vocab-size", "300", *w)
    empty, one, latin = t.file("", ".txt"), t.file("a\n", ".txt"), t.file(b"good\n\nbad \xff text\n", ".txt")
    t.add("corpus: absent", DATA, ["absent.txt", "No such file", "check"], prepare("--input", lab.folder / "absent.txt"))
    t.add("corpus: empty", DATA, [empty.name, "; "], prepare("--input", empty))
    t.add("corpus: one letter", DATA, ["; "], prepare("--input", one))
    t.add("corpus: not UTF-8", DATA, [latin.name, "10", "UTF-8", "; "], prepare("--input", latin))
    letters = t.file(b"abcdefghij" * 10_000_000 + b"".join(b"\n\nshort %d" % i for i in range(300)), ".txt")
    t.add("corpus: a line of 100 MB without spaces", DATA, ["8000000", "--tokenizer-train-bytes", "; "], prepare("--input", letters))
    t.add("corpus: a line of 100 MB without spaces, with a tokenizer", DATA, ["100000000 bytes", "byte 0", "no space", "; break"],
          t.data("tokenize", "--input", letters, "--output", out(), "--tokenizer", lab.folder / "corpus.tokenizer.model"))
    t.add("corpus: a vocabulary of nothing", DATA, ["2 entries", "; use a vocabulary that is larger"],
          t.data("prepare", "--output", out(), "--input", lab.folder / "text.txt", "--vocab-size", "2"))
    t.add("corpus: an unknown separator", USAGE, ["comma", "blank-line"],
          prepare("--input", lab.folder / "text.txt", "--document-separator", "comma"))
    t.add("corpus: output that is there", DATA, ["corpus", "exists", "remove it or"],
          t.data("prepare", "--output", lab.folder / "corpus", "--input", lab.folder / "text.txt"))
    for name, content, texts in (("empty", b"", []), ("garbage", b"\x07garbage" * 99, [])):
        model = t.file(content, ".model")
        t.add(f"tokenizer: {name}", DATA, [model.name, "; ", *texts],
              t.data("tokenize", "--input", lab.folder / "text.txt", "--output", out(), "--tokenizer", model))
        t.add(f"tokenizer: {name}, for training", DATA, [model.name, "; "],
              t.train("--set", f"data.tokenizer_model={model}"))
    t.add("tokenizer: absent", DATA, ["none.model", "No such file", "; "],
          t.train("--set", f"data.tokenizer_model={lab.folder}/none.model"))
    t.add("tokenizer: of another vocabulary", DATA, ["corpus_train", "400", "300", "; use the tokenizer"],
          t.train("--set", f"data.tokenizer_model={lab.folder}/other.tokenizer.model"))
    t.add("corpus: no such dataset", DATA, ["absent.idx", "No such file", "check the path"],
          t.train("--set", f"data.data_path={lab.folder}/absent"))

    good, tokens = (lab.folder / "corpus_train.idx").read_bytes(), (lab.folder / "corpus_train.bin").read_bytes()
    count = struct.unpack_from("<Q", good, 18)[0]

    def index(name, content, *texts, bin_content=tokens):
        prefix = t.path("set")
        pathlib.Path(f"{prefix}.idx").write_bytes(content)
        pathlib.Path(f"{prefix}.bin").write_bytes(bin_content)
        t.add(".idx: " + name, DATA, [prefix.name, *texts, "; "], t.train("--set", f"data.data_path={prefix}"))

    def put(form, offset, value):
        changed = bytearray(good)
        struct.pack_into(form, changed, offset, value)
        return bytes(changed)

    index("empty", b"", "0 bytes", "truncated")
    index("magic", put("<B", 0, 0), "magic number at offset 0")
    index("version", put("<Q", 9, 2), "version 2 at offset 9")
    index("element type", put("<B", 17, 99), "element type 99 at offset 17")
    index("floating point", put("<B", 17, 7), "element type 7 at offset 17", "tokenize")
    index("number of sequences", put("<Q", 18, 2**63), str(2**63), "offset 18")
    index("number of documents", put("<Q", 26, 0), "0", "document boundaries")
    index("a negative length", put("<i", 34, -1), "length -1 of sequence 0 at offset 34")
    index("a start", put("<q", 34 + 4 * count, 2), "sequence 0 starts at byte 2", str(34 + 4 * count))
    index("a boundary", put("<q", 34 + 12 * count, 1), "document boundary 0", "is 1")
    index("cut", good[:-5], "bytes")
    index(".bin cut", good, "one of the files is truncated", bin_content=tokens[:-2])
    # Without PREFIX.json; 400 entries are padded to 448 rows, so that the second finds a row.
    for token in (65535, 400):
        index(f"id {token} of 400", good, f"holds token {token}", "vocabulary has 400 entries",
              bin_content=struct.pack("<H", token) * (len(tokens) // 2))


def runs(t):
    lab = t.lab
    resume = ("--resume-from-failure", "--set", "training.train_iters=8")

    def copy():
        path = t.path("run")
        shutil.copytree(lab.used, path)
        return path

    def damaged(name, texts, harm, counts=1):
        path = copy()
        harm(path)
        t.add("checkpoint: " + name, CHECKPOINT, texts, t.train(*resume, run_dir=path), counts=counts)
        t.add("verify: " + name, CHECKPOINT, [], t.inspect(path, "verify"), counts=0)

    def every(pattern, action):
        def harm(path):
            found = list((path / "checkpoints").glob(pattern))
            assert found
            for file in found:
                action(file)
        return harm

    t.add("run directory: in use, no flag", CHECKPOINT, [lab.used, "earlier run", "--resume-from-failure"], t.train(run_dir=lab.used))
    plain = t.file("I am a file", "")
    t.add("run directory: is a file", CHECKPOINT, [plain.name, "; "], t.train(run_dir=plain))
    t.add("run directory: cannot be made", CHECKPOINT, ["/proc/pecan", "; "], t.train(run_dir="/proc/pecan"))
    t.add("run directory: of another model", CHECKPOINT, ["another model", "; "],
          t.train(*resume, "--set", "model.hidden_size=64", run_dir=copy()))
    t.add("run directory: of another vocabulary", CHECKPOINT, ["another model", "config.yaml", "; "],
          t.train(*resume, "--set", "model.vocab_size=500", run_dir=copy()))
    t.add("run directory: another number of ranks", USAGE, ["3", "global_batch_size=4", "; "],
          t.train(*resume, run_dir=copy()), ranks=3)
    t.add("resume: a path that is not there", CHECKPOINT, ["step-99", "; "],
          t.train("--resume", lab.used / "checkpoints/step-99", run_dir=lab.used))
    t.add("inspect: nothing there", CHECKPOINT, ["nothing", "; "], t.inspect(lab.folder / "nothing"))
    t.add("inspect: no memory directory", CHECKPOINT, ["nothing", "checkpoint.memory_dir", "; "],
          t.inspect("--memory", "--memory-dir", lab.folder / "nothing"))
    t.add("inspect: a step that is not there", CHECKPOINT, ["99", "; "], t.inspect(lab.used, "show", "99"))
    damaged("manifests of garbage", ["manifest of step-00000004", "checksum", "; bring"], every("*/manifest.json", lambda f: f.write_bytes(b"{garbage")))
    damaged("manifests cut", ["manifest of step-00000004", "checksum", "; bring"], every("*/manifest.json", lambda f: os.truncate(f, 200)))
    damaged("manifests missing", ["step-00000004 has no manifest", "; bring"], every("*/manifest.json", os.unlink))
    damaged("manifests of another run", ["is of run", "this is the run directory of", "; move it away"],
            every("*/manifest.json", lambda f: shutil.copy(lab.other / f.relative_to(f.parents[2]), f)))
    damaged("state shards missing", ["state.h5", "; "], every("*/*.state.h5", os.unlink))
    damaged("state shards cut", ["state.h5", "; "], every("*/*.state.h5", lambda f: os.truncate(f, 100)))
    damaged("state shards flipped", ["state.h5", "; "], every("*/*.state.h5", e2e.flip))
    damaged("state shards of another run", ["state.h5", "; "], every("*/*.state.h5", lambda f: shutil.copy(lab.other / f.relative_to(
        f.parents[2]), f)))


def places(t):
    """Permissions, full disks, storage that is not shared: in mount namespaces of their own."""
    lab = t.lab
    if not t.namespaces:
        t.skipped += 5
        return
    inner = lambda mount, command: ["unshare", "-m", "sh", "-c", mount + ' && shift 0 && exec "$@"', "sh", *map(str, command)]
    closed = t.path("closed")
    closed.mkdir()
    t.add("place: read-only", CHECKPOINT, [closed.name, "ead-only", "; "],
          inner(f"mount --bind {closed} {closed} && mount -o remount,ro,bind {closed}", t.train(run_dir=closed / "run")))
    os.chmod(lab.folder, 0o755)
    t.add("place: no permission", CHECKPOINT, [closed.name, "ermission", "; "],
          ["setpriv", "--reuid=65534", "--clear-groups", *t.train(run_dir=closed / "run")])
    full = t.path("full")
    full.mkdir()
    t.add("place: full from the start", CHECKPOINT, [full.name, "pace", "; "],
          inner(f"mount -t tmpfs -o size=64k tmpfs {full} && (cat /dev/zero > {full}/ballast 2>/dev/null || true)",
                t.train(run_dir=full / "run")))
    alone = t.path("alone")
    alone.mkdir()
    t.add("place: storage that is not shared", CHECKPOINT, ["rank 1 does not see", "alone", "share, so choose"],
          inner(f"mount -t tmpfs tmpfs {alone}", t.train(run_dir=alone / "run")), ranks=2)


    # Rank 1's node has come back with less memory.
    less = t.path("less")
    shutil.copytree(lab.used, less)
    memory = t.path("memory")
    memory.mkdir()
    mount = (f'hostname node-$OMPI_COMM_WORLD_RANK && size=64m && [ $OMPI_COMM_WORLD_RANK = 0 ] || size=64k; '
             f'mount -t tmpfs -o size=$size tmpfs {memory}')
    settings = ["checkpoint.non_persistent_save_interval=1", f"checkpoint.memory_dir={memory}", "checkpoint.replication_factor=2"]
    command = inner(mount, t.train("--resume-from-failure", *[w for s in settings for w in ("--set", s)], run_dir=less))
    t.add("place: a node with less memory than before", CHECKPOINT,
          [f"checkpoint.memory_dir={memory}", "MB free", "need", "enlarge it", "the node of rank 1 cannot hold"],
          [command[0], "-u", *command[1:]], ranks=2)


def live_run(t):
    """A run directory that another run is using, and one whose disk fills up while it saves."""
    lab, path = t.lab, t.path("live")
    environment = {**os.environ, **e2e.ENVIRONMENT}
    job = subprocess.Popen([str(w) for w in t.train("--set", "training.train_iters=100000", run_dir=path)], env=environment,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        e2e.wait_for_steps(job, path, 2)
        check_case(t, Case("run directory: locked by a live run", CHECKPOINT, [str(path), "; "],
                           [str(c) for c in t.train("--resume-from-failure", run_dir=path)]))
        e2e.check(job.poll() is None, "the live run goes on")
    finally:
        job.kill()
        job.wait()
    if not t.namespaces:
        t.skipped += 1
        return
    disk = t.path("disk")
    disk.mkdir()
    command = t.train("--set", "training.train_iters=6", run_dir=disk / "run")
    done = subprocess.run(["unshare", "-m", "sh", "-c",
                           f'mount -t tmpfs -o size=700k tmpfs {disk} && "$@"; code=$?; cat {disk}/run/metrics.jsonl; exit $code',
                           "sh", *map(str, command)], env=environment, text=True, timeout=60, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    good = "space" in done.stdout.lower() and '"step":6' in done.stdout.replace(" ", "")
    e2e.check(good, "place: a disk that fills up while a run saves is reported and does not stop training")
    if not good:
        print(done.returncode, done.stdout[-3000:], flush=True)


def check_case(t, case, show=False):
    command = case.command
    if case.ranks > 1:
        command = [t.lab.mpiexec, "-n", str(case.ranks), *command]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, env={**os.environ, **e2e.ENVIRONMENT}, text=True, errors="replace", timeout=TIME_LIMIT_S,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        e2e.check(False, f"{case.name}: no answer in {TIME_LIMIT_S} s")
        return
    output = done.stdout + done.stderr
    wrong = [f"exit code {done.returncode}, not {case.code}"] if done.returncode != case.code else []
    wrong += [f'does not say "{text}"' for text in case.texts if str(text) not in output]
    wrong += [f'says "{crash}"' for crash in CRASHES if crash in output]
    # The line that a program ends in, and command-line errors, which name no program.
    program = next(n for n in (pathlib.Path(c).name for c in case.command) if n in PROGRAMS)
    said = sum(line.startswith(program + ": ") for line in output.splitlines())
    if case.counts and "--help" not in output and said != case.counts:
        wrong.append(f"is said {said} times")
    if not done.stderr and case.counts and case.ranks == 1:
        wrong.append("nothing on standard error")
    e2e.check(not wrong, case.name + "".join(": " + w for w in wrong[:4]) + f" ({time.monotonic() - begin:.1f} s)")
    if wrong or show:
        print("    " + " ".join(pathlib.Path(c).name for c in command[:9]) + "\n    | " + output.strip()[-900:].replace("\n", "\n    | "), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--mpiexec", default="mpirun")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--show", action="store_true", help="print what every case says")
    arguments = parser.parse_args()
    lab = e2e.Lab(arguments)
    try:
        lab.used, lab.other = lab.folder / "used", lab.folder / "other"
        short = ["--set", "training.train_iters=4", "--set", "checkpoint.async_save=false"]
        for path, seed in ((lab.used, 7), (lab.other, 8)):
            lab.run([lab.bin / "pecan-train", "--config", lab.config, "--run-dir", path, *short, "--set", f"training.seed={seed}"], expect=0)
        lab.run([lab.bin / "pecan-data", "prepare", "--input", lab.folder / "text.txt", "--output", lab.folder / "other",
                 "--vocab-size", "300"], expect=0)
        t = Table(lab)
        for group in (yaml, flags, corpora, runs, places):
            group(t)
        chosen = [c for c in t.cases if arguments.only in c.name]
        for case in chosen:
            check_case(t, case, arguments.show)
        if arguments.only in "live":
            live_run(t)
        print(f"{len(chosen)} cases, {t.skipped} skipped, {len(e2e.failures)} failures")
        e2e.check(arguments.only != "" or len(t.cases) >= 60, "at least 60 cases were tried")
    finally:
        lab.close()
    return 1 if e2e.failures else 0


if __name__ == "__main__":
    sys.exit(main())
