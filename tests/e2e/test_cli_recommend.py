"""`oneslate recommend` against a real service."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_build
from live_http import fake_settings, free_port, live_client

from service.keys import ApiKey, digest, new_token, write_keys


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL and key of a service; the key may ask for slates alone."""
    token, file = new_token(), tmp_path_factory.mktemp("keys") / "keys.json"
    write_keys(file, [ApiKey(name="shop", sha256=digest(token), scopes=("recommend",))])
    with live_client(fake_settings(keys_file=file)) as client:
        yield str(client.base_url), token


def test_a_slate_is_shown_with_titles_and_how_it_came_about(tmp_path: Path) -> None:
    with live_client(fake_settings()) as client:
        done = tiny_build.oneslate(
            "recommend", "ann", "-n", "3", "--url", str(client.base_url), "--tag", "odd", "--beam-width", "6",
            cwd=tmp_path, COLUMNS="120",
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "next for ann (model fake, 6 beams; cold start)" in lines[0]
    rows = [line for line in lines if "item-" in line]
    assert len(rows) == 3
    assert all("Item " in row for row in rows)
    assert all(int(row.split()[1].removeprefix("item-")) % 2 for row in rows)
    assert "took" in lines[-1]
    assert "queue" in lines[-1]


def test_a_program_gets_the_whole_answer(tmp_path: Path, keyed: tuple[str, str]) -> None:
    url, key = keyed
    done = tiny_build.oneslate("recommend", "ann", "--url", url, "--json", cwd=tmp_path, ONESLATE_KEY=key)
    answer = json.loads(done.stdout)
    assert (len(answer["items"]), answer["source"], answer["reason"]) == (5, "model", "cold_start")
    shown = tiny_build.oneslate("recommend", "ann", "--url", url, "--key", key, cwd=tmp_path)
    assert (shown.returncode, shown.stdout.count("item-")) == (0, 5)  # titles are not this key's to read


def test_what_is_wrong_is_one_line_that_says_what_to_do(tmp_path: Path, keyed: tuple[str, str]) -> None:
    url, key = keyed
    nobody = f"http://127.0.0.1:{free_port()}"
    for arguments, words in [
        (["ann", "--url", nobody, "--timeout", "0.5"], [nobody, "does `oneslate serve` run there?"]),
        (["ann", "--url", url], ["key"]),
        (["ann", "--url", url, "--key", key, "-n", "99"], ["/slate_size"]),
        (["ann", "--url", "nonsense"], ["no URL"]),
    ]:
        done = tiny_build.oneslate("recommend", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        assert all(word in done.stderr for word in words), done.stderr
