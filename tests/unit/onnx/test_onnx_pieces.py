"""A piece is exported once for all modules that differ in weights alone."""

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from model_export.onnx import pieces
from model_export.onnx.pieces import export_module


class Scaled(nn.Module):
    """A layer, and a setting that is no weight."""

    def __init__(self, width: int, factor: float) -> None:
        super().__init__()
        self.layer = nn.Linear(3, width)
        self.register_buffer("shift", torch.rand(width), persistent=False)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Any."""
        y: Tensor = self.layer(x) * self.factor + self.shift
        return y


CALLS = [(torch.zeros(4, 3),), (torch.zeros(5, 3),)]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """What was traced."""
    found: list[nn.Module] = []
    traced = pieces._traced

    def recorded(module: nn.Module, *rest: object) -> object:
        found.append(module)
        return traced(module, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pieces, "_traced", recorded)
    monkeypatch.setattr(pieces, "_exported", {})
    return found


def test_other_weights_are_the_same_piece_and_stay_their_own(traces: list[nn.Module]) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        module = Scaled(2, 0.5).eval()
        model = export_module(module, CALLS).with_weights_of(module)
        assert [entry.name for entry in model.graph.input] == ["inputs_0"]
        x = torch.randn(7, 3)
        (found,) = ReferenceEvaluator(model).run(None, {"inputs_0": x.numpy()})
        np.testing.assert_allclose(found, module(x).detach().numpy(), atol=1e-6)
    assert len(traces) == 1


def test_another_setting_size_or_dynamic_dimension_is_another_piece(traces: list[nn.Module]) -> None:
    first = export_module(Scaled(2, 0.5), CALLS)
    for module, calls in (
        (Scaled(2, 0.25), CALLS),
        (Scaled(5, 0.5), CALLS),
        (nn.Sequential(nn.Linear(3, 2)), CALLS),
        (Scaled(2, 0.5), CALLS[:1]),
    ):
        assert export_module(module, calls) is not first
    assert len(traces) == 5
