"""A real bundle with a reward model over HTTP: explanations, alternatives with rewards, similar items."""

import time
from collections.abc import Iterator

import httpx
import pytest
from exported_graphs import Exported
from live_http import fake_settings, live_client
from test_graph_rewards import causal, written  # noqa: F401

from service.api.answers import RecommendAnswer, SimilarAnswer
from service.inference.fake_runner import FakeRunner, fake_manifest


@pytest.fixture(scope="module")
def client(causal: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:  # noqa: F811
    bundle = written(tmp_path_factory.mktemp("explain") / "bundle", causal)
    settings = fake_settings(runner="onnx", bundle=bundle.path, intra_op_threads=1, load_graphs="first_use")
    with live_client(settings) as client:
        yield client


def recommend(client: httpx.Client, **body: object) -> RecommendAnswer:
    answer = client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 3, **body})
    assert answer.status_code == 200, answer.text
    return RecommendAnswer.model_validate_json(answer.content)


@pytest.mark.parametrize("slate_size", [3, 2])
def test_an_explanation_adds_up_to_the_answer(client: httpx.Client, slate_size: int) -> None:
    history = [{"item_id": f"item-{number}", "timestamp": 1_700_000_000 + number} for number in range(3)]
    asked = {"slate_size": slate_size, "history": history}
    answer = recommend(client, explain=True, **asked)
    plain = recommend(client, **asked)
    assert plain.explanation is None
    assert answer.items == plain.items
    assert answer.explanation is not None
    assert (answer.source, answer.reason) == ("model", None)
    assert [item.item_id for item in answer.explanation] == [item.item_id for item in answer.items]
    num_runner_ups = 0
    for item, explained in zip(answer.items, answer.explanation, strict=True):
        assert [level.code for level in explained.levels] == item.sid
        assert sum(level.logprob for level in explained.levels) == pytest.approx(item.score, abs=1e-3)
        for level in explained.levels:
            codes = [up.code for up in level.runner_ups]
            assert level.code not in codes
            assert len(set(codes)) == len(codes) <= 3
            logprobs = [up.logprob for up in level.runner_ups]
            assert logprobs == sorted(logprobs, reverse=True)
            for up in level.runner_ups:
                assert up.item_id is not None
                assert up.item_id not in {item["item_id"] for item in history}
            num_runner_ups += len(codes)
    assert num_runner_ups > 3


def test_the_reward_chooses_and_comes_with_every_slate(client: httpx.Client) -> None:
    answer = recommend(client, num_slates=4)
    rewards = [answer.reward, *(slate.reward for slate in answer.alternatives)]
    assert len(rewards) > 1
    assert None not in rewards
    assert rewards == sorted(rewards, key=lambda reward: -(reward or 0))
    assert len({frozenset(item.item_id for item in slate.items) for slate in (answer, *answer.alternatives)}) == len(
        rewards
    )


def test_similar_items_are_named_with_what_they_share(client: httpx.Client) -> None:
    item_id = recommend(client).items[0].item_id
    answer = client.get(f"/v1/items/{item_id}/similar", params={"k": 5})
    found = SimilarAnswer.model_validate_json(answer.content)
    assert found.item_id == item_id
    assert len({item.item_id for item in found.items} - {item_id}) == 5
    order = [(-item.num_shared, -(item.cosine or 0)) for item in found.items]
    assert order == sorted(order)
    assert all(item.cosine is not None for item in found.items)
    assert len(client.get(f"/v1/items/{item_id}/similar").json()["items"]) == 10
    removed = found.items[0].item_id
    assert client.delete(f"/v1/items/{removed}").status_code == 204
    gone_by_s = time.monotonic() + 10
    while client.get(f"/v1/items/{removed}/similar").status_code != 404:
        assert time.monotonic() < gone_by_s
    after = client.get(f"/v1/items/{item_id}/similar").json()["items"]
    assert removed not in {item["item_id"] for item in after}
    unknown = client.get("/v1/items/no such item/similar")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:oneslate:problem:not-found")
    for k in ("0", "101", "x"):
        assert client.get(f"/v1/items/{item_id}/similar", params={"k": k}).status_code == 422


def test_a_bundle_without_the_graph_says_so() -> None:
    manifest = fake_manifest()
    alone = manifest.model_copy(update={"graphs": {"generator": manifest.graphs["generator"]}})
    with live_client(fake_settings(), runner=FakeRunner(alone)) as client:
        answer = client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 3, "explain": True})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/explain"
