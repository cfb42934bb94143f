"""Everything about a dataset's files that can be found out by reading each once: classes, sizes, damage, duplicates."""

import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from rc2l.data.check import attempt_all, check_labeled
from rc2l.data.datasets import load_records
from rc2l.data.datasets.custom import custom_description
from rc2l.data.datasets.folder import labels_without_image
from rc2l.data.errors import DamagedImageError, DatasetError
from rc2l.data.faults import (
    absent_classes,
    class_lists_problem,
    class_table,
    one_class_problem,
    only_zero_problem,
    overlap_problem,
    unseen_classes,
)
from rc2l.data.image_rule import dataset_rule, record_rule
from rc2l.data.reading import read_image
from rc2l.data.value_report import StoredValues, report_values, stored_values
from rc2l.data.whole_files import WholeFiles, whole_files
from rc2l.structures.label_map import IGNORE

#: Ends of the names of datasets that models are tested on.
_TEST_ENDINGS = ("_val", "_test")
#: Sizes that a report lists.
_SHOWN_SIZES = 5
#: Millions of pixels of an image, on average, from which on reading is likely to be what training waits for.
_LARGE_IMAGES = 3.0


@dataclass
class Inspection:
    """What one image and its label say."""

    #: (height, width).
    size: tuple[int, int]
    #: SHA-256 of the image file.
    digest: str
    #: (256,) pixels of each train id, or None without a label.
    pixels: np.ndarray | None
    #: Values before ``value_range`` and ``bands``; None where the dataset has neither.
    values: StoredValues | None = None
    #: What decoding both took of one core.
    seconds: float = 0.0


@dataclass
class DatasetReport:
    """What the files of one dataset say."""

    name: str
    records: list[dict]
    #: One for each record; None where it is damaged.
    inspections: list[Inspection | None]
    #: What must be corrected, one line each.
    problems: list[str] = field(default_factory=list)
    #: What may be as it should, one line each.
    notes: list[str] = field(default_factory=list)

    @property
    def pixels(self) -> np.ndarray:
        """(256,) pixels of each train id in all labels."""
        counts = [i.pixels for i in self.inspections if i is not None and i.pixels is not None]
        return np.sum(counts, axis=0) if counts else np.zeros(IGNORE + 1, dtype=np.int64)

    @property
    def images(self) -> np.ndarray:
        """(256,) number of images that show each train id."""
        counts = [i.pixels > 0 for i in self.inspections if i is not None and i.pixels is not None]
        return np.sum(counts, axis=0) if counts else np.zeros(IGNORE + 1, dtype=np.int64)

    def text(self) -> str:
        """Title, table of classes and sizes."""
        labeled = sum("sem_seg_file_name" in record for record in self.records)
        lines = [f"{self.name}: {len(self.records)} images, {labeled} with labels"]
        if labeled:
            lines.append(class_table(self.name, self.pixels, self.images))
        sizes = Counter(inspection.size for inspection in self.inspections if inspection is not None)
        shown = ", ".join(f"{count} of {w}x{h}" for (h, w), count in sizes.most_common(_SHOWN_SIZES))
        more = f", {len(sizes) - _SHOWN_SIZES} other sizes" if len(sizes) > _SHOWN_SIZES else ""
        lines.append(f"sizes (width x height): {shown or 'none'}{more}")
        if len(sizes) > 1:
            (smallest, largest) = (end(sizes, key=lambda size: (size[0] * size[1], size)) for end in (min, max))
            lines[-1] += f"; smallest {smallest[1]}x{smallest[0]}, largest {largest[1]}x{largest[0]}"
        return "\n".join(lines)


def inspect_image(record: dict, whole: WholeFiles) -> Inspection:
    """Decode an image and its label, with all checks of one pair.

    Raises:
        DatasetError: a file is missing or damaged, sizes differ, or an id or a colour has no class.
    """
    start = time.thread_time()
    rule, values = record_rule(record), None
    if rule.describe():
        values, size = stored_values(record["file_name"], rule)
    else:
        size = read_image(record["file_name"], "RGB", rule).shape[:2]
    pixels = check_labeled(record) if "sem_seg_file_name" in record else None
    seconds = time.thread_time() - start
    whole.check(record["file_name"])
    digest = hashlib.sha256(Path(record["file_name"]).read_bytes()).hexdigest()
    return Inspection(size, digest, pixels, values, seconds)


def audit_dataset(name: str, workers: int | None = None, skip_damaged: bool = False) -> DatasetReport:
    """Read every file of a registered dataset once, in ``workers`` threads.

    ``skip_damaged`` is what ``DATASETS.DAMAGED skip`` says: a damaged image without label is a note, no problem.

    Raises:
        DatasetError: the dataset as a whole cannot be loaded: it is unknown, or its folders or lists are missing.
    """
    records = load_records(name)
    whole = whole_files(name)
    results = attempt_all(partial(inspect_image, whole=whole), records, f"Reading {name}", workers)
    whole.save()
    report = DatasetReport(name, records, [result if isinstance(result, Inspection) else None for result in results])
    for record, result in zip(records, results, strict=True):
        if skip_damaged and isinstance(result, DamagedImageError) and "sem_seg_file_name" not in record:
            report.notes.append(f"left out in training (DATASETS.DAMAGED skip): {result}")
        elif isinstance(result, DatasetError):
            report.problems.append(str(result))
    without = [record for record in records if "sem_seg_file_name" not in record]
    if without and len(without) < len(records):
        report.notes.append(f"{len(without)} images have no label, first {without[0]['file_name']}")
    if len(without) < len(records):
        if problem := only_zero_problem(name, report.pixels):
            report.problems.append(problem)
        elif absent := absent_classes(name, report.pixels):
            report.notes.append(f"no label shows {', '.join(absent)}")
        if problem := one_class_problem(name):
            report.problems.append(problem)
    found = [each.values for each in report.inspections if each is not None and each.values is not None]
    values = report_values(dataset_rule(name), Counter(each.kind for each in found), found)
    report.notes += values.notes + values.doubts
    report.problems += values.problems
    if note := _cost_of_reading(report):
        report.notes.append(note)
    for files in _same_content([report]).values():
        report.notes.append(f"the same image {len(files)} times: {', '.join(path for _, path in files)}")
    return report


def _cost_of_reading(report: DatasetReport) -> str:
    """What to do about images so large that training may wait for them; empty where they are not."""
    found = [inspection for inspection in report.inspections if inspection is not None]
    pixels = sorted(inspection.size[0] * inspection.size[1] / 1e6 for inspection in found)
    if not pixels or sum(pixels) / len(pixels) < _LARGE_IMAGES:
        return ""
    seconds = max(sum(inspection.seconds for inspection in found) / len(found), 1e-6)
    return (
        f"images have {sum(pixels) / len(pixels):.1f} megapixels on average and up to {pixels[-1]:.1f}: decoding one "
        f"with its label takes {seconds:.2g} s of a core here, so one loader worker gives at most {1 / seconds:.2g} a "
        "second. If training waits for data (data_time in the metrics), raise DATALOADER.NUM_WORKERS, or resize images "
        "and labels once, to what INPUT.MIN_SIZE_TRAIN needs"
    )


def compare_datasets(reports: Sequence[DatasetReport]) -> list[str]:
    """Problems between datasets: images of training sets in test sets, by id, file or content; class lists that differ;
    classes that only test labels show.

    Datasets whose names end in ``_val`` or ``_test`` are test sets.
    """
    problems = []
    for first, second in combinations(reports, 2):
        if problem := class_lists_problem(first.name, second.name):
            problems.append(problem)
    test = [report for report in reports if report.name.endswith(_TEST_ENDINGS)]
    train = [report for report in reports if not report.name.endswith(_TEST_ENDINGS)]
    for trained in train:
        for tested in test:
            if problem := overlap_problem(tested.name, tested.records, trained.name, trained.records):
                problems.append(problem)
    for tested in test:
        if problem := _unseen_classes(tested, train):
            problems.append(problem)
    for files in _same_content(reports).values():
        paths = {role: [path for name, path in files if name.endswith(_TEST_ENDINGS) == role] for role in (False, True)}
        # The same file in both is overlap, said above.
        copies = [path for path in paths[True] if path not in paths[False]]
        if paths[False] and copies:
            problems.append(f"{copies[0]} is a copy of the training image {paths[False][0]}; remove one of them")
    return problems


def _unseen_classes(tested: DatasetReport, train: Sequence[DatasetReport]) -> str:
    """What to do about classes that the labels of a test set show and those to train on do not."""
    same = [each for each in train if each.pixels.any() and not class_lists_problem(tested.name, each.name)]
    if not same:
        return ""
    pixels = np.sum([each.pixels for each in same], axis=0)
    return unseen_classes(tested.name, tested.pixels, f"label of {' and '.join(each.name for each in same)}", pixels)


def _same_content(reports: Sequence[DatasetReport]) -> dict[str, list[tuple[str, str]]]:
    """Digest -> (dataset, file) of the images of equal content, where there is more than one file."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    entries: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for report in reports:
        for record, inspection in zip(report.records, report.inspections, strict=True):
            if inspection is not None:
                found[inspection.digest].setdefault(os.path.realpath(record["file_name"]), record["file_name"])
                entries[inspection.digest].append((report.name, record["file_name"]))
    return {digest: entries[digest] for digest, files in found.items() if len(files) > 1}


def unmatched_labels(names: Sequence[str]) -> list[str]:
    """Problems of users' own datasets: label files that belong to no image of any subset."""
    descriptions = {description.name: description for name in names if (description := custom_description(name))}
    problems = []
    for description in descriptions.values():
        files = labels_without_image(description)
        if files:
            problems.append(
                f"dataset '{description.name}': {len(files)} label files belong to no image, first {files[0]}; add the "
                "images, or correct names, 'label_suffix', 'image_suffix' or 'masks'"
            )
    return problems
