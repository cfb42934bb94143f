"""Label images and videos with a trained network.

    rc2l predict photos/ one.jpg --run output/custom/rc2l_efficientnet-lite0 --output predictions --overlays
    rc2l predict map.tif --run output/roofs --output predictions --pieces TEST.WINDOW.SIZE [1024,1024]
    find /data -name '*.jpg' | rc2l predict - --run output/roofs --output predictions --confidence
    rc2l predict drive.mp4 --every 5 --run output/roads --output predictions --overlays

Folders are searched with their subfolders; - reads a list of files from standard input, one a line. Below --output are

    labels/<name>.png         class ids in the image's own size, with the colours of the classes as palette
    classes.txt, classes.csv  the class of each id, one a line; with its colour, share of pixels and mean confidence
    images.csv                a row an image: size, seconds, mean confidence, share of each class
    overlays/<name>.jpg       with --overlays: the classes drawn over the image
    confidence/<name>.png     with --confidence: that of each pixel, 0 to 255 for 0 to 1
    probabilities/<name>.npy  with --probabilities: those of all classes, (K, H, W)

`labels` and `classes.txt` can stand in the description of a dataset (datasets/README.md). Frames of a video are images
whose names are their numbers; its overlays are one video. With --pieces, TIFF files are read, labelled and written by
windows, as TIFF files with the same place on the map: one larger than memory is no problem (docs/inference.md).

--run is the OUTPUT_DIR of a run; instead, --config-file and --checkpoint name the config it was trained with and any
of its checkpoints. KEY VALUE pairs at the end change the config: TEST.WINDOW, TEST.AUG, TEST.AMP. Without a GPU it runs
on the CPU. The exit status is 0, or 2 where something is wrong; a damaged file does not stop the others.
"""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import argparse
import time
from pathlib import Path

from tqdm import tqdm

from rc2l.data.errors import DatasetError
from rc2l.data.image_rule import changed_rule
from rc2l.data.reading import read_image
from rc2l.engine.arguments import add_trained_network_arguments, read_arguments
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point
from rc2l.engine.launch import resolve_device
from rc2l.inference import Predictor
from rc2l.inference.large_tiff import LargeTiff
from rc2l.inference.results import PROBABILITY_TYPES, ResultFolder
from rc2l.inference.sources import Video, VideoWriter, find_sources, is_tiff, is_video
from rc2l.inference.tables import ImageTable, Tally, class_report, write_class_table


class Labeling:
    """One call of this tool: what it labels, into which folder, and the tables that grow by it."""

    def __init__(self, predictor: Predictor, folder: ResultFolder, table: ImageTable, every: int) -> None:
        self.predictor, self.folder, self.table, self.every = predictor, folder, table, every

    def image(self, name: str, path: Path) -> None:
        self._label(name, path, read_image(str(path), "RGB", self.predictor.image_rule))

    def pieces(self, name: str, path: Path) -> None:
        start = time.perf_counter()
        with LargeTiff(path) as tiff:
            tally = self.folder.write_pieces(name, tiff, self.predictor)
            self.table.add(name, path, tiff.size, time.perf_counter() - start, tally)

    def video(self, name: str, path: Path) -> None:
        video, drawn = Video(path, self.every), None
        try:
            for number, frame in video:
                label_map = self._label(f"{name}/{number:06d}", path, frame, overlay=False)
                if self.folder.overlays:
                    drawn = drawn or VideoWriter(self.folder.file("overlays", name, ".mp4"), video.rate)
                    drawn.write(self.folder.blend(frame, label_map))
        finally:
            if drawn:
                drawn.close()
        if video.shortfall:
            raise DatasetError(video.shortfall)

    def _label(self, name: str, path: Path, image, *, overlay: bool = True):
        """(H, W, 3) uint8 in RGB -> (H, W) uint8."""
        start = time.perf_counter()
        prediction = self.predictor(image, probabilities=bool(self.folder.probabilities))
        seconds = time.perf_counter() - start
        tally = Tally()
        tally.add(prediction.label_map, prediction.confidence)
        self.folder.write(name, image, prediction, overlay=overlay)
        self.table.add(name, path, image.shape[:2], seconds, tally)
        return prediction.label_map


def run(args: argparse.Namespace) -> None:
    if args.every < 1:
        raise ValueError(f"--every {args.every}: it must be 1 or more")
    sources = find_sources(args.inputs, args.output)
    cfg = load_config(args.config_file, args.opts)
    resolve_device(cfg, num_gpus=1)
    predictor = Predictor(cfg, args.checkpoint, network=args.network, min_confidence=args.min_confidence)
    asked = {"value_range": args.value_range, "bands": args.bands, "max_pixels": args.max_pixels}
    predictor.image_rule = changed_rule(predictor.image_rule, asked, "predict")
    if rule := predictor.image_rule.describe():
        print(f"Images: {rule}")
    in_pieces = [path for path in sources.values() if args.pieces and is_tiff(path)]
    if in_pieces:
        predictor.check_pieces()
        if args.probabilities == "float16":
            raise ValueError("--probabilities float16: those of TIFF files in pieces are uint8")
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "classes.txt").write_text("\n".join(predictor.class_names) + "\n")
    names, colors = predictor.class_names, predictor.class_colors
    folder = ResultFolder(args.output, names, colors, args.confidence, args.overlays, args.probabilities)
    table = ImageTable(args.output / "images.csv", names)
    labeling = Labeling(predictor, folder, table, args.every)

    damaged: list[str] = []
    for name, path in tqdm(sources.items(), "Images", disable=None):
        try:
            if is_video(path):
                labeling.video(name, path)
            elif path in in_pieces:
                labeling.pieces(name, path)
            else:
                labeling.image(name, path)
        except DatasetError as error:  # the others are labelled all the same
            damaged.append(str(error))
    table.close()
    write_class_table(args.output / "classes.csv", names, colors, table.total)
    if table.rows:
        print(class_report(names, table.total))
        each = table.seconds / table.rows
        print(f"{table.rows} images, {each:.2f} s each on {cfg.MODEL.DEVICE}; written to {args.output}")
    if damaged:
        raise ValueError(
            f"{len(damaged)} of {len(sources)} images could not be read, all others are labelled: {'; '.join(damaged)}"
        )


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="images, videos and folders of them; -: a list from standard input")
    add_trained_network_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--overlays", action="store_true", help="pictures of the classes over the image, too")
    parser.add_argument("--confidence", action="store_true", help="pictures of the confidence, too")
    parser.add_argument(
        "--probabilities", choices=PROBABILITY_TYPES, default="", help="those of all classes, too, stored so"
    )
    parser.add_argument("--pieces", action="store_true", help="read, label and write TIFF files by TEST.WINDOW")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="label each N-th frame of videos")
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
    run(read_arguments(parser, argv))


if __name__ == "__main__":
    main()
