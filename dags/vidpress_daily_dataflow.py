"""Encode what is new since the last run with a Dataflow Flex Template, and verify the data set.

**encode** launches the template `dataflow_templates/encode` with `append=true`: the first run creates the data set,
and each later one adds the videos of the input files that have come since, as a generation with its own manifest.
Nothing that is there changes. A run without new files starts a job that finds nothing to do. While the job runs, the
task is deferred: it waits in Airflow's triggerer, and holds no worker.

**verify** runs `vidpress verify` on the Airflow worker: every file is compared with the manifest, and a sample of
the codes is decoded. Its log has a line for each finding.

**Retries and repeated runs are safe**: a job that dies leaves no manifest, and the next one reads the same files
again. If a job that Airflow lost sight of is still running when it is launched again, the first to finish wins, and
the other adds nothing. The manifest decides which files are new, not the date of the run, so the next run makes up
for a missed day.

**If a run fails** or takes too long, a line in Airflow's log says so, or a function of yours is called with Airflow's
context: name it in the environment variable `VIDPRESS_ON_FAILURE`, as `package.module:function`.

**A deferred task** does not notice that its job was cancelled, and no time-out cancels its job: after you cancel a job,
mark its task as failed; after a time-out, look for the job in Dataflow's list.

Airflow needs the connection `google_cloud_default`, and its workers a Python that has vidpress, named in the
environment variable `VIDPRESS_PYTHON` (default: `python3`). Set the parameters' defaults and the time-outs in this
file; parameters can also be given when a run is triggered.
"""

import datetime
import logging
import os
import pkgutil
from typing import Any

from airflow.providers.google.cloud.operators.dataflow import DataflowStartFlexTemplateOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param

PYTHON = os.environ.get("VIDPRESS_PYTHON", "python3")
ON_FAILURE = os.environ.get("VIDPRESS_ON_FAILURE")
GCS = "^gs://[^/]+/.+"

# Time-outs of each try of a task, and of a whole run with its retries, which ends before the next day's run is due.
ENCODE_TIMEOUT = datetime.timedelta(hours=12)
VERIFY_TIMEOUT = datetime.timedelta(hours=6)
RUN_TIMEOUT = datetime.timedelta(hours=23)

# What the job is started with besides its own parameters, by the names in Dataflow's API.
ENVIRONMENT = {
    "tempLocation": "temp_location",
    "maxWorkers": "max_workers",
    "numWorkers": "num_workers",
    "machineType": "machine_type",
    "workerZone": "zone",
    "network": "network",
    "subnetwork": "subnetwork",
    "ipConfiguration": "ip_configuration",
    "kmsKeyName": "kms_key",
    "serviceAccountEmail": "service_account",
    "additionalUserLabels": "labels",
}


def launch_request(context: Any, jinja_env: Any = None) -> dict[str, Any]:
    """Return the body of the request that launches the job; the template and Dataflow decide what is empty."""
    params = context["params"]
    return {
        "launchParameter": {
            "jobName": "vidpress-encode",  # made unique when launched
            "containerSpecGcsPath": params["template"],
            "parameters": {
                "append": "true",
                **{name: params[name] for name in ("input", "model", "output")},
                "max_bad_fraction": str(params["max_bad_fraction"]),
                **({"min_age": str(params["min_age"])} if params["min_age"] else {}),
                **params["more_parameters"],
            },
            "environment": {name: params[param] for name, param in ENVIRONMENT.items() if params[param]},
        }
    }


class StartEncoding(DataflowStartFlexTemplateOperator):
    """Launch a Flex Template and wait for its job, also when deferred no longer than `execution_timeout`."""

    def defer(self, *, timeout: datetime.timedelta | None = None, **arguments: Any) -> None:
        """Wait for the job in Airflow's triggerer."""
        super().defer(timeout=timeout or self.execution_timeout, **arguments)


def log_failure(context: Any) -> None:
    """Log which run failed, for which data set, and where the reasons are."""
    dag, task = context["dag"], context.get("ti")
    # A run that its time-out stopped comes with no parameters but the DAG's own.
    output = (context.get("params") or dag.params)["output"]
    logging.getLogger("vidpress").error(
        f"{dag.dag_id} failed in run {context['run_id']} ({context.get('reason')}) for the data set {output}: the "
        f"reason is in the log of {f'its task {task.task_id}' if task else 'its tasks'}, those of bad records are in "
        f"{output.rstrip('/')}/dead-letters-*.jsonl. Repeating the run is safe."
    )


def _text(description: str) -> Param:
    return Param("", type="string", description=description)


def _gcs(default: str, description: str) -> Param:
    return Param(default, type="string", pattern=GCS, description=description)


with DAG(
    dag_id="vidpress_daily_dataflow",
    description="Encode new video features with vidpress on Dataflow, and verify them",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    # Two runs at a time would both encode what is new, one of them for nothing.
    max_active_runs=1,
    dagrun_timeout=RUN_TIMEOUT,
    on_failure_callback=pkgutil.resolve_name(ON_FAILURE) if ON_FAILURE else log_failure,
    default_args={"retries": 3, "retry_delay": datetime.timedelta(minutes=5), "retry_exponential_backoff": True},
    tags=["vidpress", "dataflow"],
    params={
        "project": Param("my-project", type="string", minLength=1, description="The Google Cloud project."),
        "region": Param("us-central1", type="string", minLength=1, description="Where the job runs: near the input."),
        "template": _gcs("gs://my-bucket/templates/encode.json", "The template that was built."),
        "input": _gcs(
            "gs://my-bucket/yt8m/*.tfrecord",
            "TFRecord files, one glob. Files that the data set was encoded from are left out.",
        ),
        "model": _gcs("gs://my-bucket/model.safetensors", "The frozen model."),
        "output": _gcs("gs://my-bucket/compact", "The data set's folder."),
        "temp_location": _gcs("gs://my-bucket/tmp", "Where Dataflow keeps what it needs while the job runs."),
        "max_bad_fraction": Param(
            0.01, type="number", minimum=0, maximum=1, description="Share of bad records above which the job fails."
        ),
        "min_age": Param(
            0,
            type="integer",
            minimum=0,
            description="Minutes: younger files, which may still be uploaded, are left for the next run.",
        ),
        "more_parameters": Param(
            {},
            type="object",
            additionalProperties={"type": "string"},
            description='Further parameters of the template, such as {"num_shards": "100", "id_key": "video_id"}.',
        ),
        "max_workers": Param(
            10,
            type="integer",
            minimum=1,
            maximum=1000,
            description="The most workers that Dataflow starts. 10 of 4 vCPUs fit into most projects' quotas.",
        ),
        "num_workers": Param(
            0, type="integer", minimum=0, description="How many workers Dataflow starts with; if 0, it decides itself."
        ),
        "machine_type": _text("The workers' machine type; if empty, the template's."),
        "zone": _text("The workers' zone; if empty, Dataflow chooses one of the region."),
        "network": _text("The workers' network; if empty, the project's `default`."),
        "subnetwork": _text(
            "The workers' subnetwork, such as regions/us-central1/subnetworks/NAME, or its whole URL in a shared VPC."
        ),
        "ip_configuration": Param(
            "",
            type="string",
            enum=["", "WORKER_IP_PUBLIC", "WORKER_IP_PRIVATE"],
            description="Private needs a subnetwork with Private Google Access.",
        ),
        "kms_key": _text("The key for what the job stores: projects/.../locations/.../keyRings/.../cryptoKeys/..."),
        "service_account": _text("The workers' service account; if empty, the project's default one."),
        "labels": Param(
            {"airflow-dag": "vidpress_daily_dataflow"},
            type="object",
            additionalProperties={"type": "string"},
            description="Labels of the job and its workers, which tell bills apart.",
        ),
    },
) as dag:
    encode = StartEncoding(
        task_id="encode",
        doc_md="Adds the videos of new files. What went wrong with a job is in its own log, which is linked here.",
        project_id="{{ params.project }}",
        location="{{ params.region }}",
        body=launch_request,
        deferrable=True,
        execution_timeout=ENCODE_TIMEOUT,
    )
    verify = BashOperator(
        task_id="verify",
        doc_md="Checks the data set against its manifest. A finding is damage that no retry repairs: see the log.",
        retries=1,
        execution_timeout=VERIFY_TIMEOUT,
        bash_command='exec "$VIDPRESS_PYTHON" -m vidpress.pipeline.verify "$DATA_SET"',
        env={"VIDPRESS_PYTHON": PYTHON, "DATA_SET": "{{ params.output }}"},
        append_env=True,
    )
    encode >> verify
