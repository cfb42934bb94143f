"""tools/make_splits.py: what it writes, that training reads it back, --check, errors."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import json
import runpy
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rc2l.config import get_rc2l_cfg
from rc2l.data.splits import build_split
from tests.mini_datasets import build_mini_camvid, build_mini_cityscapes, build_mini_voc
from tests.shared_data import REPO

TOOL = runpy.run_path(str(REPO / "tools/make_splits.py"))


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "data"
    build_mini_voc(root, num_train=12, num_aug=6, num_val=1)
    build_mini_camvid(root, num_train=10, num_val=1)
    build_mini_cityscapes(root, num_train=8, num_val=1)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.chdir(tmp_path)
    return root


def make(capsys, *arguments: str) -> str:
    TOOL["main"]([str(argument) for argument in arguments])
    return capsys.readouterr().out.strip()


def fail(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        TOOL["main"]([str(argument) for argument in arguments])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


CASES = {
    "random": (["--dataset", "voc_2012_sem_seg_train", "--num-labeled", 3], 3, 9),
    "fraction, seed": (["--dataset", "voc_2012_sem_seg_train", "--fraction", "1/4", "--seed", 2], 3, 9),
    "unlabelled dataset": (
        ["--dataset", "voc_2012_sem_seg_train", "--unlabeled", "voc_2012_sem_seg_train_aug", "--num-labeled", 5],
        *(5, 13),
    ),
    "class balanced": (
        ["--dataset", "camvid_sem_seg_train", "--fraction", "1/5", "--sampling", "class_balanced"],
        *(2, 8),
    ),
    "few labels": (*(["--dataset", "cityscapes_sem_seg_train", "--num-labeled", 2, "--sampling", "few_labels"], 2, 6),),
    "config file": (["--config-file", REPO / "configs/voc/rc2l_r101_1-4.yaml"], 3, 9),
    "overrides": (["--num-labeled", 1, "DATASETS.TRAIN", "('camvid_sem_seg_train',)"], 1, 9),
    "two datasets": (["--dataset", "camvid_sem_seg_train,cityscapes_sem_seg_train", "--num-labeled", 6], 6, 12),
}


@pytest.mark.parametrize("case", CASES)
def test_written_lists_are_read_back_as_the_same_split(case, tmp_path, capsys):
    arguments, labeled, unlabeled = CASES[case]
    said = make(capsys, "splits/new", *arguments)
    facts = json.loads((tmp_path / "splits/new/split.json").read_text())
    assert said == f"splits/new: {labeled} labelled + {unlabeled} unlabelled images, hash {facts['hash']}"
    assert (facts["labeled"], facts["unlabeled"]) == (labeled, unlabeled) and facts["source"]
    assert facts["seed"] == (2 if "seed" in case else 0)
    assert len((tmp_path / "splits/new/labeled.txt").read_text().splitlines()) == labeled
    assert sorted(path.name for path in (tmp_path / "splits").iterdir()) == ["new"]

    cfg = get_rc2l_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELED = tuple(facts["datasets"]), tuple(facts["unlabeled_datasets"])
    cfg.DATASETS.SPLIT.LABELED_LIST = "splits/new"
    assert build_split(cfg).hash == facts["hash"]
    assert make(capsys, "splits/new", "--check") == f"splits/new is correct: {said.removeprefix('splits/new: ')}"


def test_ids_that_two_datasets_share_are_written_as_paths(data, tmp_path, capsys):
    names = ["first_sem_seg_train", "second_sem_seg_train"]
    for name in names:
        records = [{"file_name": f"{data}/{name}/{i}.jpg", "sem_seg_file_name": "x.png"} for i in range(3)]
        DatasetCatalog.register(name, lambda records=records: records)
        MetadataCatalog.get(name).set(stuff_classes=["a"], evaluator_type="sem_seg")
    try:
        make(capsys, "new", "--dataset", ",".join(names), "--num-labeled", 2)
        lines = (tmp_path / "new/labeled.txt").read_text().splitlines()
        assert len(lines) == 2 and all("_sem_seg_train/" in line and not line.startswith("/") for line in lines)
        make(capsys, "new", "--check")
    finally:
        for name in names:
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name)


def test_a_published_folder_is_checked_against_a_dataset(tmp_path, capsys):
    (tmp_path / "92").mkdir()
    (tmp_path / "92/labeled.txt").write_text("JPEGImages/2007_000003.jpg SegmentationClass/2007_000003.png\n")
    assert "1 labelled + 11 unlabelled" in make(capsys, "92", "--check", "--dataset", "voc_2012_sem_seg_train")
    assert fail(capsys, "92", "--check").startswith("error: 92 has no split.json; say which images it is about by")
    (tmp_path / "92/split.json").write_text("{}")
    assert "92/split.json: this is no split.json of make_splits.py" in fail(capsys, "92", "--check")


def test_lists_that_were_changed_are_found(tmp_path, capsys):
    make(capsys, "new", "--dataset", "camvid_sem_seg_train", "--num-labeled", 4)
    path = tmp_path / "new/labeled.txt"
    lines = path.read_text().splitlines()
    other = (tmp_path / "new/unlabeled.txt").read_text().splitlines()
    path.write_text("\n".join(lines[1:]))
    assert "new: labeled is 3, but new/split.json says 4" in fail(capsys, "new", "--check")
    path.write_text("\n".join([*lines, other[0]]))
    assert "unlabeled.txt line 1 is labelled by new/labeled.txt line 5" in fail(capsys, "new", "--check")
    path.write_text("\n".join([lines[0], *lines]))
    assert "labeled.txt line 2" in fail(capsys, "new", "--check")
    path.write_text("\n".join(lines))
    (tmp_path / "new/unlabeled.txt").write_text("\n".join(other[1:]))
    assert "unlabeled is 5, but new/split.json says 6" in fail(capsys, "new", "--check")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nowhere", "--num-labeled", 1], "unknown dataset 'nowhere'"),
        (["--dataset", "camvid_sem_seg_train"], "all images would be labelled; give --num-labeled or --fraction"),
        (["--dataset", "camvid_sem_seg_train", "--num-labeled", 11], "NUM_LABELED is 11, but DATASETS.TRAIN has 10"),
        (["--dataset", "camvid_sem_seg_train", "--num-labeled", "ten"], "NUM_LABELED"),
        (["--dataset", "camvid_sem_seg_train", "--num-labeled", 1, "--sampling", "best"], "SAMPLING is 'best'"),
        (["--num-labeled", 1], "DATASETS.TRAIN is empty"),
        (["--config-file", "none.yaml"], "--config-file none.yaml: no such file"),
        (["--dataset", "camvid_sem_seg_train", "--num-labeled", 1, "A.B", 1], "A.B"),
        (
            ["--dataset", "camvid_sem_seg_train", "--num-labeled", 1, "DATASETS.PARTIAL_LABELS.ENABLED", "True"],
            "DATASETS.PARTIAL_LABELS labels every image",
        ),
        (["--check"], "LABELED_LIST: new does not exist"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, arguments, message):
    if arguments == ["--check"]:
        arguments = [*arguments, "--dataset", "camvid_sem_seg_train"]
    assert message in fail(capsys, "new", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_existing_folder_is_kept(tmp_path, capsys):
    (tmp_path / "new").mkdir()
    message = fail(capsys, "new", "--dataset", "camvid_sem_seg_train", "--num-labeled", 1)
    assert message == "error: new exists; remove it, or name another folder"
    assert list((tmp_path / "new").iterdir()) == []
