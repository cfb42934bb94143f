"""Optimiser, clipping and precision. AdamW as in MaskFormer: slower backbone, no decay of norms and embeddings."""

from collections import defaultdict

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from rc2l.modeling.precision import autocast_dtype

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LocalResponseNorm,
)


def parameter_groups(cfg: CfgNode, *models: nn.Module) -> list[dict]:
    """Trainable parameters of the models grouped by learning rate and weight decay.

    The backbone learns at BASE_LR x BACKBONE_MULTIPLIER, each layer of it at BACKBONE_LAYER_DECAY times the next one's
    rate; its ``new_parts``, which no weight file fills, learn at BASE_LR. Norms decay by WEIGHT_DECAY_NORM, embeddings
    (also those that a backbone's ``no_weight_decay()`` names) by WEIGHT_DECAY_EMBED, everything else by WEIGHT_DECAY.
    Few groups, so that the optimiser runs few kernels.

    Raises:
        ValueError: BACKBONE_LAYER_DECAY with a backbone that has no ``parameter_depths()``.
    """
    solver = cfg.SOLVER
    groups = defaultdict(list)
    seen = set()
    for model in models:
        backbone = getattr(model, "backbone", None)
        factors = layer_factors(backbone, solver.BACKBONE_LAYER_DECAY)
        new = tuple(f"{part}." for part in getattr(backbone, "new_parts", ()))
        embeddings = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else set()
        for module_name, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad or parameter in seen:
                    continue
                seen.add(parameter)
                prefix, _, inside = f"{module_name}.{name}".partition(".")
                in_backbone = prefix == "backbone"
                learning_rate = solver.BASE_LR
                if in_backbone and not inside.startswith(new):
                    learning_rate *= solver.BACKBONE_MULTIPLIER * factors.get(inside, 1.0)
                weight_decay = solver.WEIGHT_DECAY
                if isinstance(module, NORMS):
                    weight_decay = solver.WEIGHT_DECAY_NORM
                elif isinstance(module, nn.Embedding) or (in_backbone and inside in embeddings):
                    weight_decay = solver.WEIGHT_DECAY_EMBED
                groups[learning_rate, weight_decay].append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def layer_factors(backbone: nn.Module | None, decay: float) -> dict[str, float]:
    """Factor of the learning rate of each parameter of a backbone: 1 in the last layer, less by ``decay`` before."""
    if backbone is None or decay == 1:
        return {}
    if not hasattr(backbone, "parameter_depths"):
        raise ValueError(
            f"SOLVER.BACKBONE_LAYER_DECAY is {decay}, but {type(backbone).__name__} does not tell the depths of its "
            "layers (parameter_depths): set it to 1.0, or MODEL.BACKBONE.NAME to build_timm_backbone"
        )
    depths = backbone.parameter_depths()
    last = max(depths.values())
    return {name: decay ** (last - depth) for name, depth in depths.items()}


def build_optimizer(cfg: CfgNode, *models: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that SOLVER.OPTIMIZER names: ADAMW or SGD.

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
    raise ValueError(f"unknown optimiser '{cfg.SOLVER.OPTIMIZER}': SOLVER.OPTIMIZER must be ADAMW or SGD")


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """0-d tensor, the L2 norm of all gradients together; non-finite if any gradient is."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def clip_gradients(cfg: CfgNode, parameters: list[nn.Parameter]) -> Tensor:
    """Clip gradients in place as SOLVER.CLIP_GRADIENTS says; ``full_model`` clips the norm over all parameters.

    Returns:
        0-d tensor, the norm of all gradients together before; non-finite if any gradient was.

    Raises:
        ValueError: unknown SOLVER.CLIP_GRADIENTS.CLIP_TYPE.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        return nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)
    norm = gradient_norm(parameters)
    if not clip.ENABLED:
        return norm
    if clip.CLIP_TYPE == "norm":
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)
    elif clip.CLIP_TYPE == "value":
        nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
    else:
        raise ValueError(
            f"unknown SOLVER.CLIP_GRADIENTS.CLIP_TYPE '{clip.CLIP_TYPE}': it must be full_model, norm or value"
        )
    return norm


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The type that autocast uses, None without AMP.

    Raises:
        ValueError: unknown SOLVER.AMP.DTYPE.
    """
    return autocast_dtype(cfg.MODEL.DEVICE, cfg.SOLVER.AMP.DTYPE) if cfg.SOLVER.AMP.ENABLED else None
