"""How a trained network sees classes: mean embeddings, their relations (ReCo section 5), how well they cluster (DGCL).

    python tools/class_relations.py --config-file configs/shapes/classmix-reco_deeplab.yaml \\
        --checkpoint output/shapes/classmix-reco_deeplab/model_final.pth --output output/relations/classmix-reco

Embeddings, over all pixels of a known class in the first test set, each at its own resolution:

    Z  the encoder's: the deepest feature of the backbone that the head reads
    F  the decoder's per-pixel features, on which masks or pixels are classified
    R  ReCo's representation, where the config has RECO.ENABLED
    P  DGCL's projection, where the config has DGCL.ENABLED

For each it writes <name>_relations.png, <name>_dendrogram.png and <name>.json (class means, cosine similarities,
linkage, pixel counts, cluster scores), and prints the silhouette, Calinski-Harabasz and Davies-Bouldin scores of the
features by class, on --pixels-per-class pixels of each (see rc2l/evaluation/clusters.py). --compare adds to the table
what earlier runs of this tool wrote for other checkpoints: with and without a contrast loss, say.

Classes without a pixel are left out. The student is used: the projection head was trained with it.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import rc2l  # noqa: F401  before detectron2, which it makes importable

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn

from rc2l.data.loader import build_test_loader
from rc2l.engine.arguments import add_trained_network_arguments, read_arguments
from rc2l.engine.checkpoint_file import read_checkpoint
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point
from rc2l.engine.launch import resolve_device
from rc2l.evaluation.clusters import CLUSTER_SCORES, PixelSample, cluster_scores
from rc2l.losses.reco import class_relations
from rc2l.modeling.segmentor import Segmentor
from rc2l.modeling.weights import load_weights
from rc2l.semi.learner import Learner
from rc2l.semi.method import method_of
from rc2l.structures.label_map import IGNORE, sample_nearest
from rc2l.visualization.relations import class_linkage, dendrogram_figure, relation_figure, save_figure

#: Embeddings of projection heads by the name of their loss; and all embeddings.
OF_HEADS = {"reco": "R", "dgcl": "P"}
NAMES = ("Z", "F", *OF_HEADS.values())


class Embedding:
    """Mean by class and a sample of pixels of one kind of embedding."""

    def __init__(self, num_classes: int, pixels_per_class: int) -> None:
        self.num_classes = num_classes
        self.sums: Tensor | None = None
        self.counts = torch.zeros(num_classes, dtype=torch.int64)
        self.sample = PixelSample(num_classes, pixels_per_class)

    def add(self, embedding: Tensor, labels: Tensor) -> None:
        """Shape: embedding (1, C, h, w); labels (1, H, W) integers."""
        labels = sample_nearest(labels.to(embedding.device), *embedding.shape[-2:]).flatten()
        kept = labels != IGNORE
        vectors, classes = embedding[0].flatten(1).T[kept].float(), labels[kept].long()
        self.sample.add(vectors, classes)
        if self.sums is None:
            self.sums = torch.zeros(self.num_classes, vectors.shape[1], dtype=torch.float64)
        self.sums.index_add_(0, classes.cpu(), vectors.double().cpu())
        self.counts += torch.bincount(classes, minlength=self.num_classes).cpu()

    def means(self) -> Tensor:
        """(K, C); 0 for classes without a pixel."""
        return self.sums / self.counts[:, None].clamp(min=1)


@torch.no_grad()
def embeddings(
    cfg: CfgNode, network: Segmentor, heads: Mapping[str, nn.Module], pixels_per_class: int
) -> dict[str, Embedding]:
    """Embeddings by name over the first of DATASETS.TEST; ``heads`` by the name of their loss."""
    found = {
        name: Embedding(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, pixels_per_class)
        for name in ("Z", "F", *(OF_HEADS[loss] for loss in heads))
    }
    for (record,) in build_test_loader(cfg, cfg.DATASETS.TEST[0]):
        labels = torch.as_tensor(record["sem_seg"])[None]
        features = network.backbone(network.normalize(record["image"][None].to(network.device)))
        pixel_features = network.sem_seg_head(features, auxiliary=False).pixel_features
        deepest = [name for name in features if name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES][-1]
        found["Z"].add(features[deepest], labels)
        found["F"].add(pixel_features, labels)
        for loss, head in heads.items():
            found[OF_HEADS[loss]].add(head(pixel_features), labels)
    return found


def report(found: Embedding, class_names: list[str], name: str, folder: Path, dataset: str) -> dict:
    """Write pictures and numbers of one kind of embedding; returns the numbers.

    Raises:
        ValueError: fewer than two classes have a pixel, or the features are not finite.
    """
    present = found.counts > 0
    if present.sum() < 2:
        raise ValueError(f"embedding {name}: {int(present.sum())} classes have pixels in {dataset}; 2 are needed")
    names = [class_name for class_name, seen in zip(class_names, present.tolist(), strict=True) if seen]
    vectors, classes = found.sample.pixels()
    numbers = {
        "dataset": dataset,
        "classes": names,
        "pixels": found.counts[present].tolist(),
        "clusters": cluster_scores(vectors, classes),
        "cluster_pixels": len(classes),
        "pixels_per_class": found.sample.per_class,
    }
    means = found.means()[present]
    relations = class_relations(means, torch.ones(len(names), dtype=torch.bool)).fill_diagonal_(1).numpy()
    numbers |= {
        "means": means.tolist(),
        "relations": relations.tolist(),
        "linkage": class_linkage(relations).tolist(),
    }
    save_figure(relation_figure(relations, names, f"class relations, {name}"), folder / f"{name}_relations.png")
    save_figure(dendrogram_figure(relations, names, f"classes by {name}"), folder / f"{name}_dendrogram.png")
    (folder / f"{name}.json").write_text(json.dumps(numbers) + "\n")
    closest = sorted(
        ((relations[i, j], names[i], names[j]) for i in range(len(names)) for j in range(i)), reverse=True
    )[:3]
    print(f"{name}: closest are " + "; ".join(f"{a} and {b} ({value:.2f})" for value, a, b in closest))
    return numbers


def read_compared(folder: Path, dataset: str, pixels_per_class: int) -> dict[str, dict]:
    """Numbers by embedding that an earlier run of this tool wrote into a folder.

    Raises:
        ValueError: there are none, or they are of another data set or another number of pixels.
    """
    found = {name: folder / f"{name}.json" for name in NAMES}
    numbers = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    if not numbers:
        raise ValueError(f"--compare {folder}: it holds no Z.json; name an --output of this tool")
    for name, values in numbers.items():
        made, asked = (values.get("dataset"), values.get("pixels_per_class")), (dataset, pixels_per_class)
        if made != asked:
            raise ValueError(
                f"--compare {folder}: {name}.json is of {made[1]} pixels a class of {made[0]}, this run of {asked[1]} "
                f"of {asked[0]}; the scores depend on both, so make both alike"
            )
    return numbers


def cluster_table(runs: dict[Path, dict[str, dict]]) -> str:
    """Cluster scores of every run and embedding, the same embedding of all runs together."""
    rows = [
        (name, folder, numbers[name]["cluster_pixels"], *numbers[name]["clusters"].values())
        for name in NAMES
        for folder, numbers in runs.items()
        if name in numbers
    ]
    headers = ("embedding", "run", "pixels", *CLUSTER_SCORES)
    return tabulate(rows, headers=headers, tablefmt="github", floatfmt=("", "", "", ".3f", ".1f", ".3f"))


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_trained_network_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("output/relations"))
    parser.add_argument(
        "--pixels-per-class",
        type=int,
        default=500,
        help="drawn for the cluster scores, whose cost grows with the square (default %(default)s)",
    )
    parser.add_argument(
        "--compare", type=Path, action="append", default=[], help="--output of an earlier run; may be repeated"
    )
    args = read_arguments(parser)
    run(args)


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    resolve_device(cfg, num_gpus=1)
    dataset = cfg.DATASETS.TEST[0]
    compared = {folder: read_compared(folder, dataset, args.pixels_per_class) for folder in args.compare}
    network = build_model(cfg).eval()
    load_weights(network, args.checkpoint, prefer="student", cfg=cfg, strict=True)
    projection = Learner(cfg, method_of(cfg), network, MetadataCatalog.get(dataset).stuff_classes).heads
    if projection:
        saved = read_checkpoint(Path(args.checkpoint)).get("projection")
        if saved is None:
            raise ValueError(
                f"{args.checkpoint} has no projection head: add RECO.ENABLED False DGCL.ENABLED False to do without"
            )
        try:
            projection.load_state_dict(saved)
        except RuntimeError as error:
            raise ValueError(
                f"the projection heads in {args.checkpoint} are not those of the config, {', '.join(projection)}: set "
                "RECO.ENABLED, RECO.DIM, DGCL.ENABLED and DGCL.DIM as they were in training"
            ) from error
    args.output.mkdir(parents=True, exist_ok=True)
    class_names = MetadataCatalog.get(dataset).stuff_classes
    found = embeddings(cfg, network, projection, args.pixels_per_class)
    numbers = {name: report(each, class_names, name, args.output, dataset) for name, each in found.items()}
    print(cluster_table({**compared, args.output: numbers}))
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
