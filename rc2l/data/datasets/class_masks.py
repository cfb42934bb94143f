"""One mask for each class of an image, as brush tools export them -> label maps, drawn once into a folder."""

import difflib
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rc2l.data.datasets.drawn_labels import write_label_folder
from rc2l.data.errors import DatasetError
from rc2l.data.file_listing import find_files, normalize_name
from rc2l.data.image_files import open_image
from rc2l.data.image_rule import ImageRule
from rc2l.data.reading import READ_ERRORS, read_image_size, unreadable
from rc2l.structures.label_map import IGNORE

#: What masks are saved in: JPEG would blur their edges into every value.
MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff")
_PLACEHOLDERS = re.compile(r"\{(\w*)\}")

#: Image -> its masks: (train id, file).
Masks = dict[Path, list[tuple[int, Path]]]


@dataclass(frozen=True)
class MaskNames:
    """Which masks there are of which image and class, by their names.

    ``pattern`` is a path below the folder of masks with {image} (the image's path below its own folder, with or without
    suffix), {class} (a name or an id), perhaps {n} (a number) and "*" (anything within a name).
    """

    pattern: str
    #: Class names, and ids as text -> train id, or 255 to ignore.
    train_ids: dict[str, int]
    #: Train id of pixels in no mask, or 255.
    background: int

    def expression(self, greedy: bool = True, known: bool = True) -> re.Pattern:
        """A regular expression for names; ``known``: for those of known classes only."""
        names = "|".join(re.escape(name) for name in sorted(self.train_ids, key=len, reverse=True))
        parts = {
            "image": f"(?P<image>.+{'' if greedy else '?'})",
            "class": rf"(?P<class>{names}|\d+)" if known else "(?P<class>[^/]+)",
            "n": r"\d+",
        }
        stem, suffix = self.pattern.rsplit(".", 1)
        pieces = _PLACEHOLDERS.split(normalize_name(stem))
        text = "".join(
            parts[piece] if position % 2 else re.escape(piece).replace(r"\*", "[^/]*")
            for position, piece in enumerate(pieces)
        )
        return re.compile(rf"{text}\.(?i:{re.escape(suffix)})")

    def train_id(self, name: str) -> int | None:
        """Of what stands for {class}; None where it is no class."""
        return self.train_ids.get(name, self.train_ids.get(str(int(name))) if name.isdecimal() else None)


def read_mask_names(
    pattern: object, classes: tuple[str, ...], label_map: dict[int, int] | None, background: str, where: str
) -> MaskNames:
    """Check what 'masks' says.

    Args:
        pattern: the value of 'masks'.
        classes: K names.
        label_map: id in names -> train id; None: ids are train ids.
        background: one of ``classes``, or "".
        where: what error messages start with.

    Raises:
        DatasetError: it is no pattern with {image} and {class}.
    """
    example = '"{image}-{class}.png" or "{class}/{image}.png"'
    found = _PLACEHOLDERS.findall(pattern) if isinstance(pattern, str) else []
    if sorted(set(found) - {"n"}) != ["class", "image"] or len(found) > len(set(found)):
        raise DatasetError(
            f"{where}: 'masks' is {pattern!r}; it must be a path below 'labels' with {{image}} and {{class}}, each "
            f"once, and perhaps {{n}} (a number), such as {example}"
        )
    if not pattern.lower().endswith(MASK_SUFFIXES):
        raise DatasetError(
            f"{where}: 'masks' is {pattern!r}; it must end in one of {', '.join(MASK_SUFFIXES)}, such as {example}"
        )
    ids = {train_id: train_id for train_id in range(len(classes))} if label_map is None else label_map
    names = {str(raw_id): train_id for raw_id, train_id in ids.items()}
    names |= {normalize_name(name): train_id for train_id, name in enumerate(classes)}
    return MaskNames(pattern.removeprefix("./"), names, classes.index(background) if background else IGNORE)


def match_masks(folder: Path, names: MaskNames, images: dict[str, list[Path]]) -> tuple[Masks, list[Path]]:
    """The masks of each image, and the files below ``folder`` that are masks of none.

    Args:
        folder: of masks.
        names: how they are named.
        images: what may stand for {image} -> the images that it means.

    Raises:
        DatasetError: the mask of an image is of a class that is not known, or may be of several images.
    """
    known = [names.expression(greedy) for greedy in (True, False)]
    other = [names.expression(greedy, known=False) for greedy in (True, False)]
    masks: Masks = defaultdict(list)
    unmatched = []
    for path in find_files(folder, MASK_SUFFIXES, each_once=False):
        name = normalize_name(path.relative_to(folder).as_posix())
        fits = [match for each in known if (match := each.fullmatch(name)) and match["image"] in images]
        fits = [match for match in fits if names.train_id(match["class"]) is not None]
        meanings = {(match["image"], match["class"]) for match in fits}
        if len(meanings) > 1:
            (first, _), (second, _) = sorted(meanings)
            raise DatasetError(f"{path}: this may be a mask of image '{first}' or of '{second}'; rename one of them")
        if meanings:
            key, label = meanings.pop()
            for image in images[key]:
                masks[image].append((names.train_id(label), path))
            continue
        for match in filter(None, (each.fullmatch(name) for each in other)):
            if match["image"] in images:
                close = difflib.get_close_matches(match["class"], names.train_ids, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(list(names.train_ids)[:40])}"
                raise DatasetError(
                    f"{path}: this is a mask of '{match['class']}', which is no class ({hint}); rename it, add the "
                    "class, or correct 'masks'"
                )
        unmatched.append(path)
    return dict(masks), unmatched


def join_masks(
    folder: Path, names: MaskNames, masks: Masks, base: Path, rule: ImageRule, cache: Path | None = None
) -> dict[Path, Path]:
    """The label map of each image that has masks, drawn at the first call.

    A pixel belongs to a mask where that is not 0 (not black, not transparent). Where masks overlap, the class with the
    larger id lies on top. The labels are in a hidden folder beside that of the masks, or in ``cache``; its name holds a
    hash of the names, sizes and times of all masks.

    Args:
        folder: of masks.
        names: how they are named, and the class of pixels in no mask.
        masks: as of :func:`match_masks`.
        base: folder of the images.
        rule: how images are read.
        cache: where to draw the labels.

    Raises:
        DatasetError: a mask is damaged or of another size than its image, or the labels cannot be written.
    """
    files = sorted((str(image), train_id, str(path)) for image, own in masks.items() for train_id, path in own)
    states = [(image, train_id, path, _state(Path(path))) for image, train_id, path in files]
    digest = hashlib.sha256(json.dumps([states, names.background]).encode()).hexdigest()[:10]
    target = cache / f"{folder.name}-joined-{digest}" if cache else folder.parent / f".{folder.name}-joined-{digest}"
    labels = {image: f"{image.relative_to(base).as_posix()}.png" for image in masks}
    if masks and not target.exists():

        def draw() -> Iterator[tuple[str, np.ndarray]]:
            for image, own in tqdm(masks.items(), f"Joining the masks of {folder.name}", delay=3, disable=None):
                yield labels[image], _join(image, own, names.background, rule)

        write_label_folder(target, draw())
    return {image: target / label for image, label in labels.items()}


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:  # a link to nothing, which reading it will name
        return None
    return status.st_size, status.st_mtime_ns


def _join(image: Path, masks: list[tuple[int, Path]], background: int, rule: ImageRule) -> np.ndarray:
    """(H, W) uint8."""
    try:
        size = read_image_size(str(image), rule)
    except DatasetError:  # found, and named, where images are checked
        size = None
    label = None
    for train_id, path in sorted(masks):
        mask = _read_mask(path, rule)
        size = size or mask.shape
        if mask.shape != size:
            raise DatasetError(
                f"{path}: this mask is {mask.shape[1]}x{mask.shape[0]} pixels (width x height), but {image} has "
                f"{size[1]}x{size[0]}, upright; both must have the same size"
            )
        label = np.full(size, background, dtype=np.uint8) if label is None else label
        label[mask] = train_id
    return label


def _read_mask(path: Path, rule: ImageRule) -> np.ndarray:
    """(H, W) bool."""
    try:
        with open_image(str(path), rule.max_pixels, label=True) as image:
            values = image.decode()
            return values[..., : image.bands].any(axis=2) & values[..., image.bands :].all(axis=2)
    except READ_ERRORS as error:
        raise unreadable("label", str(path), error) from error


def suggest_masks(image: Path, files: list[str], classes: tuple[str, ...]) -> str:
    """What to write into a description, where an image has several masks and no key says what they are.

    Args:
        image: one that has masks.
        files: their paths below the folder of labels.
        classes: K names.
    """
    patterns, seen = Counter(), set()
    by_length = sorted(classes, key=len, reverse=True)
    for file in files:
        name = normalize_name(file)
        stem = next((text for text in (image.name, image.stem) if normalize_name(text) in name), image.stem)
        before, _, after = name.partition(normalize_name(stem))
        label = next((each for each in by_length if normalize_name(each) in before + "\n" + after), None)
        if label is None:
            continue
        seen.add(label)
        found = "{image}".join(part.replace(normalize_name(label), "{class}") for part in (before, after))
        if found.count("{class}") == 1:
            patterns[re.sub(r"\d+(?=\.\w+$)", "{n}", found)] += 1
    pattern = patterns.most_common(1)[0][0] if patterns else "{image}-{class}.png"
    others = [name for name in classes if name not in seen]
    rest = others[0] if patterns and len(others) == 1 else "<class of pixels in no mask>"
    return f'masks: "{pattern}" and background: {rest}'
