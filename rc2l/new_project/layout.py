"""Recognises how a folder keeps its images and labels: labelme, COCO, VOC, or folders of masks."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from rc2l.data.datasets.coco import read_json
from rc2l.data.datasets.folder import IMAGE_SUFFIXES
from rc2l.data.datasets.labelme import annotation_files
from rc2l.data.errors import DatasetError
from rc2l.data.file_listing import find_files
from rc2l.new_project.class_masks import find_class_masks
from rc2l.new_project.label_values import Labels, read_labels, read_names
from rc2l.new_project.mask_folders import by_folder, find_masks, subset_of

#: What files of COCO annotations hold; the first that fits is taken where a subset has several.
_COCO_KINDS = ("panoptic", "instances", "stuff")
_COCO_LISTS = {"images", "annotations", "categories"}
#: A folder with more JSON files than this has one an image.
_FEW_FILES = 20


@dataclass
class Layout:
    """How a folder is to be described."""

    #: In words, such as "COCO annotations".
    kind: str
    #: Keys of a dataset's description, without name and root; paths are relative to the folder.
    content: dict
    #: What a person should know or look at, one line each.
    notes: list[str] = field(default_factory=list)


def find_layout(root: Path) -> Layout:
    """How the images and labels below ``root`` are kept.

    Raises:
        DatasetError: there are no images or no labels, or what is there fits nothing that can be described.
    """
    images = find_files(root, (*IMAGE_SUFFIXES, ".gif"))
    if not images:
        raise DatasetError(f"{root} holds no images; files of {', '.join(IMAGE_SUFFIXES)} are looked for")
    layout = _voc(root) or _coco(root, images) or _labelme(root) or _masks(root, images)
    if layout is None:
        raise DatasetError(
            f"{root} holds {len(images)} images and no labels: neither JSON files of labelme or COCO, nor a folder "
            "SegmentationClass, nor masks (PNG files with one id or colour a class, named after their images). Label "
            "some of them, such as in labelme, and begin again"
        )
    return layout


def _voc(root: Path) -> Layout | None:
    folders = [path for path in (root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))) if path.is_dir()]
    base = next((path for path in folders if (path / "JPEGImages").is_dir()), None)
    if base is None:
        return None
    labels = next((base / n for n in ("SegmentationClassPNG", "SegmentationClass") if (base / n).is_dir()), None)
    if labels is None:
        return None
    if (base / "class_names.txt").is_file():
        return Layout("labelme's VOC export", {"labelme": _relative(base, root)})
    found = read_labels(find_files(labels, (".png",)), [base, root, labels])
    content = {"images": _relative(base / "JPEGImages", root), "labels": _relative(labels, root)}
    content |= _label_keys(found)
    lists = {subset: base / "ImageSets/Segmentation" / f"{subset}.txt" for subset in ("train", "val")}
    if all(path.is_file() for path in lists.values()):
        content |= {subset: {"list": _relative(path, root)} for subset, path in lists.items()}
    return Layout("VOC", content, found.notes)


def _coco(root: Path, images: list[Path]) -> Layout | None:
    files = find_files(root, (".json",))
    found = [path for path in files if len(files) <= _FEW_FILES and _is_coco(path)]
    by_subset: dict[str, list[Path]] = {}
    for path in sorted(found, key=lambda path: [kind not in path.stem for kind in _COCO_KINDS]):
        by_subset.setdefault(subset_of(path.relative_to(root)), []).append(path)
    if not found:
        return None
    notes = [
        f"{_relative(path, root)} is left out: {_relative(paths[0], root)} is taken"
        for paths in by_subset.values()
        for path in paths[1:]
    ]
    sources = {}
    for subset, paths in by_subset.items():
        sources[subset] = {"coco": _relative(paths[0], root), "images": _coco_images(paths[0], root, images)}
    if "test" in sources and len(sources) > 1:
        notes.append(f"{sources.pop('test')['coco']} is left out: score it at the very end, as a dataset of its own")
    content: dict = {}
    if "val" in sources and len(sources) > 1:
        content["val"] = sources.pop("val")
        content["train"] = next(iter(sources.values()))
    else:
        content = next(iter(sources.values()))
    if not any("segments_info" in a for a in read_json(found[0])["annotations"]):
        content["background"] = True
        notes.append("pixels without annotation are the class background; `background: false` ignores them instead")
    return Layout("COCO annotations", content, notes)


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() >= _COCO_LISTS


def _coco_images(path: Path, root: Path, images: list[Path]) -> str:
    """The folder that the file names of a COCO file are relative to."""
    names = [picture["file_name"] for picture in read_json(path)["images"][:5]]
    folders = dict.fromkeys([path.parent, root, *(parent for image in images for parent in image.parents)])
    for folder in folders:
        if folder.is_relative_to(root) and names and all((folder / name).is_file() for name in names):
            return _relative(folder, root)
    raise DatasetError(f"{path}: there is no folder below {root} that holds its images, such as {', '.join(names[:2])}")


def _labelme(root: Path) -> Layout | None:
    first = find_files(root, (".json",))[:_FEW_FILES]
    if not first or not any(path in first for path in annotation_files(root)):
        return None
    return Layout(
        "labelme annotations",
        {"labelme": "."},
        ["what no shape covers is the class background; `background: false` ignores it instead"],
    )


def _masks(root: Path, images: list[Path]) -> Layout | None:
    grouped = by_folder(root, images)
    masks = find_class_masks(root, *grouped) or find_masks(root, *grouped)
    if masks is None:
        return None
    folders = [root, *dict.fromkeys(path.parent for path in masks.labels), *dict.fromkeys(p.parent for p in images)]
    folders += [folder.parent for folder in folders if folder != root]
    if masks.by_class:
        names, source = read_names(folders)
        known = set(masks.by_class) <= {*names, *map(str, range(len(names)))}
        classes = names if names and known else masks.by_class
        background = names[0] if classes is names and names[0] not in masks.by_class else True
        notes = [f"class names are from {source if classes is names else 'the names of the masks'}"]
        keys = {"classes": classes, "background": background}
        return Layout("one mask for each class", masks.content | keys, notes + masks.notes)
    found = read_labels(masks.labels, folders)
    return Layout("images and masks", masks.content | _label_keys(found), masks.notes + found.notes)


def _label_keys(labels: Labels) -> dict:
    keys: dict = {"classes": labels.classes}
    if labels.label_map:
        keys["label_map"] = labels.label_map
    if labels.color_map:
        keys["color_map"] = {name: [list(c) for c in colors] for name, colors in labels.color_map.items()}
    return keys


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
