"""Look at a folder of images and write the two files that training needs.

    python tools/new.py my_project/

Asks nothing. What is recognised, in the folder and below it: labelme's JSON files, COCO annotations, the layout of VOC,
and masks (in a folder of their own or beside their images; ids or colours; with a list of class names such as
classes.txt or class_dict.csv). Written are my_project/dataset.yaml, which describes the data, and
my_project/train.yaml, a config whose sizes, batch, schedule and method suit the data and this machine. Both are short
and meant to be read and changed. The data itself is not touched.
"""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import argparse
import os
import tempfile
from pathlib import Path

from detectron2.data import MetadataCatalog

from rc2l.data.datasets import load_records, register_dataset_file
from rc2l.data.errors import DatasetError
from rc2l.data.image_rule import dataset_rule
from rc2l.data.reading import read_image_size
from rc2l.data.value_report import suggest_rule
from rc2l.engine.arguments import add_import_argument
from rc2l.engine.entry_point import entry_point
from rc2l.new_project.label_values import sample
from rc2l.new_project.layout import find_layout
from rc2l.new_project.settings import Facts, Machine, choose_settings, missing_packages, step_seconds, this_machine
from rc2l.new_project.write import config_text, dataset_name, description_text

_VAL_FRACTION = 0.2
#: Images whose headers are read for their size.
_SIZES = 200
#: Images whose values are looked at, where they are not 8-bit RGB.
_DECODED = 20


def facts_of(name: str, subsets: tuple[str, ...]) -> Facts:
    """Count the images of a registered dataset.

    Raises:
        DatasetError: as training would.
    """
    records = {subset: load_records(f"{name}_sem_seg_{subset}") for subset in subsets}
    train = records["train"]
    labeled = [record for record in train if "sem_seg_file_name" in record]
    images = [Path(record["file_name"]) for each in records.values() for record in each]
    return Facts(
        labeled=len(labeled),
        unlabeled=len(train) - len(labeled) + len(records.get("unlabeled", ())),
        validation=len(records["val"]),
        num_classes=len(MetadataCatalog.get(f"{name}_sem_seg_train").stuff_classes),
        sizes=[read_image_size(str(path), dataset_rule(f"{name}_sem_seg_train")) for path in sample(images, _SIZES)],
    )


def _image_files(datasets: tuple[str, ...]) -> list[str]:
    """Some of the image files of registered datasets."""
    files = [Path(record["file_name"]) for dataset in datasets for record in load_records(dataset)]
    return [str(path) for path in sample(files, _DECODED)]


def run(project: Path, data: Path, force: bool) -> str:
    """Write the files; returns what to say."""
    if not data.is_dir():
        raise ValueError(f"{data}: there is no such folder; name the folder that your images are in")
    files = [project / "dataset.yaml", project / "train.yaml"]
    for path in files:
        if path.exists() and not force:
            raise ValueError(f"{path} is there already; --force writes it anew, what was changed in it is lost")
    layout = find_layout(data)
    if "val" not in layout.content:
        layout.content["val_fraction"] = _VAL_FRACTION
    name = dataset_name(project)
    root = os.path.relpath(data, project) if data.resolve().is_relative_to(project.resolve()) else str(data.resolve())
    project.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=project) as scratch:
        # Read as training will read it, before it gets its name.
        draft = Path(scratch) / "dataset.yaml"
        draft.write_text(description_text(name, str(data.resolve()), layout), encoding="utf-8")
        registered = register_dataset_file(draft)
        if keys := suggest_rule(_image_files(registered)):
            layout.content |= keys
            shown = ", ".join(f"{key} {value}" for key, value in keys.items())
            layout.notes.append(f"images are not 8-bit RGB: {shown} is guessed from some of them, is that so?")
            draft.write_text(description_text(name, str(data.resolve()), layout), encoding="utf-8")
            registered = register_dataset_file(draft)
        subsets = tuple(full.removeprefix(f"{name}_sem_seg_") for full in registered)
        if not {"train", "val"} <= set(subsets):
            raise DatasetError(f"{data}: there are no images to {'train' if 'val' in subsets else 'validate'} on")
        facts = facts_of(name, subsets)
    machine = this_machine()
    settings = choose_settings(facts, machine)
    notes = []
    if not facts.unlabeled:
        notes.append(
            "no image is without a label, so the method is supervised: add images, `unlabeled` in dataset.yaml"
        )
    files[0].write_text(description_text(name, root, layout), encoding="utf-8")
    files[1].write_text(config_text(name, subsets, settings, notes), encoding="utf-8")
    return _summary(layout.kind, layout.notes + notes, facts, settings, machine, project, data)


def _summary(
    kind: str, notes: list[str], facts: Facts, settings: dict, machine: Machine, project: Path, data: Path
) -> str:
    solver = settings["SOLVER"]
    lines = [
        f"{kind}: {facts.labeled} images with labels and {facts.unlabeled} without to train on, {facts.validation} to "
        f"validate on, {facts.num_classes} classes",
        *(f"note: {note}" for note in notes),
        f"wrote {project / 'dataset.yaml'} and {project / 'train.yaml'}: {settings['SEMI']['METHOD']}, "
        f"{solver['MAX_ITER']} iterations, short edge {settings['INPUT']['MIN_SIZE_TEST']} pixels",
    ]
    if not machine.gpu_memory:
        crop = settings["INPUT"]["CROP"]["SIZE"][0]
        step = step_seconds(crop, solver["IMS_PER_BATCH"], machine, facts.unlabeled > 0)
        lines.append(f"on {machine.cores} CPU cores that takes about {step * solver['MAX_ITER'] / 60:.0f} minutes")
    if missing := missing_packages():
        lines.append(f"first:  pip install {' '.join(missing)}")
    run_folder = f"output/{project.resolve().name}/train"
    lines += [
        "next:",
        f"  rc2l check {project / 'dataset.yaml'}",
        f"  rc2l train --config-file {project / 'train.yaml'} OUTPUT_DIR {run_folder}",
        f"  rc2l predict {data} --run {run_folder} --output predictions --overlays",
    ]
    return "\n".join(lines)


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "project", type=Path, help="folder for the two files, which holds the images unless --data does"
    )
    parser.add_argument("--data", type=Path, help="folder of the images and labels; default: the project's")
    parser.add_argument("--force", action="store_true", help="write files anew that are there")
    add_import_argument(parser)
    args = parser.parse_args(argv)
    print(run(args.project, args.data or args.project, args.force))


if __name__ == "__main__":
    main()
