"""What a description of someone's own dataset says: a mapping (from YAML or Python) -> a checked ``Description``."""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rc2l.data.datasets.class_lists import check_classes, read_classes, read_color_map, read_colors, read_label_map
from rc2l.data.datasets.class_masks import MaskNames, read_mask_names
from rc2l.data.datasets.coco import read_categories
from rc2l.data.datasets.labelme import annotation_files, labelme_classes
from rc2l.data.errors import DatasetError
from rc2l.data.file_listing import existing_path
from rc2l.data.image_rule import ImageRule, read_rule
from rc2l.structures.label_map import IGNORE

_SOURCE_KEYS = ("images", "list", "labels", "coco", "labelme")
_SUBSETS = ("train", "val", "unlabeled")
_KEYS = (
    *("name", "root", "classes", "colors", "label_map", "color_map", "ignore", "background", *_SOURCE_KEYS),
    *("image_suffix", "label_suffix", "masks", "label_cache", *_SUBSETS, "val_fraction"),
    *("value_range", "bands", "max_pixels"),
)


@dataclass(frozen=True)
class Source:
    """Where the images of one subset and their labels are."""

    #: Folder or glob pattern.
    images: Path | None = None
    #: Text file with an image, or an image and a label, a line.
    list_file: Path | None = None
    #: Folder of label maps; of a panoptic ``coco`` file, of its PNG files.
    labels: Path | None = None
    #: COCO-style JSON file.
    coco: Path | None = None
    #: Folder of images and of labelme's JSON files.
    labelme: Path | None = None


@dataclass(frozen=True)
class Description:
    """One dataset of a user, with up to three subsets; all paths are absolute."""

    name: str
    #: Image ids are paths below it.
    root: Path
    #: Empty only where there are no labels.
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    #: Raw id of pixels to ignore.
    ignore: int
    #: Raw id -> train id; None: as they are.
    label_map: dict[int, int] | None
    #: (R, G, B) -> train id; None: labels hold ids, not colours.
    color_map: dict[tuple[int, int, int], int] | None
    #: COCO category -> train id; None without COCO files.
    category_map: dict[int, int] | None
    #: Pixels without annotation, of COCO's and labelme's files, are class 0.
    background: bool
    image_suffix: str
    label_suffix: str
    #: How masks of single classes are named; None: labels are label maps.
    masks: MaskNames | None
    label_cache: Path | None
    #: "train", "val", "unlabeled" -> where it is. "val" is absent where ``val_fraction`` takes it from "train".
    sources: dict[str, Source]
    #: "train" is what of its source is not in "val".
    train_is_rest: bool
    #: Share of the labelled images of "train" that "val" takes.
    val_fraction: float
    #: How images are read.
    image_rule: ImageRule

    @property
    def subsets(self) -> tuple[str, ...]:
        """The subsets that exist, in the order train, val, unlabelled."""
        return tuple(s for s in _SUBSETS if s in self.sources or (s == "val" and self.val_fraction > 0))


def describe(content: Mapping, where: str, folder: Path) -> Description:
    """Check a mapping with the keys of ``datasets/README.md``, "Your own images".

    Args:
        content: the mapping.
        where: what error messages start with, such as the file's name.
        folder: what a relative ``root`` (or, without ``root``, every relative path) is relative to.

    Raises:
        DatasetError: an unknown key, a bad value, keys that exclude each other, a file of class names that is missing.
    """
    if not isinstance(content, Mapping):
        raise DatasetError(f"{where}: a dataset is a mapping with the keys name, classes, images, ..., not {content!r}")
    for key in content:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"allowed are {', '.join(_KEYS)}"
            raise DatasetError(f"{where}: unknown key '{key}'; {hint}")
    name = content.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name) or "_sem_seg_" in name:
        raise DatasetError(
            f"{where}: 'name' is {name!r}; it must be a word of letters, digits, '_', '-' and '.', such as roofs, for "
            "roofs_sem_seg_train and so on"
        )
    where = f"{where}: dataset '{name}'"
    content = {key: value for key, value in content.items() if value is not None}
    root = _path(content, "root", where, folder) or folder
    if "labelme" in content:
        content = _labelme_layout(content, where, root)
    sources = _sources(content, where, root)
    category_map, classes = None, ()
    drawn = any(source.labelme for source in sources.values())
    # In labelme, what nobody drew around is no object; in COCO files it may be what nobody looked at.
    background = _background(content, where, default=drawn)
    coco_files = [source.coco for source in sources.values() if source.coco]
    labeled = bool(coco_files) or any(
        source.labels or source.list_file for key, source in sources.items() if key != "unlabeled"
    )
    if "classes" in content:
        classes = read_classes(content["classes"], where, root)
    elif coco_files:
        names = list(dict.fromkeys(read_categories(coco_files[0]).values()))
        classes = check_classes(names, where, f"'categories' of {coco_files[0]}")
    elif drawn:
        folder = next(source.labelme for source in sources.values() if source.labelme)
        names = [name for name in labelme_classes(folder) if name != background]
        classes = check_classes(names, where, f"the annotations in {folder}")
    elif labeled or "train" in sources or "val" in sources:
        raise DatasetError(f"{where}: 'classes' is missing; give the class names as a list, or a text file of them")
    if background:
        if not coco_files and not drawn and "masks" not in content:
            raise DatasetError(
                f"{where}: 'background' is for COCO and labelme files and for 'masks'; elsewhere, background is a "
                "class of 'classes'"
            )
        if drawn and classes[0] == background:
            classes = classes[1:]
        if background in classes and "masks" not in content:
            raise DatasetError(f"{where}: 'background' is '{background}', which is a class too; give it another name")
        classes = classes if background in classes else (background, *classes)
    ignore = content.get("ignore", IGNORE)
    if not _is_int(ignore) or not -1 <= ignore < 1 << 16:
        raise DatasetError(f"{where}: 'ignore' is {ignore!r}; it must be the id of ignored pixels, -1..65535")
    label_map = read_label_map(content.get("label_map"), classes, where)
    color_map = read_color_map(content.get("color_map"), classes, where)
    if drawn and (label_map or color_map or "ignore" in content):
        raise DatasetError(
            f"{where}: labelme's files name their classes: remove label_map, color_map and ignore; a shape called "
            "__ignore__, or one that is not in 'classes', is ignored"
        )
    if color_map and (label_map or coco_files or "ignore" in content):
        other = "label_map" if label_map else "coco" if coco_files else "ignore"
        raise DatasetError(f"{where}: 'color_map' and '{other}' exclude each other; color_map says it all")
    masks = _masks(content, sources, classes, label_map, background, where)
    if label_map and "ignore" in content and label_map.get(ignore, IGNORE) != IGNORE and not coco_files:
        raise DatasetError(
            f"{where}: 'ignore' is {ignore}, which 'label_map' makes class '{classes[label_map[ignore]]}'; an id is "
            f"either: remove 'ignore', or write {ignore}: ignore in 'label_map'"
        )
    if coco_files:
        category_map = label_map or _categories_by_name(coco_files, classes, background, where)
    elif masks is None and label_map is None and 0 <= ignore < len(classes):
        raise DatasetError(
            f"{where}: 'ignore' is {ignore}, the id of class '{classes[ignore]}'; say in 'label_map' which id is what, "
            f"such as label_map: {{{ignore}: ignore, ...}}"
        )
    return Description(
        name=name,
        root=root,
        classes=classes,
        colors=read_colors(content.get("colors"), classes, where),
        ignore=ignore,
        label_map=None if coco_files or masks else label_map,
        color_map=color_map,
        category_map=category_map,
        background=bool(background),
        image_suffix=_text(content, "image_suffix", where),
        label_suffix=_text(content, "label_suffix", where),
        masks=masks,
        label_cache=_path(content, "label_cache", where, root),
        sources=sources,
        train_is_rest="val" in sources and "train" not in content,
        val_fraction=_val_fraction(content, sources, where),
        image_rule=read_rule(content, where),
    )


def _sources(content: Mapping, where: str, root: Path) -> dict[str, Source]:
    """Where each subset is; keys of the whole dataset hold for each subset that has none of its own."""
    common = _read_source({key: content[key] for key in _SOURCE_KEYS if key in content}, where, root)
    sources = {}
    for subset in _SUBSETS:
        if subset not in content:
            continue
        own = _read_source(content[subset], f"{where}: '{subset}'", root)
        if subset == "unlabeled":
            if not own.images and not own.list_file:
                raise DatasetError(
                    f"{where}: 'unlabeled' names no images; give a folder, a glob pattern or a text file"
                )
            images = own.images or common.images
            sources[subset] = Source(images=images, list_file=own.list_file)
        else:
            sources[subset] = replace(common, **{key: value for key, value in vars(own).items() if value})
    if "train" not in content and (common.images or common.list_file or common.coco):
        sources["train"] = common
    if not sources:
        raise DatasetError(f"{where}: no images; give 'images', 'coco' or 'labelme', or 'train', 'val' and 'unlabeled'")
    for subset, source in sources.items():
        if not (source.images or source.list_file or source.coco):
            raise DatasetError(f"{where}: '{subset}' has no images; give it 'images', 'list' or 'coco'")
        if subset != "unlabeled" and not (source.labels or source.coco or source.labelme or source.list_file):
            raise DatasetError(
                f"{where}: '{subset}' has no labels; give 'labels' (a folder) or 'coco', or name these images in "
                "'unlabeled'"
            )
    return {subset: sources[subset] for subset in _SUBSETS if subset in sources}


def _read_source(content: object, where: str, root: Path) -> Source:
    if isinstance(content, str):
        content = {"images": content}
    if not isinstance(content, Mapping) or not set(content) <= set(_SOURCE_KEYS):
        raise DatasetError(
            f"{where} is {content!r}; it must be a folder, a glob pattern, a text file, or a mapping with some of "
            f"{', '.join(_SOURCE_KEYS)}"
        )
    paths = {key: _path(content, key, where, root) for key in content}
    # labelme's files lie beside their images.
    images, list_file = paths.get("images", paths.get("labelme")), paths.get("list")
    if images and images.suffix == ".txt":
        if list_file:
            raise DatasetError(f"{where}: 'images' {images} and 'list' {list_file} are both lists; give one")
        images, list_file = None, images
    return Source(images, list_file, paths.get("labels"), paths.get("coco"), paths.get("labelme"))


def _labelme_layout(content: dict, where: str, root: Path) -> dict:
    """The same description with the folders of labelme, or of its VOC export, spelled out."""
    folder = _path(content, "labelme", where, root)
    twice = [key for key in ("images", "labels", "coco") if key in content]
    if twice:
        raise DatasetError(f"{where}: 'labelme' and '{twice[0]}' exclude each other; remove one")
    if not (folder / "JPEGImages").is_dir():
        if not folder.is_dir() or not annotation_files(folder):
            raise DatasetError(
                f"{where}: 'labelme' is {folder}, which has neither labelme's JSON files nor the folder JPEGImages of "
                "labelme2voc.py's output; correct the path"
            )
        return {**content, "images": str(folder), "labelme": str(folder)}
    # Older exports keep arrays in SegmentationClass and the label images beside it.
    images = folder / "SegmentationClassPNG"
    labels = images if images.is_dir() else folder / "SegmentationClass"
    layout = {"images": str(folder / "JPEGImages"), "labels": str(labels), "classes": str(folder / "class_names.txt")}
    return {**layout, **{key: value for key, value in content.items() if key != "labelme"}}


def _categories_by_name(paths: list[Path], classes: tuple[str, ...], background: str, where: str) -> dict[int, int]:
    """COCO category id -> train id by name; categories that are no class are ignored."""
    path, categories = paths[0], read_categories(paths[0])
    for other in paths[1:]:
        if read_categories(other) != categories:
            raise DatasetError(
                f"{where}: {path} and {other} have different categories; export them with the same ids and names"
            )
    missing = set(classes) - set(categories.values()) - {background}
    if missing:
        raise DatasetError(
            f"{where}: class '{min(missing)}' is no category of {path}, which has "
            f"{', '.join(list(categories.values())[:20])}; correct 'classes', or map category ids in 'label_map'"
        )
    ids = {name: train_id for train_id, name in enumerate(classes)}
    return {category: ids.get(name, IGNORE) for category, name in categories.items()}


def _masks(
    content: Mapping,
    sources: dict[str, Source],
    classes: tuple[str, ...],
    label_map: dict[int, int] | None,
    background: str,
    where: str,
) -> MaskNames | None:
    """How masks of single classes are named, where 'masks' says so."""
    if "masks" not in content:
        return None
    other = next((key for key in ("color_map", "ignore", "label_suffix") if key in content), None)
    if other:
        raise DatasetError(f"{where}: 'masks' and '{other}' exclude each other; masks are 0 and anything else")
    for subset, source in sources.items():
        if subset != "unlabeled" and (source.coco or source.labelme or not source.labels or not source.images):
            raise DatasetError(
                f"{where}: 'masks' needs 'images' and 'labels' (the folder of masks) for '{subset}', and neither "
                "'coco' nor 'labelme'"
            )
    return read_mask_names(content["masks"], classes, label_map, background, where)


def _background(content: Mapping, where: str, default: bool) -> str:
    background = content.get("background", default)
    if background is False or (background == "ignore" and "masks" in content):
        return ""
    if background is True:
        return "background"
    if not isinstance(background, str) or not background:
        raise DatasetError(f"{where}: 'background' is {background!r}; it must be true, or a name for class 0")
    return background


def _val_fraction(content: Mapping, sources: dict[str, Source], where: str) -> float:
    fraction = content.get("val_fraction", 0.0)
    if "val_fraction" not in content:
        return 0.0
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise DatasetError(f"{where}: 'val_fraction' is {fraction!r}; it must be a number above 0 and below 1")
    if "val" in sources or "train" not in sources:
        other = "'val' is given" if "val" in sources else "there are no training images"
        raise DatasetError(f"{where}: 'val_fraction' takes validation images from the training ones, but {other}")
    return float(fraction)


def _path(content: Mapping, key: str, where: str, folder: Path) -> Path | None:
    """The absolute path that ``key`` names, or None where it is not given."""
    if key not in content:
        return None
    value = content[key]
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise DatasetError(f"{where}: '{key}' is {value!r}; it must be a path")
    path = Path(os.path.abspath(folder / Path(os.path.expandvars(value)).expanduser()))
    return existing_path(path) or path


def _text(content: Mapping, key: str, where: str) -> str:
    value = content.get(key, "")
    if not isinstance(value, str):
        raise DatasetError(f"{where}: '{key}' is {value!r}; it must be text, such as _mask")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
