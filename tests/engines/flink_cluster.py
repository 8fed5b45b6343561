"""A standalone Flink cluster on loopback: a JobManager, TaskManagers, and a pool of Python workers beside each.

A job names its pool of workers once, as `worker-pool:PORT`. Each TaskManager finds a pool of its own under that name,
as it would in a cluster whose machines each have one at `localhost`: its Java has a hosts file of its own.
"""

from __future__ import annotations

import json
import pathlib
import socket
import urllib.request
from typing import Any

from processes import Process, free_port, wait_for
from worker_pool import start_worker_pool

SLOTS_PER_TASK_MANAGER = 2

# What Flink's own scripts open to Java 17 (`env.java.opts.all` of its default configuration).
_OPENED = ("lang", "net", "io", "nio", "lang.reflect", "text", "time", "util", "util.concurrent")
_OPENED += ("util.concurrent.atomic", "util.concurrent.locks")
_JAVA = ["java", *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENED)]
_JAVA += ["--add-opens=java.base/sun.nio.ch=ALL-UNNAMED", "--add-exports=java.base/sun.net.util=ALL-UNNAMED"]
_JAVA += ["-XX:+UseSerialGC", "-XX:MaxMetaspaceSize=256m"]

_LOG4J = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss,SSS} %-5p %c{1} %m%n
"""

# Flink's scripts work these out from one total; its main class wants each.
_TASK_MANAGER = {
    "taskmanager.cpu.cores": "1",
    "taskmanager.memory.framework.heap.size": "128mb",
    "taskmanager.memory.framework.off-heap.size": "128mb",
    "taskmanager.memory.task.heap.size": "768mb",
    "taskmanager.memory.task.off-heap.size": "0b",
    "taskmanager.memory.managed.size": "256mb",
    "taskmanager.memory.network.min": "256mb",
    "taskmanager.memory.network.max": "256mb",
    "taskmanager.memory.jvm-metaspace.size": "256mb",
    "taskmanager.memory.jvm-overhead.min": "192mb",
    "taskmanager.memory.jvm-overhead.max": "192mb",
    "taskmanager.numberOfTaskSlots": str(SLOTS_PER_TASK_MANAGER),
}


class FlinkCluster:
    """A running cluster of one JobManager; `close` ends all of it."""

    def __init__(self, lib: pathlib.Path, folder: pathlib.Path):
        self._lib = lib
        self._folder = folder
        self._rpc_port = free_port()
        self.rest_port = free_port()
        self.pool_port = free_port()
        self.task_managers: list[Process] = []
        self.worker_pools: list[Process] = []
        (folder / "config.yaml").write_text("")
        (folder / "log4j.properties").write_text(_LOG4J)
        self._job_manager = self._start(
            "job-manager",
            "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
            ["-Xmx1g"],
            {"rest.address": "localhost", "rest.port": str(self.rest_port), "rest.bind-address": "localhost"},
        )

    def _start(self, name: str, main: str, java_options: list[str], settings: dict[str, str]) -> Process:
        settings = {
            "jobmanager.rpc.address": "localhost",
            "jobmanager.rpc.port": str(self._rpc_port),
            "taskmanager.load-balance.mode": "SLOTS",
            # A TaskManager that is killed is noticed soon, and its job starts again on the others.
            "heartbeat.interval": "2000",
            "heartbeat.timeout": "20000",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": "3",
            "restart-strategy.fixed-delay.delay": "1 s",
            "io.tmp.dirs": str(self._folder),
            **settings,
        }
        command = [*_JAVA, *java_options, f"-Dlog4j.configurationFile={self._folder / 'log4j.properties'}"]
        command += ["-cp", f"{self._lib}/*", main, "--configDir", str(self._folder)]
        command += [f"-D{key}={value}" for key, value in settings.items()]
        return Process(command, self._folder / f"{name}.log")

    def add_task_manager(self) -> None:
        """Start a TaskManager and its pool of workers."""
        index = len(self.task_managers)
        address = f"127.0.0.{2 + index}"
        name = f"task-manager-{index}"
        hosts = self._folder / f"{name}.hosts"
        hosts.write_text(f"127.0.0.1 localhost {socket.gethostname()}\n{address} worker-pool\n")
        pool_log = self._folder / f"worker-pool-{index}.log"
        self.worker_pools.append(start_worker_pool(f"{address}:{self.pool_port}", pool_log))
        self.task_managers.append(
            self._start(
                name,
                "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
                ["-Xmx1g", "-XX:MaxDirectMemorySize=512m", f"-Djdk.net.hosts.file={hosts}"],
                {
                    "taskmanager.resource-id": name,
                    "taskmanager.host": "localhost",
                    "taskmanager.bind-host": "localhost",
                    **_TASK_MANAGER,
                },
            )
        )

    def wait_for_task_managers(self, number: int) -> None:
        """Wait until so many are there."""
        expected = [process for process in (self._job_manager, *self.task_managers) if process.is_running()]
        wait_for(f"{number} TaskManagers", lambda: self._num_task_managers(expected) == number)

    def _num_task_managers(self, expected: list[Process]) -> int:
        for process in expected:
            if not process.is_running():
                raise RuntimeError(f"{process.log.stem} ended:\n{process.output()[-4000:]}")
        try:
            return self.get("/overview")["taskmanagers"]
        except OSError:
            return -1

    def get(self, path: str) -> Any:
        """Return what the JobManager's REST interface says at a path."""
        with urllib.request.urlopen(f"http://localhost:{self.rest_port}{path}", timeout=30) as response:
            return json.load(response)

    def cancel(self, job_id: str) -> None:
        """Cancel a job and wait for its end."""
        url = f"http://localhost:{self.rest_port}/jobs/{job_id}"
        urllib.request.urlopen(urllib.request.Request(url, method="PATCH"), timeout=30).close()
        wait_for("the end of the job", lambda: self.get(f"/jobs/{job_id}")["state"] == "CANCELED")

    def job_ids(self, state: str) -> list[str]:
        """Return the ids of the jobs in a state, the newest first."""
        jobs = sorted(self.get("/jobs/overview")["jobs"], key=lambda job: job["start-time"], reverse=True)
        return [job["jid"] for job in jobs if job["state"] == state]

    def records_read(self, job_id: str) -> dict[str, int]:
        """Return by TaskManager how many elements the tasks on it took from others."""
        totals: dict[str, int] = {}
        for vertex in self.get(f"/jobs/{job_id}")["vertices"]:
            for task_manager in self.get(f"/jobs/{job_id}/vertices/{vertex['id']}/taskmanagers")["taskmanagers"]:
                name = task_manager["taskmanager-id"]
                totals[name] = totals.get(name, 0) + task_manager["metrics"]["read-records"]
        return totals

    def close(self) -> None:
        """End every process of the cluster."""
        for process in (*self.task_managers, *self.worker_pools, self._job_manager):
            process.kill()
