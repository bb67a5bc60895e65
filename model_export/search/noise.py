"""Gumbel noise for every child of every beam, from an integer hash of seed, codes so far, and the child's code.

Every engine computes the same numbers: 32-bit integers alone, and no quotient of numbers beyond 2^24, because OpenVINO
divides integers as float32, and CUDA has no bitwise operators in ONNX Runtime. What a beam has written is hashed into
four words, each modulo its own prime below 2^11, by rounds of adding one word's square to the next. A child's noise is
the same with two words: its code enters both, and the beam's words are the keys of a Feistel network of squarings. It
is no cryptography; the tests say what it is good for. Decision 0017.

Legend: B requests, W beams, C children of a node, S words of a beam's state.
"""

import torch
from torch import Tensor, nn

PRIMES = (2039, 2029, 2027, 2017)
_STATE_ROUNDS = 4
"""Within four each word depends on all."""
_CHILD_ROUNDS = 3
_SMALL = 1 / 64


def modulo(x: Tensor, prime: Tensor) -> Tensor:
    """`x` modulo `prime`, int32, for x in [0, 2^24); ONNX Runtime's Mod takes four times as long as these three."""
    if torch.compiler.is_exporting():
        # The exporter would write a division of floats, its absolute value, its sign, ...
        quotient = torch.onnx.ops.symbolic("Div", (x, prime), dtype=torch.int32, shape=x.shape, version=14)
    else:
        quotient = torch.div(x, prime, rounding_mode="trunc")
    return x - quotient * prime


def mixed(state: Tensor) -> Tensor:
    """Stirs the words [..., S] of a state."""
    primes_S = torch.tensor(PRIMES, dtype=torch.int32, device=state.device)
    previous_S = torch.tensor([3, 0, 1, 2], dtype=torch.int64, device=state.device)
    for number in range(1, _STATE_ROUNDS + 1):
        constants = [place * number % PRIMES[-1] for place in (311, 733, 1117, 1511)]
        other = state.index_select(-1, previous_S)
        state = other * other + state + torch.tensor(constants, dtype=torch.int32, device=state.device)
        state = modulo(state, primes_S)
    return state


class StartNoise(nn.Module):
    """The state before the first code."""

    def forward(self, seed_words_BS: Tensor) -> Tensor:
        """`seed_words` [B, 3], smaller than every prime, to states [B, 1, S]."""
        empty_B1 = torch.zeros_like(seed_words_BS[:, :1])
        return mixed(torch.cat([seed_words_BS, empty_B1], 1)).unsqueeze(1)


def after_code(state_BWS: Tensor, code_BW: Tensor) -> Tensor:
    """The state once a code is written."""
    primes_S = torch.tensor(PRIMES, dtype=torch.int32, device=state_BWS.device)
    return mixed(modulo(state_BWS + code_BW.unsqueeze(2), primes_S))


def uniform(state_BWS: Tensor, code_BWC: Tensor) -> Tensor:
    """A number in (0, 1] for each child [B, W, C], fine near 0: multiples of 2^-33.

    Args:
        state_BWS: Of what each beam has written, int32.
        code_BWC: The children's codes, int32.
    """
    first, second = torch.tensor(PRIMES, dtype=torch.int32, device=state_BWS.device)[:2].unbind()
    words = state_BWS.unsqueeze(3).unbind(2)
    left_BWC = modulo(words[0] + code_BWC, first)
    right_BWC = modulo(left_BWC * left_BWC + words[1] + code_BWC, second)
    for number, key in enumerate((words[2], words[3], words[0])[:_CHILD_ROUNDS]):
        before_BWC = left_BWC if number % 2 == 0 else right_BWC
        if number % 2 == 0:
            left_BWC = modulo(right_BWC * right_BWC + left_BWC + key, first)
        else:
            right_BWC = modulo(left_BWC * left_BWC + right_BWC + key, second)
    whole_BWC = (left_BWC * second + right_BWC).to(torch.float32)
    return (whole_BWC + (before_BWC.to(torch.float32) + 0.5) * (1 / PRIMES[0])) * (1 / (PRIMES[0] * PRIMES[1]))


def gumbel(uniform_BWC: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log(1 - u)); where u is small and the noise large, by series: 1 - u would round."""
    series = uniform_BWC * (1 + uniform_BWC * (0.5 + uniform_BWC * (1 / 3)))
    # What rounds to 1 is the smallest noise of all, about -2.9.
    direct = -(1 - uniform_BWC).clamp(min=2.0**-25).log()
    return -torch.where(uniform_BWC < _SMALL, series, direct).log()
