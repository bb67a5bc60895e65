"""The stage `reward`: from feedback to a calibrated reward model.

Shapes: F impressions, M visits, N items, L levels, W slates, K slate size, S signals.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model_export.data.feedback import Feedback
from model_export.data.prepared import PreparedData
from model_export.data.splits import TRAIN, VALID
from model_export.model.config import GeneratorSpec
from model_export.progress import Progress
from model_export.reward.calibration import fit_platt
from model_export.reward.config import RewardConfig
from model_export.reward.loop import EVALUATION_BATCH, RewardTrainer
from model_export.reward.model import RewardModel
from model_export.reward.visits import Int64, RewardItems, VisitCollator

MODEL = "model.json"
CALIBRATED = "calibrated.pt"


@dataclass(frozen=True, kw_only=True)
class TrainedReward:
    """A trained and calibrated reward model, with the items that it was trained for."""

    model: RewardModel
    items: RewardItems
    signals: tuple[str, ...]
    """One tower each."""

    @classmethod
    def load(cls, out: Path, items: RewardItems) -> "TrainedReward":
        """Reads what `train_reward` wrote to `out`."""
        made = json.loads((out / MODEL).read_text())
        values: dict[str, Any] = {name: _with_tuples(value) for name, value in made["config"].items()}
        spec: dict[str, Any] = {name: _with_tuples(value) for name, value in made["spec"].items()}
        model = RewardModel(RewardConfig(**values), GeneratorSpec(**spec), tuple(made["weights"]))
        model.load_state_dict(torch.load(out / CALIBRATED, weights_only=True, map_location="cpu"))
        return cls(model=model.eval(), items=items, signals=tuple(made["signals"]))

    def collator(self, prepared: PreparedData) -> VisitCollator:
        """What turns a data set with these items into the model's inputs."""
        return VisitCollator(prepared, self.items, self.model.spec, self.model.weight_S.device)


def _with_tuples(value: Any) -> Any:
    return tuple(_with_tuples(part) for part in value) if isinstance(value, list) else value


@torch.no_grad()
def visit_logits(
    model: RewardModel, collator: VisitCollator, feedback: Feedback, visits: Int64, item_MWK: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Uncalibrated logits [M, W, K, S] of slates shown in place of visits; some number after a slate's end."""
    found = [np.zeros((0, *item_MWK.shape[1:], len(model.weight_S)))]
    for start in range(0, len(visits), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        batch = collator.visit_batch(feedback, visits[part], item_MWK[part])
        found.append(model(batch).cpu().numpy().astype(np.float64))
    return np.concatenate(found)


def train_reward(
    config: RewardConfig,
    prepared: PreparedData,
    items: RewardItems,
    out: Path,
    progress: Progress | None = None,
) -> TrainedReward:
    """Trains a reward model on the visits of `train`, going on from a checkpoint in `out`.

    Visits of `valid` choose the epoch and fit the calibration. A residual model has its model of single items trained
    first, in `out/item`.

    Args:
        config: What to train, and how.
        prepared: A data set with feedback.
        items: The sid and the embedding of every prepared item.
        out: Folder for weights, checkpoint and `metrics.jsonl`.
        progress: Where to show how far it is.

    Raises:
        ValueError: the data tell nothing of what was shown, or a signal is unknown or too rare.
    """
    if prepared.feedback is None:
        raise ValueError("these data do not tell what was shown: a reward model needs impressions")
    feedback, progress = prepared.feedback, progress or Progress()
    signals = _choose_signals(config, feedback)
    weights = config.signal_weights or (1.0,) * len(signals)
    places = np.array([feedback.signals.index(name) for name in signals])
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = GeneratorSpec(
        codebook_sizes=items.codebook_sizes,
        slate_size=prepared.slate_size,
        history_length=config.history_length,
        value_edges=tuple(action.value_edges for action in prepared.actions),
        has_times=prepared.has_times,
        embedding_width=items.embedding_NE.shape[1],
    )
    model = RewardModel(config, spec, weights)
    model.centre_E.copy_(torch.from_numpy(items.embedding_NE.mean(0)))
    model = model.to(device)
    collator = VisitCollator(prepared, items, spec, device)
    out.mkdir(parents=True, exist_ok=True)
    made = {"config": asdict(config), "spec": asdict(spec), "signals": signals, "weights": weights}
    (out / MODEL).write_text(json.dumps(made, indent=2) + "\n")
    loop = config
    if config.residual:
        single = train_reward(config.of_items(signals), prepared, items, out / "item", progress)
        model.start_from(single.model)
        torch.manual_seed(config.seed)  # whether the other was trained just now or before
        loop = replace(config, max_epochs=config.residual_epochs)
    best = RewardTrainer(loop, model, feedback, collator, places, out).run(progress)
    model.load_state_dict(torch.load(best, weights_only=True))
    _calibrate(model.eval(), collator, feedback, places)
    torch.save(model.state_dict(), out / CALIBRATED)
    return TrainedReward(model=model.cpu(), items=items, signals=signals)


def _choose_signals(config: RewardConfig, feedback: Feedback) -> tuple[str, ...]:
    for name in config.signals:
        if name not in feedback.signals:
            raise ValueError(f"reward.signals: no signal {name!r}; there are {', '.join(feedback.signals)}")
    is_train_F = feedback.part_M[feedback.visit_F] == TRAIN
    num_S = feedback.signal_FS[is_train_F].sum(0)
    common = [name for name, num in zip(feedback.signals, num_S, strict=True) if num >= config.min_positives]
    if not (config.signals or common):
        raise ValueError(f"no signal occurs {config.min_positives} times in the training part (reward.min_positives)")
    return config.signals or tuple(common)


def _calibrate(model: RewardModel, collator: VisitCollator, feedback: Feedback, places: Int64) -> None:
    """Platt scaling of every signal on the validation visits."""
    visits = feedback.visits(VALID)
    item_MK, signal_MKS = feedback.slates(visits, model.spec.slate_size)
    logit_FS = visit_logits(model, collator, feedback, visits, item_MK[:, None])[:, 0][item_MK >= 0]
    signal_FS = signal_MKS[item_MK >= 0][:, places].astype(np.float64)
    for signal in range(len(places)):
        scale, shift = fit_platt(logit_FS[:, signal], signal_FS[:, signal])
        model.scale_S[signal] = scale
        model.shift_S[signal] = shift
