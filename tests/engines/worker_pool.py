"""Beam's worker pool at one address: `python worker_pool.py HOST:PORT`.

`apache_beam.runners.worker.worker_pool_main` is the same at every address of the machine, so that two of them could not
have the same port, as they have on two machines.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import sys

import grpc
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from processes import Process, wait_for


def start_worker_pool(address: str, log: pathlib.Path) -> Process:
    """Start a pool as a process, and wait until it listens."""
    # The pool starts its workers with whatever `python` is first in the path.
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    pool = Process([sys.executable, str(pathlib.Path(__file__).resolve()), address], log, PATH=path)
    wait_for(f"a worker pool at {address}", lambda: "Listening at" in pool.output() or not pool.is_running())
    if not pool.is_running():
        raise RuntimeError(f"The worker pool at {address} ended:\n{pool.output()}")
    return pool


def main(address: str) -> None:
    """Serve until killed."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(), options=[("grpc.so_reuseport", 0)])
    servicer = BeamFnExternalWorkerPoolServicer(use_process=True)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    server.start()
    print(f"Listening at {address}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1])
