"""Plans that make a whole run of trials a matter of seconds."""

import copy
import json
from pathlib import Path
from typing import Any

GENERATOR = {
    "tokenize": {"codebook_size": 8, "text_dim": 8, "collaborative_dim": 8, "balance_tolerance": 20},
    "model": {"width": 16, "num_heads": 2, "head_width": 8, "encoder_layers": 1, "decoder_layers": 1,
              "feed_forward_width": 16, "num_experts": 2, "num_active_experts": 1},
    "train": {"history_length": 12, "max_epochs": 3, "batch_size": 64, "num_valid_examples": 20,
              "valid_beam_width": 10},
    "export": {"beam_width": 6},
}  # fmt: skip
SASREC = {"sasrec": {"width": 16, "num_layers": 1, "feed_forward_width": 16, "max_epochs": 2, "max_valid_examples": 40}}
PLAN: dict[str, Any] = {
    "purpose": "tests",
    "subject": "cooccurrence",
    "num_trials": 2,
    "max_cpu_hours": 1.0,
    "seeds": [0, 1],
    "prepare": {"slate_size": 3, "repeat_policy": "exclude"},
    "evaluate": {"max_item_examples": 60, "max_slate_examples": 40, "num_bootstrap_samples": 50},
    "models": {
        "popularity": {"kind": "popularity"},
        "cooccurrence": {
            "kind": "cooccurrence",
            "grid": [{"cooccurrence": {"window": 1}}, {"cooccurrence": {"window": 10}}],
        },
    },
}


def toml_of(values: dict[str, Any]) -> str:
    """A plan as TOML: inline tables below the first level, whose JSON form differs in the sign alone."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{json.dumps(key)} = {inline(one)}" for key, one in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(inline, value)) + "]"
        return json.dumps(value)

    return "".join(f"{key} = {inline(value)}\n" for key, value in values.items())


def write_plan(path: Path, *, without: tuple[str, ...] = (), **changes: Any) -> Path:
    """The plan above with changes at its first level."""
    values = copy.deepcopy(PLAN) | changes
    path.write_text(toml_of({key: value for key, value in values.items() if key not in without}))
    return path


ENOUGH: dict[str, Any] = {
    "simulator": {"num_items": 60, "num_users": 150, "num_days": 10, "mean_visits": 4.0},
    "measure": "slate/true_reward",
    "prepare": {"slate_size": 3, "split": "time", "target_kind": "session", "min_history_length": 0},
}
"""Changes that make it a plan with a simulator."""
