"""Which graphs of a bundle are ready when the service is."""

from typing import Literal

import pytest
from live_http import fake_settings, live_client

from service.bundle.manifest import Purpose
from service.inference.fake_runner import FakeRunner, fake_manifest
from service.inference.runner import Batch, Decoded


class NotingRunner(FakeRunner):
    """Notes which of its graphs ran."""

    def __init__(self) -> None:
        super().__init__(fake_manifest())
        self.ran: set[Purpose] = set()

    def run(self, batch: Batch) -> Decoded:
        self.ran.add(batch.purpose)
        return super().run(batch)


@pytest.mark.parametrize(
    ("when", "expected"), [("start", {"generator", "explain", "sampler"}), ("first_use", {"generator"})]
)  # fmt: skip
def test_further_graphs_are_ready_at_the_start_or_wait_for_their_first_request(
    when: Literal["start", "first_use"], expected: set[Purpose]
) -> None:
    runner = NotingRunner()
    with live_client(fake_settings(load_graphs=when), runner=runner) as client:
        assert client.get("/readyz").status_code == 200
        assert runner.ran == expected
