"""Write the partial labels of a dataset, ReCo's second mode: one pixel, or a share of the pixels, of each class.

    python tools/make_partial_labels.py voc_2012_sem_seg_train_aug --share 0.01 --output partial/voc_aug_1pct

Files are <image id>.png, 8-bit train ids with the colours of the dataset as palette, 255 where nothing is known. Train
with them by DATASETS.PARTIAL_LABELS.ENABLED True, SHARE, SEED, and FOLDER <output>. Without FOLDER, training thins the
labels out while it reads them, with the same result.
"""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detectron2.data import MetadataCatalog
from tqdm import tqdm

from rc2l.data.datasets import load_records
from rc2l.data.errors import DatasetError
from rc2l.data.partial_labels import FACTS_FILE, check_options, label_path, read_record_label
from rc2l.data.scratch import scratch_folder
from rc2l.engine.arguments import add_import_argument
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point
from rc2l.visualization.label_images import colors_of, palette_image


def make_partial_labels(dataset: str, output: Path, share: float, seed: int, jobs: int | None = None) -> int:
    """Write partial labels of all labelled images of a registered dataset to a new folder, all or nothing.

    Args:
        share: of the pixels of each class, in [0, 1]; 0 is one pixel.
        seed: which pixels, 0 or more.
        jobs: images at a time; None: as many as there are cores.

    Returns:
        The number of labels.

    Raises:
        DatasetError: a value is out of range, the folder exists, or a label cannot be read.
    """
    check_options(share, seed)
    if output.exists():
        raise DatasetError(f"{output} exists; remove it, or name another folder")
    records = [record for record in load_records(dataset) if "sem_seg_file_name" in record]
    if not records:
        raise DatasetError(f"dataset '{dataset}' has no image with a label")
    colors = colors_of(MetadataCatalog.get(dataset))
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(output) as folder:

        def write(record: dict) -> None:
            image = palette_image(read_record_label(record | {"partial_label": (share, seed)}), colors)
            path = label_path(folder, record)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)

        pool = ThreadPoolExecutor(jobs or os.cpu_count())
        try:
            list(tqdm(pool.map(write, records), "Partial labels", len(records), disable=None))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, don't do the rest first
        facts = {"dataset": dataset, "share": share, "seed": seed, "labels": len(records)}
        (folder / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n")
        folder.rename(output)
    return len(records)


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="registered dataset, such as voc_2012_sem_seg_train_aug")
    parser.add_argument("--share", type=float, required=True, help="of each class, in [0, 1]; 0: one pixel")
    parser.add_argument("--seed", type=int, default=0, help="which pixels, 0 or more")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the labels")
    parser.add_argument("--jobs", type=int, help="images at a time; default: the number of cores")
    parser.add_argument("--config-file", default="", help="a config that registers the dataset")
    parser.add_argument("opts", nargs="*", help="config KEY VALUE pairs")
    add_import_argument(parser)
    args = parser.parse_intermixed_args(argv)
    load_config(args.config_file, args.opts)
    count = make_partial_labels(args.dataset, args.output, args.share, args.seed, args.jobs)
    print(f"{args.output}: {count} labels")


if __name__ == "__main__":
    main()
