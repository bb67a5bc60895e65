"""API keys: the file, whom it lets in, and how often."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import KeyFileError
from service.keys import ApiKey, KeyRing, TokenBucket, digest, new_token, read_keys, write_keys

ROOT = Path(__file__).resolve().parents[3]
ENTRY = {"name": "shop", "sha256": digest("secret"), "scopes": ["recommend"]}


def a_key(token: str = "secret", **changes: Any) -> ApiKey:
    return ApiKey(**{"name": "shop", "sha256": digest(token), "scopes": ("recommend",), **changes})


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(token.startswith("osk_") and len(token) >= 47 for token in tokens)


def test_what_is_written_is_read_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    keys = (
        a_key(),
        a_key("another", name="web", scopes=("events", "admin"), user_id="ann", requests_per_s=2.5, burst=3),
    )
    path = tmp_path / "keys.json"
    write_keys(path, keys)
    assert read_keys(path) == keys
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["keys.json"]
    assert "secret" not in path.read_text()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "file: Invalid JSON"),
        ("[]", "file: Input should be"),
        ("{}", "keys: Field required"),
        (json.dumps({"keys": [{**ENTRY, "scopes": []}]}), "keys.0.scopes: "),
        (json.dumps({"keys": [{**ENTRY, "scopes": ["everything"]}]}), "keys.0.scopes.0: "),
        (json.dumps({"keys": [{**ENTRY, "sha256": "secret"}]}), "keys.0.sha256: "),
        (json.dumps({"keys": [{**ENTRY, "token": "secret"}]}), "keys.0.token: Extra inputs"),
        (json.dumps({"keys": [{**ENTRY, "requests_per_s": 0}]}), "keys.0.requests_per_s: "),
        (json.dumps({"keys": [ENTRY, ENTRY]}), "twice"),
        (json.dumps({"keys": [ENTRY, {**ENTRY, "sha256": digest("b"), "burst": 3}]}), "one rate"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(KeyFileError) as refused:
        read_keys(path)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"keys\.json: No such file"):
        KeyRing(tmp_path / "keys.json")


def test_a_token_finds_its_key_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, [a_key("one"), a_key("two", name="web")])
    ring = KeyRing(path)
    assert ring.num_keys == 2
    found = [ring.find(token) for token in ("one", "two", "", "One", "one ", digest("one"), "\udc80")]
    assert [key and key.name for key in found] == ["shop", "web", None, None, None, None, None]


def test_a_changed_file_is_read_again_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, [a_key("old")])
    ring = KeyRing(path)
    assert not ring.refresh()
    write_keys(path, [a_key("old"), a_key("new")])  # a rotation: both let the same client in
    assert ring.refresh()
    assert ring.find("old") is not None
    assert ring.find("new") is not None
    write_keys(path, [a_key("new")])
    assert ring.refresh()
    assert ring.find("old") is None
    path.write_text("not JSON")
    with pytest.raises(KeyFileError):
        ring.refresh()
    assert not ring.refresh(), "it is complained of once"
    assert ring.find("new") is not None
    path.unlink()
    with pytest.raises(KeyFileError):
        ring.refresh()
    assert ring.find("new") is not None


def test_a_file_that_could_not_be_opened_for_once_is_read_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    token = new_token()
    write_keys(path, [ApiKey(name="shop", sha256=digest(token), scopes=("recommend",))])
    ring = KeyRing(path)
    write_keys(path, [])
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        patch.setattr(Path, "open", full)
        for _ in range(2):
            with pytest.raises(KeyFileError, match="Too many open files"):
                ring.refresh()
        assert not ring.is_current
    assert ring.refresh()
    assert ring.find(token) is None, "revoked"
    assert ring.is_current


def test_a_rotation_gives_no_fresh_burst(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, [a_key("old", requests_per_s=1.0, burst=2)])
    ring = KeyRing(path, clock=lambda: 0.0)
    old = ring.find("old")
    assert old is not None
    bucket = ring.bucket(old)
    assert bucket is not None
    assert [bucket.take(), bucket.take(), bucket.take()] == [0.0, 0.0, 1.0]
    write_keys(path, [a_key("new", requests_per_s=1.0, burst=2)])
    ring.refresh()
    assert ring.bucket(a_key("new")) is bucket
    write_keys(path, [a_key("new", requests_per_s=5.0)])
    ring.refresh()
    assert ring.bucket(a_key("new")) is not bucket
    write_keys(path, [a_key("new")])
    ring.refresh()
    assert ring.bucket(a_key("new")) is None


@given(st.floats(0.1, 100), st.integers(1, 20), st.lists(st.floats(0, 3), max_size=60))
def test_a_bucket_gives_its_rate_and_its_burst_and_no_more(per_s: float, burst: int, pauses_s: list[float]) -> None:
    now_s = 0.0
    bucket = TokenBucket(per_s, burst, clock=lambda: now_s)
    for taken, pause_s in enumerate(pauses_s, start=1):
        now_s += pause_s
        if (wait_s := bucket.take()) > 0:
            # It is not a moment too long: then there is one.
            now_s += wait_s + 1e-9
            assert bucket.take() == 0
        assert taken <= burst + now_s * per_s + 1e-6


def test_a_file_keeps_its_owner_and_mode_and_is_changed_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, [])
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 10001, 10002)
    before = path.stat()
    names = [f"client-{number}" for number in range(12)]
    add = (
        "import sys; from pathlib import Path; from service.keys import *; change_keys(Path(sys.argv[1]), lambda keys: "
    )
    add += "[*keys, ApiKey(name=sys.argv[2], sha256=digest(sys.argv[2]), scopes=('admin',))])"
    children = [subprocess.Popen([sys.executable, "-c", add, str(path), name], cwd=ROOT) for name in names]
    assert [child.wait(timeout=60) for child in children] == [0] * len(names)
    assert sorted(key.name for key in read_keys(path)) == sorted(names)
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


def test_a_file_that_could_not_be_read_is_read_once_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, [a_key("old")])
    ring = KeyRing(path)
    write_keys(path, [])

    def refuse(_: Path) -> None:
        raise KeyFileError("Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("service.keys.read_keys", refuse)
        with pytest.raises(KeyFileError):
            ring.refresh()
    assert not ring.is_current
    assert ring.find("old") is not None
    path.chmod(0o644)  # what an operator does about it
    assert ring.refresh()
    assert ring.is_current
    assert ring.find("old") is None
