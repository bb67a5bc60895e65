"""`oneslate backfill`: what a log says stands in the service's histories afterwards, each event once."""

import csv
import itertools
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from live_http import fake_settings, free_port, live_client
from typer.testing import CliRunner, Result

import oneslate
from service.history import HistoryLimits, MemoryHistoryStore
from service.history.store import DAY_MS
from service.keys import ApiKey, digest, new_token, write_keys
from service.settings import LimitSettings

NOW_S = int(time.time()) - 10
Logged = list[tuple[str, float]]


def write_log(folder: Path, *, age_days: int = 0, unknown_item: bool = False) -> dict[str, Logged]:
    """A log of 30 users; what each did: item and time, oldest first."""
    rng = random.Random(5)
    users: dict[str, Logged] = {}
    for number in range(30):
        times = sorted(rng.sample(range(NOW_S - 1_000_000, NOW_S), rng.randint(1, 60)))
        users[f"user {number}/ü"] = [(f"item-{rng.randrange(50)}", at - age_days * 86_400.0) for at in times]
    if unknown_item:
        users["user 3/ü"][-1] = ("gone", users["user 3/ü"][-1][1])
    folder.mkdir()
    rows = [(user_id, item_id, at, "view") for user_id, events in users.items() for item_id, at in events]
    rng.shuffle(rows)
    with (folder / "events.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("user_id", "item_id", "timestamp", "action"), *rows])
    return users


def backfill(url: str, *more: str, env: dict[str, str] | None = None) -> Result:
    words = ["backfill", "--data", "log", "--format", "table", "--url", url, "--set", "prepare.slate_size=2", *more]
    return CliRunner().invoke(oneslate.cli, words, env=env)


def stored(client: httpx.Client, user_id: str) -> Logged:
    answer = client.get("/v1/users/{}/history".format(user_id.replace("/", "%2F"))).json()
    return [(event["item_id"], event["timestamp"]) for event in answer["events"]]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.chdir(tmp_path)
    with live_client(fake_settings()) as client:
        yield client


def test_every_event_of_the_log_is_there_once_however_often_it_is_sent(service: httpx.Client, tmp_path: Path) -> None:
    users = write_log(tmp_path / "log")
    num_events = sum(map(len, users.values()))
    for told in (f"{num_events:,} stored\n", f"0 stored, {num_events:,} there already\n"):
        done = backfill(str(service.base_url), "--in-flight", "3")
        assert (done.exit_code, f"{num_events:,} events of 30 users: {told}" in done.output) == (0, True), done.output
        assert {user_id: stored(service, user_id) for user_id in users} == users


def test_a_service_that_takes_little_at_once_gets_it_in_pieces_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    users = write_log(tmp_path / "log")
    with live_client(fake_settings(limits=LimitSettings(events=7))) as client:
        done = backfill(str(client.base_url))
        assert (done.exit_code, f"{sum(map(len, users.values())):,} stored\n" in done.output) == (0, True), done.output
        assert {user_id: stored(client, user_id) for user_id in users} == users


def test_what_somebody_did_twice_in_a_second_counts_twice(service: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    lines = [f"ann,item-{item},{NOW_S - 900 + at},view" for item, at in [(1, 0), (2, 60), (1, 60), (1, 60), (2, 60)]]
    lines += [f"bob,item-{item},{NOW_S - 2000 + 60 * item},view" for item in range(9)]
    (tmp_path / "log" / "events.csv").write_text("\n".join(["user_id,item_id,timestamp,action", *lines]))
    for told in ("14 stored", "0 stored, 14 there already"):
        assert told in backfill(str(service.base_url)).output
        assert sorted(item for item, _ in stored(service, "ann")) == ["item-1"] * 3 + ["item-2"] * 2


def test_only_the_newest_of_those_who_were_there_last(service: httpx.Client, tmp_path: Path) -> None:
    users = write_log(tmp_path / "log")
    assert backfill(str(service.base_url), "--newest", "5", "--users", "10").exit_code == 0
    last = sorted(users, key=lambda user_id: -users[user_id][-1][1])
    assert {user_id: stored(service, user_id) for user_id in users} == {
        user_id: users[user_id][-5:] if user_id in last[:10] else [] for user_id in users
    }


def test_a_log_that_is_too_old_is_said_to_be_and_can_end_now(service: httpx.Client, tmp_path: Path) -> None:
    users = write_log(tmp_path / "log", age_days=500)
    newest_s = max(events[-1][1] for events in users.values())
    done = backfill(str(service.base_url))
    assert done.exit_code == 1
    newest = f"{datetime.fromtimestamp(newest_s, UTC):%Y-%m-%d}"
    assert f"does not keep events of this log: the newest is of {newest}" in str(done.exception)
    assert "--end-now" in str(done.exception)
    assert backfill(str(service.base_url), "--end-now").exit_code == 0
    for user_id, events in users.items():
        kept = stored(service, user_id)
        assert [item_id for item_id, _ in kept] == [item_id for item_id, _ in events]
        gaps = [late - early for (_, early), (_, late) in itertools.pairwise(kept)]
        assert gaps == pytest.approx([late - early for (_, early), (_, late) in itertools.pairwise(events)], abs=0.01)
    assert max(stored(service, user_id)[-1][1] for user_id in users) == pytest.approx(time.time(), abs=120)


def test_a_service_that_keeps_more_from_now_on_takes_a_log_that_was_too_old_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    users = write_log(tmp_path / "log", age_days=500)
    store = MemoryHistoryStore()
    with live_client(fake_settings(), history=store) as client:
        assert backfill(str(client.base_url)).exit_code == 1
    store._limits = HistoryLimits(max_age_ms=3650 * DAY_MS)
    with live_client(fake_settings(), history=store) as client:
        done = backfill(str(client.base_url))
        assert done.exit_code == 0, done.output
        assert {user_id: stored(client, user_id) for user_id in users} == users


def test_users_whose_events_are_all_too_old_are_counted(service: httpx.Client, tmp_path: Path) -> None:
    users = write_log(tmp_path / "log")
    old = {f"old {number}": [("item-1", NOW_S - (400 + number) * 86_400.0)] for number in range(7)}
    with (tmp_path / "log" / "events.csv").open("a", newline="") as file:
        csv.writer(file).writerows([(user, item, at, "view") for user, [(item, at)] in old.items()])
    done = backfill(str(service.base_url))
    assert done.exit_code == 0
    assert "7 of the users have no history all the same" in done.output.replace("\n", " ")
    assert {user_id: stored(service, user_id) for user_id in users} == users


def test_a_history_that_is_full_of_newer_events_is_no_sign_of_an_old_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    users = write_log(tmp_path / "log")
    newest = max(users, key=lambda user_id: users[user_id][-1][1])
    with live_client(fake_settings(), history=MemoryHistoryStore(HistoryLimits(num_entries=5))) as client:
        live = [
            {
                "event_id": f"e{number}",
                "user_id": newest,
                "item_id": "item-1",
                "timestamp": time.time() - 1 + number / 10,
            }
            for number in range(5)
        ]
        assert client.post("/v1/events", json={"events": live}).status_code == 200
        done = backfill(str(client.base_url))
        assert done.exit_code == 0, done.output
        assert len(stored(client, newest)) == 5


def test_what_the_service_refuses_is_counted_with_its_reason_and_the_rest_is_stored(
    service: httpx.Client, tmp_path: Path
) -> None:
    users = write_log(tmp_path / "log", unknown_item=True)
    num_events = sum(map(len, users.values()))
    done = backfill(str(service.base_url))
    assert done.exit_code == 1
    assert f"{num_events - 1:,} stored\n" in done.output
    assert "error: refused: 1: The catalog does not hold the item" in done.output
    users["user 3/ü"].pop()
    assert {user_id: stored(service, user_id) for user_id in users} == users


def test_an_id_that_is_too_long_is_refused_alone(service: httpx.Client, tmp_path: Path) -> None:
    users = write_log(tmp_path / "log")
    with (tmp_path / "log" / "events.csv").open("a") as file:
        file.write(f"{'x' * 300},item-1,{NOW_S - 5_000},view\n")
    done = backfill(str(service.base_url))
    assert (done.exit_code, "error: refused: 1: user_id: " in done.output) == (1, True), done.output
    assert {user_id: stored(service, user_id) for user_id in users} == users


def test_a_key_with_a_rate_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    users = write_log(tmp_path / "log")
    token, file = new_token(), tmp_path / "keys.json"
    key = ApiKey(name="loader", sha256=digest(token), scopes=("events",), requests_per_s=50.0, burst=8)
    write_keys(file, [key])
    with live_client(fake_settings(keys_file=file, limits=LimitSettings(events=50))) as client:
        url = str(client.base_url)
        assert "key" in backfill(url).output
        done = backfill(url, env={"ONESLATE_KEY": token})
        assert (done.exit_code, done.stderr.count("error")) == (0, 0), done.output
        client.headers["Authorization"] = f"Bearer {token}"
        time.sleep(0.2)
        assert stored(client, "user 1/ü") == users["user 1/ü"]


def test_where_nobody_listens_the_log_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log")
    nobody = backfill(f"http://127.0.0.1:{free_port()}")
    assert (nobody.exit_code, "does `oneslate serve` run there?" in nobody.output) == (1, True)
    assert not (tmp_path / "runs").exists()


def test_a_log_without_times_needs_to_be_told_when(service: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    lines = [f"{user} " + " ".join(str(1 + (user + step) % 9) for step in range(8)) for user in range(1, 40)]
    (tmp_path / "log" / "sequential_data.txt").write_text("\n".join(lines) + "\n")
    words = ["backfill", "--data", "log", "--format", "sequences", "--url", str(service.base_url)]
    done = CliRunner().invoke(oneslate.cli, words)
    assert "--end-now" in str(done.exception), done.output
