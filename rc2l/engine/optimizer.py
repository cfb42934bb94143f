"""Optimizer and gradient clipping as in MaskFormer: AdamW, slower backbone, no decay of norms and embeddings."""

from collections import defaultdict
from itertools import chain

import torch
from detectron2.config import CfgNode
from torch import nn

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LocalResponseNorm,
)


def parameter_groups(cfg: CfgNode, *models: nn.Module) -> list[dict]:
    """Trainable parameters of the models grouped by learning rate and weight decay.

    The backbone learns at BASE_LR x BACKBONE_MULTIPLIER; norms decay by WEIGHT_DECAY_NORM, embeddings by
    WEIGHT_DECAY_EMBED, everything else by WEIGHT_DECAY. Few groups, so that the optimizer runs few kernels.
    """
    solver = cfg.SOLVER
    groups = defaultdict(list)
    seen = set()
    for module_name, module in chain.from_iterable(model.named_modules() for model in models):
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            in_backbone = f"{module_name}.{name}".startswith("backbone.")
            learning_rate = solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if in_backbone else 1.0)
            weight_decay = solver.WEIGHT_DECAY
            if isinstance(module, NORMS):
                weight_decay = solver.WEIGHT_DECAY_NORM
            elif isinstance(module, nn.Embedding):
                weight_decay = solver.WEIGHT_DECAY_EMBED
            groups[learning_rate, weight_decay].append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def build_optimizer(cfg: CfgNode, *models: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that SOLVER.OPTIMIZER names: ADAMW or SGD.

    Raises:
        ValueError: another name.
    """
    groups = parameter_groups(cfg, *models)
    if cfg.SOLVER.OPTIMIZER == "ADAMW":
        return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, fused=True)
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return torch.optim.SGD(
            groups, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV
        )
    raise ValueError(f"unknown optimizer '{cfg.SOLVER.OPTIMIZER}': SOLVER.OPTIMIZER must be ADAMW or SGD")


def clip_gradients(cfg: CfgNode, parameters: list[nn.Parameter]) -> None:
    """Clip gradients in place as SOLVER.CLIP_GRADIENTS says; ``full_model`` clips the norm over all parameters.

    Raises:
        ValueError: unknown SOLVER.CLIP_GRADIENTS.CLIP_TYPE.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return
    if clip.CLIP_TYPE == "full_model":
        nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)
    elif clip.CLIP_TYPE == "norm":
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)
    elif clip.CLIP_TYPE == "value":
        nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
    else:
        raise ValueError(
            f"unknown SOLVER.CLIP_GRADIENTS.CLIP_TYPE '{clip.CLIP_TYPE}': it must be full_model, norm or value"
        )
