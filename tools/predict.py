"""Label images with a trained network.

    python tools/predict.py photos/ one.jpg --config-file configs/custom/rc2l_efficientnet-lite0.yaml \\
        --checkpoint output/custom/rc2l_efficientnet-lite0/model_best.pth --output predictions --overlays

Folders are searched with their subfolders. For each image there is labels/<name>.png below --output: class ids, in the
image's own size, with the colours of the classes as palette; classes.txt has the class of each id, one a line. Both can
stand as `labels` and `classes` in the description of a dataset (datasets/README.md). --overlays adds
overlays/<name>.jpg, the classes drawn over the image.

The config is the run's: the file it was trained with, or the config.yaml in its folder. Without a GPU it runs on the
CPU. The exit status is 0, or 2 where something is wrong; every image is opened before the first is labelled.
"""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import argparse
import time
from pathlib import Path

import numpy as np
from detectron2.data.catalog import Metadata
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from rc2l.data.datasets.folder import IMAGE_SUFFIXES
from rc2l.data.errors import DatasetError
from rc2l.data.file_listing import find_files
from rc2l.data.image_rule import changed_rule
from rc2l.data.reading import read_image
from rc2l.engine.arguments import add_trained_network_arguments, read_arguments
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point
from rc2l.engine.launch import resolve_device
from rc2l.inference import Predictor
from rc2l.visualization.label_images import palette_image

#: Pixels of an overlay's shorter side, at least: in smaller pictures the names would hide the classes.
_LEGIBLE = 320
#: Pixels of its longer side, at most, where it is drawn larger than the image.
_LARGEST = 4000
_VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".mts", ".3gp")


def find_images(inputs: list[Path], output: Path) -> dict[str, Path]:
    """Image files by the name of their results: the path below the folder given, without suffix.

    Raises:
        ValueError: an input is missing, holds no image or holds the output, or two images have the same name.
    """
    found: dict[str, Path] = {}
    for given in inputs:
        if given.is_dir():
            if output.resolve().is_relative_to(given.resolve()):
                raise ValueError(f"--output {output} lies in {given}, whose images are to be labelled: name another")
            paths = find_files(given, IMAGE_SUFFIXES)
            names = [path.relative_to(given).with_suffix("").as_posix() for path in paths]
        elif given.suffix.lower() in _VIDEO_SUFFIXES:
            raise ValueError(
                f"{given} is a video: only images are labelled; take its frames out, as by ffmpeg -i {given.name} "
                "frames/%06d.png, and name the folder"
            )
        elif given.exists():
            paths, names = [given], [given.stem]
        else:
            raise ValueError(f"{given}: no such file or folder")
        if not paths:
            raise ValueError(f"{given} holds no images; files of {', '.join(IMAGE_SUFFIXES)} are looked for")
        for name, path in zip(names, paths, strict=True):
            if name in found:
                raise ValueError(f"{found[name]} and {path} would both be labelled as {name}.png: give them apart")
            found[name] = path
    return found


def run(args: argparse.Namespace) -> None:
    images = find_images(args.inputs, args.output)
    cfg = load_config(args.config_file, args.opts)
    resolve_device(cfg, num_gpus=1)
    predictor = Predictor(cfg, args.checkpoint, network=args.network, min_confidence=args.min_confidence)
    asked = {"value_range": args.value_range, "bands": args.bands, "max_pixels": args.max_pixels}
    predictor.image_rule = changed_rule(predictor.image_rule, asked, "predict")
    if rule := predictor.image_rule.describe():
        print(f"Images: {rule}")
    metadata = Metadata(stuff_classes=predictor.class_names, stuff_colors=predictor.class_colors)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "classes.txt").write_text("\n".join(predictor.class_names) + "\n")

    pixels = np.zeros(256, dtype=np.int64)
    confidence_sums = np.zeros(256)
    seconds = 0.0
    damaged: list[str] = []
    for name, path in tqdm(images.items(), "Images", disable=None):
        try:
            image = read_image(str(path), "RGB", predictor.image_rule)
        except DatasetError as error:  # the others are labelled all the same
            damaged.append(str(error))
            continue
        start = time.perf_counter()
        prediction = predictor(image)
        seconds += time.perf_counter() - start
        labels = prediction.label_map
        pixels += np.bincount(labels.ravel(), minlength=256)
        confidence_sums += np.bincount(labels.ravel(), weights=prediction.confidence.ravel(), minlength=256)
        target = args.output / "labels" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        palette_image(labels, predictor.class_colors).save(target)
        if args.overlays:
            # Imported only here: it brings matplotlib, a second of CPU.
            from detectron2.utils.visualizer import Visualizer

            scale = max(1.0, min(_LEGIBLE / min(labels.shape), _LARGEST / max(labels.shape)))
            drawn = Visualizer(image, metadata, scale=scale).draw_sem_seg(labels, alpha=0.5).get_image()
            target = args.output / "overlays" / f"{name}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn).save(target)

    labeled = len(images) - len(damaged)
    if labeled:
        _report(predictor, pixels, confidence_sums)
        print(f"{labeled} images, {seconds / labeled:.2f} s each on {cfg.MODEL.DEVICE}; written to {args.output}")
    if damaged:
        raise ValueError(
            f"{len(damaged)} of {len(images)} images could not be read, all others are labelled: {'; '.join(damaged)}"
        )


def _report(predictor: Predictor, pixels: np.ndarray, confidence_sums: np.ndarray) -> None:
    """Print share and confidence of each class; (256,) each, by label."""
    rows = [
        (name, f"{pixels[k] / pixels.sum():.1%}", f"{confidence_sums[k] / pixels[k]:.2f}" if pixels[k] else "")
        for k, name in [*enumerate(predictor.class_names), (255, "unsure (255)")]
        if k < 255 or predictor.min_confidence > 0
    ]
    print(tabulate(rows, headers=("class", "share of pixels", "mean confidence"), tablefmt="github"))


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, help="image files, and folders of images")
    add_trained_network_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--overlays", action="store_true", help="pictures of the classes over the image, too")
    parser.add_argument("--network", default="", help="teacher, student, ...; by default the result of the run")
    parser.add_argument("--min-confidence", type=float, default=0.0, help="pixels below it, in [0, 1], become 255")
    parser.add_argument(
        "--value-range",
        nargs=2,
        type=float,
        metavar=("LO", "HI"),
        help="values that become 0 and 255; default: the run's",
    )
    parser.add_argument(
        "--bands", nargs="+", type=int, help="bands that are red, green and blue, from 0; default: the run's"
    )
    parser.add_argument("--max-pixels", type=int, help="largest width x height to read; default: the run's")
    parser.add_argument("--opts", nargs="*", default=[], help=argparse.SUPPRESS)
    args = read_arguments(parser, argv)
    run(args)


if __name__ == "__main__":
    main()
