"""Encode what is new since the last run, and verify the data set.

**encode** runs `vidpress encode --append`: the first run creates the data set, and each later one adds the videos of
the input files that have come since, as a generation with its own manifest. Nothing that is there changes, and a run
without new files does nothing.

**verify** runs `vidpress verify`: every file is compared with the manifest, and a sample of the codes is decoded. Its
log has a line for each finding.

**Retries and repeated runs are safe**: a run that dies leaves no manifest, and the next one reads the same files
again. The manifest decides which files are new, not the date of the run, so the next run makes up for a missed day.

**If a run fails** or takes too long, a line in Airflow's log says so, or a function of yours is called with Airflow's
context: name it in the environment variable `VIDPRESS_ON_FAILURE`, as `package.module:function`.

The workers of Airflow need a Python that has vidpress; name it in the environment variable `VIDPRESS_PYTHON`
(default: `python3`). Set the parameters' defaults and the time-outs in this file; parameters can also be given when
a run is triggered.
"""

import datetime
import logging
import os
import pkgutil
from typing import Any

import psutil
from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param

PYTHON = os.environ.get("VIDPRESS_PYTHON", "python3")
ON_FAILURE = os.environ.get("VIDPRESS_ON_FAILURE")

# Time-outs of each try of a task, and of a whole run with its retries, which ends before the next day's run is due.
ENCODE_TIMEOUT = datetime.timedelta(hours=12)
VERIFY_TIMEOUT = datetime.timedelta(hours=6)
RUN_TIMEOUT = datetime.timedelta(hours=23)


class RunEncoding(BeamRunPythonPipelineOperator):
    """Run the job in a process that ends with the task; Airflow's own operator leaves it running after a time-out."""

    def on_kill(self) -> None:
        """End the job's processes."""
        super().on_kill()
        for process in psutil.Process().children(recursive=True):
            process.terminate()


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


with DAG(
    dag_id="vidpress_daily",
    description="Encode new video features with vidpress, on the worker itself or on Flink, and verify them",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    # Two runs at a time would both encode what is new, one of them for nothing.
    max_active_runs=1,
    dagrun_timeout=RUN_TIMEOUT,
    on_failure_callback=pkgutil.resolve_name(ON_FAILURE) if ON_FAILURE else log_failure,
    default_args={"retries": 3, "retry_delay": datetime.timedelta(minutes=5), "retry_exponential_backoff": True},
    # Keeps numbers and the Beam options from becoming text.
    render_template_as_native_obj=True,
    tags=["vidpress"],
    params={
        "input": Param(
            ["/data/yt8m/*.tfrecord"],
            type="array",
            items={"type": "string", "minLength": 1},
            minItems=1,
            description="TFRecord files or globs, local or gs://. Files that were encoded already are left out.",
        ),
        "model": Param(
            "/data/model.safetensors", type="string", minLength=1, description="The frozen model, a path or gs:// URI."
        ),
        "output": Param(
            "/data/compact", type="string", minLength=1, description="The data set's folder, a path or gs:// URI."
        ),
        "max_bad_fraction": Param(
            0.01, type="number", minimum=0, maximum=1, description="Share of bad records above which the job fails."
        ),
        "min_age": Param(
            0,
            type="integer",
            minimum=0,
            description="Minutes: younger files, which may still be uploaded, are left for the next run.",
        ),
        "runner": Param(
            "FnApiRunner",
            type="string",
            examples=["FnApiRunner", "FlinkRunner", "PortableRunner"],
            description="Beam's runner. FnApiRunner runs in the Airflow worker.",
        ),
        "beam_options": Param(
            {},
            type="object",
            description="Further options of `vidpress encode` and for Beam, such as "
            '{"direct_num_workers": 2, "direct_running_mode": "multi_processing"} or '
            '{"flink_master": "jobmanager:8081", "environment_type": "EXTERNAL"}.',
        ),
    },
) as dag:
    encode = RunEncoding(
        task_id="encode",
        doc_md="Adds the videos of new files. The log ends with what was added, or with the reason why nothing was.",
        py_interpreter=PYTHON,
        py_options=["-m"],
        py_file="vidpress.pipeline.encode",
        execution_timeout=ENCODE_TIMEOUT,
        # If deferred, the job would run in Airflow's triggerer instead of a worker. Airflow's default may differ.
        deferrable=False,
        runner="{{ params.runner }}",
        default_pipeline_options="{{ params.beam_options }}",
        pipeline_options={
            "append": True,
            "input": "{{ params.input }}",
            "model": "{{ params.model }}",
            "output": "{{ params.output }}",
            "max_bad_fraction": "{{ params.max_bad_fraction }}",
            "min_age": "{{ params.min_age or False }}",
        },
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
