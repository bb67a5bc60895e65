"""The graphs of a bundle: what each reads, which search writes it, and what it gives."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from model_export.model.generator import Generator
from model_export.search.driver import ITEM_REWARDS, Pieces, Value, graph_inputs, run_search, trie_inputs
from model_export.search.forced import FORCED_ROWS, RUNNER_UP_OUTPUTS, ForcedPieces
from model_export.search.sampled import LEVEL_PROPENSITIES, SAMPLER_INPUTS, run_sampler
from service.bundle.manifest import Purpose
from service.inference.feeds import OUTPUTS

PURPOSES: Final[tuple[Purpose, ...]] = get_args(Purpose)
"""Of all graphs that a bundle may have."""


@dataclass(frozen=True, kw_only=True)
class GraphPlan:
    """One graph."""

    purpose: Purpose
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[Pieces[Any], Mapping[str, Any]], dict[str, Any]]
    """The search: from pieces and inputs by name to outputs by name."""


def graph_plans(
    generator: Generator, *, has_reward: bool = False, purposes: Collection[Purpose] = PURPOSES
) -> tuple[GraphPlan, ...]:
    """The graphs of a bundle with this generator; its own comes first, with rewards where there is a reward model.

    `purposes`: the graphs wanted.
    """
    spec = generator.spec
    has_vectors = generator.affinity is not None
    inputs = graph_inputs(spec.num_levels, has_vectors=has_vectors, has_reward=has_reward)
    outputs = (*OUTPUTS, ITEM_REWARDS) if has_reward else OUTPUTS
    forced_inputs = [name for name in graph_inputs(spec.num_levels, has_vectors=has_vectors) if name != "beam_slots"]
    plans = (
        GraphPlan(
            purpose="generator",
            inputs=inputs,
            outputs=outputs,
            run=lambda pieces, values: run_search(pieces, values, generator, spec.slate_size),
        ),
        GraphPlan(
            purpose="sampler",
            inputs=(*inputs, *SAMPLER_INPUTS),
            outputs=(*outputs, LEVEL_PROPENSITIES),
            run=lambda pieces, values: run_sampler(pieces, values, generator, spec.slate_size),
        ),
        GraphPlan(
            purpose="explain",
            inputs=(*forced_inputs, FORCED_ROWS),
            outputs=(*OUTPUTS, *RUNNER_UP_OUTPUTS),
            run=lambda pieces, values: explain(pieces, values, generator),
        ),
    )
    return tuple(plan for plan in plans if plan.purpose in purposes)


def explain(pieces: Pieces[Value], inputs: Mapping[str, Value], generator: Generator) -> dict[str, Value]:
    """The search along `forced_rows`: the generator's outputs for one beam, and the runner-ups."""
    num_levels = generator.spec.num_levels
    trie = {name: inputs[name] for name in trie_inputs(num_levels)}
    forced = ForcedPieces(pieces, inputs[FORCED_ROWS], trie, num_levels)
    one_beam = {"beam_slots": pieces.parameter("ranks", 1)}
    return run_search(forced, {**inputs, **one_beam}, generator, generator.spec.slate_size) | forced.runner_ups()
