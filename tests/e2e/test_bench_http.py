"""The HTTP bench in a short form: it measures, agrees with the service's own counts, and ends in its JSON line."""

import asyncio
import os
from io import StringIO

import psutil
import pytest
from rich.console import Console

from loadtests.bench.connection import Connection, post
from loadtests.bench.errors import BenchError
from loadtests.bench.http import ALONE, OPEN_LOOP, PROFILED, SATURATED, HttpWorkload, measure
from loadtests.bench.result import BenchResult


def test_a_short_run_reports_every_workload() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    cores = os.sched_getaffinity(0)
    out = StringIO()
    workload = HttpWorkload(num_users=10, history_events=100, num_connections=8, num_rounds=1, round_s=1.6)
    result = measure(workload, Console(file=out))
    result.print_to(Console(file=out))
    assert BenchResult.model_validate_json(out.getvalue().splitlines()[-1]) == result
    assert os.sched_getaffinity(0) == cores
    figures = {(row.workload, row.system, row.unit): row.value for row in result.rows}
    for name in (SATURATED, OPEN_LOOP, ALONE):
        assert figures[name, "service", "requests/s"] > 10
        # One core has one second of CPU time a second: in one round, where both were measured at once.
        assert 0 < figures[name, "service", "ms CPU a request"] * figures[name, "service", "requests/s"] < 1100
        assert figures[name, "service", "ms p50"] <= figures[name, "service", "ms p99"]
        stages = [figures[name, f"stage {stage}", "ms mean"] for stage in ("history", "features", "queue", "inference")]
        assert min(stages) > 0
        assert sum(stages) <= figures[name, "stage total", "ms mean"] * 1.01
    shares = {system: value for (name, system, _), value in figures.items() if name == PROFILED}
    assert sum(shares.values()) == pytest.approx(1)
    assert {"service/api", "service/recommend.py", "redis-py, hiredis", "uvicorn, httptools, uvloop"} <= set(shares)
    assert result.ratios["cpu_of_bar"] == max(
        value for (_, system, unit), value in figures.items() if (system, unit) == ("service", "ms CPU a request")
    )


def test_a_wrong_answer_ends_in_one_error_and_leaves_nothing_running() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    workload = HttpWorkload(num_users=1, history_events=1, num_connections=4, num_rounds=1, round_s=0.5, slate_size=99)
    with pytest.raises(BenchError, match="answer 422"):
        measure(workload, Console(file=StringIO()))
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


@pytest.mark.parametrize("changes", [{"num_users": 0}, {"round_s": 0}, {"num_rounds": 0}, {"num_connections": -1}])
def test_a_workload_without_work_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        HttpWorkload(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
async def test_a_response_in_pieces_is_put_together(piece_bytes: int) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in (b"first", b"", b'{"a": "\r\n\r\n"}'):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST /x HTTP/1.1\r\n")
            assert await reader.readexactly(2) == b"{}"
            response = b"HTTP/1.1 %d X\r\nContent-LENGTH: %d\r\nA: b\r\n\r\n%s" % (200 + len(body), len(body), body)
            for start in range(0, len(response), piece_bytes):
                writer.write(response[start : start + piece_bytes])
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        connection = await Connection.open("127.0.0.1", server.sockets[0].getsockname()[1])
        for body in (b"first", b"", b'{"a": "\r\n\r\n"}'):
            response = await connection.request(post("/x", b"{}", "localhost"))
            assert (response.status, response.body) == (200 + len(body), body)
        for _ in range(2):  # under way or before the request: both end
            with pytest.raises(ConnectionError, match="hung up"):
                await connection.request(post("/x", b"{}", "localhost"))
        await connection.close()
