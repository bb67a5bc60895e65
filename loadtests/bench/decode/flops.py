"""How many floating-point operations a slate needs, whoever computes it: what rates are shares of.

Legend: B batch, T context length (the history and one place more), D width, A heads x head width, F hidden width,
V codes of a level.
"""

from model_export.model.config import GeneratorSpec, ModelConfig


def useful_flops(
    config: ModelConfig, spec: GeneratorSpec, *, batch_size: int, beam_width: int, history_length: int
) -> int:
    """Multiplications and additions in the matrix products of one batch of beam searches.

    Counted are the products of the network: projections, attention to the history, feed-forwards (of a mixture the
    router and the experts that a token chose, no other), the codebook's logits. Not counted are what the search does
    around it (spare tokens of a mixture) and a beam's attention to its own few
    codes, which is written as sums. So a share of a machine's rate is rather too low than too high.

    Args:
        config: The model.
        spec: Its codebooks and slate size.
        batch_size: Requests.
        beam_width: Beams of each; the first code of a slate has one.
        history_length: Events of each, padding included: it is computed, too.
    """
    assert config.item_vector_width == 0, "item vectors are not counted"
    context = history_length + 1
    width, inner, hidden = config.width, config.num_heads * config.head_width, config.feed_forward_width
    projection, attention = 2 * width * inner, 2 * 2 * context * inner
    feed_forward = 2 * 2 * width * hidden
    encoder = config.encoder_layers * context * (4 * projection + attention + feed_forward)
    keys_and_values = config.decoder_layers * context * 2 * projection
    mixed = config.num_experts > 1
    expert = config.num_active_experts * feed_forward + 2 * width * config.num_experts if mixed else feed_forward
    layers = config.decoder_layers * (6 * projection + attention + expert)
    num_beams = [beam_width] * (spec.slate_size * spec.num_levels)
    num_beams[0] = 1
    steps = sum(
        beams * (layers + 2 * width * spec.codebook_sizes[place % spec.num_levels])
        for place, beams in enumerate(num_beams)
    )
    return batch_size * (encoder + keys_and_values + steps)
