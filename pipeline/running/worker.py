"""A worker process of `--direct_running_mode multi_processing`: Beam's, but it ends when its launcher does."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time


def main() -> None:
    """Do what the launcher asks, until it says that there is no more work, or has ended."""
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    # The launcher reports what went wrong, and only one worker logs what all of them do. Beam sets the logger's level,
    # not the handler's.
    handler = logging.StreamHandler()
    handler.addFilter(_is_of_interest)
    logging.getLogger().addHandler(handler)
    import grpc
    from apache_beam.runners.worker import sdk_worker_main

    from vidpress.pipeline.running import worker_processes

    worker_processes.say_errors_once()
    # Without its launcher, this process has nothing to report, and ends soon.
    worker_processes.wait_at_broken_connections(threading.Event())
    try:
        sdk_worker_main.main(sys.argv)
    except grpc.RpcError:
        time.sleep(worker_processes.HEARING)
        raise


def _is_of_interest(record: logging.LogRecord) -> bool:
    first = os.environ.get("WORKER_ID") == "worker_0"
    ours = first and record.levelno >= logging.WARNING and record.name.partition(".")[0] == "vidpress"
    return ours or record.levelno >= logging.ERROR


def _end_with_the_launcher() -> None:
    # Nothing is ever written there: the read ends when the launcher has closed its end, or has ended.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
