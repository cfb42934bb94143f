"""Which half-precision type autocast uses on a device."""

import torch


def autocast_dtype(device: str, name: str) -> torch.dtype:
    """The type of SOLVER.AMP.DTYPE (``name``) on a device: bfloat16 | float16 | auto (bfloat16 where it has it).

    Raises:
        ValueError: an unknown name.
    """
    choices = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    choices["auto"] = (
        torch.bfloat16 if not device.startswith("cuda") or torch.cuda.is_bf16_supported() else torch.float16
    )
    if name not in choices:
        raise ValueError(f"unknown SOLVER.AMP.DTYPE '{name}': it must be one of {', '.join(choices)}")
    return choices[name]
