"""Random names: all different, as long as asked for, whoever asks and however much."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from service.randomness import Randomness


@pytest.mark.parametrize("num_bytes", [1, 10, 16, 8192, 10_000])
def test_names_are_as_long_as_asked_for(num_bytes: int) -> None:
    randomness = Randomness()
    for _ in range(5):
        assert len(bytes.fromhex(randomness.hex(num_bytes))) == num_bytes


def test_no_byte_is_given_out_twice() -> None:
    randomness = Randomness()
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: randomness.hex(16), range(20_000)))
    assert len(set(names)) == 20_000


def test_the_bytes_are_even() -> None:
    given = bytes.fromhex("".join(Randomness().hex(10) for _ in range(20_000)))
    counts = [given.count(value) for value in range(256)]
    assert 600 < min(counts) <= max(counts) < 970  # 781 on average, seven standard deviations either way
