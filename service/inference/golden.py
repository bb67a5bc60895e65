"""Golden cases: what the trained model wrote for a few histories, to hold every runner to.

Legend: T history length, L levels, K slate size, X excluded rows, W beams.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.bundle import Bundle
from service.catalog import CatalogSnapshot
from service.errors import BundleError, RunnerError
from service.inference.runner import NO_ROW, Batch, Decoded, Runner

FILE = "golden.json"
MARGIN_IN_TOLERANCES = 10
"""Slates must be identical where the best beam leads the second by more than this many tolerances."""


class GoldenCase(BaseModel):
    """One request and the reference's answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    history_codes: list[list[int]]
    """[T, L], as in `Batch.history_codes_BTL`, without padding."""
    history_rows: list[int]
    """[T] rows of the bundle's own catalog; -1: it does not hold the item."""
    history_actions: list[int]
    history_ages: list[int]
    """Whole seconds."""
    history_values: list[float | None]
    excluded_rows: list[int]
    beam_width: int
    item_rows: list[int]
    """[K] rows of the best slate."""
    level_logprobs: list[list[float]]
    """[K, L]."""
    item_rewards: list[float] | None = None
    """[K] of the best slate by score; None: the bundle has no reward model."""
    score: float
    margin: float
    """Score of the best beam less that of the second."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> "GoldenCase":
        events = (
            self.history_codes, self.history_rows, self.history_actions, self.history_ages, self.history_values
        )  # fmt: skip
        if len({len(field) for field in events}) > 1:
            raise ValueError("the fields of the history have different lengths")
        if len({len(codes) for codes in self.history_codes} | {len(one) for one in self.level_logprobs}) > 1:
            raise ValueError("history_codes and level_logprobs have different numbers of levels")
        if len(self.item_rows) != len(self.level_logprobs):
            raise ValueError("item_rows and level_logprobs have different lengths")
        if self.item_rewards is not None and len(self.item_rewards) != len(self.item_rows):
            raise ValueError("item_rows and item_rewards have different lengths")
        return self


class GoldenCases(BaseModel):
    """Schema of `golden.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cases: list[GoldenCase] = Field(min_length=1)


def check_golden(bundle: Bundle, runner: Runner, snapshot: CatalogSnapshot) -> int:
    """Runs every golden case; returns how many there are.

    Args:
        bundle: Whose `golden.json` is read.
        runner: The runner to be held to it.
        snapshot: The bundle's own catalog, as it was exported.

    Raises:
        BundleError: `golden.json` cannot be read, the manifest has no tolerance for the runner's precision, or the
            runner disagrees with a case; the message says by how much.
    """
    file = bundle.path / FILE
    precision = runner.precision
    if precision not in bundle.manifest.golden_tolerance:
        known = ", ".join(bundle.manifest.golden_tolerance)
        raise BundleError(f"{bundle.path}: was not exported for {precision}, only for {known}")
    tolerance = bundle.manifest.golden_tolerance[precision]
    if FILE not in bundle.manifest.files:
        raise BundleError(f"{file}: the manifest does not name it")
    cases = _read(file)
    for number, case in enumerate(cases):
        try:
            decoded = runner.run(case_batch(case, snapshot))
        except (RunnerError, ValueError, OverflowError) as error:  # numbers that fit no array, or no catalog
            raise BundleError(f"{file}: case {number}: {error}") from error
        num_levels = bundle.manifest.num_levels
        difference = _difference(
            case, decoded.item_rows_BWK[0, 0], decoded.level_logprobs_BWKL[0, 0], tolerance.logprob_abs
        ) or _reward_difference(case, decoded, tolerance.reward_abs)
        if difference:
            raise BundleError(f"{file}: case {number} of {len(cases)}: {difference} ({num_levels} levels, {precision})")
    return len(cases)


def case_batch(case: GoldenCase, snapshot: CatalogSnapshot) -> Batch:
    """The case as a batch of one."""
    length = len(case.history_codes)
    num_levels = snapshot.sids_NL.shape[1]
    # One padded place, because an empty history must still have a shape.
    codes_BTL = np.zeros((1, length + 1, num_levels), dtype=np.int32)
    codes_BTL[0, :length] = np.array(case.history_codes, dtype=np.int32).reshape(length, num_levels)
    values = [np.nan if value is None else value for value in case.history_values]
    return Batch(
        history_codes_BTL=codes_BTL,
        history_rows_BT=np.array([[*case.history_rows, NO_ROW]], dtype=np.int32),
        history_actions_BT=_padded(case.history_actions, np.int32),
        history_ages_BT=_padded(case.history_ages, np.int32),
        history_values_BT=np.array([[*values, np.nan]], dtype=np.float32),
        history_lengths_B=np.array([length], dtype=np.int32),
        excluded_rows_BX=np.array([[*case.excluded_rows, -1]], dtype=np.int32),
        filter_slots_B=np.zeros(1, dtype=np.int32),
        allowed_cumsum_FN=snapshot.allowed_cumsum()[None],
        group_limits_B=np.zeros(1, dtype=np.int32),
        diversities_B=np.zeros(1, dtype=np.float32),
        beam_width=case.beam_width,
        catalog=snapshot,
    )


def _padded(numbers: list[int], dtype: type[np.signedinteger]) -> npt.NDArray[np.signedinteger]:
    return np.array([[*numbers, 0]], dtype=dtype)


def _read(file: Path) -> list[GoldenCase]:
    try:
        return GoldenCases.model_validate_json(file.read_bytes()).cases
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise BundleError(f"{file}: {where}: {first['msg']}") from error


def _difference(
    case: GoldenCase, rows_K: npt.NDArray[np.int32], logprobs_KL: npt.NDArray[np.float32], tolerance: float
) -> str:
    """What is wrong, in words; empty if nothing is."""
    expected_KL = np.array(case.level_logprobs)
    if rows_K.tolist() == case.item_rows:
        worst = float(np.abs(logprobs_KL - expected_KL).max())
        return f"logprobs differ by {worst:.2g}, {tolerance:.2g} is allowed" if not worst <= tolerance else ""
    if case.margin > MARGIN_IN_TOLERANCES * tolerance:
        return f"another slate, though the best led by {case.margin:.2g}"
    # A near tie may fall either way, but its score may not differ by more than all its codes together.
    score = float(logprobs_KL.sum())
    allowed = tolerance * expected_KL.size + case.margin
    return f"score {score:.6g} instead of {case.score:.6g}" if not abs(score - case.score) <= allowed else ""


def _reward_difference(case: GoldenCase, decoded: Decoded, tolerance: float | None) -> str:
    """What is wrong with the rewards of an equal slate, in words; empty if nothing is."""
    if case.item_rewards is None or tolerance is None or decoded.item_rows_BWK[0, 0].tolist() != case.item_rows:
        return ""
    if decoded.item_rewards_BWK is None:
        return "no rewards"
    worst = float(np.abs(decoded.item_rewards_BWK[0, 0] - np.array(case.item_rewards)).max())
    return f"rewards differ by {worst:.2g}, {tolerance:.2g} is allowed" if not worst <= tolerance else ""
