"""The evaluation job: every method of the paper and its rivals on one data set, as tables, figures and a page."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import multiprocessing.context
import multiprocessing.resource_tracker
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from vidpress.model.cpus import num_cpus
from vidpress.model.images.experiments import EXPERIMENTS
from vidpress.pipeline.evaluation.images import ImageKind
from vidpress.pipeline.evaluation.kinds import Kind
from vidpress.pipeline.evaluation.plan import Plan, add_sweep_options, make_plan
from vidpress.pipeline.evaluation.points import BASELINE_PLACEHOLDER, CodecPoint, Context, ModelPoint, Point
from vidpress.pipeline.evaluation.progress import Progress
from vidpress.pipeline.evaluation.rivals.registry import GROUPS, RIVALS
from vidpress.pipeline.evaluation.videos.kind import VideoKind
from vidpress.pipeline.launching import launch, libraries, machine, stopping

_PROG = "vidpress evaluate"

_REPORT_MODULES = ("jinja2", "matplotlib")


def parser(kind: Kind) -> launch.Parser:
    """Return the parser of the job's options, for a kind of data."""
    parser = launch.Parser(
        prog=_PROG,
        description="Train networks at several values of lmbda, measure them and the alternatives on the validation "
        "data, and write results.json, results.csv, figures and index.html.",
        epilog="An evaluation that was stopped resumes if it is run again with the same options: what is finished is "
        "neither trained nor measured again. Every option that says what is trained and how applies to all networks. "
        "With --experiment, `--help` lists the experiment's options instead of those for videos.",
        examples=[
            "vidpress evaluate --input 'yt8m/train*.tfrecord' --validation 'yt8m/validate*.tfrecord' \\",
            "    --hidden 2000 --lmbda 0.001 0.002 --steps 3000 --output evaluation",
            "vidpress evaluate --experiment cifar10-resnetv2-20 --input cifar10 --epochs 24 --output evaluation",
        ],
        conflict_handler="resolve",
    )
    kind.add_network_options(parser)
    parser.add_argument(
        "--experiment", choices=EXPERIMENTS, help="evaluate on images, with a network for them, instead of videos"
    )
    files = parser.add_argument_group("files")
    sweep = parser.add_argument_group("sweep")
    rivals = parser.add_argument_group("rivals")
    kind.add_options(files, sweep, rivals)
    files.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        type=launch.local_folder,
        help="folder for the results and the finished points",
    )
    files.add_argument(
        "--work_dir",
        metavar="FOLDER",
        type=launch.absolute,
        help="folder for checkpoints and models (default: OUTPUT.work)",
    )
    files.add_argument(
        "--report_only",
        action="store_true",
        help="only write the figures and the page again, from the results.json in the output folder",
    )
    files.add_argument(
        "--data_set",
        metavar="NAME",
        help="what figures and page call the data (default: an experiment's data set, or just videos)",
    )
    add_sweep_options(sweep)
    sweep.add_argument(
        "--method",
        action="append",
        metavar="NAME: OPTIONS",
        help="a curve in the report: a name, a colon, and the options in which it differs from the common ones. They "
        "may include --lmbda, --headline_lmbda and, on videos, --hidden or, on images, --bottleneck; in them, "
        f"{BASELINE_PLACEHOLDER} stands for the frozen baseline of the same architecture and seed. Can be given "
        "several times: the page describes the first, and compares it with the one called 'paper' "
        f"(default: {' and '.join(map(repr, kind.methods))})",
    )
    sweep.add_argument(
        "--baseline_options",
        default="",
        metavar="OPTIONS",
        help="the options in which the baselines differ from the common ones, as for --method",
    )
    sweep.add_argument(
        "--seeds",
        type=launch.positive_int,
        default=1,
        help="how many seeds each point is trained with, from --seed upwards",
    )
    rivals.add_argument(
        "--rivals",
        nargs="+",
        choices=(*GROUPS, *RIVALS),
        default=["all"],
        metavar="NAME",
        help="what the methods are compared with: 'all' that the kind of data has, the 'paper' baselines, 'none', or "
        f"any of {', '.join(RIVALS)} (default: all)",
    )
    rivals.add_argument(
        "--rival_seeds",
        type=launch.positive_int,
        default=1,
        metavar="N",
        help="measure what has to do with a baseline's activations for those of the first N of --seeds; opq, rq and "
        "lsq, which take long, for those of the first alone (default: 1)",
    )
    parser.add_argument(
        "--jobs",
        type=launch.positive_int,
        default=1,
        help="points measured at a time, each in a process with its share of the cores",
    )
    return parser


def chosen_kind(argv: Sequence[str]) -> Kind:
    """Return the kind of data that options ask for: an experiment's images, or videos."""
    first = argparse.ArgumentParser(prog=_PROG, add_help=False, allow_abbrev=False)
    first.add_argument("--experiment", choices=EXPERIMENTS)
    experiment = first.parse_known_args(argv)[0].experiment
    return ImageKind(EXPERIMENTS[experiment]) if experiment else VideoKind()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job with command-line options."""
    argv = list(sys.argv[1:] if argv is None else argv)
    kind = chosen_kind(argv)
    own_parser = parser(kind)
    args = own_parser.parse_args(argv)
    libraries.quiet_backend()
    with launch.explained_errors(_PROG):
        if args.report_only:
            libraries.check_modules("the report", _REPORT_MODULES, "report")
            print(_write_report(args.output, args.data_set))
            return
        libraries.check_modules("evaluating", (*libraries.TRAINING, *_REPORT_MODULES, "faiss"), "train,report")
    if not all(getattr(args, name) for name in kind.needed_options):
        names = " and ".join(f"--{name}" for name in kind.needed_options)
        own_parser.error(f"{names} must be given, except with --report_only.")
    libraries.load_keras(_PROG, "evaluating")
    with launch.explained_errors(_PROG):
        try:
            context = kind.context(args, args.work_dir or f"{args.output}.work")
            plan = make_plan(kind, args)
        except ValueError as error:
            own_parser.error(str(error))
        command = f"{_PROG} {shlex.join(argv)}"
        run(kind, plan, context, num_jobs=args.jobs, command=command, data_set=args.data_set)


def run(kind: Kind, plan: Plan, context: Context, *, num_jobs: int, command: str, data_set: str | None = None) -> None:
    """Measure what is not finished yet, and write the report.

    Args:
      kind: The kind of data.
      plan: The points.
      context: What they share, except the data's fingerprints.
      num_jobs: How many points are measured at a time.
      command: The command line, which the report names.
      data_set: What the report calls the data, if not as the kind does.

    Raises:
      JobError: If the output cannot be written.
    """
    from vidpress.pipeline.evaluation.report import results as evaluation_results

    output = context.output
    launch.check_writable(output, output)
    context = kind.resolved(context)
    training, validation = kind.load_data(context)
    fingerprints = {"training": training.fingerprint, "validation": validation.fingerprint}
    context = dataclasses.replace(
        context,
        training_sha256=training.fingerprint["sha256"],
        validation_sha256=validation.fingerprint["sha256"],
    )
    kind.check_given_models((*plan.baselines, *plan.models), context)
    about = {
        "command": command,
        "machine": machine.describe(),
        "jobs": num_jobs,
        "data": fingerprints,
        "methods": list(dict.fromkeys(point.method for point in plan.models)),
        **kind.about(),
        **({} if data_set is None else {"data_set": data_set}),
        **({} if context.new_tasks is None else {"new_tasks": context.new_tasks.about()}),
    }
    progress = Progress(list(plan.all_tasks()), context, num_jobs)
    names = [point.name(context) for task in progress.tasks for point in task]

    def write_results() -> None:
        records = [record for name in names if (record := context.load_record(name)) is not None]
        evaluation_results.write(output, {**about, "points": len(names)}, records)

    write_results()
    try:
        for tasks in (list(plan.baseline_tasks()), list(plan.tasks())):
            for _ in _run_tasks(kind, tasks, context, progress):
                write_results()
    finally:
        print(_write_report(output))


def _run_tasks(kind: Kind, tasks: Sequence[tuple[Point, ...]], context: Context, progress: Progress) -> Iterator[None]:
    """Do the unfinished parts of tasks that do not depend on each other; yield after each task."""
    tasks = [task for task in tasks if not all(context.record_path(point.name(context)).exists() for point in task)]
    num_jobs = progress.num_jobs
    if num_jobs == 1:
        for task in tasks:
            run_task(kind, task, context, progress)
            yield
        return
    # A separate process for each task: a backend never gives memory back, and sets up its threads only once.
    with concurrent.futures.ProcessPoolExecutor(
        num_jobs,
        mp_context=_Context(),
        initializer=_begin_process,
        initargs=(max(1, num_cpus() // num_jobs),),
        max_tasks_per_child=1,
    ) as pool:
        try:
            futures = [pool.submit(run_task, kind, task, context, progress) for task in tasks]
            for future in concurrent.futures.as_completed(futures):
                future.result()
                yield
        except stopping.Stopped:
            for process in multiprocessing.active_children():
                process.kill()  # finished points are on disk, and training runs resume from their checkpoints
            raise
        except BaseException:
            # The other processes finish their current task, but do not start another.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Process(multiprocessing.context.SpawnProcess):
    """A process that Ctrl-C does not reach, not even while it loads its libraries.

    In a terminal, Ctrl-C goes to every process. The first process decides what happens to this one.
    """

    def start(self) -> None:
        """Start the process: it inherits which signals are blocked here, in this thread."""
        multiprocessing.resource_tracker.ensure_running()  # which unblocks Ctrl-C when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process


def _begin_process(num_threads: int) -> None:
    # tqdm's own lock is a semaphore of the system, which a process that is killed leaves behind.
    tqdm.set_lock(threading.RLock())
    libraries.import_quietly()
    import keras
    import threadpoolctl

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    elif backend == "torch":
        import torch

        torch.set_num_threads(num_threads)
    threadpoolctl.threadpool_limits(num_threads)


def run_task(kind: Kind, points: Sequence[Point], context: Context, progress: Progress) -> None:
    """Measure those of the points that are not finished, and write their records; say on stderr how far all are."""
    task = kind.task
    start = time.monotonic()

    def finish(point: Point, record: dict[str, Any]) -> None:
        nonlocal start
        context.save_record(point.name(context), record)
        metric, num_bytes = record["validation"][task.metric], record[task.bytes_key]
        print(
            f"{time.strftime('%H:%M:%S')} {point.describe(task)}: {task.metric_name} {metric:.4f}, "
            f"{num_bytes:.1f} bytes {task.a_example} ({time.monotonic() - start:.0f} s)",
            flush=True,
        )
        print(progress.text(), file=sys.stderr, flush=True)
        start = time.monotonic()

    unfinished = [point for point in points if not context.record_path(point.name(context)).exists()]
    for point in unfinished:
        if isinstance(point, ModelPoint):
            finish(point, kind.measure_model(point, context))
    rivals = [point for point in unfinished if isinstance(point, CodecPoint)]
    if rivals:
        for rival, record in kind.measure_rivals(rivals, context):
            finish(rival, record)


def _write_report(output: str, data_set: str | None = None) -> str:
    """Write the figures and the page from the results in an output folder, and return what to print.

    Args:
      output: The folder.
      data_set: What the data are called, if not as the results say.

    Raises:
      FileNotFoundError: If there are no results.
    """
    from vidpress.pipeline.evaluation.report import page
    from vidpress.pipeline.evaluation.report import results as evaluation_results

    results = evaluation_results.load(output)
    if data_set is not None:
        results.about["data_set"] = data_set
    page.write(output, results)
    return evaluation_results.summary(output, results)


if __name__ == "__main__":
    main()
