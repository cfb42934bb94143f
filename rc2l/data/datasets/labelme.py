"""labelme's own JSON files, one beside each image -> label maps, drawn once into a folder."""

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from rc2l.data.datasets.drawn_labels import write_label_folder
from rc2l.data.errors import DatasetError
from rc2l.data.file_listing import find_files, normalize_name
from rc2l.structures.label_map import IGNORE

#: How labelme names what is ignored, and what is no object.
IGNORE_LABEL = "__ignore__"
BACKGROUND_LABEL = "_background_"
#: Pixels across a line, and the radius of a point: what labelme's exporter draws.
_LINE_WIDTH, _POINT_RADIUS = 10, 5
#: Coordinates of points are at most this; what is drawn from there is no label.
_FARTHEST = 10**6
#: Least number of points of each type of shape; a circle is its centre and a point of its edge.
_LEAST_POINTS = {
    "polygon": 3,
    "rectangle": 2,
    "circle": 2,
    "line": 2,
    "linestrip": 2,
    "point": 1,
    "mask": 2,
}


def annotation_files(folder: Path) -> list[Path]:
    """labelme's JSON files below ``folder``; JSON files of other kinds are passed over."""
    return [path for path in find_files(folder, (".json",)) if _is_labelme(path)]


def labelme_classes(folder: Path) -> list[str]:
    """The names of classes in the annotations below ``folder``, in alphabetical order.

    Raises:
        DatasetError: a file cannot be read.
    """
    names = {shape["label"] for path in annotation_files(folder) for shape in read_annotation(path)["shapes"]}
    return sorted(names - {IGNORE_LABEL, BACKGROUND_LABEL})


def load_labelme(
    folder: Path, images: list[Path], classes: tuple[str, ...], background: str, cache: Path | None = None
) -> list[tuple[Path, Path | None]]:
    """(image file, label file) of ``images``; the label is None where an image has no JSON file beside it.

    Shapes are painted in the order of the file, later ones on top. What no shape covers is the class ``background``,
    or ignored where that is empty; so are shapes called ``__ignore__``, and those of names that are no class.
    Labels are drawn at the first call into ``<cache>/labelme-labels-<hash of all JSON files>``, or into a hidden folder
    of that name in ``folder``.

    Args:
        folder: of images and JSON files.
        images: those below ``folder``.
        classes: K names.
        background: one of ``classes``, or "".
        cache: where to draw the labels.

    Raises:
        DatasetError: a file is damaged or holds a shape that cannot be drawn, an annotation has no image, or the labels
            cannot be written.
    """
    by_key = {_key(image, folder): image for image in images}
    files: dict[Path, Path] = {}
    for path in annotation_files(folder):
        image = by_key.get(_key(path, folder)) or by_key.get(_key(_named_image(path), folder))
        if image is None:
            raise DatasetError(
                f"{path}: there is no image for this annotation: neither {path.stem}.* nor {_named_image(path)} is "
                "among the images; add it, or remove the annotation"
            )
        if image in files:
            raise DatasetError(f"{files[image]} and {path} are annotations of the same image; remove one of them")
        files[image] = path
    settings = json.dumps([classes, background]).encode()
    digest = hashlib.sha256(settings + b"".join(path.read_bytes() for path in files.values())).hexdigest()[:10]
    # Hidden, so that what is drawn beside the images is not taken for images.
    target = cache / f"labelme-labels-{digest}" if cache else folder / f".labelme-labels-{digest}"
    names = {image: _label_name(path, folder) for image, path in files.items()}
    if files and not target.exists():

        def draw() -> Iterator[tuple[str, np.ndarray]]:
            for image, path in tqdm(files.items(), "Drawing the labels of labelme", delay=3, disable=None):
                yield names[image], draw_annotation(read_annotation(path), classes, background, str(path))

        write_label_folder(target, draw())
    return [(image, target / names[image] if image in names else None) for image in images]


def read_annotation(path: Path) -> dict:
    """The content of one of labelme's files, its shapes checked.

    Raises:
        DatasetError: it is no JSON, or lacks what labelme writes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot read this annotation ({error}); save it again in labelme") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise DatasetError(f"{path}: there is no list 'shapes', as labelme's files have it")
    for edge in ("imageHeight", "imageWidth"):
        if not isinstance(content.get(edge), int) or content[edge] < 1:
            raise DatasetError(f"{path}: '{edge}' is {content.get(edge)!r}; it must be the image's, in pixels")
    for number, shape in enumerate(shapes):
        _check_shape(shape, f"{path}: shape {number}")
    return content


def draw_annotation(content: Mapping, classes: tuple[str, ...], background: str, where: str) -> np.ndarray:
    """(H, W) uint8 of the shapes of an annotation that :func:`read_annotation` read.

    Raises:
        DatasetError: a mask cannot be decoded, or lies outside of the image.
    """
    ids = {name: train_id for train_id, name in enumerate(classes)}
    below = ids[background] if background else IGNORE
    label = Image.new("L", (content["imageWidth"], content["imageHeight"]), below)
    canvas = ImageDraw.Draw(label)
    for number, shape in enumerate(content["shapes"]):
        name = shape["label"]
        value = below if name == BACKGROUND_LABEL else ids.get(name, IGNORE)
        points = [tuple(map(float, point)) for point in shape["points"]]
        kind = shape.get("shape_type") or "polygon"
        if kind == "polygon":
            canvas.polygon(points, fill=value, outline=value)
        elif kind == "rectangle":
            canvas.rectangle(_box(points), fill=value, outline=value)
        elif kind == "circle":
            canvas.ellipse(_around(points[0], math.dist(points[0], points[1])), fill=value, outline=value)
        elif kind == "point":
            canvas.ellipse(_around(points[0], _POINT_RADIUS), fill=value, outline=value)
        elif kind == "mask":
            _paste_mask(label, shape["mask"], _box(points), value, f"{where}: shape {number}")
        else:
            canvas.line(points, fill=value, width=_LINE_WIDTH)
    return np.asarray(label)


def _check_shape(shape: object, what: str) -> None:
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"]:
        raise DatasetError(f"{what} has no 'label' that is text; correct it in labelme")
    kind = shape.get("shape_type") or "polygon"
    if kind not in _LEAST_POINTS:
        raise DatasetError(f"{what} is a {kind!r}; what can be drawn are {', '.join(_LEAST_POINTS)}")
    points = shape.get("points")
    if (
        not isinstance(points, list)
        or len(points) < _LEAST_POINTS[kind]
        or any(
            not isinstance(point, list)
            or len(point) != 2
            or any(isinstance(x, bool) or not isinstance(x, (int, float)) or not abs(x) <= _FARTHEST for x in point)
            for point in points
        )
    ):
        raise DatasetError(
            f"{what} ({kind}) must have {_LEAST_POINTS[kind]} or more points [x, y], at most {_FARTHEST} pixels away"
        )
    if kind == "mask" and not isinstance(shape.get("mask"), str):
        raise DatasetError(f"{what} is a mask without the text 'mask'; save it again in labelme")


def _paste_mask(label: Image.Image, text: str, box: tuple[float, ...], value: int, what: str) -> None:
    """A mask is a PNG file in base64, whose upper left pixel is the first corner of its box."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
            mask = image.convert("L").point(lambda v: 255 if v else 0)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{what}: its mask is no PNG file in base64 ({error}); save it again in labelme") from error
    label.paste(value, (round(box[0]), round(box[1])), mask)


def _box(points: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = points[:2]
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _around(center: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
    return center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius


def _is_labelme(path: Path) -> bool:
    """By the content: a mapping with ``shapes`` and ``imagePath``; what is no JSON counts, to be named as damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return True
    return isinstance(content, dict) and "shapes" in content


def _named_image(path: Path) -> Path:
    """Where ``imagePath`` says that the image is; some files have been written under Windows."""
    named = read_annotation(path).get("imagePath")
    named = named.replace("\\", "/") if isinstance(named, str) and named else path.name
    return Path(os.path.normpath(path.parent / named))


def _key(path: Path, folder: Path) -> str:
    """Name of an image and of its annotation below ``folder``."""
    path = path.with_suffix("")
    return normalize_name(path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name)


def _label_name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix(".png").as_posix()
