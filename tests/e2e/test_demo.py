"""`oneslate demo`: what it prints, that the line it prints works, and that nothing of it stays behind."""

import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import tiny_build
from tiny_build import Built
from typer.testing import CliRunner, Result

import oneslate
from loadtests.bench.live_service import live_service
from model_export.data.prepared import PreparedData

SLATE_LINE = re.compile(r"^ *(\d) +(.+?) +-\d+\.\d\d +(\d+-\d+-\d+) *$", re.MULTILINE)


def words(port: int, *more: str) -> list[str]:
    return tiny_build.command("demo", "--port", str(port), *more, *tiny_build.set_options())


def assert_printed(text: str, built: Built, port: int) -> list[str]:
    """Two users with history and slate, titles and all; returns the curl line."""
    assert "Traceback" not in text
    (folder,) = (built.cwd / "runs" / "demo").glob("*/prepare")
    prepared = PreparedData.load(folder)
    titles = set(prepared.items["title"])
    pieces = re.split(r"^user (?=.*newest events)", text, flags=re.MULTILINE)[1:]
    assert len(pieces) == 2
    shown_users = set()
    for piece in pieces:
        user_id = piece.split(":")[0]
        shown_users.add(user_id)
        assert user_id in set(prepared.user_id_E)
        history, slate = piece.split(f"user {user_id}: next slate (source model, ")
        assert sum(title in history for title in titles) >= 3
        assert " ago" in history
        rows = SLATE_LINE.findall(slate)
        assert [row[0] for row in rows] == ["1", "2", "3"]
        found = [[title for title in titles if row[1].startswith(title)] for row in rows]
        assert all(found)
    assert len(shown_users) == 2
    assert f"http://127.0.0.1:{port}/docs" in text
    (curl,) = (line.strip() for line in text.splitlines() if line.strip().startswith("curl "))
    assert f"http://127.0.0.1:{port}/v1/recommend" in curl
    return shlex.split(curl)


def of_this_demo(built: Built) -> list[psutil.Process]:
    """Processes of the demo's service and of its Redis: those that work in its folders or were told of them."""
    mine = []
    for process in psutil.process_iter():
        try:
            text = [process.cwd(), *process.cmdline()]
        except psutil.Error:
            continue
        if any(str(built.cwd) in word for word in text):
            mine.append(process)
    return mine


def eventually(holds: Callable[[], bool], within_s: float) -> bool:
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        if holds():
            return True
        time.sleep(0.05)
    return holds()


def test_once_prints_and_leaves_nothing_running(built: Built, free_port: int) -> None:
    # Of somebody's own service, whose Redis and keys are not the demo's.
    theirs = {"ONESLATE_HISTORY__DATA_DIR": str(built.cwd / "theirs"), "ONESLATE_KEYS_FILE": "keys.json"}
    done = subprocess.run(
        words(free_port, "--once"), cwd=built.cwd, env=tiny_build.environment(COLUMNS="160", **theirs),
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_printed(done.stdout, built, free_port)
    # The build of the fixture is the demo's own: same recipe, same data.
    assert done.stdout.count("done already") == 5
    assert of_this_demo(built) == []


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_it_stays_up_until_a_signal_and_then_stops_what_it_started(
    built: Built, free_port: int, signal_number: int
) -> None:
    process = subprocess.Popen(
        words(free_port), cwd=built.cwd, env=tiny_build.environment(COLUMNS="160"), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    watchdog = threading.Timer(200, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        curl = assert_printed("".join(lines), built, free_port)
        started = [one for one in of_this_demo(built) if one.pid != process.pid]
        assert len(started) >= 2  # the service and its Redis
        assert any("redis-server" in one.name() for one in started)
        if shutil.which("curl"):
            answer = subprocess.run(curl, capture_output=True, text=True, timeout=30, check=True).stdout
        else:
            headers, body = {"content-type": "application/json"}, curl[curl.index("-d") + 1]
            answer = httpx.post(curl[2], headers=headers, content=body, timeout=30).text
        assert '"source":"model"' in answer.replace(" ", "")
        process.send_signal(signal_number)
        rest = process.stdout.read()
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in rest
        assert eventually(lambda: of_this_demo(built) == [], 5.0), of_this_demo(built)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{free_port}/livez")
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        for one in of_this_demo(built):  # a demo that is killed cannot stop what it started
            one.kill()
        assert process.stdout is not None
        process.stdout.close()


def test_a_signal_during_the_build_ends_it_without_a_traceback(tmp_path: Path, free_port: int) -> None:
    log = tmp_path / "runs" / "demo" / "simulator"
    tiny_build.write_log(log)
    (log / "done").touch()
    process = subprocess.Popen(
        [*words(free_port), "--set", "train.max_epochs=100000", "--set", "train.patience=0"], cwd=tmp_path,
        env=tiny_build.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    watchdog = threading.Timer(300, process.kill)  # a busy machine takes a minute to get there
    watchdog.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("train:"):
                break
        # As a user does: a Ctrl-C that falls into one of torch's late imports can get lost there.
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            eventually(lambda: process.poll() is not None, 20.0)
        assert process.returncode == 130
        assert "Traceback" not in process.stdout.read()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_events_are_replayed_only_into_a_service_of_the_model_that_was_built_here(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replay(url: str, folder: Path) -> Result:
        monkeypatch.chdir(folder)  # in this process, because importing torch takes seconds
        return CliRunner().invoke(oneslate.cli, ["demo", "--replay-to", url, *tiny_build.set_options()])

    nothing = replay("http://127.0.0.1:1", tmp_path)
    assert (nothing.exit_code, list(tmp_path.iterdir())) == (0, [])
    assert "no model of the demo was built here" in nothing.output
    with live_service({"ONESLATE_RUNNER": "fake", "ONESLATE_HISTORY__URL": "memory://"}) as service:
        other = replay(service.url, built.cwd)
        assert (other.exit_code, "nothing to replay: the service has fake" in other.output) == (0, True)
        assert httpx.get(f"{service.url}/v1/users").json()["user_ids"] == []
    gone = replay(service.url, built.cwd)
    assert (gone.exit_code, f"error: {service.url}: " in gone.output) == (1, True)


def test_a_bundle_of_another_format_is_built_again(built: Built, tmp_path: Path) -> None:
    home = shutil.copytree(built.cwd, tmp_path / "home", ignore=shutil.ignore_patterns("redis"))
    words = ("demo", "--build-into", "bundle", *tiny_build.set_options())
    again = tiny_build.oneslate(*words, cwd=home)
    assert (again.returncode, again.stdout) == (0, "bundle: bundle (there already)\n")
    manifest = home / "bundle" / "manifest.json"
    ours = manifest.read_text()
    manifest.write_text(re.sub(r'"format_version": \d+', '"format_version": 1', ours))
    assert manifest.read_text() != ours
    # Somebody's own is not replaced by the demo's.
    theirs = re.sub(r'"model_version": "demo-', '"model_version": "shop-', manifest.read_text())
    manifest.write_text(theirs)
    refused = tiny_build.oneslate(*words, cwd=home)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: bundle: a bundle of format 1, and this version serves format ")
    assert manifest.read_text() == theirs
    manifest.write_text(re.sub(r'"format_version": \d+', '"format_version": 1', ours))
    assert tiny_build.oneslate(*words, cwd=home).returncode == 0
    assert manifest.read_text() == ours


def test_where_a_bundle_must_be_there_none_is_built(tmp_path: Path) -> None:
    done = tiny_build.oneslate("demo", "--build-into", "mine", "--must-be-there", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: mine: there is no bundle; only the demo's is built by itself\n"
    assert list(tmp_path.iterdir()) == []
    # Not even in the place of an older release's demo.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text('{"format_version": 1, "model_version": "demo-1"}')
    older = tiny_build.oneslate("demo", "--build-into", "mine", "--must-be-there", cwd=tmp_path)
    assert (older.returncode, older.stdout) == (1, "")
    assert "a bundle of format 1" in older.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
