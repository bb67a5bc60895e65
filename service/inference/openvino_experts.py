"""A mixture of experts for OpenVINO, which has no `com.microsoft.MoE`: the operator in its own operations.

Legend: N tokens, D width, F hidden width, E experts, A active experts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset15 as operations
from openvino.frontend.onnx import ConversionExtension

_ACTIVATIONS: Final = frozenset({"relu"})
_SLICES: ContextVar[dict[str, list[ov.Output]]] = ContextVar("slices of experts")
"""Of each weight of the graph that is being read, by its name: what each expert has of it."""


@contextmanager
def reading_a_graph() -> Iterator[None]:
    """Around the reading of one graph: its steps share their experts' weights. Else each would bring copies of all."""
    token = _SLICES.set({})
    try:
        yield
    finally:
        _SLICES.reset(token)


def experts_extension() -> ConversionExtension:
    """What teaches an `ov.Core` the operator as `model_export.model.experts` exports it."""
    return ConversionExtension("MoE", "com.microsoft", _mixture)


def _mixture(node: Any) -> list[ov.Output]:
    """Tokens sorted by expert, each expert's slice through its two products, and back: nobody computes for the others.

    `node`: inputs token [N, D], router logits [N, E], up [E, F, D] and its bias [E, F], down [E, D, F] and its bias
    [E, D].
    """
    token_ND, router_NE, *weights = (node.get_input(place) for place in range(6))
    activation = node.get_attribute("activation_type")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"a mixture of experts with {activation}")
    num_active = node.get_attribute("k")
    num_experts, _, width = (dimension.get_length() for dimension in weights[0].get_partial_shape())

    top = operations.topk(router_NE, _int64(num_active), 1, "max", "value", index_element_type="i32", stable=True)
    weight_NA = operations.softmax(top.output(0), 1)
    place, count_E = _sorted_places(top.output(1), num_experts)
    token = operations.scatter_elements_update(place, place, _token_of_place(router_NE, num_active), _int32(0))
    sorted_D = operations.gather(token_ND, token, _int64(0))
    slices = operations.variadic_split(sorted_D, _int64(0), count_E)
    of_experts = [_slices(weight, num_experts) for weight in weights]
    pieces = []
    for expert in range(num_experts):
        up_FD, up_bias_F, down_DF, down_bias_D = (slices_of_weight[expert] for slices_of_weight in of_experts)
        hidden_F = operations.matmul(slices.output(expert), up_FD, False, True)
        hidden_F = operations.relu(operations.add(hidden_F, up_bias_F))
        out_D = operations.matmul(hidden_F, down_DF, False, True)
        pieces.append(operations.add(out_D, down_bias_D))
    out_D = operations.gather(operations.concat(pieces, 0), place, _int64(0))
    out_NAD = operations.reshape(out_D, _int64([-1, num_active, width]), False)
    weighed_NAD = operations.multiply(out_NAD, operations.unsqueeze(weight_NA, _int64([2])))
    return [operations.reduce_sum(weighed_NAD, _int64([1]), False).output(0)]


def _slices(weight: ov.Output, num_experts: int) -> list[ov.Output]:
    """What each expert has of a weight."""
    known = _SLICES.get()
    name = weight.get_node().get_friendly_name()
    if name not in known:
        split = operations.split(weight, _int64(0), num_experts)
        known[name] = [operations.squeeze(split.output(expert), _int64([0])).output(0) for expert in range(num_experts)]
    return known[name]


def _sorted_places(expert_NA: ov.Output, num_experts: int) -> tuple[ov.Node, ov.Node]:
    """Where each token goes [N * A] when they are sorted by expert, in their order; and how many each expert has [E].

    By counting: a sum over the tokens for each expert, instead of sorting.
    """
    is_of = operations.equal(
        operations.reshape(expert_NA, _int64([-1, 1]), False),
        operations.constant(np.arange(num_experts, dtype=np.int32)[None]),
    )
    is_of = operations.convert(is_of, "i32")
    count_E = operations.reduce_sum(is_of, _int64([0]), False)
    first_E = operations.cumsum(count_E, _int64(0), exclusive=True)
    before = operations.cumsum(is_of, _int64(0), exclusive=True)
    place = operations.reduce_sum(
        operations.multiply(operations.add(before, first_E), is_of),
        _int64([1]),
        False,
    )
    return place, count_E


def _token_of_place(router_NE: ov.Output, num_active: int) -> ov.Node:
    """Number [N * A] of each token, once for each of its experts. No division: of integers OpenVINO's is not exact."""
    num_tokens = operations.gather(operations.shape_of(router_NE, "i32"), _int32(0), _int64(0))
    token_N = operations.range(_int32(0), num_tokens, _int32(1), "i32")
    token_NA = operations.tile(operations.unsqueeze(token_N, _int64([1])), _int64([1, num_active]))
    return operations.reshape(token_NA, _int64([-1]), False)


def _int64(value: int | list[int]) -> ov.Node:
    return operations.constant(np.array(value, dtype=np.int64))


def _int32(value: int) -> ov.Node:
    return operations.constant(np.array(value, dtype=np.int32))
