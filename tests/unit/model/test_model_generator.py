"""The generator: what may and may not influence a logit."""

import dataclasses

import numpy as np
import pytest
import torch
from search_problems import (
    HISTORY_LENGTH,
    make_history,
    one_request,
    random_events,
    tiny_generator,
)

from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.decoder import SlateDecoder
from model_export.model.generator import Generator, HistoryBatch

SIZES = (4, 3, 3)
K = 3


@pytest.fixture(params=[1, 3], ids=["dense", "experts"])
def generator(request: pytest.FixtureRequest) -> Generator:
    return tiny_generator(3, K, "full_softmax", num_experts=request.param)


def a_history(num_requests: int = 2, seed: int = 0, longest: int = HISTORY_LENGTH) -> HistoryBatch:
    rng = np.random.default_rng(seed)
    events = [[*random_events(rng, SIZES, longest), ((3, 2, 4), 1, 60_000, 2.0)] for _ in range(num_requests)]
    return make_history([one[-HISTORY_LENGTH:] for one in events], 3)


def logits_of(generator: Generator, history: HistoryBatch, codes_BKL: torch.Tensor) -> list[torch.Tensor]:
    with torch.inference_mode():
        return list(generator(history, codes_BKL))


def some_codes(num_requests: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, size, (num_requests, K), generator=draw) for size in SIZES], 2)


@pytest.mark.parametrize("position", range(K))
@pytest.mark.parametrize("level", range(3))
def test_a_code_changes_every_later_logit_and_no_earlier_one(generator: Generator, position: int, level: int) -> None:
    history, codes_BKL = a_history(), some_codes(2)
    changed_BKL = codes_BKL.clone()
    changed_BKL[:, position, level] = (changed_BKL[:, position, level] + 1) % SIZES[level]
    before, after = (logits_of(generator, history, codes) for codes in (codes_BKL, changed_BKL))
    for other in range(K):
        for at in range(3):
            differs = (before[at][:, other] - after[at][:, other]).abs().amax(-1)
            if (other, at) > (position, level):
                # Session-wise: what stands earlier in the slate, in this item or another, matters to what follows.
                assert torch.all(differs > 1e-5), (other, at)
            else:
                assert torch.all(differs < 1e-5), (other, at)


def test_the_order_of_earlier_items_matters(generator: Generator) -> None:
    history, codes_BKL = a_history(), some_codes(2, seed=3)
    swapped_BKL = codes_BKL[:, [1, 0, 2]]
    before, after = (logits_of(generator, history, codes) for codes in (codes_BKL, swapped_BKL))
    assert torch.all((before[0][:, 2] - after[0][:, 2]).abs().amax(-1) > 1e-5)


def test_fewer_items_than_the_slate_can_be_taught(generator: Generator) -> None:
    history, codes_BKL = a_history(), some_codes(2)
    whole, part = (logits_of(generator, history, codes) for codes in (codes_BKL, codes_BKL[:, :2]))
    for level in range(3):
        torch.testing.assert_close(part[level], whole[level][:, :2], atol=1e-5, rtol=0)


def test_a_padded_history_is_the_history(generator: Generator) -> None:
    rng = np.random.default_rng(1)
    events = [random_events(rng, SIZES, HISTORY_LENGTH) for _ in range(12)]
    codes_BKL = some_codes(12)
    plain, padded = (logits_of(generator, make_history(events, 3, padding), codes_BKL) for padding in (0, 9))
    for request in range(12):
        alone = logits_of(generator, one_request(make_history(events, 3), request), codes_BKL[request : request + 1])
        for level in range(3):
            torch.testing.assert_close(plain[level], padded[level], atol=1e-5, rtol=0)
            torch.testing.assert_close(alone[level][0], padded[level][request], atol=1e-5, rtol=0)


@pytest.mark.parametrize("field", ["codes_BTL", "actions_BT", "ages_BT", "values_BT"])
def test_every_part_of_an_event_is_read(generator: Generator, field: str) -> None:
    event = ((3, 2, 4), 1, 60_000, 2.0)
    other = {
        "codes_BTL": ((3, 4, 4), 1, 60_000, 2.0),
        "actions_BT": ((3, 2, 4), 2, 60_000, 2.0),
        "ages_BT": ((3, 2, 4), 1, 600_000, 2.0),
        "values_BT": ((3, 2, 4), 1, 60_000, float("nan")),
    }[field]
    codes_BKL = some_codes(1)
    first, second = (logits_of(generator, make_history([[one]], 3), codes_BKL) for one in (event, other))
    assert (first[0] - second[0]).abs().max() > 1e-5


def test_order_and_recency_of_events_are_read(generator: Generator) -> None:
    one, two = ((3, 2, 4), 1, 60_000, 2.0), ((5, 3, 2), 1, 60_000, 2.0)
    histories = [make_history([events], 3) for events in ([one, two], [two, one])]
    first, second = (logits_of(generator, history, some_codes(1)) for history in histories)
    assert (first[0] - second[0]).abs().max() > 1e-5


def test_an_unknown_item_is_an_item_of_its_own(generator: Generator) -> None:
    unknown = make_history([[((1, 1, 1), 1, 60_000, 2.0)]], 3)
    known = make_history([[((2, 2, 2), 1, 60_000, 2.0)]], 3)
    empty = make_history([[]], 3)
    logits = [logits_of(generator, history, some_codes(1))[0] for history in (unknown, known, empty)]
    assert all(torch.isfinite(one).all() for one in logits)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (logits[first] - logits[second]).abs().max() > 1e-5


def test_empty_histories_differ_only_by_their_padding(generator: Generator) -> None:
    codes_BKL = some_codes(1)
    plain, padded = (logits_of(generator, make_history([[]], 3, padding), codes_BKL) for padding in (0, 5))
    torch.testing.assert_close(plain[0], padded[0], atol=1e-5, rtol=0)
    assert torch.isfinite(plain[0]).all()


@pytest.mark.parametrize(
    ("age_s", "bucket"),
    [(-50, 0), (0, 0), (0.999, 0), (1, 1), (2.999, 1), (3, 2), (6, 2), (7, 3), (2**31, 31), (2**40, 31)],
)
def test_ages_fall_into_buckets_of_powers_of_two(age_s: float, bucket: int) -> None:
    generator = tiny_generator(3, K, "full_softmax")
    embedding = generator.encoder.embedding
    history = make_history([[((3, 2, 4), 1, round(age_s * 1000), float("nan"))]], 3)
    with torch.inference_mode():
        found = embedding(*history.as_args())
        embedding.has_times = False
        without = embedding(*history.as_args())
        embedding.has_times = True
    torch.testing.assert_close(found[0, 0] - without[0, 0], embedding.age.weight[bucket].detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("action", "value", "bucket"),
    [
        *[(1, None, 0), (1, 0.99, 1), (1, 1.0, 2), (1, 4.9, 2), (1, 5.0, 3), (1, np.inf, 3), (1, -np.inf, 1)],
        *[(2, None, 0), (2, -3.0, 1), (2, 7.0, 1), (2, np.inf, 1)],
    ],
)
def test_values_fall_into_the_buckets_of_their_action(action: int, value: float | None, bucket: int) -> None:
    generator = tiny_generator(3, K, "full_softmax")
    _assert_bucket(generator, action, value, bucket)


@pytest.mark.parametrize("action", [1, 2])
@pytest.mark.parametrize(("value", "bucket"), [(None, 0), (3.0, 1), (np.inf, 1)])
def test_any_value_is_legal_where_no_action_has_edges(action: int, value: float | None, bucket: int) -> None:
    plain = tiny_generator(3, K, "full_softmax")
    spec = dataclasses.replace(plain.spec, value_edges=((), ()))
    _assert_bucket(Generator(plain.config, spec).eval(), action, value, bucket)


def _assert_bucket(generator: Generator, action: int, value: float | None, bucket: int) -> None:
    embedding = generator.encoder.embedding
    raw = np.nan if value is None else value
    history = make_history([[((3, 2, 4), action, 0, raw)]], 3)
    with torch.inference_mode():
        found_D = embedding(*history.as_args())[0, 0]
        rest_D = (
            sum(table.weight[code] for table, code in zip(generator.code_tables, (3, 2, 4), strict=True))
            + embedding.action.weight[action]
            + embedding.place.weight[0]
            + embedding.age.weight[0]
        )
    expected_D = embedding.value.weight[action * embedding.num_buckets + bucket].detach()
    torch.testing.assert_close(found_D - rest_D, expected_D, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", [0, 3])
def test_places_are_counted_from_the_newest_event(padding: int) -> None:
    generator = tiny_generator(3, K, "full_softmax")
    place = generator.encoder.embedding.place.weight.detach()
    event = ((3, 2, 4), 1, 60_000, 2.0)
    history = make_history([[event] * 3, [event]], 3, padding)
    with torch.inference_mode():
        x_BTD = generator.encoder.embedding(*history.as_args())
    newest_D = x_BTD[1, 0] - place[0]  # what all these events have in common
    for at, expected in enumerate((2, 1, 0)):
        torch.testing.assert_close(x_BTD[0, at] - newest_D, place[expected], atol=1e-5, rtol=0)


def test_more_events_than_were_trained_on_share_the_last_place() -> None:
    generator = tiny_generator(3, K, "full_softmax")
    place = generator.encoder.embedding.place.weight.detach()
    history = make_history([[((3, 2, 4), 1, 60_000, 2.0)] * (HISTORY_LENGTH + 2)], 3)
    with torch.inference_mode():
        x_TD = generator.encoder.embedding(*history.as_args())[0]
    torch.testing.assert_close(x_TD[0], x_TD[2])
    torch.testing.assert_close(x_TD[0] - x_TD[-1], place[HISTORY_LENGTH - 1] - place[0], atol=1e-5, rtol=0)


def test_without_times_nothing_depends_on_them() -> None:
    timed = tiny_generator(3, K, "full_softmax")
    torch.manual_seed(0)
    generator = Generator(timed.config, dataclasses.replace(timed.spec, has_times=False)).eval()
    history = a_history()
    later = dataclasses.replace(history, ages_BT=history.ages_BT + 10**6)
    assert torch.equal(*(logits_of(generator, one, some_codes(2))[0] for one in (history, later)))


def test_the_decoder_step_by_step_is_the_decoder_at_once() -> None:
    torch.manual_seed(0)
    config = ModelConfig(width=12, num_heads=3, head_width=5, decoder_layers=2, feed_forward_width=16, dropout=0.0)
    decoder = SlateDecoder(config).eval()
    x_BSD, memory_BTD = torch.randn(2, 6, 12), torch.randn(2, 4, 12)
    bias = torch.zeros(2, 1, 1, 4)
    bias[1, :, :, 2:] = -1e9
    context = decoder.context(memory_BTD)
    with torch.inference_mode():
        expected_BSD = decoder(x_BSD, context, bias)
        # Two beams of each request write the same, so each must agree with its request.
        suffix = [(torch.zeros(4, 0, 3, 5), torch.zeros(4, 0, 3, 5))] * 2
        for place in range(6):
            x_ND = x_BSD[:, place].repeat_interleave(2, 0)
            for number, layer in enumerate(decoder.stack()):
                x_ND, *grown = layer.step(x_ND, *suffix[number], context[number], bias)
                suffix[number] = (grown[0], grown[1])
            expected_ND = expected_BSD[:, place].repeat_interleave(2, 0)
            torch.testing.assert_close(decoder.norm(x_ND), expected_ND, atol=1e-5, rtol=0)


def test_unevenly_sized_codebooks_have_their_own_heads_and_tables() -> None:
    generator = tiny_generator(3, K, "full_softmax")
    assert [table.num_embeddings for table in generator.code_tables] == [size + 2 for size in SIZES]
    assert [level.shape for level in logits_of(generator, a_history(), some_codes(2))] == [(2, K, v) for v in SIZES]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("width", 0), ("num_experts", 0), ("decoder_layers", 0), ("encoder_layers", -1), ("num_active_experts", 0)],
        *[("num_active_experts", 5), ("dropout", 1.0), ("dropout", -0.1), ("score_mode", "softmax")],
    ],
)
def test_a_bad_size_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"model\.{field}"):
        ModelConfig(**{field: value})  # type: ignore[arg-type]


def test_a_generator_without_encoder_layers_still_reads_the_history() -> None:
    torch.manual_seed(0)
    config = ModelConfig(width=8, num_heads=2, head_width=4, encoder_layers=0, decoder_layers=1, num_experts=1)
    spec = GeneratorSpec(codebook_sizes=SIZES, slate_size=K, history_length=4, value_edges=((), ()), has_times=False)
    generator = Generator(config, spec).eval()
    first, second = (logits_of(generator, a_history(seed=seed), some_codes(2)) for seed in (0, 1))
    assert (first[0] - second[0]).abs().max() > 1e-6
