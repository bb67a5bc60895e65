"""The load of the experts: what is counted, and that a skewed one evens out."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import MODEL, build, config_of, generator_of, grid_sids, quiet, trainer_of, walks

from model_export.data.prepared import PreparedData
from model_export.model.config import ModelConfig
from model_export.model.experts import MixtureOfExperts
from model_export.model.generator import Generator
from model_export.train.balancing import ExpertBalancer, added, load_figures
from model_export.train.stage import TrainedGenerator, train

FOUR = dataclasses.replace(MODEL, num_experts=4, num_active_experts=2, decoder_layers=2)


def mixtures_of(generator: Generator) -> list[MixtureOfExperts]:
    return [module for module in generator.modules() if isinstance(module, MixtureOfExperts)]


@pytest.mark.parametrize("targets", ["session", "item"])
def test_the_load_counts_the_tokens_of_targets_and_no_padding(tmp_path: Path, targets: Any) -> None:
    prepared = build([[0, 1, 2, 3, 4, 5]], 7, {"train": [(0, 1, 2), (0, 2, 4), (0, 3, 6)]}, slate_size=3)
    trainer = trainer_of(prepared, tmp_path, FOUR, targets=targets)
    trainer.generator.train()
    routed: list[torch.Tensor] = []
    for mixture in mixtures_of(trainer.generator):
        mixture.router.register_forward_hook(lambda _module, _inputs, out: routed.append(out.detach()))
    trainer._step(prepared.examples("train"))
    assert len(routed) == 2
    # Slates of 1, 2 and 3 items, of 2 codes each: session-wise padded to 3 x 3 items, item-wise not at all.
    places = [0, 1, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17] if targets == "session" else range(12)
    expected = [[0] * 4 for _ in routed]
    for layer, router_NE in enumerate(routed):
        assert len(router_NE) == (18 if targets == "session" else 12)
        for place in places:
            scores = router_NE[place].tolist()
            for expert in sorted(range(4), key=scores.__getitem__)[-2:]:
                expected[layer][expert] += 1
    assert trainer.progress.expert_load == expected


def test_figures_of_a_load() -> None:
    assert load_figures([]) == {}
    figures = load_figures([[10, 10, 10, 10], [40, 0, 0, 20], [10, 1, 100, 0]])
    assert figures == pytest.approx(
        {
            "expert_max_load_0": 1.0,
            "expert_max_load_1": 40 / 15,
            "expert_max_load_2": 100 / (111 / 4),
            "expert_idle_share": 4 / 12,
        }
    )
    assert added([], [[1, 2]]) == [[1, 2]]
    assert added([[1, 2], [3, 4]], [[10, 20], [30, 40]]) == [[11, 22], [33, 44]]


def skewed(rate: float) -> tuple[Generator, MixtureOfExperts, torch.Tensor]:
    """A router that sends nearly every token to experts 0 and 1."""
    generator = generator_of(walks(7, 2, 6), 4, 2, dataclasses.replace(FOUR, decoder_layers=1, expert_bias_rate=rate))
    (mixture,) = mixtures_of(generator)
    torch.manual_seed(2)
    x_ND = torch.randn(512, 16)
    x_ND[:, 0] = 1.0
    with torch.no_grad():
        mixture.router.weight.mul_(0.5)
        mixture.router.weight[:, 0] = torch.tensor([2.0, 1.5, 0.0, -1.0])
    return generator.train(), mixture, x_ND


@pytest.mark.parametrize("rate", [0.0, 0.02])
def test_a_skewed_router_is_evened_out_by_the_bias_alone(rate: float) -> None:
    generator, mixture, x_ND = skewed(rate)
    balancer = ExpertBalancer(generator)
    weights = {name: value.clone() for name, value in generator.named_parameters()}
    worst = []
    for _ in range(200):
        mixture(x_ND)
        load = balancer.after_step(torch.ones(256, 1, dtype=torch.bool), 2)
        worst.append(load_figures(load)["expert_max_load_0"])
        assert sum(load[0]) == 512 * 2
    assert worst[0] > 1.9  # 2 is the most there can be: every token
    if rate == 0:
        assert worst[-1] == worst[0]
        assert mixture.choice_bias_E is None
    else:
        assert max(worst[-20:]) < 1.15
    for name, value in generator.named_parameters():
        assert torch.equal(value, weights[name])


def test_evaluation_neither_counts_nor_moves_the_bias() -> None:
    generator, mixture, x_ND = skewed(0.02)
    mixture.eval()(x_ND)
    with pytest.raises(AssertionError, match="follows a training pass"):
        ExpertBalancer(generator).after_step(torch.ones(256, 1, dtype=torch.bool), 2)


def trained_with(rate: float, prepared: PreparedData, out: Path) -> tuple[TrainedGenerator, ModelConfig]:
    model = dataclasses.replace(FOUR, expert_bias_rate=rate)
    config = config_of(max_epochs=4, patience=0, num_valid_examples=10)
    return train(config, model, prepared, grid_sids(20, 4, 3), (4, 4, 4), out, quiet()), model


def test_training_moves_the_bias_saves_it_and_loads_it(tmp_path: Path) -> None:
    prepared = walks(20, 20, 10)
    trained, model = trained_with(0.01, prepared, tmp_path)
    loaded = TrainedGenerator.load(tmp_path, prepared, grid_sids(20, 4, 3))
    assert loaded.generator.config == model
    for mine, theirs in zip(mixtures_of(trained.generator), mixtures_of(loaded.generator), strict=True):
        assert mine.choice_bias_E is not None
        assert theirs.choice_bias_E is not None
        # Whole steps of the rate, up or down.
        assert torch.equal(mine.choice_bias_E, theirs.choice_bias_E)
        assert mine.choice_bias_E.abs().max() > 0.009
        torch.testing.assert_close((mine.choice_bias_E / 0.01).round() * 0.01, mine.choice_bias_E, atol=1e-5, rtol=0)
