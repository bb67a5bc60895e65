"""`MODEL_CARD.md`: what a model is, what it saw, and what it can be trusted with."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from model_export.data.prepared import PreparedData
from model_export.onnx.parity import Parity
from model_export.onnx.variants import MeasuredVariant


class _Record(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


def model_card(
    fields: Mapping[str, Any],
    parity: Parity,
    variants: Sequence[MeasuredVariant],
    prepared: PreparedData,
    record: _Record,
) -> str:
    """Markdown for people who decide whether to serve the model."""
    counts = prepared.meta["counts"]
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(record.metrics.items()))
    rows = {
        "recipe": f"`{record.name}`, seed {fields['seed']}, commit `{fields['commit'][:12]}`",
        "data": f"format `{prepared.meta['format']}`, {counts['users']:,} users, {counts['events']:,} events, "
        f"sha256 `{fields['data_sha256'][:12]}`",
        "split": f"`{prepared.meta['split']}`; targets: {prepared.meta['target_kind']}; repeats of history items: "
        f"{prepared.meta['repeat_policy']}",
        "actions": ", ".join(action["name"] for action in fields["actions"]),
        "semantic IDs": f"{fields['num_levels']} levels of {', '.join(map(str, fields['codebook_sizes']))} codes",
        "scores": f"`{fields['score_mode']}`, beam {fields['beam_width']}",
        "graph against model": f"logprobs within {parity.max_logprob_difference:.1g} ({parity.tolerance:g} allowed), "
        f"{parity.num_identical} of {parity.num_requests} best slates identical",
    }
    rows["fastest first, where it was exported"] = "; ".join(map(str, variants))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""# {fields["model_version"]}

A session-wise generative recommender (OneRec, arXiv 2502.18965): it reads the newest {fields["history_length"]} events
of a user and writes a slate of {fields["slate_size"]} items, code by code, from a catalog of {counts["items"]:,} items.

| | |
|---|---|
{table}

## Test metrics

| metric | value |
|---|---|
{metrics or "| not evaluated | |"}

## Limits

- It has learned from what this log shows, its popularity bias and its gaps included; look at the evaluation report's
  rows for short histories and rare items before you serve those users.
- Scores order the candidates of one position of one request. They are no probabilities of a click, and do not compare
  across users or positions.
- Items added after training get a semantic ID from their text or vector, but no behaviour was seen for them.
"""
