"""Methods: which objectives are trained together, and who labels. SEMI.METHOD names one of :data:`METHOD_REGISTRY`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.common.registry import Registry

from rc2l.data.mixing import PARTNERED
from rc2l.semi.labeler import Labeler
from rc2l.semi.objective import OBJECTIVE_REGISTRY, Objective
from rc2l.structures.needs import Needs

#: Functions cfg -> :class:`Method`, by the name that SEMI.METHOD gives.
METHOD_REGISTRY = Registry("METHOD")


@dataclass(frozen=True)
class Method:
    """What is trained, apart from the network."""

    #: The objectives in the order in which their losses are summed.
    objectives: tuple[type[Objective], ...]
    #: Who labels the unlabelled images.
    labeler: Callable[..., Labeler]
    #: All that the objectives ask of a step.
    needs: Needs = field(default_factory=Needs)


def method_of(cfg: CfgNode) -> Method:
    """The method that SEMI.METHOD names, with the objectives that join it.

    Raises:
        ValueError: there is no such method, or it does not fit the network or the views.
    """
    name = cfg.SEMI.METHOD
    if name not in METHOD_REGISTRY:
        *names, last = method_names()
        raise ValueError(f"SEMI.METHOD is '{name}': it must be {', '.join(names)} or {last}")
    method = METHOD_REGISTRY.get(name)(cfg)
    joining = [each for _, each in OBJECTIVE_REGISTRY if each.enabled(cfg) and each not in method.objectives]
    objectives = (*method.objectives, *joining)
    needs = reduce(Needs.__or__, (each.needs(cfg) for each in objectives))
    _check(cfg, needs, [each.name for each in joining if each.needs(cfg).masks])
    return Method(objectives, method.labeler, needs)


def method_names() -> list[str]:
    """All that SEMI.METHOD may be."""
    return [name for name, _ in METHOD_REGISTRY]


def kind_of_network(cfg: CfgNode) -> str:
    """What MODEL.META_ARCHITECTURE predicts: "masks" or "pixels"; see :class:`~rc2l.modeling.segmentor.Segmentor`.

    Raises:
        ValueError: there is no such architecture, or it does not say.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    kind = getattr(META_ARCH_REGISTRY.get(name), "kind", None) if name in META_ARCH_REGISTRY else None
    if kind is None:
        choices = [each for each, architecture in META_ARCH_REGISTRY if hasattr(architecture, "kind")]
        raise ValueError(f"MODEL.META_ARCHITECTURE is '{name}': it must be one of {', '.join(choices)}")
    return kind


def _check(cfg: CfgNode, needs: Needs, joining_with_masks: list[str]) -> None:
    name, mixing = cfg.SEMI.METHOD, cfg.SEMI.MIXING.NAME
    if joining_with_masks and kind_of_network(cfg) != "masks":
        raise ValueError(
            f"{joining_with_masks[0].upper()}.ENABLED is True, but it matches masks, which "
            f"{cfg.MODEL.META_ARCHITECTURE} has none of: set it to False, or MODEL.META_ARCHITECTURE to MaskFormer"
        )
    if needs.masks and kind_of_network(cfg) != "masks":
        raise ValueError(
            f"SEMI.METHOD '{name}' matches masks, which {cfg.MODEL.META_ARCHITECTURE} has none of: set "
            "MODEL.META_ARCHITECTURE to MaskFormer, or SEMI.METHOD to self_training or supervised"
        )
    if needs.unmixed and mixing != "none":
        raise ValueError(
            f"SEMI.MIXING.NAME is '{mixing}': {name} compares predictions of whole images with labels, so it must be "
            "none"
        )
    if needs.strong_views and mixing in PARTNERED and cfg.SOLVER.IMS_PER_BATCH_UNLABELED == 1:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH_UNLABELED is 1, but {mixing} pastes from another unlabelled image of the "
            "step: set it to 2 or more (of all processes together), or SEMI.MIXING.NAME to cutout or none"
        )
