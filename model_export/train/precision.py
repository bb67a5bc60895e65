"""bfloat16 where it pays."""

from contextlib import AbstractContextManager, nullcontext

import torch

from model_export.train.config import Precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a forward pass runs; weights and the optimizer stay float32.

    On a CPU `auto` means float32, even with AMX: at the widths that a CPU trains (128) a step took 0.48 s of one core
    in bfloat16 and 0.26 s in float32 (docs/decisions/0006).
    """
    pays = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" or (precision == "auto" and pays):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
