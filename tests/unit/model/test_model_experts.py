"""The mixture of experts: what it computes, what it costs, and that idle experts are never touched."""

import onnxruntime as ort
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model_export.model.experts import FeedForward, MixtureOfExperts, feed_forward

torch.set_num_threads(1)
D, F = 12, 20


def mixture(num_experts: int, num_active: int, seed: int = 0, *, has_bias: bool = False) -> MixtureOfExperts:
    torch.manual_seed(seed)
    layer = MixtureOfExperts(D, F, num_experts, num_active, has_bias=has_bias)
    with torch.no_grad():
        layer.up_bias_EF.normal_()
        layer.down_bias_ED.normal_()
        if layer.choice_bias_E is not None:
            layer.choice_bias_E.normal_()
    return layer.eval()


def dense_reference(layer: MixtureOfExperts, x_ND: torch.Tensor) -> torch.Tensor:
    """Every expert for every token; all but the chosen ones weigh nothing. The bias chooses and does not weigh."""
    router_NE = x_ND.double() @ layer.router.weight.double().T
    weight_NE = torch.full_like(router_NE, -torch.inf)
    biased_NE = router_NE if layer.choice_bias_E is None else router_NE + layer.choice_bias_E.double()
    for token, scores in enumerate(biased_NE.tolist()):
        for expert in sorted(range(len(scores)), key=scores.__getitem__)[-layer.num_active :]:
            weight_NE[token, expert] = router_NE[token, expert]
    weight_NE = weight_NE.softmax(-1)
    hidden = torch.einsum("nd,efd->nef", x_ND.double(), layer.up_EFD.double()) + layer.up_bias_EF
    out = torch.einsum("nef,edf->ned", hidden.relu(), layer.down_EDF.double()) + layer.down_bias_ED
    return (out * weight_NE.unsqueeze(-1)).sum(1)


@pytest.mark.parametrize(("num_experts", "num_active"), [(2, 1), (4, 2), (5, 3), (3, 3), (24, 2)])
@pytest.mark.parametrize("num_tokens", [1, 2, 37])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_the_sum_of_its_chosen_experts(
    num_experts: int, num_active: int, num_tokens: int, has_bias: bool
) -> None:
    layer = mixture(num_experts, num_active, has_bias=has_bias)
    x_ND = torch.randn(num_tokens, D)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x_ND), dense_reference(layer, x_ND).float(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer(x_ND.view(1, num_tokens, 1, D))[0, :, 0], layer(x_ND))


@pytest.mark.parametrize("num_active", [1, 2, 4])
def test_it_executes_the_flops_of_its_active_experts_only(num_active: int) -> None:
    num_tokens, counted = 50, {}
    for num_experts in (4, 8, 32):
        layer = mixture(num_experts, num_active)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            layer(torch.randn(num_tokens, D))
        router = 2 * num_tokens * D * num_experts
        counted[num_experts] = counter.get_total_flops() - router
    # Two products of 2 D F operations a token and active expert, however many experts there are.
    assert counted == dict.fromkeys((4, 8, 32), num_tokens * num_active * 2 * 2 * D * F)


def test_a_bias_changes_who_is_chosen_and_nothing_else() -> None:
    plain, biased = mixture(5, 2), mixture(5, 2, has_bias=True)
    x_ND = torch.randn(60, D)
    with torch.inference_mode():
        assert not torch.allclose(plain(x_ND), biased(x_ND), atol=1e-3)
        # The same for all experts changes no choice, and so not a bit.
        biased.choice_bias_E = torch.full((5,), 3.0)
        assert torch.equal(plain(x_ND), biased(x_ND))


def test_the_bias_moves_by_the_rate_towards_an_even_load() -> None:
    layer = mixture(4, 2, has_bias=True)
    layer.choice_bias_E = torch.tensor([0.5, 0.0, -1.0, 0.0])
    layer.shift_bias(torch.tensor([9, 3, 1, 5 - 1]), 0.25)  # mean 4.25
    assert layer.choice_bias_E.tolist() == [0.25, 0.25, -0.75, 0.25]
    layer.shift_bias(torch.tensor([2, 2, 2, 2]), 0.25)
    assert layer.choice_bias_E.tolist() == [0.25, 0.25, -0.75, 0.25]


def poisoned(num_experts: int, num_active: int, idle: list[int], *, has_bias: bool = False) -> MixtureOfExperts:
    """Positive inputs never choose the idle experts, which hold nothing but NaN."""
    layer = mixture(num_experts, num_active, has_bias=has_bias)
    with torch.no_grad():
        layer.router.weight.abs_()
        for expert in idle:
            layer.router.weight[expert] = -1.0
            if layer.choice_bias_E is not None:  # outweighed by the bias where the router would choose them
                layer.router.weight[expert] = 1.0
                layer.choice_bias_E[expert] = -100.0
            for parameter in (layer.up_EFD, layer.up_bias_EF, layer.down_EDF, layer.down_bias_ED):
                parameter[expert] = torch.nan
    return layer


@pytest.mark.parametrize("has_bias", [False, True])
def test_an_idle_expert_is_not_touched(has_bias: bool) -> None:
    layer = poisoned(5, 2, [0, 3], has_bias=has_bias)
    x_ND = torch.rand(40, D) + 0.1
    with torch.inference_mode():
        out_ND = layer(x_ND)
    assert torch.isfinite(out_ND).all()
    if layer.choice_bias_E is not None:
        layer.choice_bias_E *= 0
        x_ND = -x_ND
    with torch.inference_mode():  # the poison is there: a token that chooses it sees it
        assert torch.isnan(layer(-x_ND)).any()


def test_gradients_reach_the_chosen_experts_and_the_router_alone() -> None:
    layer = poisoned(5, 2, [0, 3])
    layer(torch.rand(40, D) + 0.1).sum().backward()
    assert layer.up_EFD.grad is not None
    assert layer.router.weight.grad is not None
    assert torch.all(layer.up_EFD.grad[[0, 3]] == 0)
    assert layer.up_EFD.grad[[1, 2, 4]].abs().sum() > 0
    assert layer.router.weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_exported_layer_is_the_layer_and_leaks_no_idle_expert(
    capsys: pytest.CaptureFixture[str], has_bias: bool
) -> None:
    layer = poisoned(5, 2, [0, 3], has_bias=has_bias)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(
        layer, (torch.rand(6, D),), dynamo=True, opset_version=20, dynamic_shapes=shapes, optimize=True
    )
    assert program is not None
    graph = program.model_proto.graph
    assert [node.op_type for node in graph.node].count("MoE") == 1
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(program.model_proto.SerializeToString(), options)
    for num_tokens in (1, 2, 3, 40):
        x_ND = torch.rand(num_tokens, D) + 0.1
        (out_ND,) = session.run(None, {graph.input[0].name: x_ND.numpy()})
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(out_ND), layer(x_ND), atol=1e-5, rtol=1e-5)
    # Bitwise: a token's output does not depend on which other tokens came along, even where it is an expert's only one.
    x_ND = torch.rand(24, D) + 0.1
    (whole_ND,) = session.run(None, {graph.input[0].name: x_ND.numpy()})
    for token in range(24):
        (alone_1D,) = session.run(None, {graph.input[0].name: x_ND[token : token + 1].numpy()})
        assert (alone_1D[0] == whole_ND[token]).all()
    capsys.readouterr()


@pytest.mark.parametrize(("num_experts", "num_active"), [(2, 1), (4, 2), (5, 2), (5, 3), (24, 2), (3, 3)])
def test_spare_tokens_reach_every_expert(num_experts: int, num_active: int) -> None:
    routing_ME = mixture(num_experts, num_active).spare_routing_ME
    chosen = routing_ME.topk(num_active, -1)
    assert torch.all(chosen.values == 1)
    assert set(chosen.indices.flatten().tolist()) == set(range(num_experts))
    assert (len(routing_ME) - 1) * num_active < num_experts


def test_one_expert_is_a_plain_feed_forward() -> None:
    assert isinstance(feed_forward(D, F, 1, 1), FeedForward)
    assert isinstance(feed_forward(D, F, 2, 1), MixtureOfExperts)


def test_what_is_saved_are_the_weights_and_the_bias() -> None:
    weights = {"router.weight", "up_EFD", "up_bias_EF", "down_EDF", "down_bias_ED"}
    assert set(mixture(4, 2).state_dict()) == weights
    assert set(mixture(4, 2, has_bias=True).state_dict()) == {*weights, "choice_bias_E"}
