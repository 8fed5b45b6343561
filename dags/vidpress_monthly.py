"""Write the videos of all daily generations as one, so that reading stays fast, and verify the data set.

**compact** runs `vidpress compact`: one new generation of full shards holds all videos. Codes are copied as they are,
which takes little next to encoding. Nothing that is there changes, and who reads an earlier generation goes on. If
nothing was added since the last time, nothing is written.

**expire** runs `vidpress compact --expire`: it removes what an earlier compaction replaced, so many days after it.
Until then, the videos take twice the space. Who still reads such an old generation loses it.

**verify** runs `vidpress verify`: every file is compared with the manifest, and a sample of the codes is decoded.

**Retries and repeated runs are safe**: a compaction that dies leaves no manifest, and an expiry that was interrupted is
completed by the next one. If the daily DAG adds videos while a compaction runs, the first to finish wins. The other one
fails and has changed nothing, and its retry succeeds.

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
import shlex
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param

PYTHON = os.environ.get("VIDPRESS_PYTHON", "python3")
ON_FAILURE = os.environ.get("VIDPRESS_ON_FAILURE")

# Time-outs of each try of a task, and of a whole run with its retries.
COMPACT_TIMEOUT = datetime.timedelta(hours=12)
EXPIRE_TIMEOUT = datetime.timedelta(hours=1)
VERIFY_TIMEOUT = datetime.timedelta(hours=6)
RUN_TIMEOUT = datetime.timedelta(hours=23)


def log_failure(context: Any) -> None:
    """Log which run failed, for which data set, and where the reason is."""
    dag, task = context["dag"], context.get("ti")
    # A run that its time-out stopped comes with no parameters but the DAG's own.
    data_set = (context.get("params") or dag.params)["data_set"]
    logging.getLogger("vidpress").error(
        f"{dag.dag_id} failed in run {context['run_id']} ({context.get('reason')}) for the data set {data_set}: the "
        f"reason is in the log of {f'its task {task.task_id}' if task else 'its tasks'}. Repeating the run is safe."
    )


def _run(task_id: str, command: str, timeout: datetime.timedelta, **options: Any) -> BashOperator:
    """Return a task that runs a command of vidpress, and ends it with its processes if that takes too long."""
    return BashOperator(
        task_id=task_id,
        execution_timeout=timeout,
        bash_command=f'exec "$VIDPRESS_PYTHON" -m vidpress.pipeline.{command}',
        env={"VIDPRESS_PYTHON": PYTHON, "DATA_SET": "{{ params.data_set }}"},
        append_env=True,
        **options,
    )


with DAG(
    dag_id="vidpress_monthly",
    description="Compact a data set of vidpress on the worker itself or elsewhere, and verify it",
    doc_md=__doc__,
    # At noon, when the daily run that begins at midnight is over.
    schedule="0 12 1 * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    # Two runs at a time would both copy all videos, one of them for nothing.
    max_active_runs=1,
    dagrun_timeout=RUN_TIMEOUT,
    on_failure_callback=pkgutil.resolve_name(ON_FAILURE) if ON_FAILURE else log_failure,
    default_args={"retries": 3, "retry_delay": datetime.timedelta(minutes=5), "retry_exponential_backoff": True},
    user_defined_filters={"shell_words": shlex.join},
    tags=["vidpress"],
    params={
        "data_set": Param(
            "/data/compact", type="string", minLength=1, description="The data set's folder, a path or gs:// URI."
        ),
        "expire_days": Param(
            20,
            type="integer",
            minimum=0,
            description="Days for which what was compacted stays. At less than 28, the last month's is removed.",
        ),
        "options": Param(
            [],
            type="array",
            items={"type": "string", "minLength": 1},
            description="Further options of `vidpress compact` and for Beam, such as "
            '["--direct_num_workers=2", "--direct_running_mode=multi_processing"] or '
            '["--runner=FlinkRunner", "--flink_master=jobmanager:8081"].',
        ),
    },
) as dag:
    compact = _run(
        "compact",
        'compact "$DATA_SET" {{ params.options | shell_words }}',
        COMPACT_TIMEOUT,
        doc_md="Writes all videos as one generation. The log ends with what was written, or with why nothing was.",
    )
    expire = _run(
        "expire",
        'compact "$DATA_SET" --expire {{ params.expire_days }}',
        EXPIRE_TIMEOUT,
        doc_md="Removes what an earlier compaction replaced, and says what.",
    )
    verify = _run(
        "verify",
        'verify "$DATA_SET"',
        VERIFY_TIMEOUT,
        retries=1,
        doc_md="Checks the data set against its manifest. A finding is damage that no retry repairs: see the log.",
    )
    compact >> expire >> verify
