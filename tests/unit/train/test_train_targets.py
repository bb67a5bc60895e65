"""Session-wise and item-wise targets: the same pairs of history and item, each with its own way to be written."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import MODEL, build, catalog_of, config_of, generator_of, grid_sids, quiet, trainer_of, walks

from model_export.data.prepared import PreparedData
from model_export.evaluate.generative import GenerativeRecommender
from model_export.model.losses import next_code_loss
from model_export.model.trie import TriePaths
from model_export.train.batches import Collator
from model_export.train.objective import Objective
from model_export.train.stage import train

CPU = torch.device("cpu")
SIDS = grid_sids(7, 4, 2)


def uneven() -> PreparedData:
    """Targets of one, two and three items after histories of one, two and three."""
    return build([[0, 1, 2, 3, 4, 5]], 7, {"train": [(0, 1, 2), (0, 2, 4), (0, 3, 6)]}, slate_size=3)


@pytest.mark.parametrize("num_experts", [1, 2])
def test_items_that_share_a_history_are_each_written_as_if_alone(num_experts: int) -> None:
    prepared = uneven()
    generator = generator_of(prepared, 4, 2, dataclasses.replace(MODEL, num_experts=num_experts)).eval()
    collator = Collator(prepared, catalog_of(prepared, SIDS), generator.spec, CPU)
    examples = prepared.examples("train")
    _, codes_BKL = collator.targets(examples)
    owner_N, place_N = torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([0, 0, 1, 0, 1, 2])
    with torch.inference_mode():
        logits = generator(collator.history(examples), codes_BKL[owner_N, place_N].unsqueeze(1), owner_N)
        for number, (owner, place) in enumerate(zip(owner_N.tolist(), place_N.tolist(), strict=True)):
            alone = generator(
                collator.history(examples[slice(owner, owner + 1)]), codes_BKL[owner : owner + 1, place : place + 1]
            )
            for level in range(2):
                torch.testing.assert_close(logits[level][number], alone[level][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("score_mode", ["full_softmax", "legal_softmax"])
def test_the_loss_is_the_weighted_mean_over_pairs_of_history_and_item(score_mode: Any) -> None:
    prepared = uneven()
    generator = generator_of(prepared, 4, 2, dataclasses.replace(MODEL, score_mode=score_mode)).eval()
    catalog = catalog_of(prepared, SIDS)
    collator, paths = Collator(prepared, catalog, generator.spec, CPU), TriePaths.of(catalog.snapshot, CPU)
    examples = prepared.examples("train")
    rows_BK, codes_BKL = collator.targets(examples)
    config = config_of(targets="item", first_item_weight=3.0)
    total = weights = 0.0
    with torch.inference_mode():
        for b in range(3):
            history = collator.history(examples[slice(b, b + 1)])
            for k in range(b + 1):
                row, codes = rows_BK[b : b + 1, k : k + 1], codes_BKL[b : b + 1, k : k + 1]
                loss = next_code_loss(generator(history, codes), row, codes, paths, score_mode)
                weight = 3.0 if k == 0 else 1.0
                total += weight * float(loss.mean())
                weights += weight
        item = Objective(config, collator, paths).losses(generator, collator.history(examples), examples)
        session_config = dataclasses.replace(config, targets="session")
        session = Objective(session_config, collator, paths).losses(generator, collator.history(examples), examples)
    assert float(item.mean()) == pytest.approx(total / weights, rel=1e-5)
    # Both kinds weigh the same pairs alike; the first item is the same task in both.
    assert torch.equal(item.weight_NJ[:, 0], session.weight_NJ[session.is_target_NJ])
    torch.testing.assert_close(item.loss_NJL[[0, 1, 3], 0], session.loss_NJL[:, 0], atol=1e-5, rtol=1e-5)
    later = session.loss_NJL[torch.tensor([1, 2, 2]), torch.tensor([1, 1, 2])]
    assert not torch.allclose(item.loss_NJL[[2, 4, 5], 0], later, atol=1e-3)


def test_each_history_is_encoded_once_and_no_padding_is_decoded(tmp_path: Path) -> None:
    prepared = uneven()
    trainer = trainer_of(prepared, tmp_path, targets="item")
    sizes: dict[str, list[int]] = {"encoder": [], "decoder": []}
    for name, module in (("encoder", trainer.generator.encoder), ("decoder", trainer.generator.decoder)):
        module.register_forward_pre_hook(lambda _module, inputs, name=name: sizes[name].append(len(inputs[0])))
    trainer._step(prepared.examples("train"))
    assert sizes == {"encoder": [3], "decoder": [6]}


def test_an_item_wise_generator_learns_the_whole_target_as_first_items(tmp_path: Path) -> None:
    prepared = walks(24, 60, 12)  # the next two of a cycle
    sids_NL = grid_sids(24, 4, 3)
    model = dataclasses.replace(MODEL, width=32, dropout=0.0)
    found = {}
    for targets in ("session", "item"):
        config = config_of(
            targets=targets, batch_size=64, learning_rate=1e-2, max_epochs=10, patience=0, history_dropout=0.02,
            num_valid_examples=60,
        )  # fmt: skip
        trained = train(config, model, prepared, sids_NL, (4,) * 3, tmp_path / targets, quiet())
        assert trained.generator.spec.slate_size == (2 if targets == "session" else 1)
        recommender = GenerativeRecommender(trained, prepared, beam_width=10)
        valid = prepared.examples("valid")
        wanted = prepared.target_items(valid)
        slates, ranked = recommender.slates(valid, 2), recommender.rank(valid, 2)
        same = [set(row) == set(want) for row, want in zip(ranked.tolist(), wanted.tolist(), strict=True)]
        found[targets] = {"slate": (slates == wanted).all(1).mean(), "first items": sum(same) / len(same)}
        if targets == "item":
            assert (slates == ranked).all()
        rows = [json.loads(line) for line in (tmp_path / targets / "metrics.jsonl").read_text().splitlines()]
        # Item-wise two equally good first items share what probability there is: about ln 2 over three codes.
        assert rows[-1]["valid_loss"] == pytest.approx(0.0 if targets == "session" else 0.231, abs=0.12)
    assert found["session"]["slate"] > 0.9
    assert found["item"]["first items"] > 0.9
    assert found["session"]["first items"] < 0.7


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.targets must be one of session, item, not 'slate'"):
        config_of(targets="slate")
