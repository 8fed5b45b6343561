"""The processes of `--direct_running_mode multi_processing`: none outlives its launcher, none dies unnoticed.

Beam's own handler of such processes waits for ever if one dies, and leaves them running if the launcher dies. This
handler replaces it in Beam's registry. If a worker dies, everything that it was asked is answered with an error, so
that Beam's engine ends as it does when a step fails. Workers end by themselves when their standard input is closed,
which happens when the launcher ends (`vidpress.pipeline.running.worker`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2, endpoints_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    ControlFuture,
    GrpcWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.worker import sdk_worker
from google.protobuf import json_format, text_format

from vidpress.model.errors import VidpressError
from vidpress.pipeline.launching import stopping

# Seconds that a worker has to end by itself when the job is over; and that it may take, after a connection broke, to
# learn that the process at its other end has ended, which explains it.
_CLOSING = 10.0
HEARING = 5.0

# Loggers that log an error's traceback before the error is raised, or sent on as text.
_LOGGED_TWICE = (
    "apache_beam.runners.common",
    "apache_beam.runners.worker.sdk_worker",
    "apache_beam.runners.worker.sdk_worker_main",
    "apache_beam.runners.worker.bundle_processor",
    "apache_beam.runners.worker.data_plane",
    "apache_beam.runners.portability.fn_api_runner.worker_handlers",
    "apache_beam.runners.portability.portable_runner",
    "grpc._server",
)


class WorkerDiedError(VidpressError, RuntimeError):
    """A worker process ended in the middle of a job."""


class _Workers:
    """The workers of the jobs of this process, and why they were ended if they were."""

    def __init__(self) -> None:
        self.running: set[_WorkerProcess] = set()
        self.error: WorkerDiedError | None = None
        self.ended = threading.Event()

    def end_all(self, error: WorkerDiedError | None = None) -> None:
        """End all workers at once: a job of which one part failed has failed."""
        self.error = self.error or error or WorkerDiedError("the job was stopped")
        self.ended.set()
        for worker in list(self.running):
            worker.process.kill()


_workers = _Workers()


@WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
class _WorkerProcess(GrpcWorkerHandler):
    """A worker in a process of its own."""

    process: subprocess.Popen

    def __init__(self, _command: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._closing = False

    def start_worker(self) -> None:
        environment = {
            **os.environ,
            "WORKER_ID": self.worker_id,
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(
                endpoints_pb2.ApiServiceDescriptor(url=self.control_address)
            ),
            "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
        }
        # As for the launcher: modules of the current folder are found if it finds them there.
        flags = [] if sys.path[0] in ("", os.getcwd()) else ["-P"]
        command = [sys.executable, *flags, "-m", "vidpress.pipeline.running.worker"]
        # Ctrl-C reaches every process of a terminal, and stopping a service reaches every process of its group. The
        # launcher decides what happens to the workers then. A new process inherits the blocked signals.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _workers.running.add(self)
        if _workers.error is not None:
            self.process.kill()
        threading.Thread(target=self._wait, name="worker_process", daemon=True).start()

    def _wait(self) -> None:
        code = self.process.wait()
        _workers.running.discard(self)
        if self._closing:
            return
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += ", as happens when the system runs out of memory"
        _workers.end_all(
            WorkerDiedError(f"a worker process {how}: the job did not finish, run the same command again.")
        )
        self._answer_all(f"{WorkerDiedError.__name__}: {_workers.error}")

    def _answer_all(self, error: str) -> None:
        """Answer what the worker was asked, and will be asked, with an error."""
        push = self.control_conn.push

        def answered(request: Any) -> ControlFuture | None:
            if not isinstance(request, beam_fn_api_pb2.InstructionRequest):
                return push(request)  # the message that there are no more requests
            response = beam_fn_api_pb2.InstructionResponse(instruction_id=request.instruction_id, error=error)
            return ControlFuture(request.instruction_id, response)

        self.control_conn.push = answered  # type: ignore[assignment]
        for name, future in list(self.control_conn._futures_by_id.items()):
            future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=error))

    def close(self) -> None:
        self._closing = _workers.error is None
        super().close()

    def stop_worker(self) -> None:
        try:
            self.process.wait(_CLOSING if _workers.error is None else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


def say_errors_once() -> None:
    """Keep Beam from printing the traceback of an error that it then raises, or sends on as text."""
    for name in _LOGGED_TWICE:
        logging.getLogger(name).addFilter(_no_traceback)
    # It prints nothing else; a module's own name comes before the built-in one.
    vars(sdk_worker)["print"] = lambda *_args, **_kwargs: None


def wait_at_broken_connections(ended: threading.Event) -> Callable[[threading.ExceptHookArgs], object]:
    """Let a thread whose connection broke wait before it complains, and return the hook that was there before.

    If the process at its other end has ended, that is reported elsewhere, or this process ends for the same reason.

    Args:
      ended: Set when it is known that a process has ended.
    """
    before = threading.excepthook

    def hook(thrown: threading.ExceptHookArgs) -> None:
        if not (isinstance(thrown.exc_value, grpc.RpcError) and ended.wait(HEARING)):
            before(thrown)

    threading.excepthook = hook
    return before


def _no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info and "Traceback (most recent call last)" not in record.getMessage()


@contextlib.contextmanager
def supervised() -> Iterator[None]:
    """Run a job so that its workers end with it, and each error is reported once."""
    _workers.error = None
    _workers.ended.clear()
    say_errors_once()
    before = wait_at_broken_connections(_workers.ended)
    try:
        with stopping.on_stop(_workers.end_all):
            yield
    except Exception as error:
        # The end of a worker shows first in the part of Beam that next waits for it.
        if isinstance(error, grpc.RpcError) or "Channel closed" in str(error):
            _workers.ended.wait(HEARING)
        if _workers.error is not None:
            raise _workers.error from error
        raise
    finally:
        threading.excepthook = before
