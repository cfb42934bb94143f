"""How a trained network sees classes relate: mean embeddings, their similarities, a dendrogram (ReCo section 5).

    python tools/class_relations.py --config-file configs/shapes/classmix-reco_deeplab.yaml \\
        --checkpoint output/shapes/classmix-reco_deeplab/model_final.pth --output output/relations

Embeddings Z are the network's per-pixel features, averaged over all pixels of each class in the first test set at the
features' resolution; R is ReCo's representation, where the checkpoint has a projection head and the config has
RECO.ENABLED. For each it writes ``<name>_relations.png``, ``<name>_dendrogram.png`` and ``<name>.json`` (means,
similarities, linkage, pixel counts). Classes without a pixel are left out. The student is used: the projection head
was trained with it.
"""

import argparse
import json
import sys
from pathlib import Path

import rc2l  # noqa: F401  before detectron2, which it makes importable

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import Tensor, nn

from rc2l.data.loader import build_test_loader
from rc2l.engine.launch import resolve_device
from rc2l.engine.run import load_config
from rc2l.losses.reco import class_relations
from rc2l.losses.regions import sample_nearest
from rc2l.modeling.projection import build_projection
from rc2l.modeling.weights import load_weights
from rc2l.visualization.relations import class_linkage, dendrogram_figure, relation_figure, save_figure


class ClassMeans:
    """Running mean of embeddings by class."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums: Tensor | None = None
        self.counts = torch.zeros(num_classes, dtype=torch.int64)

    def add(self, embedding: Tensor, labels: Tensor, ignore_value: int = 255) -> None:
        """Shape: embedding (1, C, h, w); labels (1, H, W) integers."""
        labels = sample_nearest(labels, *embedding.shape[-2:]).flatten()
        kept = labels != ignore_value
        vectors, classes = embedding[0].flatten(1).T[kept].double().cpu(), labels[kept].long().cpu()
        if self.sums is None:
            self.sums = torch.zeros(self.num_classes, vectors.shape[1], dtype=torch.float64)
        self.sums.index_add_(0, classes, vectors)
        self.counts += torch.bincount(classes, minlength=self.num_classes)

    def means(self) -> Tensor:
        """(K, C); 0 for classes without a pixel."""
        return self.sums / self.counts[:, None].clamp(min=1)


@torch.no_grad()
def embeddings(cfg: CfgNode, network: nn.Module, projection: nn.Module | None) -> dict[str, ClassMeans]:
    """Mean embeddings by name over the first of DATASETS.TEST."""
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    found = {"Z": ClassMeans(num_classes)} | ({"R": ClassMeans(num_classes)} if projection else {})
    for (record,) in build_test_loader(cfg, cfg.DATASETS.TEST[0]):
        labels = torch.as_tensor(record["sem_seg"])[None]
        output = network(record["image"][None].to(network.device), auxiliary=False).float()
        found["Z"].add(output.pixel_features, labels.to(output.pixel_features.device))
        if projection:
            found["R"].add(projection(output.pixel_features), labels.to(output.pixel_features.device))
    return found


def report(found: ClassMeans, class_names: list[str], name: str, folder: Path) -> None:
    """Write pictures and numbers of one kind of embedding.

    Raises:
        ValueError: fewer than two classes have a pixel.
    """
    present = found.counts > 0
    if present.sum() < 2:
        raise ValueError(f"embedding {name}: {int(present.sum())} classes have pixels in the test set; 2 are needed")
    names = [class_name for class_name, seen in zip(class_names, present.tolist(), strict=True) if seen]
    means = found.means()[present]
    relations = class_relations(means, torch.ones(len(names), dtype=torch.bool)).fill_diagonal_(1).numpy()
    save_figure(relation_figure(relations, names, f"class relations, {name}"), folder / f"{name}_relations.png")
    save_figure(dendrogram_figure(relations, names, f"classes by {name}"), folder / f"{name}_dendrogram.png")
    numbers = {
        "classes": names,
        "pixels": found.counts[present].tolist(),
        "means": means.tolist(),
        "relations": relations.tolist(),
        "linkage": class_linkage(relations).tolist(),
    }
    (folder / f"{name}.json").write_text(json.dumps(numbers) + "\n")
    closest = sorted(
        ((relations[i, j], names[i], names[j]) for i in range(len(names)) for j in range(i)), reverse=True
    )[:3]
    print(f"{name}: closest are " + "; ".join(f"{a} and {b} ({value:.2f})" for value, a, b in closest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--checkpoint", required=True, help="of a run of ours (model_final.pth)")
    parser.add_argument("--output", type=Path, default=Path("output/relations"))
    parser.add_argument("overrides", nargs="*", help="config KEY VALUE pairs")
    args = parser.parse_args()
    try:
        run(args)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.overrides)
    resolve_device(cfg, num_gpus=1)
    network = build_model(cfg).eval()
    load_weights(network, args.checkpoint, prefer="student", cfg=cfg, strict=True)
    projection = build_projection(cfg, network)
    if projection:
        saved = torch.load(args.checkpoint, map_location=cfg.MODEL.DEVICE, weights_only=True).get("projection")
        if saved is None:
            raise ValueError(f"{args.checkpoint} has no projection head: add RECO.ENABLED False to see Z alone")
        projection.load_state_dict(saved)
    args.output.mkdir(parents=True, exist_ok=True)
    class_names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes
    for name, found in embeddings(cfg, network, projection).items():
        report(found, class_names, name, args.output)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
