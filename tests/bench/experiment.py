"""What the experiments that write docs/reproduction.md share: records of runs, means over seeds, tables and figures."""

import dataclasses
import json
import math
import os
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import e2e  # noqa: E402

# One process without mpirun: Open MPI needs no helper, and listens nowhere.
ENVIRONMENT = {**os.environ, **e2e.ENVIRONMENT, "OMPI_MCA_ess_singleton_isolated": "1"}
# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def lines_of(path):
    """The records of a file with one JSON object a line; what a crash cut short is none."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over seeds and half the width of its 95 % interval (of Student's t)."""

    of: float
    half: float
    count: int

    @classmethod
    def over(cls, values):
        count = len(values)
        if count < 2:
            return cls(statistics.fmean(values), math.nan, count)
        t = T_95[count - 2] if count - 2 < len(T_95) else 1.96 + 2.4 / (count - 1)
        return cls(statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(count), count)

    def __str__(self):
        return f"{self.of:+z.4f} ± {self.half:.4f}"


def table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_section(folder, title, text):
    """Puts `text`, which begins with its heading, in place of a section of reproduction.md, or at the end; the page's path."""
    page = folder / "reproduction.md"
    before, _, rest = page.read_text().partition(f"## {title}\n")
    _, heading, after = rest.partition("\n## ")
    page.write_text(before.rstrip("\n") + "\n\n" + text.strip("\n") + "\n" + heading + after)
    return page


def pyplot():
    """matplotlib's, set so that the same results give the same bytes."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("the figures need the package python3-matplotlib, and the Python that it is for")
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "pecan", "svg.fonttype": "none", "font.size": 9, "axes.grid": True,
                                "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot as plots
    return plots


def save_figure(figure, folder, name):
    """As FOLDER/figures/NAME.svg."""
    figure.tight_layout()
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "figures" / f"{name}.svg", metadata={"Date": None, "Creator": None})
    pyplot().close(figure)
