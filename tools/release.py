"""Make of a run what others can load: its network, its config, and a card that says what it is.

    python tools/release.py --run output/camvid/rc2l_efficientnet-lite0_1-32 --output release/camvid

writes release/camvid.pth (the weights of the run's result alone, at its best evaluation), release/camvid.yaml (all
settings: with it the training can be repeated) and release/camvid.md, the card: data, command, scores by class, the
weights that the training started from and what is known of their licence.
"""

import rc2l  # first of all: makes detectron2 importable

# isort: split
import argparse
import hashlib
import importlib.metadata
import subprocess
from pathlib import Path

from detectron2.config import CfgNode
from tabulate import tabulate

from rc2l.engine.arguments import add_import_argument, checkpoint_of_run, config_of_run
from rc2l.engine.checkpoint_file import read_checkpoint, write_checkpoint, write_text
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point
from rc2l.engine.launch import resolve_device
from rc2l.inference import Predictor
from rc2l.modeling.weight_sources import initial_weights, local_weights
from rc2l.report.run_files import read_run

REPO = Path(__file__).resolve().parent.parent


def release(run: Path, output: Path) -> list[Path]:
    """Write the three files; returns them, the card last.

    Raises:
        ValueError: the folder holds no run, or its checkpoint is damaged.
    """
    checkpoint = Path(checkpoint_of_run(run))
    cfg = load_config(config_of_run(run), [])
    resolve_device(cfg, num_gpus=1)
    predictor = Predictor(cfg, str(checkpoint))
    state = read_checkpoint(checkpoint).get("trainer") or {}
    weights, settings, card = (output.with_name(f"{output.name}.{suffix}") for suffix in ("pth", "yaml", "md"))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint({"model": predictor.network.state_dict()}, weights)
    own = cfg.clone()
    own.defrost()
    own.OUTPUT_DIR = f"output/{output.name}"  # where the run lay concerns nobody else
    write_text(settings, own.dump())
    parameters = sum(parameter.numel() for parameter in predictor.network.parameters())
    text = card_of(cfg, run, state, weights, settings, parameters, predictor.class_names)
    write_text(card, text)
    return [weights, settings, card]


def card_of(
    cfg: CfgNode, run: Path, state: dict, weights: Path, settings: Path, parameters: int, class_names: list[str]
) -> str:
    """The card, in Markdown.

    Args:
        cfg: of the run.
        run: its folder.
        state: what its checkpoint says of the training; {}: nothing.
        weights, settings: the files that the card belongs to.
        parameters: of the network.
        class_names: K names.
    """
    iterations = state.get("iteration", -1) + 1
    datasets = " + ".join(cfg.DATASETS.TRAIN)
    record = state.get("record") or {}
    images = ""
    if record:
        labeled, unlabeled = len(record["labeled"]), len(record["unlabeled"])
        images = f"{labeled} labelled and {unlabeled} unlabelled images of "
    network = f"{cfg.MODEL.META_ARCHITECTURE} on {_backbone(cfg)}, {parameters / 1e6:.1f} million parameters"
    return f"""# {weights.stem}

{network}, {len(class_names)} classes: {", ".join(class_names)}.

- **Data**: {images}{datasets}{_split(cfg, record)}.
- **Training**: method {cfg.SEMI.METHOD}{" with RC²L's losses" if cfg.RC2L.ENABLED else ""}, {iterations} of \
{cfg.SOLVER.MAX_ITER} iterations, seed {cfg.SEED}. Repeat it with
  `python train_net.py --config-file {settings.name}` (this card: {_commit()}).
- **Start**: {_origin(cfg)}
- **Use**: `python tools/predict.py --config-file {settings.name} --checkpoint {weights.name} IMAGES --output FOLDER`
- **File**: {weights.name}, {weights.stat().st_size / 2**20:.1f} MiB, sha256 {_sha256(weights)}

{_scores(cfg, run, iterations)}"""


def _backbone(cfg: CfgNode) -> str:
    name = cfg.MODEL.BACKBONE.NAME
    if name == "build_timm_backbone":
        return cfg.MODEL.TIMM.NAME
    return f"ResNet-{cfg.MODEL.RESNETS.DEPTH}" if "resnet" in name else name.removeprefix("build_")


def _split(cfg: CfgNode, record: dict) -> str:
    options = cfg.DATASETS.SPLIT
    drawn = "" if options.LABELED_LIST else f"{options.SAMPLING} draw {options.SEED}"
    known = [word for word in (drawn, f"hash {record['split']}" if record else "") if word]
    return f" ({', '.join(known)})" if known else ""


def _origin(cfg: CfgNode) -> str:
    source = initial_weights(cfg)
    if not source:
        return "random weights."
    try:
        digest = f", sha256 {_sha256(local_weights(source))}"
    except (OSError, ValueError):
        digest = ""
    return f"`{source}`{digest}; {_licence(source)}"


def _licence(source: str) -> str:
    """What the package of a ``package://`` file says of its licence."""
    unknown = "their licence is not recorded here: look it up at their source before you pass this file on."
    if not source.startswith("package://"):
        return unknown
    name = source.removeprefix("package://").partition("/")[0]
    try:
        metadata = importlib.metadata.metadata(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return unknown
    classifiers = [line for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    named = [metadata.get("License-Expression"), metadata.get("License"), *classifiers]
    named = [line.strip() for line in named if line and line.strip() and line.strip() != "UNKNOWN"]
    package = f"package {metadata['Name']} {metadata['Version']} ({metadata.get('Home-page') or 'no address'})"
    return f"{package}: {named[0]}." if named else f"{package} names no licence; {unknown}"


def _scores(cfg: CfgNode, run: Path, iterations: int) -> str:
    """Scores of the evaluation that the weights are from, by class."""
    found = read_run(run)
    network = next(iter(found.networks), None)
    row = next((row for row in found.rows if row["iteration"] + 1 == iterations and f"{network}/mIoU" in row), None)
    if network is None or row is None:
        return "It was not evaluated.\n"
    prefix = f"{network}/IoU/"
    lines = [(key.removeprefix(prefix), f"{value:.1f}") for key, value in row.items() if key.startswith(prefix)]
    dataset = network.rpartition("/")[0] or cfg.DATASETS.TEST[0]
    table = tabulate(lines, ("class", "IoU"), tablefmt="pipe", colalign=("left", "right"), disable_numparse=True)
    score, name = row[f"{network}/mIoU"], network.rpartition("/")[2]
    return (
        f"mIoU {score:.2f} of the {name} on {dataset} after {iterations} iterations. These images chose the iteration, "
        f"so it flatters a little.\n\n{table}\n"
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=REPO)
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else f"version {rc2l.__version__}"


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER", help="OUTPUT_DIR of a run")
    parser.add_argument("--output", type=Path, required=True, help="path and name of the files, without suffix")
    add_import_argument(parser)
    args = parser.parse_args(argv)
    for path in release(args.run, args.output):
        print(path)


if __name__ == "__main__":
    main()
