"""The evaluation job: every method of the paper and its rivals on one data set, as tables, figures and a page."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import multiprocessing.context
import multiprocessing.resource_tracker
import pathlib
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from vidpress.model.cpus import num_cpus
from vidpress.model.images.experiments import EXPERIMENTS, Experiment
from vidpress.pipeline.evaluation import images, videos
from vidpress.pipeline.evaluation.plan import METHODS, Networks, Plan, add_sweep_options, make_plan
from vidpress.pipeline.evaluation.points import BASELINE_PLACEHOLDER, CodecPoint, Context, ModelPoint, Point
from vidpress.pipeline.evaluation.task import task_of
from vidpress.pipeline.launching import launch, libraries, machine, record_options, stopping
from vidpress.pipeline.training.options import add_model_options

_PROG = "vidpress evaluate"

_REPORT_MODULES = ("jinja2", "matplotlib")


def parser(experiment: Experiment | None = None) -> launch.Parser:
    """Return the parser of the job's options: of an experiment on images, or on videos."""
    parser = launch.Parser(
        prog=_PROG,
        description="Train networks over a sweep of lmbda, measure them and everything that they compete with on the "
        "validation data, and write results.json, results.csv, figures and index.html.",
        epilog="Run again with the same options, an evaluation that was stopped goes on: what is finished is neither "
        "trained nor measured again. Every option that says what is trained and how holds for all networks. With "
        "--experiment, `--help` lists the experiment's options instead of those for videos.",
        examples=[
            "vidpress evaluate --input 'yt8m/train*.tfrecord' --validation 'yt8m/validate*.tfrecord' \\",
            "    --hidden 2000 --lmbda 0.001 0.002 --steps 3000 --output evaluation",
        ],
        conflict_handler="resolve",
    )
    if experiment is None:
        add_model_options(parser)
    else:
        images.add_model_options(parser, experiment)
    parser.add_argument(
        "--experiment", choices=EXPERIMENTS, help="take images, and networks for them, instead of videos"
    )
    files = parser.add_argument_group("files")
    if experiment is None:
        files.add_argument(
            "--input", nargs="+", metavar="GLOB", type=launch.absolute, help="training data; .gz is unpacked"
        )
        files.add_argument(
            "--validation",
            nargs="+",
            metavar="GLOB",
            type=launch.absolute,
            help="the data that everything is measured on",
        )
    else:
        files.add_argument(
            "--input",
            metavar="FOLDER",
            type=launch.local_folder,
            help=f"holds {experiment.data_set} as published: {experiment.files}",
        )
        files.add_argument(
            "--hold_out",
            type=launch.positive_int,
            default=0,
            metavar="IMAGES",
            help="measure on so many of the training images, which are not trained on, instead of the test images: to "
            "choose options by",
        )
    files.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        type=launch.local_folder,
        help="for the results and the finished points",
    )
    files.add_argument(
        "--work_dir", metavar="FOLDER", type=launch.absolute, help="for checkpoints and models (default: FOLDER.work)"
    )
    if experiment is None:
        record_options.add_record_options(files)
    files.add_argument(
        "--report_only", action="store_true", help="write figures and page anew from the results.json in the output"
    )
    methods = METHODS if experiment is None else images.METHODS
    sweep = parser.add_argument_group("sweep")
    add_sweep_options(sweep, hidden=experiment is None)
    if experiment is not None:
        sweep.add_argument("--spatial", action="store_true", help="code the feature map before global pooling")
    sweep.add_argument(
        "--method",
        action="append",
        metavar="NAME: OPTIONS",
        help="a curve of its own: a name, a colon, and what it has otherwise than the options of all; also --lmbda, "
        f"--headline_lmbda and, on videos, --hidden, and {BASELINE_PLACEHOLDER}, which stands for the frozen baseline "
        "of the same architecture and seed. Can be given many times; the first is the one that the page tells of, one "
        "called 'paper' is what "
        f"it is compared with (default: {' and '.join(map(repr, methods))})",
    )
    sweep.add_argument(
        "--baseline_options", default="", metavar="OPTIONS", help="what the baselines have otherwise, as for --method"
    )
    if experiment is None:
        sweep.add_argument(
            "--baseline",
            action="append",
            metavar="MODEL.safetensors",
            help="a frozen model, trained with --lmbda 0, to take for its architecture's baseline instead of training "
            "one",
        )
    sweep.add_argument("--seeds", type=launch.positive_int, default=1, help="trainings of a point, from --seed upwards")
    rivals = parser.add_argument_group("rivals")
    rivals.add_argument("--no_rivals", action="store_true", help="measure the methods and the baselines alone")
    if experiment is None:
        rivals.add_argument(
            "--no_network_heads",
            action="store_true",
            help="train logistic heads alone on codes of the input features, not the first --hidden network as well",
        )
    parser.add_argument(
        "--jobs", type=launch.positive_int, default=1, help="points at a time, each in a process with its part of cores"
    )
    if experiment is not None:
        parser.set_defaults(baseline=None, hidden=None)
    return parser


def _parser_for(argv: Sequence[str]) -> tuple[launch.Parser, Experiment | None]:
    """Return the parser of what options ask for, and the experiment that they name."""
    first = argparse.ArgumentParser(prog=_PROG, add_help=False, allow_abbrev=False)
    first.add_argument("--experiment", choices=EXPERIMENTS)
    experiment = EXPERIMENTS.get(first.parse_known_args(argv)[0].experiment)
    return parser(experiment), experiment


def _networks(experiment: Experiment | None, args: argparse.Namespace) -> Networks | None:
    """Return the kind of networks of an experiment, or None for those on videos."""
    if experiment is None:
        return None
    return Networks(
        add_options=lambda parser: images.add_model_options(parser, experiment),
        check_options=images.ImageModelOptions.of,
        baseline_options={
            "tables": "empirical",
            "banks": 1,
            # What says nothing without a rate.
            "prior_banks": 1,
            "prior_learning_rate": experiment.options.prior_learning_rate,
        },
        methods=images.METHODS,
        codecs=images.codecs,
        fixed={"experiment": experiment.name, "spatial": args.spatial},
        architectures=(experiment.feature_shape(args.spatial),),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job with command-line options."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own_parser, experiment = _parser_for(argv)
    args = own_parser.parse_args(argv)
    libraries.quiet_backend()
    with launch.explained_errors(_PROG):
        if args.report_only:
            libraries.check_modules("the report", _REPORT_MODULES, "report")
            print(_write_report(args.output))
            return
        libraries.check_modules("evaluating", (*libraries.TRAINING, *_REPORT_MODULES, "faiss"), "train,report")
    if not (args.input and (experiment or args.validation)):
        needed_options = "--input is" if experiment else "--input and --validation are"
        own_parser.error(f"{needed_options} needed, but for --report_only.")
    libraries.load_keras(_PROG, "evaluating")
    with launch.explained_errors(_PROG):
        try:
            if experiment is None:
                args.features = record_options.with_keys(args.features, args)
            plan = make_plan(args, _networks(experiment, args))
        except ValueError as error:
            own_parser.error(str(error))
        run(args, plan, f"{_PROG} {shlex.join(argv)}")


def _measures(context: Context) -> Any:
    """Return the module that loads the data and measures the points."""
    return images if context.experiment else videos


def _context(args: argparse.Namespace, work_dir: str) -> Context:
    """Return what all points share, but for the data's fingerprints."""
    if not args.experiment:
        return Context(tuple(args.input), tuple(args.validation), args.features, args.classes, args.output, work_dir)
    experiment = EXPERIMENTS[args.experiment]
    kind = f"images:{'x'.join(map(str, experiment.image_shape))}"
    return Context(
        input=(args.input,),
        validation=(args.input,),
        features=kind,
        classes=experiment.num_classes,
        output=args.output,
        work_dir=work_dir,
        experiment=experiment.name,
        held_out=args.hold_out,
    )


def _about_experiment(name: str) -> dict[str, Any]:
    if not name:
        return {}
    experiment = EXPERIMENTS[name]
    return {
        "task": "images of many classes" if experiment.num_classes >= 1000 else "images",
        "experiment": experiment.name,
        "network": experiment.network,
        "data_set": experiment.data_set,
    }


def run(args: argparse.Namespace, plan: Plan, command: str) -> None:
    """Measure what is not finished yet, and write the report.

    Raises:
      JobError: If the output cannot be written.
    """
    from vidpress.pipeline.evaluation.report import results as evaluation_results

    output = pathlib.Path(args.output)
    launch.check_writable(args.output, str(output))
    work_dir = args.work_dir or f"{output}.work"
    context = _context(args, work_dir)
    training, validation = _measures(context).load_data(context)
    fingerprints = {"training": training.fingerprint, "validation": validation.fingerprint}
    context = dataclasses.replace(
        context,
        training_sha256=training.fingerprint["sha256"],
        validation_sha256=validation.fingerprint["sha256"],
    )
    about = {
        "command": command,
        "machine": machine.describe(),
        "jobs": args.jobs,
        "data": fingerprints,
        "methods": list(dict.fromkeys(point.method for point in plan.models)),
        **_about_experiment(context.experiment),
    }
    names = [point.name(context) for task in plan.all_tasks() for point in task]

    def write_results() -> None:
        records = [record for name in names if (record := context.load_record(name)) is not None]
        evaluation_results.write(args.output, {**about, "points": len(names)}, records)

    write_results()
    try:
        for tasks in ([(point,) for point in plan.baselines], list(plan.tasks())):
            for _ in _run_tasks(tasks, context, args.jobs):
                write_results()
    finally:
        print(_write_report(args.output))


def _run_tasks(tasks: Sequence[tuple[Point, ...]], context: Context, num_jobs: int) -> Iterator[None]:
    """Do what is not finished yet of tasks that do not need each other; yield after each task."""
    tasks = [task for task in tasks if not all(context.record_path(point.name(context)).exists() for point in task)]
    if num_jobs == 1:
        for task in tasks:
            run_task(task, context)
            yield
        return
    # A process of its own for each task: a backend gives back no memory, and takes its threads once and for all.
    with concurrent.futures.ProcessPoolExecutor(
        num_jobs,
        mp_context=_Context(),
        initializer=_begin_process,
        initargs=(max(1, num_cpus() // num_jobs),),
        max_tasks_per_child=1,
    ) as pool:
        futures = [pool.submit(run_task, task, context) for task in tasks]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                yield
        except stopping.Stopped:
            for process in multiprocessing.active_children():
                process.kill()  # what they have finished is written down, and trainings go on from their checkpoints
            raise
        except BaseException:
            # The others finish what they are at, but begin nothing.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Process(multiprocessing.context.SpawnProcess):
    """A process that Ctrl-C does not reach, not even while it loads its libraries.

    In a terminal it goes to every process: what then becomes of this one is for the first to say.
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


def run_task(points: Sequence[Point], context: Context) -> None:
    """Measure those of some points that are not finished, and write their records."""
    measures = _measures(context)
    task = task_of(_about_experiment(context.experiment))
    start = time.monotonic()

    def finish(point: Point, record: dict[str, Any]) -> None:
        nonlocal start
        context.save_record(point.name(context), record)
        metric, num_bytes = record["validation"][task.metric], record[task.bytes_key]
        print(
            f"{time.strftime('%H:%M:%S')} {point.describe()}: {task.metric_name} {metric:.4f}, {num_bytes:.1f} bytes "
            f"{task.a_example} ({time.monotonic() - start:.0f} s)",
            flush=True,
        )
        start = time.monotonic()

    unfinished = [point for point in points if not context.record_path(point.name(context)).exists()]
    for point in unfinished:
        if isinstance(point, ModelPoint):
            finish(point, measures.measure_model(point, context))
    codecs = [point for point in unfinished if isinstance(point, CodecPoint)]
    for codec, record in measures.measure_codecs(codecs, context):
        finish(codec, record)


def _write_report(output: str) -> str:
    """Write figures and page from the results of an output folder, and return what to print.

    Raises:
      FileNotFoundError: If there are no results.
    """
    from vidpress.pipeline.evaluation.report import page
    from vidpress.pipeline.evaluation.report import results as evaluation_results

    results = evaluation_results.load(output)
    page.write(output, results)
    return evaluation_results.summary(output, results)


if __name__ == "__main__":
    main()
