"""The two files of a new project: the description of its data, and its config."""

import re
from pathlib import Path

import yaml

from rc2l.new_project.layout import Layout

#: What `_BASE_` of a new config is.
RECIPE = "configs/custom/rc2l_efficientnet-lite0.yaml"


def dataset_name(folder: Path) -> str:
    """A name for the dataset in a folder: letters, digits, "_" and "-"."""
    name = re.sub(r"[^\w-]+", "_", folder.resolve().name, flags=re.ASCII).strip("_-").replace("_sem_seg_", "_")
    return name or "dataset"


def description_text(name: str, root: str, layout: Layout) -> str:
    """YAML of a dataset's description."""
    lines = [f"# {layout.kind}, found by `rc2l new`. All keys: datasets/README.md.", *_comment(layout.notes)]
    lines += [f"{key}: {_inline(value)}" for key, value in {"name": name, "root": root, **layout.content}.items()]
    return "\n".join(lines) + "\n"


def config_text(name: str, subsets: tuple[str, ...], settings: dict, notes: list[str]) -> str:
    """YAML of a config whose dataset is described in ``dataset.yaml`` beside it."""
    train = [f"{name}_sem_seg_train"]
    unlabeled = [f"{name}_sem_seg_unlabeled"] if "unlabeled" in subsets else []
    datasets = {
        "CUSTOM": "dataset.yaml",
        "TRAIN": train,
        "UNLABELED": unlabeled,
        "TEST": [f"{name}_sem_seg_val"],
    }
    lines = [
        "# Chosen by `rc2l new` for the data and the machine that it ran on; change what you like.",
        *_comment(notes),
    ]
    lines += [f"_BASE_: {RECIPE}", *_block({"DATASETS": datasets, **settings})]
    return "\n".join(lines) + "\n"


def _comment(notes: list[str]) -> list[str]:
    return [f"# - {note}" for note in notes]


def _block(node: dict, indent: str = "") -> list[str]:
    lines = []
    for key, value in node.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_block(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {_inline(value)}")
    return lines


def _inline(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.strip().removesuffix("...").strip()
