"""The DAGs under the real Airflow: they parse, run through, and fail as they should."""

import datetime
import json
import pathlib
import subprocess
import sys
import urllib.parse

import googleapiclient
import psutil
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.google.cloud.hooks.dataflow import AsyncDataflowHook, DataflowHook
from airflow.sdk import DagRunState
from airflow.sdk.exceptions import TaskDeferred
from conftest import REPO
from google.cloud.dataflow_v1beta3 import Job, JobState
from googleapiclient.discovery import build
from googleapiclient.http import HttpMockSequence

MODEL = REPO / "tests" / "golden" / "model-v2.safetensors"
WRITE_VIDEOS = """
import sys
from vidpress.model.features import FeatureSpec
from vidpress.model.records.synthetic import make_videos
from vidpress.model.records.tfrecord import write_tfrecords
path, start, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "wb") as file:
    write_tfrecords(file, make_videos(number, spec=FeatureSpec.parse("rgb:24,audio:8"), frames=(2, 5), start=start))
"""


@pytest.fixture(scope="session")
def dag_bag():
    return DagBag(REPO / "dags")


@pytest.fixture
def dags():
    """The DAGs anew, since a run renders its tasks in place, and without retries, so that no run is waited for."""
    bag = DagBag(REPO / "dags")
    for dag in bag.dags.values():
        for task in dag.tasks:
            task.retries = 0
    return bag.dags


class Warehouse:
    """A folder of input files, the data set, and the parameters that name them."""

    def __init__(self, folder: pathlib.Path, python: str):
        self.python = python
        self.input = folder / "input"
        self.input.mkdir()
        self.output = folder / "compact"
        self.params = {"input": [f"{self.input}/*.tfrecord"], "model": str(MODEL), "output": str(self.output)}

    def add(self, name: str, start: int, number: int) -> pathlib.Path:
        path = self.input / f"{name}.tfrecord"
        subprocess.run([self.python, "-c", WRITE_VIDEOS, str(path), str(start), str(number)], check=True)
        return path

    def videos(self) -> list[int]:
        """How many videos each generation holds."""
        manifests = [json.loads(path.read_text())["generations"] for path in self.output.glob("manifest*.json")]
        return [generation["counts"]["videos"] for generation in max(manifests, key=len, default=[])]


@pytest.fixture
def warehouse(tmp_path, vidpress_python):
    return Warehouse(tmp_path, vidpress_python)


def states(run) -> dict[str, str]:
    return {instance.task_id: str(instance.state) for instance in run.get_task_instances()}


def logged(caplog, capfd) -> str:
    """What a run wrote to its log, which Airflow prints as well as passes on."""
    printed = capfd.readouterr()
    return printed.out + printed.err + caplog.text


def test_the_folder_parses(dag_bag):
    assert dag_bag.import_errors == {}
    daily, monthly = ["encode", "verify"], ["compact", "expire", "verify"]
    assert {name: [task.task_id for task in dag.topological_sort()] for name, dag in dag_bag.dags.items()} == {
        "vidpress_daily": daily,
        "vidpress_daily_dataflow": daily,
        "vidpress_monthly": monthly,
    }
    for dag in dag_bag.dags.values():
        assert (dag.catchup, dag.max_active_runs) == (False, 1)
        # A run ends before the next one is due, and a task that hangs leaves time for another try.
        assert dag.dagrun_timeout < datetime.timedelta(days=1)
        assert all(task.execution_timeout < dag.dagrun_timeout for task in dag.tasks)
        assert dag.on_failure_callback.__name__ == "log_failure"
        assert "Retries and repeated runs are safe" in dag.doc_md
        assert all(task.doc_md and task.retries >= 1 for task in dag.tasks)
        assert all(param.description for param in map(dag.params.get_param, dag.params))


def test_a_run_a_day_adds_what_is_new_and_verifies_it(dags, warehouse, caplog, capfd):
    dag = dags["vidpress_daily"]
    warehouse.add("day1", 0, 40)
    run = dag.test(run_conf=warehouse.params)
    assert run.state == DagRunState.SUCCESS
    assert states(run) == {"encode": "success", "verify": "success"}
    assert warehouse.videos() == [40]
    log = logged(caplog, capfd)
    assert "Encoded 40 videos" in log
    assert "is whole: 40 videos" in log

    warehouse.add("day2", 30, 30)
    options = {"beam_options": {"direct_num_workers": 2, "direct_running_mode": "multi_processing"}}
    assert dag.test(run_conf={**warehouse.params, **options}).state == DagRunState.SUCCESS
    assert warehouse.videos() == [40, 20]
    log = logged(caplog, capfd)
    assert "--direct_num_workers=2" in log
    assert "is whole: 60 videos" in log

    before = {path: path.read_bytes() for path in warehouse.output.iterdir()}
    assert dag.test(run_conf=warehouse.params).state == DagRunState.SUCCESS
    assert "Nothing new" in logged(caplog, capfd)
    assert {path: path.read_bytes() for path in warehouse.output.iterdir()} == before


def test_a_run_a_month_compacts_and_removes_what_that_replaced(dags, warehouse, caplog, capfd):
    for day in range(3):
        warehouse.add(f"day{day}", 20 * day, 20)
        command = [
            warehouse.python,
            "-m",
            "vidpress.pipeline.encode",
            "--append",
            "--input",
            *warehouse.params["input"],
        ]
        command += ["--model", str(MODEL), "--output", str(warehouse.output)]
        subprocess.run(command, check=True, capture_output=True)
    dag = dags["vidpress_monthly"]
    params = {"data_set": str(warehouse.output), "options": ["--num_shards=2", "--job_name=a b; false"]}
    run = dag.test(run_conf=params)
    assert states(run) == {"compact": "success", "expire": "success", "verify": "success"}
    assert warehouse.videos() == [20, 20, 20, 0]
    log = logged(caplog, capfd)
    assert "Compacted 60 videos" in log
    assert "is less than 20 days old" in log
    assert "is whole: 60 videos" in log
    assert len(list(warehouse.output.glob("shard-00004-*"))) == 2

    assert dag.test(run_conf={**params, "expire_days": 0}).state == DagRunState.SUCCESS
    log = logged(caplog, capfd)
    assert "Nothing to compact" in log
    assert "the manifests of generations 1 to 3" in log
    assert len(list(warehouse.output.glob("shard-*"))) == 2


def test_a_compaction_that_fails_fails_its_task_with_the_commands_message(dags, tmp_path, caplog, capfd):
    run = dags["vidpress_monthly"].test(run_conf={"data_set": str(tmp_path)})
    assert states(run) == {"compact": "failed", "expire": "upstream_failed", "verify": "upstream_failed"}
    log = logged(caplog, capfd)
    assert f"vidpress compact: error: {tmp_path} holds no manifest.json" in log
    assert f"vidpress_monthly failed in run {run.run_id} (task_failure) for the data set {tmp_path}: the reason" in log


def test_several_inputs(dags, warehouse):
    paths = [str(warehouse.add(f"part{index}", 10 * index, 10)) for index in range(3)]
    assert dags["vidpress_daily"].test(run_conf={**warehouse.params, "input": paths}).state == "success"
    assert warehouse.videos() == [30]


def test_a_job_that_fails_fails_its_task_with_the_jobs_message(dags, warehouse, caplog, capfd):
    path = warehouse.add("day1", 0, 40)
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    dag = dags["vidpress_daily"]
    run = dag.test(run_conf=warehouse.params)
    assert run.state == DagRunState.FAILED
    assert states(run) == {"encode": "failed", "verify": "upstream_failed"}
    log = logged(caplog, capfd)
    assert "vidpress encode: error: 1 of 40 records are bad, more than --max_bad_fraction=0.01 allows" in log
    assert f"vidpress_daily failed in run {run.run_id} (task_failure) for the data set {warehouse.output}: " in log
    assert f"is in the log of its task encode, those of bad records are in {warehouse.output}/dead-letters-*" in log
    assert warehouse.videos() == []

    run = dag.test(run_conf={**warehouse.params, "max_bad_fraction": 0.1})
    assert states(run) == {"encode": "success", "verify": "success"}
    assert warehouse.videos() == [39]


def test_damage_fails_verify_with_its_findings(dags, warehouse, caplog, capfd):
    dag = dags["vidpress_daily"]
    warehouse.add("day1", 0, 40)
    assert dag.test(run_conf=warehouse.params).state == DagRunState.SUCCESS
    (shard,) = warehouse.output.glob("*.parquet")
    shard.write_bytes(shard.read_bytes()[:-1])
    capfd.readouterr()
    run = dag.test(run_conf=warehouse.params)
    assert states(run) == {"encode": "success", "verify": "failed"}
    assert f"{shard} has " in logged(caplog, capfd)


def test_parameters_are_checked(dags, warehouse):
    for wrong in ({"input": []}, {"max_bad_fraction": 2}, {"output": ""}):
        with pytest.raises(Exception, match="Invalid input for param"):
            dags["vidpress_daily"].test(run_conf={**warehouse.params, **wrong})


def test_a_job_ends_with_its_task(dags, warehouse, tmp_path):
    """A try that takes too long must not go on beside the next one."""
    program, note = tmp_path / "python", tmp_path / "process"
    # First, Airflow asks for Beam's version.
    program.write_text(f"#!/bin/sh\n[ $1 = -c ] && exec echo 2.77.0\necho $$ > {note}\nexec sleep 600\n")
    program.chmod(0o755)
    dag = dags["vidpress_daily"]
    encode = dag.get_task("encode")
    encode.py_interpreter, encode.execution_timeout = str(program), datetime.timedelta(seconds=10)
    assert states(dag.test(run_conf=warehouse.params)) == {"encode": "failed", "verify": "upstream_failed"}
    process = int(note.read_text())
    _, alive = psutil.wait_procs([psutil.Process(process)] if psutil.pid_exists(process) else [], timeout=60)
    assert not alive


def check_message(message, schema: dict, schemas: dict) -> None:
    """Hold a message against one of the service's own types, as the client library ships them."""
    assert set(message) <= set(schema["properties"]), set(message) - set(schema["properties"])
    for key, value in message.items():
        kind = schema["properties"][key]
        if "$ref" in kind:
            check_message(value, schemas[kind["$ref"]], schemas)
        elif kind["type"] == "object":
            assert all(isinstance(text, str) for text in value.values())
        elif kind["type"] == "integer":
            int(value)
        else:
            assert isinstance(value, str), key


class Dataflow:
    """The service, up to the network: it takes one launch, and then tells a job's states."""

    def __init__(self, monkeypatch, *states: JobState):
        launched = {"job": {"id": "2026-1", "name": "vidpress-encode", "projectId": "p", "location": "europe-west1"}}
        job = {**launched["job"], "currentState": states[-1].name, "type": "JOB_TYPE_BATCH"}
        answers = [({"status": "200"}, json.dumps(answer)) for answer in (launched, job)]
        self.http = HttpMockSequence(answers)
        self.states = list(states)
        self.asked = []
        monkeypatch.setattr(DataflowHook, "get_conn", lambda _: build("dataflow", "v1b3", http=self.http))

        async def client(_hook, _class):
            return self

        monkeypatch.setattr(AsyncDataflowHook, "initialize_client", client)

    async def get_job(self, request):
        self.asked.append(request.job_id)
        return Job(id=request.job_id, current_state=self.states.pop(0))

    @property
    def launched(self) -> dict:
        uri, method, body, _ = self.http.request_sequence[0]
        assert method == "POST"
        assert urllib.parse.urlsplit(uri).path == "/v1b3/projects/p/locations/europe-west1/flexTemplates:launch"
        return json.loads(body)


DATAFLOW_PARAMS = {
    "project": "p",
    "region": "europe-west1",
    "input": "gs://b/yt8m/*.tfrecord",
    "model": "gs://b/model.safetensors",
    "output": "gs://b/compact",
}
ENVIRONMENT = {
    "temp_location": "gs://b/tmp",
    "max_workers": 7,
    "num_workers": 2,
    "machine_type": "c3-standard-4",
    "zone": "europe-west1-b",
    "network": "video",
    "subnetwork": "regions/europe-west1/subnetworks/video",
    "ip_configuration": "WORKER_IP_PRIVATE",
    "kms_key": "projects/p/locations/europe-west1/keyRings/r/cryptoKeys/k",
    "service_account": "worker@p.iam.gserviceaccount.com",
    "labels": {"team": "video", "cost-center": "42"},
}


def test_what_is_asked_of_dataflow(dags, warehouse, monkeypatch, caplog, capfd):
    """Up to the network everything is real; the job's own work is done by the job's command."""
    dataflow = Dataflow(monkeypatch, JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_DONE)
    warehouse.add("day1", 0, 20)
    command = [warehouse.python, "-m", "vidpress.pipeline.encode", "--input", *warehouse.params["input"]]
    command += ["--model", str(MODEL), "--output", str(warehouse.output)]
    subprocess.run(command, check=True, capture_output=True)

    dag = dags["vidpress_daily_dataflow"]
    dag.get_task("encode").poll_sleep = 0
    # The data set is not in a bucket here.
    dag.get_task("verify").env["DATA_SET"] = str(warehouse.output)
    more = {"more_parameters": {"num_shards": "3"}, "min_age": 30}
    run = dag.test(run_conf={**DATAFLOW_PARAMS, **ENVIRONMENT, **more})
    assert states(run) == {"encode": "success", "verify": "success"}
    assert "is whole: 20 videos" in logged(caplog, capfd)
    # The job was waited for where it takes no worker.
    assert dataflow.asked == ["2026-1", "2026-1"]

    launch = dataflow.launched
    assert launch["launchParameter"]["jobName"].startswith("vidpress-encode-")
    assert launch == {
        "launchParameter": {
            "jobName": launch["launchParameter"]["jobName"],
            "containerSpecGcsPath": "gs://my-bucket/templates/encode.json",
            "parameters": {
                "append": "true",
                "input": "gs://b/yt8m/*.tfrecord",
                "model": "gs://b/model.safetensors",
                "output": "gs://b/compact",
                "max_bad_fraction": "0.01",
                "min_age": "30",
                "num_shards": "3",
            },
            "environment": {
                "tempLocation": "gs://b/tmp",
                "maxWorkers": 7,
                "numWorkers": 2,
                "machineType": "c3-standard-4",
                "workerZone": "europe-west1-b",
                "network": "video",
                "subnetwork": "regions/europe-west1/subnetworks/video",
                "ipConfiguration": "WORKER_IP_PRIVATE",
                "kmsKeyName": "projects/p/locations/europe-west1/keyRings/r/cryptoKeys/k",
                "serviceAccountEmail": "worker@p.iam.gserviceaccount.com",
                "additionalUserLabels": {"team": "video", "cost-center": "42"},
            },
        }
    }
    documents = pathlib.Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    schemas = json.loads((documents / "dataflow.v1b3.json").read_text())["schemas"]
    check_message(launch, schemas["LaunchFlexTemplateRequest"], schemas)


def test_a_dataflow_job_that_fails_fails_its_task(dags, monkeypatch, caplog, capfd):
    dataflow = Dataflow(monkeypatch, JobState.JOB_STATE_FAILED)
    dag = dags["vidpress_daily_dataflow"]
    assert states(dag.test(run_conf=DATAFLOW_PARAMS)) == {"encode": "failed", "verify": "upstream_failed"}
    log = logged(caplog, capfd)
    assert "Dataflow job with id 2026-1 has failed its execution" in log
    assert "(task_failure) for the data set gs://b/compact: the reason is in the log of its task encode" in log
    # What is not given is left to the template and to Dataflow.
    assert dataflow.launched["launchParameter"]["environment"] == {
        "tempLocation": "gs://my-bucket/tmp",
        "maxWorkers": 10,
        "additionalUserLabels": {"airflow-dag": "vidpress_daily_dataflow"},
    }


def test_a_deferred_task_has_a_time_out(dags, monkeypatch):
    """Airflow itself limits only what a task does outside of its triggerer."""
    Dataflow(monkeypatch, JobState.JOB_STATE_DONE)
    monkeypatch.setattr("airflow.providers.google.cloud.links.dataflow.DataflowJobLink.persist", lambda **_: None)
    task = dags["vidpress_daily_dataflow"].get_task("encode").prepare_for_execution()
    task.body = task.body({"params": dags["vidpress_daily_dataflow"].params})
    task.project_id, task.location = "p", "europe-west1"
    with pytest.raises(TaskDeferred) as deferred:
        task.execute({})
    assert deferred.value.timeout == task.execution_timeout == datetime.timedelta(hours=12)


def test_a_callback_of_ones_own(monkeypatch, tmp_path):
    (tmp_path / "my_alerts.py").write_text("def page(context): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VIDPRESS_ON_FAILURE", "my_alerts:page")
    bag = DagBag(REPO / "dags")
    assert bag.import_errors == {}
    for dag in bag.dags.values():
        assert dag.on_failure_callback is sys.modules["my_alerts"].page


def test_a_run_that_was_stopped_by_its_time_out_is_told_of(dags, caplog):
    """Airflow then gives no more than these."""
    dag = dags["vidpress_daily_dataflow"]
    dag.on_failure_callback({"dag": dag, "run_id": "scheduled__2026-11-26", "reason": "timed_out"})
    assert "vidpress_daily_dataflow failed in run scheduled__2026-11-26 (timed_out) for the data set " in caplog.text
    assert "gs://my-bucket/compact: the reason is in the log of its tasks" in caplog.text


def test_the_templates_parameters_exist(dags):
    metadata = json.loads((REPO / "dataflow_templates" / "encode" / "metadata.json").read_text())
    encode = dags["vidpress_daily_dataflow"].get_task("encode")
    given = encode.body({"params": dags["vidpress_daily_dataflow"].params})["launchParameter"]["parameters"]
    known = {parameter["name"]: parameter for parameter in metadata["parameters"]}
    assert set(given) <= set(known)
    assert {name for name, parameter in known.items() if not parameter.get("isOptional")} <= set(given)
