"""A log, a recipe and a way to run the command that make a whole build a matter of seconds."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from model_export.data.simulator import SimulatorConfig, write_simulation

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (
    "prepare.slate_size=3",
    "prepare.min_history_length=0",
    "prepare.repeat_policy=exclude",
    "tokenize.codebook_size=8",
    "tokenize.text_dim=8",
    "tokenize.collaborative_dim=8",
    "tokenize.refine_sweeps=2",
    "tokenize.balance_tolerance=20",
    "model.width=16",
    "model.num_heads=2",
    "model.head_width=8",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "model.feed_forward_width=16",
    "model.num_experts=2",
    "model.num_active_experts=1",
    "train.history_length=12",
    "train.max_epochs=2",
    "train.batch_size=64",
    "train.num_valid_examples=20",
    "train.valid_beam_width=10",
    "sasrec.width=16",
    "sasrec.num_layers=1",
    "sasrec.feed_forward_width=16",
    "sasrec.max_epochs=1",
    "sasrec.max_valid_examples=20",
    "evaluate.max_item_examples=50",
    "evaluate.max_slate_examples=40",
    "evaluate.num_bootstrap_samples=20",
    "export.beam_width=6",
    "export.num_parity_requests=8",
    "export.num_golden_cases=2",
)


@dataclass(frozen=True)
class Built:
    """A working directory in which `oneslate build` has run, as a user would run it."""

    cwd: Path
    bundle: Path
    log: Path
    stdout: str
    stderr: str


def write_log(folder: Path) -> Path:
    """A simulated log of 300 users and 60 items."""
    return write_simulation(SimulatorConfig(num_items=60, num_users=300, num_days=10, mean_visits=5.0), folder)


def set_options(settings: tuple[str, ...] = SETTINGS) -> list[str]:
    """The settings as options of the command."""
    return [word for setting in settings for word in ("--set", setting)]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of a service, one thread, and the code of this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONESLATE_")}
    threads = {"OMP_NUM_THREADS": "1", "ONESLATE_INTRA_OP_THREADS": "1"}
    return kept | threads | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more


def command(*arguments: str) -> list[str]:
    """`oneslate` with these arguments, as a process of this interpreter."""
    return [sys.executable, "-c", "import oneslate; oneslate.main()", *arguments]


def oneslate(*arguments: str, cwd: Path, timeout_s: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=timeout_s,
        check=False,
    )  # fmt: skip
