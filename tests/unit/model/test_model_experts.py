"""The mixture of experts: what it computes, what it costs, and that idle experts are never touched."""

import onnxruntime as ort
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model_export.model.experts import FeedForward, MixtureOfExperts, feed_forward

torch.set_num_threads(1)
D, F = 12, 20


def mixture(num_experts: int, num_active: int, seed: int = 0) -> MixtureOfExperts:
    torch.manual_seed(seed)
    layer = MixtureOfExperts(D, F, num_experts, num_active)
    with torch.no_grad():
        layer.up_bias_EF.normal_()
        layer.down_bias_ED.normal_()
    return layer.eval()


def dense_reference(layer: MixtureOfExperts, x_ND: torch.Tensor) -> torch.Tensor:
    """Every expert for every token; all but the chosen ones weigh nothing."""
    router_NE = x_ND.double() @ layer.router.weight.double().T
    weight_NE = torch.full_like(router_NE, -torch.inf)
    best = router_NE.topk(layer.num_active, -1)
    weight_NE = weight_NE.scatter(1, best.indices, best.values).softmax(-1)
    hidden = torch.einsum("nd,efd->nef", x_ND.double(), layer.up_EFD.double()) + layer.up_bias_EF
    out = torch.einsum("nef,edf->ned", hidden.relu(), layer.down_EDF.double()) + layer.down_bias_ED
    return (out * weight_NE.unsqueeze(-1)).sum(1)


@pytest.mark.parametrize(("num_experts", "num_active"), [(2, 1), (4, 2), (5, 3), (3, 3), (24, 2)])
@pytest.mark.parametrize("num_tokens", [1, 2, 37])
def test_it_is_the_sum_of_its_chosen_experts(num_experts: int, num_active: int, num_tokens: int) -> None:
    layer = mixture(num_experts, num_active)
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


def poisoned(num_experts: int, num_active: int, idle: list[int]) -> MixtureOfExperts:
    """Positive inputs never choose the idle experts, which hold nothing but NaN."""
    layer = mixture(num_experts, num_active)
    with torch.no_grad():
        layer.router.weight.abs_()
        for expert in idle:
            layer.router.weight[expert] = -1.0
            for parameter in (layer.up_EFD, layer.up_bias_EF, layer.down_EDF, layer.down_bias_ED):
                parameter[expert] = torch.nan
    return layer


def test_an_idle_expert_is_not_touched() -> None:
    layer = poisoned(5, 2, [0, 3])
    x_ND = torch.rand(40, D) + 0.1
    with torch.inference_mode():
        out_ND = layer(x_ND)
    assert torch.isfinite(out_ND).all()
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
def test_the_exported_layer_is_the_layer_and_leaks_no_idle_expert(
    capsys: pytest.CaptureFixture[str],
) -> None:
    layer = poisoned(5, 2, [0, 3])
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


def test_parameters_that_are_saved_are_the_weights_alone() -> None:
    assert set(mixture(4, 2).state_dict()) == {"router.weight", "up_EFD", "up_bias_EF", "down_EDF", "down_bias_ED"}
