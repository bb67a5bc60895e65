"""A piece is exported once for all modules that differ in weights alone: by a process, or by all that keep it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from model_export.onnx import kept as kept_module
from model_export.onnx import pieces
from model_export.onnx.kept import KeptPieces
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


def forget() -> None:
    """What the next process does not know."""
    pieces._exported.clear()


def test_what_is_kept_is_not_traced_by_the_next_process(traces: list[nn.Module], tmp_path: Path) -> None:
    for seed in range(2):
        forget()
        torch.manual_seed(seed)
        module = Scaled(2, 0.5).eval()
        model = export_module(module, CALLS, KeptPieces(tmp_path)).with_weights_of(module)
        x = torch.randn(7, 3)
        (found,) = ReferenceEvaluator(model).run(None, {"inputs_0": x.numpy()})
        np.testing.assert_allclose(found, module(x).detach().numpy(), atol=1e-6)
    assert len(traces) == 1
    forget()
    export_module(Scaled(2, 0.25), CALLS, KeptPieces(tmp_path))
    assert len(traces) == 2


def test_other_code_has_pieces_of_its_own(
    traces: list[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in ("one", "two", "one"):
        forget()
        monkeypatch.setattr(kept_module, "_CODE", code)
        export_module(Scaled(2, 0.5), CALLS, KeptPieces(tmp_path))
    assert len(traces) == 2


def test_a_file_that_is_no_piece_is_traced_and_written_again(traces: list[nn.Module], tmp_path: Path) -> None:
    export_module(Scaled(2, 0.5), CALLS, KeptPieces(tmp_path))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"\xff" * 50):
        path.write_bytes(broken)
        forget()
        export_module(Scaled(2, 0.5), CALLS, KeptPieces(tmp_path))
        assert [one.name for one in tmp_path.iterdir()] == [path.name]
        assert KeptPieces(tmp_path).find("anything else") is None
    forget()
    export_module(Scaled(2, 0.5), CALLS, KeptPieces(tmp_path))
    assert len(traces) == 4


def test_what_says_nothing_of_itself_is_not_kept(traces: list[nn.Module], tmp_path: Path) -> None:
    for _ in range(2):
        forget()
        module = Scaled(2, 0.5)
        module.mark = object()  # type: ignore[assignment]
        export_module(module, CALLS, KeptPieces(tmp_path))
    assert (len(traces), list(tmp_path.iterdir())) == (2, [])


def test_where_nothing_can_be_kept_one_warning_says_so(
    traces: list[nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    nowhere = KeptPieces(tmp_path / "file" / "pieces")
    for factor in (0.5, 0.25):
        export_module(Scaled(2, factor), CALLS, nowhere)
    assert len(traces) == 2
    assert caplog.text.count("exported pieces are not kept for the next build") == 1


def test_pieces_are_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = KeptPieces.of_user()
    assert kept is not None
    kept.keep("one", pieces.onnx.ModelProto(ir_version=8))
    assert len(list((tmp_path / "oneslate" / "pieces").iterdir())) == 1
    found = kept.find("one")
    assert (found is not None and found.ir_version, kept.find("two")) == (8, None)
