"""COCO-style JSON files (instances, stuff, panoptic) -> label maps, drawn once into a folder beside the JSON file."""

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rc2l.data.datasets.coco_masks import decode_segmentation
from rc2l.data.datasets.drawn_labels import write_label_folder
from rc2l.data.errors import DatasetError
from rc2l.data.image_files import open_image
from rc2l.structures.label_map import IGNORE

#: Lists of a COCO file, and what each entry must have.
_LISTS = {"images": ("id", "file_name"), "annotations": ("image_id",), "categories": ("id", "name")}


def read_categories(path: Path) -> dict[int, str]:
    """Category id -> name, in order of the ids.

    Raises:
        DatasetError: the file is missing, no COCO JSON, or two categories share an id.
    """
    categories = read_json(path)["categories"]
    names = {category["id"]: category["name"] for category in categories}
    if len(names) < len(categories):
        raise DatasetError(f"{path}: two categories have the same id; give each category an id of its own")
    return dict(sorted(names.items()))


def load_coco(
    path: Path,
    images: Path,
    category_map: dict[int, int],
    background: bool,
    segments: Path | None = None,
    cache: Path | None = None,
) -> list[tuple[Path, Path | None]]:
    """(image file, label file) of every image of a COCO JSON file; the label is None where nothing is annotated.

    Annotations are painted in the order of the file, later ones on top; crowds become 255. Pixels without annotation
    are 0 where there is a ``background``, else 255. Labels are drawn at the first call into
    ``<cache>/<name of the JSON>-labels-<hash>``, which appears complete or not at all.

    Args:
        path: the JSON file.
        images: folder that its file names are relative to.
        category_map: category id -> train id, or 255 to ignore.
        background: pixels without annotation are class 0, also those of images without any annotation.
        segments: folder of the PNG files of a panoptic JSON; default: the folder named as the JSON, beside it.
        cache: where to draw the labels; default: beside the JSON file.

    Raises:
        DatasetError: the file is missing or no COCO JSON, an annotation cannot be used, or the labels cannot be
            written.
    """
    content = read_json(path)
    pictures = {picture["id"]: picture for picture in content["images"]}
    annotations = _by_image(path, content, pictures, category_map)
    folder = (cache or path.parent) / f"{path.stem}-labels-{_digest(path, category_map, background)}"
    panoptic = _is_panoptic(content)
    segments = segments or path.with_suffix("")
    labeled = [picture for key, picture in pictures.items() if background or annotations[key]]
    if labeled and not folder.exists():

        def draw() -> Iterator[tuple[str, np.ndarray]]:
            for picture in tqdm(labeled, f"Drawing the labels of {path.name}", delay=3, disable=None):
                own = annotations[picture["id"]]
                if panoptic:
                    label = _draw_panoptic(path, picture, own, segments, category_map, background)
                else:
                    label = _draw_masks(path, picture, own, category_map, background)
                yield _label_name(picture), label

        write_label_folder(folder, draw())
    with_label = {picture["id"] for picture in labeled}
    return [
        (images / picture["file_name"], folder / _label_name(picture) if key in with_label else None)
        for key, picture in pictures.items()
    ]


def read_json(path: Path) -> dict:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; 'coco' names a COCO-style JSON file")
    state = path.stat()
    return _parse(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _parse(path: Path, modified: int, size: int) -> dict:
    """The content of a JSON file; the other arguments make a changed file another entry of the cache."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{path}: this is no JSON file ({error}); export the annotations again") from error
    for key, needed in _LISTS.items():
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise DatasetError(f"{path}: there is no list '{key}'; a COCO file has images, annotations and categories")
        for item in items:
            for name in needed:
                kind, wanted = (str, "text") if name.endswith("name") else (int, "a number")
                if not isinstance(item, dict) or not isinstance(item.get(name), kind):
                    raise DatasetError(
                        f"{path}: an entry of '{key}' has no '{name}' that is {wanted}: {str(item)[:80]}; correct it"
                    )
    return content


def _by_image(path: Path, content: dict, pictures: dict, category_map: dict[int, int]) -> dict[int, list[dict]]:
    """Annotations of each image, in the order of the file; all references are checked."""
    if len(pictures) < len(content["images"]):
        raise DatasetError(f"{path}: two images have the same id; give each image an id of its own")
    names: set[str] = set()
    for picture in pictures.values():
        name = _label_name(picture)
        if name in names:
            raise DatasetError(f"{path}: the image file {picture['file_name']} is listed twice; list it once")
        names.add(name)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DatasetError(
                f"{path}: file_name {picture['file_name']} leaves the image folder; use paths below 'images'"
            )
    grouped: dict[int, list[dict]] = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation["image_id"] not in pictures:
            raise DatasetError(
                f"{path}: annotation {annotation.get('id', '')} is of image {annotation['image_id']}, which is not "
                "among 'images'; add the image or remove the annotation"
            )
        for part in annotation.get("segments_info", [annotation]):
            if part.get("category_id") not in category_map:
                raise DatasetError(
                    f"{path}: annotation {part.get('id', '')} has category {part.get('category_id')}, which is not "
                    f"among the categories {', '.join(map(str, category_map))}; correct it or add the category"
                )
        grouped[annotation["image_id"]].append(annotation)
    return grouped


def _is_panoptic(content: dict) -> bool:
    return any("segments_info" in annotation for annotation in content["annotations"])


def _label_name(picture: dict) -> str:
    return str(Path(picture["file_name"]).with_suffix(".png"))


def _digest(path: Path, category_map: dict[int, int], background: bool) -> str:
    settings = json.dumps([sorted(category_map.items()), background]).encode()
    return hashlib.sha256(path.read_bytes() + settings).hexdigest()[:10]


def _empty_label(path: Path, picture: dict, background: bool) -> np.ndarray:
    size = (picture.get("height"), picture.get("width"))
    if not all(isinstance(edge, int) and edge > 0 for edge in size):
        raise DatasetError(f"{path}: image {picture['file_name']} has no height and width; add both, in pixels")
    return np.full(size, 0 if background else IGNORE, dtype=np.uint8)


def _draw_masks(
    path: Path, picture: dict, annotations: list[dict], category_map: dict[int, int], background: bool
) -> np.ndarray:
    """(H, W) uint8 of polygons and run-length encodings."""
    label = _empty_label(path, picture, background)
    for annotation in annotations:
        what = f"{path}: annotation {annotation.get('id', '')} of {picture['file_name']}"
        mask = decode_segmentation(annotation.get("segmentation"), label.shape, what)
        label[mask] = IGNORE if annotation.get("iscrowd") else category_map[annotation["category_id"]]
    return label


def _draw_panoptic(
    path: Path,
    picture: dict,
    annotations: list[dict],
    segments: Path,
    category_map: dict[int, int],
    background: bool,
) -> np.ndarray:
    """(H, W) uint8 of the PNG file of a panoptic annotation, whose colours are segment ids R + 256 G + 256² B."""
    label = _empty_label(path, picture, background)
    for annotation in annotations:
        file = segments / annotation.get("file_name", _label_name(picture))
        try:
            with open_image(str(file), sys.maxsize) as image:
                size = image.size
                colors = image.decode()[..., :3].astype(np.int32) if size == label.shape else None
        except (OSError, SyntaxError, ValueError) as error:
            reason = "it does not exist" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
            raise DatasetError(
                f"{file}: cannot read this file of panoptic segments ({reason}); 'labels' names their folder"
            ) from error
        if colors is None:
            raise DatasetError(
                f"{file} is {size[1]}x{size[0]} pixels (width x height), but {path} says "
                f"{label.shape[1]}x{label.shape[0]}; both must be equal"
            )
        ids = colors @ np.array([1, 256, 65536])
        classes = {0: int(label[0, 0])}
        for segment in annotation["segments_info"]:
            classes[segment["id"]] = IGNORE if segment.get("iscrowd") else category_map[segment["category_id"]]
        present, inverse = np.unique(ids, return_inverse=True)
        unknown = [int(number) for number in present if int(number) not in classes]
        if unknown:
            raise DatasetError(f"{file}: segment {unknown[0]} is not in segments_info of {path}; export them together")
        label = np.array([classes[int(number)] for number in present], dtype=np.uint8)[inverse].reshape(label.shape)
    return label
