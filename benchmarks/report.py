"""Run all benchmarks, and write the page of their results and its figure.

Each runs in a process of its own and leaves its results in a folder, from which `--only_page` makes the page anew.
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
# Of the networks that are trained for the benchmarks, by `--hidden`.
LMBDAS = {"2000": ("0.0005", "0.0015", "0.005"), "6000,2000": ("0.002",)}

INTRODUCTION = """# Benchmarks

`make bench` ran all of it, in one go, and wrote this page. Cells are medians, with the least and the most of the turns
where there were several. Compare the columns of a table, not tables of different machines.

![Videos a second of the encode job against the alternatives, and symbols a second of the coders.](benchmarks.svg)
"""


# What needs tensorflow-compression, which has an environment of its own: both sides run in it.
WITH_TFC = ("encode.py", "range_coder.py")


def jobs(light_python: str | None, models: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the command line of each benchmark, by the name of its results.

    Args:
      light_python: The interpreter of a light install, if there is one.
      models: By `--hidden`, what `train_models` trained; empty for random weights and made-up values.
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
        "reading": ["reading.py", *(network("2000") if coder_models else [])],
        "start-up": ["start_up.py", *(["--python", light_python] if light_python else [])],
        "growth": ["growth.py"],
        "training": ["training.py"],
    }


def train_models(folder: pathlib.Path, steps: int) -> dict[str, list[str]]:
    """Train the networks of `LMBDAS`, or return those that are there already, by `--hidden`."""
    shared = REPO.parent / "shared" / "data"
    data = os.environ.get("VIDPRESS_DATA", str(shared))
    if not glob.glob(f"{data}/yt8m_v2_video/*.tfrecord"):
        print("There are no YouTube-8M videos to train on: random weights, and made-up values for the coders.")
        return {}
    models: dict[str, list[str]] = {}
    for hidden, lmbdas in LMBDAS.items():
        for lmbda in lmbdas:
            model = folder / f"hidden-{hidden.replace(',', '-')}-lmbda-{lmbda}.safetensors"
            if not model.exists():
                command = ["train", "--input", f"{data}/yt8m_v2_video/validate00[0-9]*.tfrecord", "--hidden", hidden]
                command += ["--lmbda", lmbda, "--weight_decay", "3e-4", "--input_dropout", "0.2"]
                command += ["--steps", str(steps), "--output", str(model)]
                subprocess.run([sys.executable, "-m", "vidpress.pipeline.cli", *command], check=True)
            models.setdefault(hidden, []).append(str(model))
    return models


def run(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Run the benchmarks one after the other."""
    models = train_models(folder, args.steps)
    for name, (script, *options) in jobs(args.light_python, models).items():
        python = args.tfc_python if script in WITH_TFC else sys.executable
        command = [python, f"{REPO}/benchmarks/{script}", *options, "--json", str(folder / f"{name}.json")]
        print(f"\n$ {script} {' '.join(options)}", flush=True)
        subprocess.run(command, check=True)


def write_page(folder: pathlib.Path, page: pathlib.Path) -> None:
    """Write the page of the results, and its figure."""
    reports = {}
    for name in jobs(None, {}):
        path = folder / f"{name}.json"
        if path.exists():
            reports[name], last_machine = Report.load(path)
    lines = [INTRODUCTION, *(f"- {line}" for line in last_machine), "\n## Targets\n", "| | at least | found |"]
    lines += ["| --- | ---: | ---: |"]
    for target in (target for report in reports.values() for target in report.targets):
        missed = "" if target.ratio >= target.at_least else " (missed)"
        lines.append(f"| {target.what} | {target.at_least:.2g} | {target.ratio:.2f}{missed} |")
    page.write_text("\n".join(lines) + "\n\n" + "\n".join(report.markdown() for report in reports.values()))
    draw(reports, page.with_suffix(".svg"))


def draw(reports: dict[str, Report], path: pathlib.Path) -> None:
    """Draw the encode jobs' and the coders' rates."""
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
    parser.add_argument("--results", default="build/bench", help="the results' folder (default: %(default)s)")
    parser.add_argument("--page", default="docs/benchmarks.md", help="(default: %(default)s)")
    parser.add_argument(
        "--tfc_python",
        default=sys.executable,
        help="an interpreter that has tensorflow-compression (default: this one)",
    )
    parser.add_argument("--light_python", help="the interpreter of a light install, for the start-up")
    parser.add_argument("--steps", type=int, default=1000, help="of training the models (default: %(default)s)")
    parser.add_argument("--only_page", action="store_true", help="run nothing; make the page of what is there")
    args = parser.parse_args(argv)
    folder = pathlib.Path(args.results).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(machine.describe())
    if not args.only_page:
        run(folder, args)
    write_page(folder, pathlib.Path(args.page))
    print(f"\nThe results stand in {args.page}.")


if __name__ == "__main__":
    main()
