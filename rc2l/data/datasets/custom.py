"""Registers anyone's own datasets: from a description in YAML, from ``DATASETS.CUSTOM``, or by a Python call."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from rc2l.data.datasets.description import Description, describe
from rc2l.data.datasets.folder import load_subset
from rc2l.data.errors import DatasetError
from rc2l.structures.label_map import IGNORE
from rc2l.yaml_file import YamlError, read_yaml

#: What was registered here, by dataset name; only these may be registered anew.
_DESCRIPTIONS: dict[str, Description] = {}


def register_semantic_dataset(name: str, root: str | Path = ".", **description: object) -> tuple[str, ...]:
    """Register ``<name>_sem_seg_train``, ``_val`` and ``_unlabeled``, as far as the description has them.

    The keywords are the keys of a dataset YAML file (``datasets/README.md``, "Your own images"). Images and labels are
    looked for when a dataset is loaded.

    ``register_semantic_dataset("roofs", "/data/roofs", classes=["ground", "roof"], images="images", labels="labels",
    label_map={0: "ground", 255: "roof"}, val_fraction=0.2)``

    Args:
        name: what the names of the subsets start with.
        root: folder that all other paths are relative to.
        description: classes, images, labels, label_map, ...

    Returns:
        The names that were registered.

    Raises:
        DatasetError: the description is wrong, or a name belongs to another dataset.
    """
    content = {"name": name, "root": str(root), **description}
    return _register([describe(content, "register_semantic_dataset", Path.cwd())], "register_semantic_dataset")


def register_dataset_file(path: str | Path) -> tuple[str, ...]:
    """Register the dataset, or the list of datasets, that a YAML file describes.

    Returns:
        The names that were registered.

    Raises:
        DatasetError: the file is missing or no YAML, a description is wrong, or a name belongs to another dataset.
    """
    return _register(_read_file(Path(os.path.abspath(Path(path).expanduser()))), str(path))


def _read_file(path: Path) -> list[Description]:
    if not path.exists():
        raise DatasetError(f"{path}: there is no such file; name a dataset YAML file")
    try:
        content = read_yaml(path)
    except YamlError as error:
        raise DatasetError(str(error)) from error
    return [describe(item, str(path), path.parent) for item in (content if isinstance(content, list) else [content])]


def register_custom_datasets(cfg: CfgNode, config_file: str | Path = "") -> tuple[str, ...]:
    """Register what ``DATASETS.CUSTOM`` describes: the path of a dataset YAML file, or a list of paths and mappings.

    A relative path is looked for next to ``config_file``, then in the working directory; paths in a mapping are
    relative to the folder of ``config_file``. In a config that is not frozen, paths are made absolute, so that the
    config that a run saves can be used from anywhere. Calling it again registers anew.

    Returns:
        The names that were registered.

    Raises:
        DatasetError: as :func:`register_dataset_file`.
    """
    custom = cfg.DATASETS.CUSTOM
    if not custom:
        return ()
    folder = Path(os.path.abspath(config_file)).parent if config_file else Path.cwd()
    entries = [custom] if isinstance(custom, str) else custom
    if not isinstance(entries, (list, tuple)):
        raise DatasetError(
            f"DATASETS.CUSTOM is {custom!r}; it must be the path of a dataset YAML file, or a list of datasets"
        )
    resolved, descriptions = [], []
    for entry in entries:
        if isinstance(entry, str):
            expanded = Path(os.path.expandvars(entry)).expanduser()
            beside = Path(os.path.abspath(folder / expanded))
            path = beside if beside.exists() else Path(os.path.abspath(expanded))
            if not path.exists():
                raise DatasetError(
                    f"DATASETS.CUSTOM: there is neither {beside} nor {path}; it must be the path of a dataset YAML file"
                )
            descriptions += _read_file(path)
            resolved.append(str(path))
        else:
            if isinstance(entry, dict):
                root = Path(os.path.expandvars(str(entry.get("root", ".")))).expanduser()
                entry = {**entry, "root": os.path.abspath(folder / root)}
            descriptions.append(describe(entry, "DATASETS.CUSTOM", folder))
            resolved.append(entry)
    names = _register(descriptions, "DATASETS.CUSTOM")
    if not cfg.is_frozen():
        cfg.DATASETS.CUSTOM = resolved[0] if isinstance(custom, str) else resolved
    return names


def custom_description(name: str) -> Description | None:
    """The description of a dataset that was registered here, by the name of one of its subsets."""
    return _DESCRIPTIONS.get(name)


def custom_datasets() -> list[str]:
    """Names of all datasets that were registered here."""
    return list(_DESCRIPTIONS)


def unregister(names: Iterable[str]) -> None:
    """Forget datasets that were registered here."""
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
        del _DESCRIPTIONS[name]


def _register(descriptions: list[Description], where: str) -> tuple[str, ...]:
    """Register all of them or, where something is wrong, none."""
    own = [description.name for description in descriptions]
    twice = next((name for name in own if own.count(name) > 1), None)
    if twice:
        raise DatasetError(f"{where}: two datasets have the name '{twice}'; every dataset needs a name of its own")
    subsets = {f"{d.name}_sem_seg_{subset}": (d, subset) for d in descriptions for subset in d.subsets}
    for name in subsets:
        if name in DatasetCatalog.list() and name not in _DESCRIPTIONS:
            raise DatasetError(f"{where}: '{name}' is registered already; use another 'name'")
    # Subsets of an older description that the new one does not have would keep its classes.
    unregister([name for name, old in _DESCRIPTIONS.items() if old.name in own])
    for name, (description, subset) in subsets.items():
        DatasetCatalog.register(name, partial(load_subset, description, subset))
        _set_metadata(name, description)
        _DESCRIPTIONS[name] = description
    return tuple(subsets)


def _set_metadata(name: str, description: Description) -> None:
    metadata = MetadataCatalog.get(name)
    metadata.set(evaluator_type="sem_seg", **vars(description.image_rule))
    if description.classes:
        metadata.set(
            stuff_classes=list(description.classes),
            stuff_colors=list(description.colors),
            # Labels that were drawn from COCO files or masks hold train ids.
            ignore_label=IGNORE if description.category_map or description.masks else description.ignore,
        )
    if description.label_map:
        metadata.set(label_map=description.label_map)
    if description.color_map:
        metadata.set(color_map=description.color_map)
