"""The HTML page of runs: numbers, robustness against what is missing, names of any kind; self-contained and escaped."""

import base64
import json
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from rc2l.config import get_rc2l_cfg
from rc2l.report import contents, find_runs, read_run, report_html
from rc2l.report.groups import group_runs
from rc2l.report.run_files import default_settings
from tests.tool_modules import load_tool

ODD = ['<script>alert("1")</script>', "_$a_{b$", "路 & \x07 <b>", "road"]
CHILDLESS = {"meta", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects texts, tags and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in CHILDLESS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []

    @property
    def pictures(self) -> list[bytes]:
        return [base64.b64decode(each.partition("base64,")[2]) for each in self.addresses if each.startswith("data:")]


def write_run(folder: Path, score: float = 50.0, names=("road", "car"), seed: int = 0, **settings) -> Path:
    """Files as a training of 40 iterations leaves them."""
    cfg = get_rc2l_cfg()
    cfg.merge_from_list(["SEED", seed, "SOLVER.MAX_ITER", 40, "OUTPUT_DIR", str(folder)])
    cfg.merge_from_list([word for pair in settings.items() for word in pair])
    (folder / "inference/d_teacher").mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    row = {"loss_ce": 1.5, "total_loss": 2.0, "lr": 1e-4, "time": 0.5, "data_time": 0.1, "memory_mib": 1234.0}
    row |= {f"pseudo/class_share/{name}": 1 / len(names) for name in names}
    row |= {"pseudo/mIoU": score / 2, "pseudo/confidence": 0.8}
    evaluated = {"teacher/mIoU": score, "student/mIoU": score - 1, "iteration": 39}
    rows = [row | {"iteration": 19, "teacher/mIoU": score + 5}, row | evaluated]
    (folder / "metrics.json").write_text("".join(json.dumps(each) + "\n" for each in rows))
    matrix = [[100 if i == j else 2 * i + j for j in range(len(names))] for i in range(len(names))]
    images = [{"image_id": f"img{i}", "file_name": "x", "mIoU": 10.0 * i, "pixel_accuracy": 90.0} for i in range(3)]
    content = {"dataset": "d", "network": "teacher", "mode": "single scale", "mIoU": score, "num_images": 3}
    content |= {"IoU": dict.fromkeys(names, score), "pixels": dict.fromkeys(names, 1000), "images": images}
    content |= {"confusion_matrix": matrix, "pixel_accuracy": 90.0, "mean_accuracy": None, "fwIoU": 80.0}
    content |= {"pictures": {"worst": [{"image_id": "img0", "mIoU": 0.0, "file": "worst_1.jpg"}], "best": []}}
    (folder / "inference/d_teacher.json").write_text(json.dumps(content))
    for path in (folder / "inference/d_teacher/worst_1.jpg", folder / "pictures/0000039_test.jpg"):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path)
    stamps = ["[12/31 23:59:00] rc2l INFO: begin", "no stamp", "[01/01 00:01:30] rc2l INFO: end"]
    (folder / "log.txt").write_text("\n".join(stamps))
    return folder


def test_page_of_several_runs_is_whole_escaped_and_needs_nothing_else(tmp_path):
    for seed, score in enumerate((50.0, 54.0)):
        write_run(tmp_path / f"runs/a/seed{seed}", score, ODD, seed)
    write_run(tmp_path / "runs/b", 40.0, ODD, **{"SEMI.METHOD": "unimatch"})
    output = tmp_path / "page.html"
    load_tool("report").main([str(tmp_path / "runs"), "--output", str(output), "--title", "a <i> title"])
    page = Page(output.read_text())
    assert not {"script", "link", "b", "i"} & set(page.tags)
    assert all(each.startswith(("data:", "#")) for each in page.addresses)
    assert "a <i> title" in page.texts and set(ODD[:2]) <= set(page.texts)
    assert "52.00 ± 2.83" in page.texts and "57.00 ± 2.83" in page.texts  # last and best
    assert "40.00" in page.texts and "50.00, 54.00" in page.texts
    assert {"SEMI.METHOD", "unimatch", "rc2l"} <= set(page.texts)
    assert "1,000" in page.texts and "25.00" in page.texts  # pixels of a class, and their share
    figures = [each.decode() for each in page.pictures if each.startswith(b"<?xml")]
    assert len(figures) == 8  # mIoU, losses, optimisation; pseudo labels, shares of 2 groups, 2 matrices
    assert any("&lt;script&gt;" in each for each in figures) and not any("<script" in each for each in figures)
    assert sum(each.startswith(b"\xff\xd8") for each in page.pictures) == 4  # a worst image and a training picture each


def test_numbers_of_groups(tmp_path):
    runs = [read_run(write_run(tmp_path / f"seed{seed}", 50.0 + seed, seed=seed)) for seed in range(2)]
    (group,) = group_runs(runs)
    assert group.mean_curve("teacher/mIoU")[40] == (50.5, pytest.approx(0.5**0.5))
    (row,) = contents.summary([group])
    assert row["seeds"] == "0, 1" and row["done"] == "40" and row["each"] == "50.00, 51.00"
    cost = contents.cost([group])[0]
    assert cost["steps"] == "0:00:20" and cost["per_step"] == "0.500 s" and cost["memory"] == "1,234 MiB"
    assert cost["images"] == "48.0" and cost["waiting"] == "20 %" and cost["wall_clock"] == "0:02:30"
    pairs = contents.confusions([group])[0]["pairs"]
    assert pairs[0]["truth"] == "car" and pairs[0]["of_class"] == f"{100 * 2 / 102:.1f}"
    assert contents.classes([group])["totals"][1]["cells"] == [""]  # mean accuracy is null in the file
    changed = {row["key"] for row in contents.settings_of([group], default_settings(get_rc2l_cfg()))[0]["rows"]}
    assert changed == {"SOLVER.MAX_ITER"}
    # The same seed once more is no other draw.
    assert [len(each.runs) for each in group_runs([*runs, runs[0]])] == [2, 1]
    # A run of a version that did not know a key yet has its default.
    del runs[1].settings["SEMI.BURN_IN"]
    defaults = default_settings(get_rc2l_cfg())
    assert len(group_runs(runs, defaults)) == 1 and len(group_runs(runs)) == 2
    assert contents.differences(group_runs(runs), defaults) == []


def test_runs_that_came_not_far(tmp_path):
    empty, torn, one = (tmp_path / name for name in ("empty", "torn", "one"))
    empty.mkdir()
    (empty / "config.yaml").write_text("SEED: 3\nMY_OWN: {KEY: [1, 2]}\n")
    write_run(torn)
    (torn / "inference/d_teacher.json").unlink()
    rows = (torn / "metrics.json").read_text().splitlines()
    (torn / "metrics.json").write_text("\n".join([rows[0], "{damaged", rows[0].replace("19", "29"), rows[1][:20]]))
    write_run(one, 100.0, ["only"])
    runs = [read_run(folder) for folder in find_runs([tmp_path])]
    page = Page(report_html(runs, default_settings(get_rc2l_cfg())))
    assert {"nothing yet", "30 of 40", "not evaluated", "only"} <= set(page.texts)
    assert "MY_OWN.KEY" in page.texts and "[1, 2]" in page.texts and "no such key" in page.texts
    assert read_run(torn).wall_clock == timedelta(seconds=150)
    page = Page(report_html([read_run(empty)], {}))
    assert not page.pictures and "Curves" not in page.texts


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="holds no run: name the OUTPUT_DIR"):
        find_runs([tmp_path])
    write_run(tmp_path / "x")
    (tmp_path / "x/inference/d_teacher.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"d_teacher.json is damaged"):
        read_run(tmp_path / "x")


def test_a_file_of_another_folder_is_not_shown(tmp_path):
    folder = write_run(tmp_path / "x")
    path = folder / "inference/d_teacher.json"
    path.write_text(path.read_text().replace("worst_1.jpg", "../../pictures/0000039_test.jpg"))
    assert contents.images(group_runs([read_run(folder)]))[0]["ends"] == []
