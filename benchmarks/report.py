"""Run all benchmarks, and write the page of their results and its figure.

Each benchmark runs in a separate process and writes its results to a folder. `--only_page` writes the page again from
these results.
"""

from __future__ import annotations

import argparse
import glob
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

from results import Report

from vidpress.pipeline.launching import machine

REPO = pathlib.Path(__file__).resolve().parent.parent
# The lmbdas of the networks that are trained for the benchmarks, by `--hidden`.
LMBDAS = {"2000": ("0.0005", "0.0015", "0.005"), "6000,2000": ("0.002",)}

INTRODUCTION = """# Benchmarks

`make bench` ran these benchmarks in one go and wrote this page. [benchmarks/README.md](../benchmarks/README.md)
explains what each of them measures. The alternatives in a table took turns. A cell holds the median over the turns. If
there were several, the least and the greatest value follow in parentheses. Compare the columns of a table with each
other. Do not compare tables of different machines.

![Videos a second of the encode job and its alternatives, and symbols a second of the coders.](benchmarks.svg)

These terms are used below:

- A network is named by its sizes: `1152-6000-2000` has 1152 inputs and hidden layers of 6000 and 2000 units.
- **z_hat** are a video's activations at the last hidden layer, rounded to integers. Each of these integers is a
  **symbol**. A **code** is the range-coded z_hat of one video. An **escape** is a symbol outside the coding tables.
- A **bank** is one set of coding tables. With 16 banks, each video is coded with the bank that makes its code shortest.
- In the coders' table, **not 0** is the share of the symbols that are not 0, and the **bytes of information** are the
  shortest code that the tables allow without banks.
- **lmbda** is what a bit cost in the loss when the network was trained. A larger lmbda gives shorter codes.
- **Frame-level** records hold the features of each frame of a video, **video-level** records only their means.
- **Stock Beam** and **tf.data** are two ways to do what the encode job does with stock parts: Beam or tf.data, with
  Keras and tensorflow-compression (**TFC**).
- **Steady state** is what each further video takes: the whole run minus a run with a single record, the start-up.
- The **bound**, or floor, is the least time that all stages of encoding take together. The target takes the floor with
  matrix products in NumPy. Matrix units (Intel AMX) multiply faster, so a job that uses them can exceed it.

This is the machine, with the versions in each environment that benchmarks ran in:
"""

# Stands above the table of targets.
TARGETS_INTRODUCTION = """
## Targets

Each row is a ratio: what it has to be at least, and what was found. A row that says "share" gives that share. The
others say how many times as fast as the alternative vidpress is.
"""


# What needs tensorflow-compression, which has an environment of its own: both sides run in it.
WITH_TFC = ("encode.py", "range_coder.py", "start_up.py")


def jobs(light_python: str | None, models: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the command line of each benchmark. The keys are the names of its results.

    Args:
      light_python: The interpreter of a light install (without TensorFlow), if there is one.
      models: What `train_models` trained, by `--hidden`. If it is empty, weights are random and values made up.
    """

    def network(hidden: str) -> list[str]:
        trained = models.get(hidden)
        return ["--model", trained[len(trained) // 2]] if trained else ["--hidden", hidden]

    coder_models = models.get("2000", [])
    return {
        "encode-3-layer": ["encode.py", *network("6000,2000")],
        "encode-2-layer": ["encode.py", *network("2000")],
        "encode-gzip": ["encode.py", *network("6000,2000"), "--level", "frames-gz", "--records", "12000"],
        "encode-video-level": ["encode.py", *network("6000,2000"), "--level", "means", "--records", "30000"],
        "bound": ["bound.py", *network("6000,2000")],
        "range-coder": ["range_coder.py", *(["--model", *coder_models] if coder_models else [])],
        "lanes": ["lanes.py", *(["--model", *coder_models] if coder_models else [])],
        "reading": ["reading.py", *(network("2000") if coder_models else [])],
        "lookup": ["lookup.py", *(network("2000") if coder_models else [])],
        "compaction": ["compaction.py", *(network("2000") if coder_models else [])],
        "start-up": ["start_up.py", *(["--python", light_python] if light_python else [])],
        "growth": ["growth.py"],
        "training": ["training.py"],
    }


def train_models(folder: pathlib.Path, steps: int) -> dict[str, list[str]]:
    """Train the networks of `LMBDAS` unless they exist already, and return their files by `--hidden`."""
    shared = REPO.parent / "shared" / "data"
    data = os.environ.get("VIDPRESS_DATA", str(shared))
    if not glob.glob(f"{data}/yt8m_v2_video/*.tfrecord"):
        print("There are no YouTube-8M videos to train on: weights are random, and the coders get made-up values.")
        return {}
    models: dict[str, list[str]] = {}
    for hidden, lmbdas in LMBDAS.items():
        for lmbda in lmbdas:
            model = folder / f"hidden-{hidden.replace(',', '-')}-lmbda-{lmbda}.safetensors"
            if not model.exists():
                command = ["train", "--input", f"{data}/yt8m_v2_video/validate00[0-9]*.tfrecord", "--hidden", hidden]
                command += ["--lmbda", lmbda, "--weight_decay", "3e-4", "--input_dropout", "0.2"]
                command += ["--steps", str(steps), "--output", str(model)]
                subprocess.run([sys.executable, "-m", "vidpress.pipeline.launching.cli", *command], check=True)
            models.setdefault(hidden, []).append(str(model))
    return models


def run(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Run the benchmarks one after another."""
    models = train_models(folder, args.steps)
    for name, (script, *options) in jobs(args.light_python, models).items():
        python = args.tfc_python if script in WITH_TFC else sys.executable
        command = [python, f"{REPO}/benchmarks/{script}", *options, "--json", str(folder / f"{name}.json")]
        print(f"\n$ {script} {' '.join(options)}", flush=True)
        subprocess.run(command, check=True)


def write_page(folder: pathlib.Path, page: pathlib.Path) -> None:
    """Write the page of the results, and its figure."""
    reports: dict[str, Report] = {}
    machines: list[list[str]] = []
    for name in jobs(None, {}):
        path = folder / f"{name}.json"
        if path.exists():
            reports[name], machine_lines = Report.load(path)
            machines.append(machine_lines)
    if not machines:
        raise SystemExit(f"{folder} has no results of a benchmark: run `make bench` first.")
    # The processor, the load when the first benchmark started, and the versions in each environment.
    (processor, load, _), *_ = machines
    described = dict.fromkeys([processor, load, *(versions for _, _, versions in machines)])
    lines = [INTRODUCTION, *(f"- {line}" for line in described)]
    scripts = {name: f"`{script}`" for name, (script, *_) in jobs(None, {}).items()}
    measured = {scripts[name] for name in reports}
    if missing := [script for script in dict.fromkeys(scripts.values()) if script not in measured]:
        lines.append(f"\nNot measured in this run: {', '.join(missing)}.")
    lines += [TARGETS_INTRODUCTION, "| | at least | found |"]
    lines += ["| --- | ---: | ---: |"]
    for target in (target for report in reports.values() for target in report.targets):
        missed = "" if target.ratio >= target.at_least else " (missed)"
        lines.append(f"| {target.what} | {target.at_least:.2g} | {target.ratio:.2f}{missed} |")
    page.write_text("\n".join(lines) + "\n\n" + "\n".join(report.markdown() for report in reports.values()))
    draw(reports, page.with_suffix(".svg"))


def draw(reports: dict[str, Report], path: pathlib.Path) -> None:
    """Draw how fast the encode jobs and the coders are."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "vidpress"
    encode = {name: report for name, report in reports.items() if name.startswith("encode")}
    panels = [
        ("encode, videos/s, steady state", {n.removeprefix("encode-"): (r, 0) for n, r in encode.items()}),
        (
            "coder, M symbols/s",
            {
                label.split(",")[0] + (" encode" if "encode" in label else " decode"): (reports["range-coder"], index)
                for index, (label, _) in enumerate(reports["range-coder"].rows)
                if "symbols/s" in label
            }
            if "range-coder" in reports
            else {},
        ),
    ]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for axis, (title, groups) in zip(axes, panels, strict=True):
        columns = list(dict.fromkeys(column for report, _ in groups.values() for column in report.columns))
        width = 0.8 / max(len(columns), 1)
        for offset, column in enumerate(columns):
            cells = [report.rows[index][1].get(column) for report, index in groups.values()]
            heights = [statistics.median(cell.values) if cell else 0.0 for cell in cells]
            axis.bar([place + offset * width for place in range(len(groups))], heights, width, label=column)
        axis.set_xticks([place + 0.4 - width / 2 for place in range(len(groups))], list(groups), fontsize=8)
        axis.set_yscale("log" if "coder" in title else "linear")
        axis.set_title(title, fontsize=10)
        axis.tick_params(axis="x", rotation=20)
        axis.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.22))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main(argv: Sequence[str] | None = None) -> None:
    """Run all benchmarks and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="build/bench", help="the folder of the results (default: %(default)s)")
    parser.add_argument("--page", default="docs/benchmarks.md", help="the page to write (default: %(default)s)")
    parser.add_argument(
        "--tfc_python",
        default=sys.executable,
        help="an interpreter that has tensorflow-compression (default: this one)",
    )
    parser.add_argument("--light_python", help="the interpreter of a light install (no TensorFlow), for start_up.py")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each model (default: %(default)s)")
    parser.add_argument("--only_page", action="store_true", help="run no benchmark; write the page from the results")
    args = parser.parse_args(argv)
    folder = pathlib.Path(args.results).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(machine.describe())
    if not args.only_page:
        run(folder, args)
    write_page(folder, pathlib.Path(args.page))
    print(f"\nThe results are in {args.page}.")


if __name__ == "__main__":
    main()
