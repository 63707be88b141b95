#!/usr/bin/python3
"""Completions and manual pages against --help: every option stands in all of them. Argument: DIR of the programs."""

import pathlib
import re
import subprocess
import sys


def output(*command):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def complete(script, program, words):
    """What bash offers for the last of these words."""
    lines = [f"source {script}", f"COMP_WORDS=({' '.join(repr(w) for w in [program, *words])})",
             f"COMP_CWORD={len(words)}", "compopt() { :; }", f"_{program.replace('-', '_')}",
             'printf "%s\\n" "${COMPREPLY[@]}"']
    return output("bash", "-c", "\n".join(lines)).split()


def main():
    folder = pathlib.Path(sys.argv[1])
    for program in ("pecan-train", "pecan-plan", "pecan-data", "pecan-inspect", "pecan-launch", "pecan-convert"):
        text = output(folder / program, "--help")
        options = set(re.findall(r"^ {4}(--[a-z-]+)", text, re.MULTILINE))
        assert len(options) >= 3, (program, options)
        bash, zsh, page = (output(folder / program, *how) for how in
                           (("--completion", "bash"), ("--completion", "zsh"), ("--man-page",)))
        for option in options:
            assert re.search(rf"{option}\b", bash), (program, option, "bash")
            assert re.search(rf"{option}\b", zsh), (program, option, "zsh")
            assert option.replace("-", "\\-") in page, (program, option, "manual page")
        assert page.startswith(f".TH {program.upper()} 1"), page[:80]
        script = pathlib.Path(sys.argv[2]) / f"{program}.bash"
        script.write_text(bash)
        subprocess.run(["bash", "-n", str(script)], check=True)
        cases = {
            "pecan-train": [(["--resume-f"], ["--resume-from-failure"]),
                            (["--set", "model.num_l"], ["model.num_layers="])],
            "pecan-plan": [(["--wor"], ["--world"]), (["--set", "moe.num_e"], ["moe.num_experts="]),
                           (["simul"], ["simulate"]), (["simulate", "--mt"], ["--mtbf"])],
            "pecan-data": [(["mer"], ["merge"]), (["samples", "--which", "va"], ["valid"])],
            "pecan-launch": [(["--ho"], ["--hosts"]), (["--set", "elastic.max"], ["elastic.max_restarts="])],
            "pecan-convert": [(["upc"], ["upcycle"]), (["upcycle", "--indices", "ind"], ["independent"]),
                              (["upcycle", "--set", "moe.num_e"], ["moe.num_experts="])],
            "pecan-inspect": [(["DIR", "cov"], ["coverage"]), (["--memory", "--cl"], ["--clean"])],
        }
        for words, expected in cases[program]:
            found = complete(script, program, words)
            assert found == expected, (program, words, found)
    print("completions and manual pages hold every option")


if __name__ == "__main__":
    main()
