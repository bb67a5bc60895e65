"""bfloat16 where the hardware multiplies it faster."""

from contextlib import AbstractContextManager, nullcontext

import torch

from model_export.train.config import Precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a forward pass runs; weights and the optimizer stay float32."""
    if precision == "float32" or (precision == "auto" and not has_fast_bfloat16(device)):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` has bfloat16 matrix instructions."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
