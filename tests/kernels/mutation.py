#!/usr/bin/env python3
"""What the tests of the kernels miss: each barrier removed, each bound shifted, each mask changed, one at a time.

usage: mutation.py --build build/ci [--only FILE ...] [--log FILE] [--list]

All mutants are compiled into one copy of the checked emulated library, each behind a switch that PECAN_MUTANT turns on:
`a < b` becomes `a < mutant::at(17) < b`, which has the same precedence and is `a <= b` where 17 is on. A mutant meets the
tests of its kernel until one finds it; with no mutant on, all of them must pass. Who survives must be listed, with a reason,
in mutation_survivors.txt. Standard library only.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = "tests/kernels/libpecan_cuda_checked.so"

SWITCH = """#pragma once
#include <cstddef>
#include <cstdlib>
#include <vector_types.h>
namespace mutant {
inline const int chosen = [] {
  const char* text = std::getenv("PECAN_MUTANT");
  return text == nullptr ? 0 : std::atoi(text);
}();
/// The checks do not see that device code reads it.
__attribute__((noinline, no_sanitize("thread", "undefined"))) inline bool is_on(int number) { return number == chosen; }
struct Site { int number; };
inline Site at(int number) { return {number}; }
template <typename T> struct Left { T value; int number; };
#define MUTANT_COMPARISON(is, becomes)                                                  \\
  template <typename T> Left<T> operator is(T value, Site site) { return {value, site.number}; } \\
  template <typename T, typename U> bool operator is(Left<T> left, U right) {            \\
    return is_on(left.number) ? left.value becomes right : left.value is right;          \\
  }
MUTANT_COMPARISON(<, <=)
MUTANT_COMPARISON(<=, <)
MUTANT_COMPARISON(>, >=)
MUTANT_COMPARISON(>=, >)
MUTANT_COMPARISON(==, !=)
MUTANT_COMPARISON(!=, ==)
template <typename T> T plus_one(int number, T value) { return is_on(number) ? T(value + 1) : value; }
inline unsigned without_last(int number, unsigned mask) { return is_on(number) ? mask >> 1 : mask; }
inline dim3 fewer(int number, dim3 grid) {
  if (is_on(number)) --grid.x;
  return grid;
}
inline std::size_t smaller(int number, std::size_t bytes) { return is_on(number) && bytes >= 16 ? bytes - 16 : bytes; }
}  // namespace mutant
"""

# Names of test cases begin with the operator's, but for these files.
CASES = {"default_vectors": ["default vectors*"], "norm": ["rms_norm*", "layer_norm*"], "matmul": ["matmul*", "grouped_matmul*"]}
OF_GROUPS = {"reduce_pieces"}  # members' pieces: tested through the collectives


class Mutant(collections.namedtuple("Mutant", "number file line kind text occurrence")):
    """`occurrence`: of this kind at a line of this text, in its file."""
    def __str__(self):
        return f"{self.file}:{self.line}: {self.kind}: {self.text}"

    @property
    def key(self):
        return f"{self.file} | {self.kind} | {self.text} | {self.occurrence}"


def matching(text, start):
    """Index of the parenthesis or brace that closes the one at `start`."""
    change = {"(": {"(": 1, ")": -1}, "{": {"{": 1, "}": -1}}[text[start]]
    depth = 0
    for i in range(start, len(text)):
        depth += change.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError("nothing closes it")


def arguments(text, start):
    """(begin, end) of the arguments of the call whose parenthesis opens at `start`; types have no commas in parentheses here."""
    end, depth, begin, found = matching(text, start), 0, start + 1, []
    for i in range(start + 1, end):
        depth += {"(": 1, "{": 1, "[": 1, "<": 1, ")": -1, "}": -1, "]": -1, ">": -1}.get(text[i], 0)
        if text[i] == "," and depth == 0:
            found.append((begin, i))
            begin = i + 1
    return [*found, (begin, end)]


def blanked(text):
    """The code alone: comments, strings, directives and constant expressions become spaces."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match.group())

    text = re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|^[ \t]*#(?:\\\n|[^\n])*', blank, text, flags=re.S | re.M)
    for match in list(re.finditer(r"\bif constexpr \(|\b(?:constexpr|static_assert|using)\b[^;]*;", text)):
        end = matching(text, match.end() - 1) if match.group().endswith("(") else match.end()
        if match.group().count("{") > match.group().count("}"):  # a function, with its body
            end = matching(text, match.start() + match.group().index("{"))
        text = text[:match.start()] + re.sub(r"[^\n]", " ", text[match.start():end]) + text[end:]
    return text


def edits_of(code):
    """(position, end, kind, replacement with {} for the number) of each place that can be changed."""
    for match in re.finditer(r"__sync(?:threads|warp)\(\);", code):
        yield match.start(), match.end(), "no barrier", f"(mutant::is_on({{}}) ? void() : {match.group()[:-1]});"
    for match in re.finditer(r"__syncthreads_or\(", code):
        end = matching(code, match.end() - 1) + 1
        operand = code[match.end():end - 1]
        yield match.start(), match.end(), "no barrier", f"(mutant::is_on({{}}) ? int(bool({operand})) : __syncthreads_or("
        yield end, end, None, ")"
    for match in re.finditer(r"(?<=\s)(<|>|<=|>=|==|!=)(?=\s)", code):
        becomes = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}[match.group()]
        yield match.start(), match.end(), f"{match.group()} becomes {becomes}", f"{match.group()} mutant::at({{}}) {match.group()}"
    for match in re.finditer(r"(?<![\w:.])(?:std::)?(?:min|max)(?:<\w+>)?\(", code):
        yield match.start(), match.start(), "bound + 1", "mutant::plus_one({}, "
        end = matching(code, match.end() - 1) + 1
        yield end, end, None, ")"
    for match in re.finditer(r"\bfor \([\w:]+ \w+ = ([^;]*)(?=;)", code):
        yield match.start(1), match.start(1), "first + 1", "mutant::plus_one({}, "
        yield match.end(), match.end(), None, ")"
    for match in re.finditer(r"(?<=\()kAllLanes(?=, )", code):
        yield match.start(), match.end(), "mask without its last lane", "mutant::without_last({}, kAllLanes)"
    for match in re.finditer(r"(?<=1U << )lane\b", code):
        yield match.start(), match.end(), "mask of one lane more", "mutant::plus_one({}, lane)"
    for match in re.finditer(r"^ *launch(?=\()", code, flags=re.M):
        _, grid, _, shared = arguments(code, match.end())[:4]
        yield grid[0], grid[0], "a block less", " mutant::fewer({}, "
        yield grid[1], grid[1], None, ")"
        if code[slice(*shared)].strip() != "0":
            yield shared[0], shared[0], "16 bytes of shared memory less", " mutant::smaller({}, "
            yield shared[1], shared[1], None, ")"


def mutate(path, first_number):
    """The file with switches, and its mutants."""
    text = path.read_text()
    code = blanked(text)
    file = str(path.relative_to(ROOT))
    lines = text.split("\n")
    mutants, insertions, seen = [], [], collections.Counter()
    for begin, end, kind, new in sorted(edits_of(code), key=lambda edit: edit[:2]):
        if kind is not None:
            line = code.count("\n", 0, begin + (code[begin] == "\n"))
            number, place = first_number + len(mutants), (kind, lines[line].strip())
            seen[place] += 1
            mutants.append(Mutant(number, file, line + 1, *place, seen[place]))
            new = new.replace("{}", str(number), 1)
        insertions.append((begin, end, new))
    for begin, end, new in reversed(insertions):  # none overlaps another
        text = text[:begin] + new + text[end:]
    return text, mutants


def write_mutants(folder):
    """Writes all kernels with their switches to folder/kernels; returns the mutants, and whether they were there before."""
    (folder / "kernels").mkdir(parents=True, exist_ok=True)
    texts, mutants = {folder / "mutant.hpp": SWITCH}, []
    for path in sorted((ROOT / "kernels").iterdir()):
        if path.suffix in (".cu", ".cuh") or path.name == "matmul.cpp":
            texts[folder / path.relative_to(ROOT)], found = mutate(path, len(mutants) + 1)
            mutants += found
    same = all(path.exists() and path.read_text() == text for path, text in texts.items())
    if not same:
        for made in folder.glob("*.o"):
            made.unlink()
    for path, text in texts.items():
        path.write_text(text)
    return mutants, same


def build_library(build, folder, library, same):
    """Compiles all units as the checked emulated library has them, but what is there of the `same`, and links it anew with them."""
    commands = {Path(entry["file"]): entry for entry in json.loads((build / "compile_commands.json").read_text())
                if "pecan_cuda_checked.dir" in entry["command"]}
    listed = subprocess.run(["ninja", "-t", "commands", TARGET], cwd=build, text=True, capture_output=True, check=True).stdout
    link = listed.strip().split("\n")[-1]
    for unit in sorted(path.name for path in (folder / "kernels").iterdir() if path.suffix != ".cuh"):
        entry = commands[ROOT / "kernels" / unit]
        made = re.search(r" -o (\S+)", entry["command"]).group(1)
        new = folder / (unit + ".o")
        command = entry["command"].replace(f" -o {made}", f" -o {new}").replace(entry["file"], str(folder / "kernels" / unit))
        command = re.sub(r" -I", f" -w -include {folder}/mutant.hpp -I{folder} -I", command, count=1)
        if not (same and new.exists()):
            subprocess.run(command, shell=True, cwd=build, check=True)
            print(f"compiled {unit}", flush=True)
        link = link.replace(made, str(new))
    subprocess.run(link.replace(f"-o {TARGET}", f"-o {library}"), shell=True, cwd=build, check=True)


def units_with(file, folder):
    """Units that `file` is part of."""
    included = {path.name: re.findall(r'#include "kernels/(\w+\.cuh)"', path.read_text()) for path in (folder / "kernels").iterdir()}

    def parts(name):
        return {name}.union(*(parts(other) for other in included.get(name, [])))
    return [name for name in sorted(included) if not name.endswith(".cuh") and Path(file).name in parts(name)]


class Tests:
    """Test cases, each in a process of its own."""
    def __init__(self, build, library):
        self.library = library
        self.ops, self.comm = build / "tests/ops/ops_test", build / "tests/comm/comm_test"
        self.guards = (self.ops, "[.device guards]")
        self.seconds = {}

    def environment(self, mutant):
        return {**os.environ, "PECAN_MUTANT": str(mutant), "PECAN_CUDA_LIBRARY": str(self.library), "PECAN_TEST_DEVICE": "cuda",
                "PECAN_EMULATION_DEVICES": "4"}

    def of(self, unit):
        """The commands that test a unit."""
        stem = unit.split(".")[0]
        if stem in OF_GROUPS:
            return [(self.comm, "[.device group]")]
        wanted = ",".join(f"{name}[any device]" for name in CASES.get(stem, [f"{stem}*"]))
        listed = subprocess.run([self.ops, wanted, "--list-test-names-only"], env=self.environment(0), text=True, stdout=subprocess.PIPE)
        return [(self.ops, name.replace(",", "\\,")) for name in listed.stdout.splitlines() if name]

    def run(self, command, mutant=0):
        """How a test ends: None where it passes, else what failed first."""
        with subprocess.Popen([*command, "--abort"], env=self.environment(mutant), stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE) as process:
            # Of processor time, so that other work on the machine does not matter; who sleeps that long will not wake.
            limit = int(5 * self.seconds.get(command, 60) + 10)
            resource.prlimit(process.pid, resource.RLIMIT_CPU, (limit, limit))
            end, said, sign = time.monotonic() + 20 * limit, b"", None
            while sign is None:
                ready, _, _ = select.select([process.stderr], [], [], max(0, end - time.monotonic()))
                chunk = os.read(process.stderr.fileno(), 65536) if ready else None
                if chunk is None:
                    sign = "time-out"
                elif not chunk:
                    break
                else:
                    said += chunk
                    finding = re.search(rb"cuda emulation: ([\w ]+):", said)
                    sign = finding and finding.group(1).decode()
            if sign:
                os.kill(process.pid, signal.SIGKILL)  # not process.kill(), which may reap it
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if mutant == 0:
            self.seconds[command] = usage.ru_utime + usage.ru_stime
        if sign or process.returncode == 0:
            return sign
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return "time-out"
        return "wrong result" if process.returncode > 0 else "crash"


def explanations():
    """Reasons by mutant: lines `# reason`, each before its mutants."""
    reasons, reason = {}, None
    for line in (Path(__file__).parent / "mutation_survivors.txt").read_text().splitlines():
        if line.startswith("# "):
            reason = line[2:]
        elif line:
            reasons[line] = reason
    return reasons


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True, help="a configured and built tree with the emulation")
    parser.add_argument("--only", nargs="+", metavar="FILE", help="mutants of these files alone, as kernels/rope.cuh")
    parser.add_argument("--jobs", type=int, default=1, help="mutants that are tested at the same time")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep compiled mutants there, and use those of the same kernels")
    parser.add_argument("--log", type=Path, metavar="FILE", help="add results there, and take those that it has: a run can be stopped")
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    options = parser.parse_args()
    build = options.build.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work.resolve() if options.work else Path(temporary)
        mutants, same = write_mutants(folder)
        mutants = [mutant for mutant in mutants if not options.only or mutant.file in options.only]
        if options.list:
            print("\n".join(f"{mutant.number} {mutant}" for mutant in mutants))
            return 0
        units_of = {file: units_with(file, folder) for file in sorted({mutant.file for mutant in mutants})}
        units = sorted(set().union(*units_of.values()))
        library = folder / Path(TARGET).name
        build_library(build, folder, library, same)
        tests = Tests(build, library)
        commands_of = {unit: tests.of(unit) for unit in units}
        cases = sorted({tests.guards, *sum(commands_of.values(), [])})
        pool = concurrent.futures.ThreadPoolExecutor(options.jobs)
        failed = [name for (_, name), sign in zip(cases, pool.map(tests.run, cases)) if sign is not None]
        if failed:
            print(f"FAILED: without any mutant: {', '.join(failed)}")
            return 1
        print(f"{len(tests.seconds)} test cases pass without any mutant, in {sum(tests.seconds.values()):.0f} s", flush=True)
        commands_of_file = {file: sorted(set().union(*(commands_of[unit] for unit in units_of[file])), key=tests.seconds.get) for file in units_of}
        # Those with quick tests first.
        mutants.sort(key=lambda mutant: sum(tests.seconds[case] for case in commands_of_file[mutant.file]))
        return report(mutants, commands_of_file, tests, pool, options.log)


def report(mutants, commands_of, tests, pool, log):
    reasons, found, survivors, failures = explanations(), collections.defaultdict(collections.Counter), [], []
    known = dict(line.rsplit("\t", 1) for line in log.read_text().splitlines()) if log and log.exists() else {}

    def sign_of(mutant):
        if mutant.key in known:
            return known[mutant.key] or None
        sign = test(mutant)
        if log:
            with log.open("a") as file:
                file.write(f"{mutant.key}\t{sign or ''}\n")
        return sign

    def test(mutant):
        # Guards of indices have tests of their own, which nobody else needs.
        commands = [*commands_of[mutant.file], *[tests.guards] * ("require(" in mutant.text)]
        return next(filter(None, (tests.run(command, mutant.number) for command in commands)), None)

    for mutant, sign in zip(mutants, pool.map(sign_of, mutants)):
        found[mutant.file][sign or "survived"] += 1
        print(f"{mutant.number:4} {sign or 'SURVIVED':16} {mutant}", flush=True)
        if sign is None:
            survivors.append(mutant)
            if mutant.key not in reasons:
                failures.append(f"no reason is known why this one survives: {mutant.key}")
        elif mutant.key in reasons:
            failures.append(f"found, though it is listed as a survivor: {mutant.key}")
    print()
    for file, signs in found.items():
        means = ", ".join(f"{count} {sign}" for sign, count in signs.most_common())
        print(f"{file:32} {sum(signs.values()):4} mutants: {means}")
    real = len(mutants) - sum(reasons.get(mutant.key, "").startswith("Equivalent") for mutant in survivors)
    caught = len(mutants) - len(survivors)
    print(f"{caught} of {len(mutants)} mutants were found; without {len(mutants) - real} equivalent ones {100 * caught / max(real, 1):.1f} %")
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
