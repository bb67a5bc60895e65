"""A decoder workload of a second, for every kind of measurement."""

from typing import Any


def small_values(**changes: Any) -> dict[str, Any]:
    """Of a workload's file; `changes` replaces, adds, and with `None` removes."""
    values: dict[str, Any] = {
        "name": "small",
        "num_threads": 1,
        "num_rounds": 2,
        "num_items": 60,
        "codebook_size": 8,
        "num_levels": 2,
        "slate_size": 2,
        "history_length": 6,
        "shapes": [[4, 2], [3, 1]],
        "num_excluded": 5,
        "seed": 0,
        "model": {
            "width": 16,
            "num_heads": 2,
            "head_width": 8,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "feed_forward_width": 32,
            "num_experts": 1,
            "num_active_experts": 1,
            "dropout": 0.0,
            "score_mode": "full_softmax",
        },
    }
    model = {**values["model"], **changes.pop("model", {})}
    return {name: value for name, value in {**values, **changes, "model": model}.items() if value is not None}
