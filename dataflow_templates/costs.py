"""Work out what encoding costs on Dataflow: the table of docs/dataflow.md, or your own with your figures and prices."""

from __future__ import annotations

import argparse
import dataclasses
import math

GB = 2**30
VCPUS_PER_WORKER = 4
MEMORY_GB_PER_VCPU = 4
DISK_GB_PER_VCPU = 30 / VCPUS_PER_WORKER
READ_BYTES = 16 * 2**20  # what Beam asks Cloud Storage for at a time
INPUT_BYTES_PER_SHARD = 16 * GB  # --num_shards' default
CLASS_A_PER_SHARD = 4  # start an upload, finish it, copy, and a list's share


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured, and what is assumed.

    Attributes:
      cpu_seconds: CPU time a video, in the steady state.
      input_bytes: Bytes of a video's record.
      stored_bytes: Bytes of a video in the shards.
      videos_per_file: Videos in an input file.
      bytes_per_second: What a process reads from Cloud Storage while it reads; it reads and computes in turns.
    """

    cpu_seconds: float
    input_bytes: float
    stored_bytes: float
    videos_per_file: float
    bytes_per_second: float


@dataclasses.dataclass(frozen=True)
class Prices:
    """List prices in US dollars: Dataflow batch and Cloud Storage standard class, us-central1, as of June 2025."""

    vcpu_hour: float = 0.056
    memory_gb_hour: float = 0.003557
    disk_gb_hour: float = 0.000054
    shuffled_gb: float = 0.011
    class_a: float = 0.005 / 1000
    class_b: float = 0.0004 / 1000
    stored_gb_month: float = 0.020


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of one data set in dollars, except `vcpu_hours`, `input_gb` and `stored_gb`."""

    vcpu_hours: float
    input_gb: float
    stored_gb: float
    workers: float
    shuffle: float
    requests: float
    input_month: float
    stored_month: float

    @property
    def job(self) -> float:
        """What the job costs once."""
        return self.workers + self.shuffle + self.requests


def costs(videos: float, figures: Figures, prices: Prices) -> Costs:
    """Return what encoding a number of videos costs."""
    vcpu_hours = videos * (figures.cpu_seconds + figures.input_bytes / figures.bytes_per_second) / 3600
    input_gb = videos * figures.input_bytes / GB
    stored_gb = videos * figures.stored_bytes / GB
    per_vcpu_hour = (
        prices.vcpu_hour + MEMORY_GB_PER_VCPU * prices.memory_gb_hour + DISK_GB_PER_VCPU * prices.disk_gb_hour
    )
    shards = max(1, math.ceil(videos * figures.input_bytes / INPUT_BYTES_PER_SHARD))
    reads = videos / figures.videos_per_file + videos * figures.input_bytes / READ_BYTES
    return Costs(
        vcpu_hours=vcpu_hours,
        input_gb=input_gb,
        stored_gb=stored_gb,
        workers=vcpu_hours * per_vcpu_hour,
        shuffle=2 * stored_gb * prices.shuffled_gb,  # written to the shuffle, and read from it
        requests=shards * CLASS_A_PER_SHARD * prices.class_a + reads * prices.class_b,
        input_month=input_gb * prices.stored_gb_month,
        stored_month=stored_gb * prices.stored_gb_month,
    )


def table(counts: list[float], figures: Figures, prices: Prices) -> str:
    """Return the costs of some numbers of videos as a Markdown table."""
    found = [costs(count, figures, prices) for count in counts]
    rows = {
        "videos": [f"{count:,.0f}" for count in counts],
        "input": [_gb(cost.input_gb) for cost in found],
        "shards": [_gb(cost.stored_gb) for cost in found],
        "vCPU hours": [f"{cost.vcpu_hours:,.1f}" for cost in found],
        "hours on 100 workers of 4 vCPUs": [f"{cost.vcpu_hours / 400:,.2f}" for cost in found],
        "workers": [_dollars(cost.workers) for cost in found],
        "shuffle": [_dollars(cost.shuffle) for cost in found],
        "requests": [_dollars(cost.requests) for cost in found],
        "**the job, once**": [f"**{_dollars(cost.job)}**" for cost in found],
        "keeping the input, a month": [_dollars(cost.input_month) for cost in found],
        "keeping the shards, a month": [_dollars(cost.stored_month) for cost in found],
    }
    lines = ["| " + " | ".join([name, *values]) + " |" for name, values in rows.items()]
    return "\n".join([lines[0], "|---" + "|---:" * len(counts) + "|", *lines[1:]])


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}"


def _gb(amount: float) -> str:
    return f"{amount / 1024:,.2f} TB" if amount >= 1024 else f"{amount:,.2f} GB"


def main() -> None:
    """Print the table for the figures and prices of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=float, nargs="+", default=[1e6, 1e8, 1e9], help="numbers of videos")
    for field in dataclasses.fields(Figures):
        parser.add_argument(f"--{field.name}", type=float, required=True)
    for field in dataclasses.fields(Prices):
        parser.add_argument(f"--{field.name}", type=float, default=field.default, help="dollars (default: %(default)s)")
    args = vars(parser.parse_args())
    videos = args.pop("videos")
    names = {field.name for field in dataclasses.fields(Figures)}
    figures = Figures(**{name: value for name, value in args.items() if name in names})
    print(table(videos, figures, Prices(**{name: value for name, value in args.items() if name not in names})))


if __name__ == "__main__":
    main()
