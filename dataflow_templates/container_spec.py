"""Print a Flex Template: the JSON file that says which image to launch, its parameters, and what the workers get."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

FOLDER = pathlib.Path(__file__).parent
JOBS = ("encode", "decode", "compact")

# docs/dataflow.md gives the reasons for these. They are defaults, which a launch can change.
WORKERS = {
    # 4 vCPUs with 4 GB each: Dataflow starts one Python process a vCPU, and each holds a model of its own.
    "machineType": "n2-standard-4",
    # Little is kept on disk: Dataflow shuffles in its own service, and shards are written from memory.
    "diskSizeGb": 30,
    # 40 vCPUs fit into most projects' quotas, encode some 49 million frame-level videos an hour by the figures of
    # docs/dataflow.md, and cost less than 3 dollars an hour. Without it, Dataflow may start 1,000 workers.
    "maxWorkers": 10,
    # Custom images need it.
    "additionalExperiments": ["use_runner_v2"],
}


# Decoded features are kept on disk until a file of them is whole: four files at a time, of 40 GB each for a shard of
# 280 MB and 2000 dimensions.
DECODE_DISK_GB = 200


def container_spec(job: str, image: str) -> dict[str, Any]:
    """Return a job's Flex Template, a `ContainerSpec` of the Dataflow API.

    Args:
      job: One of `JOBS`.
      image: The image that was built with the job's target; launcher and workers both run it.
    """
    return {
        "image": image,
        "sdkInfo": {"language": "PYTHON"},
        "metadata": json.loads((FOLDER / job / "metadata.json").read_text()),
        "defaultEnvironment": {
            **WORKERS,
            **({"diskSizeGb": DECODE_DISK_GB} if job == "decode" else {}),
            "sdkContainerImage": image,
        },
    }


def main() -> None:
    """Print the Flex Template that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("image")
    args = parser.parse_args()
    print(json.dumps(container_spec(args.job, args.image), indent=1))


if __name__ == "__main__":
    main()
