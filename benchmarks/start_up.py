"""From a process's start to its first encoded record, and the memory that it holds then.

Three processes encode the same record with the same network: vidpress' functions alone, as a worker runs them; the
whole job on Beam; and TensorFlow with tensorflow-compression, from import to code. `--python` names the interpreter of
a light install, in which the first two then run.
"""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import workload
from results import Report, parser

from vidpress.pipeline.launching import machine

TARGET = 3.0

FUNCTIONS = """
import sys
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.data_set.rows import encode_videos
from vidpress.model.records.tfrecord import read_tfrecords
from vidpress.model.records.videos import parse_video, pool_frames
model = FrozenModel.load(sys.argv[1] + "/model.safetensors")
with open(sys.argv[2], "rb") as file:
    payloads = [payload for _, payload in read_tfrecords(file)]
rows = encode_videos(model, [pool_frames(parse_video(payload, model.spec), model.spec) for payload in payloads]).rows
assert len(rows["code"][0].as_py())
"""
JOB = """
import sys
from vidpress.pipeline.encode import main
main(["--input", sys.argv[2], "--model", sys.argv[1] + "/model.safetensors", "--output", sys.argv[3]])
"""
TENSORFLOW = """
import sys
sys.path.insert(0, sys.argv[4])
import tfdata_script
tfdata_script.encode(file_pattern=sys.argv[2], frame_level=True, model=sys.argv[1] + "/stock.keras",
                     tables=sys.argv[1] + "/stock-tables.npz", output=sys.argv[3] + ".parquet")
"""
REPORT_MEMORY = """
for line in open("/proc/self/status"):
    if line.startswith("VmRSS:"):
        print("RESIDENT", line.split()[1])
"""


def first_record(python: str, script: str, *arguments: str) -> tuple[float, float]:
    """Return the seconds that a process takes for one record, and the MiB that it then holds."""
    start = time.perf_counter()
    result = subprocess.run(
        [python, "-c", script + REPORT_MEMORY, *arguments], check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    return seconds, int(result.stdout.split("RESIDENT")[-1]) / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Run the processes in turns."""
    command_line = parser(__doc__, repeats=7)
    command_line.add_argument("--python", default=sys.executable, help="the light install's (default: this one)")
    command_line.add_argument("--hidden", default="6000,2000", help="layer sizes (default: %(default)s)")
    args = command_line.parse_args(argv)
    print(machine.describe(), flush=True)
    columns = {
        "vidpress, functions": (args.python, FUNCTIONS),
        "vidpress, job on Beam": (args.python, JOB),
        "TensorFlow and TFC": (sys.executable, TENSORFLOW),
    }
    report = Report(f"Start-up and footprint, {workload.SPEC.input_size}-{args.hidden.replace(',', '-')}")
    light = "the light install" if args.python != sys.executable else "THE SAME INTERPRETER, no light install"
    report.note(f"One frame-level record; vidpress in {light}; {args.repeats} turns after one to warm up.")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in columns}
    with tempfile.TemporaryDirectory(prefix="vidpress-benchmark-") as folder:
        _, videos = workload.real_videos(None, 256)
        workload.write_frame_level(folder, videos[:1], 1)
        model = workload.random_model(
            [int(size) for size in args.hidden.split(",")], np.stack([video.x for video in videos])
        )
        model.save(f"{folder}/model.safetensors")
        workload.save_stock_model(model, folder)
        (record,) = glob.glob(f"{folder}/frames-*.tfrecord")
        here = os.path.dirname(os.path.abspath(__file__))
        for turn in range(args.repeats + 1):
            for name, (python, script) in columns.items():
                result = first_record(python, script, folder, record, f"{folder}/{name}-{turn}", here)
                if turn:
                    taken[name].append(result)
    report.row("first record, s", {name: [seconds for seconds, _ in turns] for name, turns in taken.items()}, ".2f")
    report.row("resident memory, MiB", {name: [memory for _, memory in turns] for name, turns in taken.items()})
    medians = {name: sorted(turns)[len(turns) // 2][0] for name, turns in taken.items()}
    report.target(
        "seconds to the first record, TensorFlow and TFC against vidpress",
        TARGET,
        medians["TensorFlow and TFC"] / medians["vidpress, functions"],
    )
    report.finish(args)


if __name__ == "__main__":
    main()
