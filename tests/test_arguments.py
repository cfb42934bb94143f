"""--import: own code reaches every command, before the config is read, and every process; what is wrong is one line."""

import argparse
import os
import subprocess
import sys

import pytest
import yaml

from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine import launch
from rc2l.engine.arguments import add_import_argument
from rc2l.engine.run import argument_parser
from tests.processes import run_python
from tests.shared_data import REPO

OWN_DATASET = """
from detectron2.data import DatasetCatalog, MetadataCatalog
from rc2l.data.datasets import load_records

for part in ("train", "val"):
    DatasetCatalog.register(f"own_{part}", lambda part=part: load_records(f"shapes_sem_seg_{part}"))
    shapes = MetadataCatalog.get(f"shapes_sem_seg_{part}")
    MetadataCatalog.get(f"own_{part}").set(
        stuff_classes=shapes.stuff_classes, stuff_colors=shapes.stuff_colors, ignore_label=255
    )
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_modules_of_the_working_directory_are_imported_in_order(folder):
    (folder / "own_first.py").write_text("NAME = 1\n")
    (folder / "own_package").mkdir()
    (folder / "own_package" / "inner.py").write_text("import own_first\nNAME = own_first.NAME + 1\n")
    args = argument_parser("").parse_args("--import own_first --import own_package.inner SEED 3".split())
    assert args.imports == ["own_first", "own_package.inner"] and args.opts == ["SEED", "3"]
    assert sys.modules["own_package.inner"].NAME == 2
    assert argument_parser("").parse_args([]).imports == []  # the default is not the list of the call before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own_missing", None, "--import own_missing: there is no module own_missing; it is looked for in {folder}"),
        ("os.own_missing", None, "there is no module os.own_missing"),
        ("own_bad.py", "", "name a module, as in Python's import, not a file: own_bad"),
        ("sub/own_bad.py", None, "not a file: sub.own_bad"),
        ("own-bad", None, "this is no name of a module"),
        ("", None, "this is no name of a module"),
        ("own_syntax", "x = (\n", "SyntaxError: '(' was never closed ({folder}/own_syntax.py, line 1)"),
        (
            "own_needs",
            "\nimport own_other_missing\n",
            "No module named 'own_other_missing' ({folder}/own_needs.py, line 2)",
        ),
        ("own_raises", "raise KeyError('a')\n", "KeyError: 'a' ({folder}/own_raises.py, line 1)"),
    ],
)
def test_what_cannot_be_imported_is_one_line(folder, name, content, message):
    if content is not None:
        (folder / f"{name.removesuffix('.py')}.py").write_text(content)
    parser = argparse.ArgumentParser()
    add_import_argument(parser)
    with pytest.raises(ValueError) as error:
        parser.parse_args(["--import", name])
    assert message.format(folder=folder) in str(error.value) and "\n" not in str(error.value)


def test_spawned_processes_import_too(folder):
    (folder / "own_in_child.py").write_text("SEEN = True\n")
    seen = []
    launch._main_of_child(
        lambda args: seen.append("own_in_child" in sys.modules), argparse.Namespace(imports=["own_in_child"])
    )
    assert seen == [True]


#: What adds the option to a tool, by itself or among others.
ADDING = ("add_import_argument", "add_trained_network_arguments", "benchmark_data.add_arguments")


def test_every_tool_with_a_config_has_the_option():
    for tool in sorted((REPO / "tools").glob("*.py")):
        written = tool.read_text()
        if ("--config-file" in written and "ArgumentParser(" in written) or tool.stem == "demo":
            assert any(f"{name}(" in written for name in ADDING), tool.name


@pytest.mark.whole_run
def test_a_dataset_of_ones_own_is_known_to_the_config_and_a_misspelt_module_ends_with_2(folder):
    """From another folder than the project's, through the command line."""
    generate_shapes(folder / "datasets", num_train=8, num_val=4, size=64)
    (folder / "own_dataset.py").write_text(OWN_DATASET)
    config = {
        "_BASE_": str(REPO / "configs/shapes/supervised.yaml"),
        "DATASETS": {"TRAIN": ["own_train"], "TEST": ["own_val"], "SPLIT": {"FRACTION": "1/4"}},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(folder / "datasets")}

    def train(module: str) -> subprocess.CompletedProcess:
        arguments = ["--config-file", "own.yaml", "--import", module, "--fast-dev-run", "--num-gpus", "0"]
        arguments += "SOLVER.IMS_PER_BATCH 2 INPUT.CROP.SIZE [32,32]".split()
        return run_python(str(REPO / "train_net.py"), *arguments, folder=folder, environment=environment)

    done = train("own_dataset")
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (folder / "output").rglob("own_val_teacher.json")
    assert "mIoU" in results.read_text()
    refused = train("own_datasets")
    assert refused.returncode == 2 and "there is no module own_datasets" in refused.stderr.splitlines()[-1]
    assert not any("Traceback" in line for line in refused.stderr.splitlines())
