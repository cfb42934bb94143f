"""Images and labels of someone's own dataset: folders, glob patterns, list files -> dataset dicts."""

import glob
import logging
from collections.abc import Iterable
from pathlib import Path

from detectron2.utils.logger import log_first_n

from rc2l.data.datasets.class_masks import join_masks, match_masks, suggest_masks
from rc2l.data.datasets.coco import load_coco
from rc2l.data.datasets.description import Description, Source
from rc2l.data.datasets.image_ids import image_ids, validation_ids
from rc2l.data.datasets.labelme import load_labelme
from rc2l.data.errors import DatasetError
from rc2l.data.file_listing import existing_path, find_by_pattern, find_files, is_system_name, normalize_name

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
LABEL_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff")
#: Files that people keep label maps in and that cannot be read as such.
_OTHER_LABEL_SUFFIXES = (".npy", ".jpg", ".jpeg", ".json", ".mat", ".xml", ".webp")

#: An image and its label, if it has one.
Pair = tuple[Path, Path | None]


def load_subset(description: Description, subset: str) -> list[dict]:
    """Dataset dicts of "train", "val" or "unlabeled".

    The image id is the path below the images' own folder (:func:`~rc2l.data.datasets.image_ids.image_ids`), so a split
    does not depend on where the data lies.
    Training images without a label file have no ``sem_seg_file_name``: they are unlabelled.

    Raises:
        DatasetError: there are no images or no labels, or a list names a file that is not there.
    """
    name = f"{description.name}_sem_seg_{subset}"
    if subset == "unlabeled":
        pairs = [(image, None) for image, _ in _pairs(description, description.sources[subset], name)]
    elif description.val_fraction:
        pairs = _share(description, _pairs(description, description.sources["train"], name), subset, name)
    else:
        pairs = _pairs(description, description.sources[subset], name)
    if subset == "train" and description.train_is_rest:
        validation = {image for image, _ in _pairs(description, description.sources["val"], name)}
        pairs = [pair for pair in pairs if pair[0] not in validation]
        if not pairs:
            raise DatasetError(f"dataset '{name}': all images are in 'val'; leave some for training")
    without = [image for image, label in pairs if label is None]
    if subset == "val" and without:
        raise DatasetError(
            f"dataset '{name}': {len(without)} of {len(pairs)} images have no label, first {without[0]}; add their "
            "labels, or take them out of 'val'"
        )
    if subset == "train" and len(without) == len(pairs):
        raise DatasetError(
            f"dataset '{name}': none of the {len(pairs)} images has a label; give 'labels', write the label's path "
            "behind the image's in the list, or name these images in 'unlabeled'"
        )
    if subset == "train" and without:
        log_first_n(
            logging.INFO,
            f"{name}: {len(pairs) - len(without)} of {len(pairs)} images have a label, the others are unlabelled",
            name="rc2l",
            key="message",
        )
    if subset == "train" and description.masks and (unmatched := labels_without_image(description)):
        log_first_n(
            logging.WARNING,
            f"{name}: {len(unmatched)} files in the folder of masks are masks of no image and not used, first "
            f"{unmatched[0]}; correct their names or 'masks'",
            name="rc2l",
            key="message",
        )
    ids = image_ids(description, [image for image, _ in pairs])
    return [
        {"file_name": str(image), "image_id": image_id} | ({} if label is None else {"sem_seg_file_name": str(label)})
        for image_id, (image, label) in zip(ids, pairs, strict=True)
    ]


def labels_without_image(description: Description) -> list[Path]:
    """Files in the label folders that belong to no image of any subset."""
    sources = [source for subset, source in description.sources.items() if subset != "unlabeled" and not source.coco]
    if description.masks:
        return _masks_without_image(description, sources)
    used = {label for source in sources for _, label in _pairs(description, source, description.name)}
    folders = dict.fromkeys(source.labels for source in sources if source.labels)
    return sorted({path for folder in folders for path in _label_index(folder, description).values()} - used)


def _share(description: Description, pairs: list[Pair], subset: str, name: str) -> list[Pair]:
    """The part of ``pairs`` that is "train" or "val" by ``val_fraction``, by the hash of each image id."""
    labeled = [pair for pair in pairs if pair[1] is not None]
    if len(labeled) < 2:
        raise DatasetError(
            f"dataset '{name}': 'val_fraction' needs 2 or more images with labels, but there are {len(labeled)}; label "
            "more of them"
        )
    ids = image_ids(description, [image for image, _ in labeled])
    chosen = validation_ids(ids, description.val_fraction, description.name)
    validation = {image for image_id, (image, _) in zip(ids, labeled, strict=True) if image_id in chosen}
    return [pair for pair in pairs if (pair[0] in validation) == (subset == "val")]


def _pairs(description: Description, source: Source, name: str) -> list[Pair]:
    """All images of a source with their labels, in order of the list or of the paths."""
    if source.coco:
        images = source.images or description.root
        pairs = load_coco(
            source.coco,
            images,
            description.category_map,
            description.background,
            source.labels,
            description.label_cache,
        )
        pairs.sort()
        return _select(description, source, pairs, images, name) if source.list_file else pairs
    if not source.images:
        return _select(description, source, None, description.root, name)
    base, images = _find_images(description, source, name)
    if source.labelme:
        background = description.classes[0] if description.background else ""
        pairs = load_labelme(source.labelme, images, description.classes, background, description.label_cache)
    elif source.labels and description.masks:
        pairs = _attach_masks(description, source, base, images, name)
    elif source.labels:
        pairs = _attach_labels(description, source, base, images, name)
    else:
        pairs = [(image, None) for image in images]
    return _select(description, source, pairs, base, name) if source.list_file else pairs


def _find_images(description: Description, source: Source, name: str) -> tuple[Path, list[Path]]:
    """The folder that label paths mirror, and the images below it."""
    pattern = existing_path(source.images) or source.images
    if pattern.is_dir():
        base, images = pattern, find_files(pattern, IMAGE_SUFFIXES)
    elif glob.has_magic(str(pattern.relative_to(_existing_folder(pattern)))):
        base, images = find_by_pattern(pattern, IMAGE_SUFFIXES)
    elif pattern.exists():
        raise DatasetError(
            f"dataset '{name}': 'images' is {pattern}, which is a file; give a folder, a glob pattern, or a list of "
            "images that ends in .txt"
        )
    else:
        raise DatasetError(f"dataset '{name}': {pattern} does not exist; correct 'images' or 'root'")
    if source.labels == base and description.masks:
        masks = description.masks.expression(known=False)
        images = [path for path in images if not masks.fullmatch(normalize_name(path.relative_to(base).as_posix()))]
    if source.labels and source.labels != base:
        images = [path for path in images if source.labels not in path.parents]
    elif source.labels and description.label_suffix:
        images = [path for path in images if not path.stem.endswith(description.label_suffix)]
    images = [path for path in images if path.stem.endswith(description.image_suffix)]
    if source.labels == base and not description.masks:
        # Labels that are named after the whole file of their image, 000.jpg.png, in the same folder.
        names = set(images)
        images = [path for path in images if path.with_suffix("") not in names]
    if source.labels == base and len({path.with_suffix("") for path in images}) < len(images):
        raise DatasetError(
            f"dataset '{name}': {base} holds images and labels of the same names; tell them apart by 'label_suffix' or "
            f"by a pattern such as images: {base.name}/*.jpg"
        )
    if not images:
        ending = f" whose name ends in '{description.image_suffix}'" if description.image_suffix else ""
        raise DatasetError(
            f"dataset '{name}': {pattern} holds no images{ending}; files of {', '.join(IMAGE_SUFFIXES)} are looked for"
        )
    return base, images


def _existing_folder(path: Path) -> Path:
    """The nearest folder above ``path`` that exists: whatever its name, it is no pattern."""
    return next(parent for parent in path.parents if parent.is_dir())


def _label_index(folder: Path, description: Description) -> dict[str, Path]:
    """Path below ``folder`` without ``label_suffix`` and file suffix -> label file."""
    index: dict[str, Path] = {}
    suffix = normalize_name(description.label_suffix)
    for path in find_files(folder, LABEL_SUFFIXES, each_once=False):
        if not normalize_name(path.stem).endswith(suffix):
            continue
        key = _key(path, folder, suffix)
        if key in index:
            raise DatasetError(f"{index[key]} and {path.name} are labels of the same image; remove one of them")
        index[key] = path
    return index


def _key(path: Path, folder: Path, suffix: str) -> str:
    return normalize_name(path.relative_to(folder).with_suffix("").as_posix()).removesuffix(normalize_name(suffix))


def _mask_keys(description: Description, base: Path, images: list[Path]) -> dict[str, list[Path]]:
    """What may stand for {image} in the name of a mask -> the images of that name, with or without suffix."""
    keys: dict[str, list[Path]] = {}
    for image in images:
        for key in (_key(image, base, description.image_suffix), normalize_name(image.relative_to(base).as_posix())):
            keys.setdefault(key, []).append(image)
    return keys


def _attach_masks(description: Description, source: Source, base: Path, images: list[Path], name: str) -> list[Pair]:
    """Images with the label maps that their masks give."""
    _check_label_folder(source, name)
    masks, unmatched = match_masks(source.labels, description.masks, _mask_keys(description, base, images))
    if not masks:
        first = f", but {unmatched[0].relative_to(source.labels)}" if unmatched else ", which is empty"
        raise DatasetError(
            f"dataset '{name}': none of the {len(images)} images below {base}, such as {images[0].relative_to(base)}, "
            f"has a mask '{description.masks.pattern}' in {source.labels}{first}; correct 'masks' or 'labels'"
        )
    labels = join_masks(source.labels, description.masks, masks, base, description.image_rule, description.label_cache)
    return [(image, labels.get(image)) for image in images]


def _masks_without_image(description: Description, sources: list[Source]) -> list[Path]:
    used: set[Path] = set()
    unmatched: dict[Path, None] = {}
    for source in sources:
        base, images = _find_images(description, source, description.name)
        masks, others = match_masks(source.labels, description.masks, _mask_keys(description, base, images))
        used |= {path for own in masks.values() for _, path in own}
        # Beside the masks, images are no masks.
        unmatched |= dict.fromkeys(path for path in others if path not in images)
    return [path for path in unmatched if path not in used]


def _check_label_folder(source: Source, name: str) -> None:
    if not source.labels.is_dir():
        raise DatasetError(f"dataset '{name}': the label folder {source.labels} does not exist; correct 'labels'")


def _attach_labels(description: Description, source: Source, base: Path, images: list[Path], name: str) -> list[Pair]:
    _check_label_folder(source, name)
    index = _label_index(source.labels, description)
    pairs = [(image, _own_label(image, base, index, description)) for image in images]
    pairs = [(image, None if label == image else label) for image, label in pairs]
    if all(label is None for _, label in pairs):
        several = _several_masks(images[0], index, source.labels, description.classes)
        expected = source.labels / f"{_key(images[0], base, description.image_suffix)}{description.label_suffix}.png"
        raise DatasetError(
            f"dataset '{name}': none of the {len(images)} images below {base} has a label in {source.labels}, such as "
            f"{expected.name} for {images[0].name}; {several or _label_hint(source.labels)}"
        )
    return pairs


def _own_label(image: Path, base: Path, index: dict[str, Path], description: Description) -> Path | None:
    """The label with the image's name, or with the name of its whole file: 000.png or 000.jpg.png for 000.jpg."""
    by_stem = index.get(_key(image, base, description.image_suffix))
    by_file = index.get(normalize_name(image.relative_to(base).as_posix()))
    if by_stem and by_file and image not in (by_stem, by_file):
        raise DatasetError(f"{by_stem} and {by_file.name} are labels of the same image; remove one of them")
    return by_file or by_stem


def _several_masks(image: Path, index: dict[str, Path], folder: Path, classes: tuple[str, ...]) -> str:
    """What to do where the folder has one mask for each class of an image; empty where it has not."""
    own = [path.relative_to(folder).as_posix() for key, path in index.items() if normalize_name(image.stem) in key]
    if len(own) < 2:
        return ""
    return (
        f"there are {len(own)} masks of it, first {own[0]}: one mask for each class is joined by {{image}} and "
        f"{{class}} in the key 'masks', such as {suggest_masks(image, own, classes)}"
    )


def _label_hint(folder: Path) -> str:
    """What to do where no label fits: depends on what the folder holds instead."""
    suffixes = sorted({p.suffix.lower() for p in folder.rglob("*") if p.is_file() and not is_system_name(p.name)})
    other = [suffix for suffix in suffixes if suffix in _OTHER_LABEL_SUFFIXES]
    if other and not set(suffixes) & set(LABEL_SUFFIXES):
        return f"the folder holds {', '.join(other)} files; save the labels as PNG files"
    return "correct 'labels', 'label_suffix' or 'image_suffix'"


def _select(description: Description, source: Source, pairs: list[Pair] | None, base: Path, name: str) -> list[Pair]:
    """The images that the list file names, in its order.

    A line is an id (a path without suffix) or a path of an image, or the paths of an image and its label. Paths are
    relative to the image folder or to ``root``.
    """
    lines = _read_lines(source.list_file)
    labels = dict(pairs) if pairs is not None else {}
    index = _line_index(description, labels, base)
    selected: dict[Path, tuple[Path | None, int]] = {}
    label_index = None
    for number, line in lines:
        where = f"{source.list_file}:{number}"
        image, label = _find(line, index, description, pairs is None), None
        words = _pair_of_paths(line)
        if image is None and len(words) == 2:
            image, label = _find(words[0], index, description, pairs is None), _file(words[1], description.root)
            if image is not None and label is None:
                raise DatasetError(
                    f"{where}: the label {words[1]} does not exist below {description.root}; correct the list"
                )
        if image is None:
            raise DatasetError(
                f"{where}: '{line}' is no image below {base}; correct the line: an id, the path of an image, or the "
                "paths of an image and its label"
            )
        if image in selected:
            raise DatasetError(f"{where}: '{line}' is also in line {selected[image][1]}; list every image once")
        if label is None and pairs is None and source.labels:
            if label_index is None:
                label_index = _label_index(source.labels, description)
            label = _label_of(image, label_index, description)
        selected[image] = (label or labels.get(image), number)
    return [(image, label) for image, (label, _) in selected.items()]


def _pair_of_paths(line: str) -> list[str]:
    """The two paths of a line, which a tab or else a comma divides, so that names can hold spaces; else blanks do."""
    for divider in ("\t", ","):
        words = [word.strip() for word in line.split(divider) if word.strip()]
        if len(words) == 2:
            return words
    return line.split()


def _label_of(image: Path, index: dict[str, Path], description: Description) -> Path | None:
    """The label whose path is the longest end of the image's path."""
    folders = tuple(map(normalize_name, image.parts[1:-1]))
    stem = normalize_name(image.stem).removesuffix(normalize_name(description.image_suffix))
    for parts in ((*folders, stem), (*folders, normalize_name(image.name))):
        for start in range(len(parts)):
            if (key := "/".join(parts[start:])) in index:
                return index[key]
    return None


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, text) of all lines that are not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise DatasetError(f"{path}: cannot read this list of images ({reason}); correct its path") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise DatasetError(f"{path}: this list of images is empty; write one id or path a line")
    return lines


def _line_index(description: Description, images: Iterable[Path], base: Path) -> dict[str, Path]:
    """All texts that name an image: paths below the image folder and below root, with and without suffix."""
    index: dict[str, Path] = {}
    for image in images:
        names = [image.relative_to(base).as_posix()]
        if image.is_relative_to(description.root):
            names.append(image.relative_to(description.root).as_posix())
        for text in names:
            stem = text.removesuffix(image.suffix)
            for key in (text, stem, stem.removesuffix(description.image_suffix)):
                index.setdefault(normalize_name(key), image)
    return index


def _find(text: str, index: dict[str, Path], description: Description, anywhere: bool) -> Path | None:
    """The image that a line names; ``anywhere``: there is no image folder, so look below root."""
    name = normalize_name(text)
    image = index.get(name) or index.get(name.removeprefix("./").lstrip("/"))
    if image is None and anywhere:
        endings = ("", *(f"{description.image_suffix}{suffix}" for suffix in IMAGE_SUFFIXES))
        candidates = (_file(text + ending, description.root) for ending in endings)
        image = next((path for path in candidates if path and path.suffix.lower() in IMAGE_SUFFIXES), None)
    return image


def _file(text: str, root: Path) -> Path | None:
    """The file ``text``, absolute or below ``root``; published lists start paths below root with a slash."""
    for path in (root / text, root / text.lstrip("/")):
        found = existing_path(path)
        if found is not None and found.is_file():
            return found
    return None
