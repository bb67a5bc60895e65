"""The command line: help with examples, exit codes, and one clear line for every mistake."""

import csv
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_build
import typer
from tiny_build import Built

import oneslate
from service.keys import ApiKey, digest, read_keys, write_keys

COMMANDS = [
    "build", "prepare", "tokenize", "train", "reward", "align", "evaluate", "export", "simulate", "trials", "serve",
    "backfill", "collect", "doctor", "demo", "loadtest", "openapi", "recommend", "results",
]  # fmt: skip
BENCHES = ["batching", "decode", "http", "live", "overload", "tokenize"]
KEYS = ["list", "new", "revoke"]
OPTIONS = {"batching": ["--bundle", "."], "live": ["--bundle", "."]}
"""What a bench cannot do without: a bundle to serve."""


Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return tiny_build.oneslate(*arguments, cwd=cwd, timeout_s=120, **more)


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """As `run`, in this process, because importing torch takes seconds: what leaves `main` but an exit is an error."""

    def run_here(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["oneslate", *arguments])
        for name in [name for name in os.environ if name.startswith("ONESLATE_")]:
            monkeypatch.delenv(name)
        with pytest.raises(SystemExit) as caught:
            oneslate.main()
        said = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, int(caught.value.code or 0), said.out, said.err)

    return run_here


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0]
    for word in words:
        assert word in errors[0]


def test_every_command_is_known_here() -> None:
    group = typer.main.get_command(oneslate.cli)
    assert sorted(group.commands) == sorted([*COMMANDS, "bench", "keys"])  # type: ignore[attr-defined]
    assert sorted(group.commands["bench"].commands) == sorted(BENCHES)  # type: ignore[attr-defined]
    assert sorted(group.commands["keys"].commands) == sorted(KEYS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_records_only_when_told_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    asked: list[dict[str, Any]] = []
    module = {"decode": "decode.command"}.get(name, name)
    monkeypatch.setattr(f"loadtests.bench.{module}.run", lambda *_, **options: asked.append(options))
    done = CliRunner().invoke(oneslate.cli, ["bench", name, *OPTIONS.get(name, [])])
    assert done.exit_code == 0, done.output
    assert asked[0]["record"] is False


@pytest.mark.parametrize("command", [*COMMANDS, *(f"bench {name}" for name in BENCHES)])
def test_help_shows_an_example_that_the_command_takes(command: str) -> None:
    from typer.testing import CliRunner

    shown = CliRunner().invoke(oneslate.cli, [*command.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    assert f"oneslate {command}" in shown.output
    assert "Example" in shown.output
    # Every option of the example is an option of the command.
    example = next(line for line in shown.output.splitlines() if "Example" in line)
    options, head = shown.output[shown.output.index("Options") :], example
    for word in head.replace("`", " ").replace(",", " ").split():
        if word.startswith("--"):
            assert word in options


def test_no_command_is_wrong_usage_and_shows_help(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 2
    assert "build" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["bulid"], ["build"], ["build", "--data"], ["build", "--dta", "x"], ["serve", "--port", "eighty"],
     ["serve", "--port", "70000"], ["demo", "--port", "0"]],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    from typer.testing import CliRunner

    shown = CliRunner().invoke(oneslate.cli, arguments)
    assert shown.exit_code == 2
    assert "Traceback" not in shown.output


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    with (folder / "events.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user_id", "item_id", "timestamp"])
        rows.writerows([f"u{n % 7}", f"i{n % 5}", 1_700_000_000 + 60 * n] for n in range(50))
    (folder / "no_item.csv").write_text("user_id,thing,timestamp\nu,i,1\n")
    (folder / "no_rows.csv").write_text("user_id,item_id,timestamp\n")
    (folder / "binary.parquet").write_bytes(b"\x00\x01nonsense")
    (folder / "broken.csv.gz").write_bytes(b"\x1f\x8bnonsense")
    (folder / "empty").mkdir()
    (folder / "mine.toml").write_text('extends = "default"\n[train]\nmax_epoch = 3\n')
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["build", "--data", "nowhere.csv"], 1, ["nowhere.csv", "no such file or folder"]),
        (["build", "--data", "events.csv", "--format", "tabel"], 1, ["format must be one of", "table", "'tabel'"]),
        (["build", "--data", "no_item.csv"], 1, ["no_item.csv", "item_id"]),
        (["build", "--data", "no_rows.csv"], 1, ["no_rows.csv", "no usable event"]),
        (["build", "--data", "binary.parquet"], 1, ["binary.parquet"]),
        (["build", "--data", "broken.csv.gz"], 1, ["broken.csv.gz", "gzip"]),
        (["build", "--data", "empty"], 1, ["empty", "events"]),
        (["build", "--data", "events.csv", "--format", "movielens"], 1, ["events.csv"]),
        (["build", "--data", "events.csv", "--recipe", "mine.toml"], 2, ["mine.toml", "did you mean 'max_epochs'"]),
        (["build", "--data", "events.csv", "--recipe", "mien"], 2, ["no such recipe", "industrial"]),
        (["build", "--data", "events.csv", "--set", "train.max_epoch=3"], 2, ["--set", "did you mean 'max_epochs'"]),
        (["build", "--data", "events.csv", "--set", "train.max_epochs=0"], 2, ["max_epochs must be at least 1"]),
        (["build", "--data", "events.csv", "--set", "train.max_epochs"], 2, ["section.key=value"]),
        (["build", "--data", "events.csv", "--out", "mine.toml"], 1, ["mine.toml", "no bundle"]),
        (["build", "--data", "events.csv", "--out", "mine.toml/b"], 1, ["mine.toml/b", "cannot be written"]),
        (["train", "--out", "runs/new"], 1, ["runs/new", "run `oneslate prepare`"]),
        (["prepare", "--data", "events.csv", "--out", "mine.toml/run"], 1, ["Not a directory"]),
        (["serve", "--bundle", "nowhere"], 1, ["nowhere", "no bundle here"]),
        (["serve"], 1, ["ONESLATE_BUNDLE"]),
        (["demo", "--data", "nowhere"], 1, ["nowhere", "no such file or folder"]),
        (["demo", "--set", "train.nonsense=1"], 2, ["unknown key 'nonsense'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_mistake_is_one_clear_line_and_its_exit_code(
    files: Path,
    tmp_path: Path,
    free_port: int,
    run_here: Run,
    arguments: list[str],
    code: int,
    words: list[str],
) -> None:
    cwd = Path(shutil.copytree(files, tmp_path / "cwd"))
    if arguments[0] == "demo":  # nothing to simulate: that is not what is tested
        (cwd / "runs" / "demo" / "simulator").mkdir(parents=True)
        (cwd / "runs" / "demo" / "simulator" / "done").touch()
        arguments = [*arguments, "--port", str(free_port)]
    assert_one_line(run_here(*arguments, cwd=cwd), code, *words)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["build", "--data", "nowhere.csv"], 1, ["nowhere.csv", "no such file or folder"]),
        (["build", "--data", "no_item.csv", "--recipe", "mine.toml"], 2, ["did you mean 'max_epochs'"]),
    ],
)
def test_it_is_the_same_in_a_process_of_its_own(
    files: Path, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    assert_one_line(run(*arguments, cwd=Path(shutil.copytree(files, tmp_path / "cwd"))), code, *words)


def test_a_folder_without_write_permission_is_one_clear_line(files: Path, tmp_path: Path) -> None:
    cwd = Path(shutil.copytree(files, tmp_path / "cwd"))
    (cwd / "closed").mkdir()
    (cwd / "closed").chmod(0o555)
    # Root may write everywhere; without the capabilities for it (1 and 2) it is told no like anyone else.
    drop = "import ctypes, os, sys; [ctypes.CDLL(None).prctl(24, one, 0, 0, 0) for one in (1, 2)]"
    command = [sys.executable, "-c", f"{drop}; os.execv(sys.argv[1], sys.argv[1:])", *tiny_build.command()]
    for arguments, words in (
        (["build", "--data", "events.csv", "--out", "closed/bundle"], ["closed/bundle", "may write to"]),
        (["prepare", "--data", "events.csv", "--out", "closed/run"], ["closed/run", "Permission denied"]),
    ):
        done = subprocess.run(
            [*command, *arguments], cwd=cwd, env=tiny_build.environment(), capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert_one_line(done, 1, *words)
    assert not (cwd / "runs").exists()


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("trials --plan industrial --data x --out x", "torch", "train"),
        ("build --data x", "polars", "train"),
        ("bench decode", "transformers", "bench"),
        ("bench http", "psutil", "bench"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, command: str, module: str, extra: str
) -> None:
    code = f"import sys; sys.modules['{module}'] = None; import oneslate; oneslate.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()], cwd=tmp_path, env=tiny_build.environment(),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert_one_line(done, 1, f"needs {module}", f"oneslate[{extra}]")


def test_a_port_in_use_is_said_before_the_demo_builds_anything(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("demo", "--port", str(port), cwd=tmp_path)
    assert_one_line(done, 1, f"cannot listen on 127.0.0.1:{port}", "--port")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def bundle(built: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built.bundle, tmp_path / "bundle"))


def test_a_bundle_of_which_one_byte_was_flipped_is_not_served(bundle: Path, tmp_path: Path) -> None:
    weights = bundle / "weights.data"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    settings = {"ONESLATE_HISTORY__URL": "memory://"}
    assert_one_line(
        run("serve", "--bundle", str(bundle), "--port", "0", cwd=tmp_path, **settings), 1, "weights.data", "sha256"
    )


def test_a_bundle_that_lacks_a_file_is_not_served(bundle: Path, tmp_path: Path) -> None:
    (bundle / "catalog.parquet").unlink()
    settings = {"ONESLATE_HISTORY__URL": "memory://"}
    done = run("serve", "--bundle", str(bundle), "--port", "0", cwd=tmp_path, **settings)
    assert_one_line(done, 1, "catalog.parquet", "missing")


def test_a_taken_port_and_nowhere_to_keep_histories_are_one_line_each(bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        settings = {"ONESLATE_HISTORY__URL": "memory://", "ONESLATE_LOG_LEVEL": "error"}
        done = run("serve", "--bundle", str(bundle), "--port", port, cwd=tmp_path, **settings)
    assert_one_line(done, 1, f"cannot listen on 127.0.0.1:{port}")
    done = run("serve", "--bundle", str(bundle), "--port", "0", cwd=tmp_path, ONESLATE_LOG_LEVEL="error")
    assert_one_line(done, 1, "ONESLATE_HISTORY__URL or ONESLATE_HISTORY__DATA_DIR")
    done = run("serve", "--bundle", str(bundle), cwd=tmp_path, ONESLATE_HISTORY__DATADIR="x")
    assert_one_line(done, 1, "ONESLATE_HISTORY__DATADIR", "ONESLATE_HISTORY__DATA_DIR")


def test_a_build_says_what_it_does_and_where_things_are(built: Built) -> None:
    bundle, report = built.stdout.splitlines()
    assert bundle == "bundle: bundle"
    assert (built.cwd / report.removeprefix("report: ")).is_file()
    said = [line for line in built.stderr.splitlines() if not line.startswith((" ", "sasrec"))]
    assert [line.partition(":")[0] for line in said] == ["prepare", "tokenize", "train", "evaluate", "export"]
    text = (built.cwd / report.removeprefix("report: ")).read_text()
    for name in ("generator", "popularity", "cooccurrence", "sasrec"):
        assert name in text.lower()
    card = (built.bundle / "MODEL_CARD.md").read_text()
    assert "| item/" in card
    assert "| slate/" in card
    for file in built.bundle.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o400
        assert file.stat().st_mode == (built.bundle / "manifest.json").stat().st_mode, file.name


def test_a_second_build_is_over_at_once(built: Built, run_here: Run) -> None:
    before = (built.bundle / "manifest.json").read_text()
    options = ["--recipe", "demo", "--data", "runs/demo/simulator", "--format", "table", "--out", "bundle"]
    done = run_here("build", *options, *tiny_build.set_options(), cwd=built.cwd)
    assert done.returncode == 0
    assert done.stderr.count("done already") == 5
    assert (built.bundle / "manifest.json").read_text() == before


def imported_by(*arguments: str, cwd: Path) -> set[str]:
    """Top-level modules that the command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *tiny_build.command(*arguments)[1:]], cwd=cwd,
        env=tiny_build.environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "oneslate" in names
    return names


def test_a_graph_that_strays_from_the_model_is_no_bundle(built: Built, tmp_path: Path, run_here: Run) -> None:
    (folder,) = {path.parent for path in built.cwd.glob("runs/demo/*/export.done")}
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    (run / "export.done").unlink()
    settings = (*tiny_build.SETTINGS, "export.logprob_tolerance=1e-12")
    options = ["--recipe", "demo", "--out", str(run), *tiny_build.set_options(settings)]
    done = run_here("export", *options, cwd=tmp_path)
    assert_one_line(done, 1, "strays by", "from the model's logprobs", "delete", "oneslate/pieces")
    assert not (run / "export.done").exists()


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["serve", "--bundle", "nowhere"], ["--help"]])
def test_what_goes_online_never_imports_the_trainer(tmp_path: Path, arguments: list[str]) -> None:
    trainer = {"torch", "polars", "pandas", "sklearn", "onnx", "model_export"}
    assert not imported_by(*arguments, cwd=tmp_path) & trainer


@pytest.mark.parametrize("arguments", [["build", "--data", "nowhere"], ["train", "--out", "runs/new"]])
def test_a_mistake_is_said_before_torch_is_imported(tmp_path: Path, arguments: list[str]) -> None:
    assert not imported_by(*arguments, cwd=tmp_path) & {"torch", "sklearn", "scipy", "matplotlib", "onnx"}


def test_simulate_writes_a_log_and_apart_from_it_the_truth(tmp_path: Path, run_here: Run) -> None:
    done = run_here("simulate", "--out", "simulated", "--events", "2000", "--no-boredom", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " events of " in done.stdout
    assert {file.name for file in (tmp_path / "simulated").iterdir()} == {"log", "truth"}
    prepared = run_here("prepare", "--data", "simulated/log", "--format", "table", "--out", "run", cwd=tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    assert (tmp_path / "run" / "prepare" / "feedback.parquet").exists()


def test_aligning_without_rounds_is_wrong_usage(tmp_path: Path, run_here: Run) -> None:
    done = run_here("align", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "align.num_iterations" in done.stderr


def test_a_plan_that_is_not_there_is_wrong_usage(tmp_path: Path, run_here: Run) -> None:
    done = run_here("trials", "--plan", "industrail", "--out", "run", cwd=tmp_path)
    assert_one_line(done, 2, "industrail")


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    made = run("keys", "new", "--name", "shop", "--scope", "recommend", "--scope", "events", cwd=tmp_path)
    token = made.stdout.strip()
    assert (made.returncode, token[:4], len(token.split())) == (0, "osk_", 1)
    assert run("keys", "new", "--name", "shop", "--scope", "recommend", cwd=tmp_path).returncode == 0
    assert run("keys", "new", "--name", "web", "--scope", "admin", "--user-id", "ann", cwd=tmp_path).returncode == 0
    text = (tmp_path / "keys.json").read_text()
    assert token not in text
    listed = run("keys", "list", cwd=tmp_path).stdout
    assert [listed.count(word) for word in ("shop", "web", "ann")] == [2, 1, 1]
    revoked = run("keys", "revoke", digest(token)[:8], cwd=tmp_path)
    assert revoked.stdout == f"revoked shop {digest(token)[:8]}\n"
    assert [key.name for key in read_keys(tmp_path / "keys.json")] == ["shop", "web"]
    assert run("keys", "revoke", "shop", cwd=tmp_path).returncode == 0
    assert [key.name for key in read_keys(tmp_path / "keys.json")] == ["web"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["new", "--name", "shop", "--scope", "everything"], 2, ["scopes", "recommend"]),
        (["new", "--name", "no spaces", "--scope", "admin"], 2, ["name"]),
        (["new", "--name", "web", "--scope", "admin", "--rate", "3"], 1, ["'web'", "one rate"]),
        (["revoke", "shop"], 1, ["no key of this name"]),
        (["list", "--file", "nowhere.json"], 1, ["nowhere.json", "No such file"]),
    ],
)
def test_a_mistake_with_keys_is_one_line_and_changes_nothing(
    tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    key = ApiKey(name="web", sha256=digest("a"), scopes=("admin",))
    write_keys(tmp_path / "keys.json", [key])
    assert_one_line(run("keys", *arguments, cwd=tmp_path), code, *words)
    assert read_keys(tmp_path / "keys.json") == (key,)
