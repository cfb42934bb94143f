"""Tables of runs: their files, what is run and what is not, and what is printed."""

import json
import subprocess
import sys

import pytest

from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.config_file import load_config
from rc2l.yaml_file import YamlError
from tests.processes import run_python
from tests.shared_data import REPO
from tests.tool_modules import load_tool

table = load_tool("table")
from table_file import read_tables  # noqa: E402  on the path since load_tool

PAPERS = sorted((REPO / "configs/papers").glob("*.yaml"))
TINY = """SOLVER.MAX_ITER 2 TEST.EVAL_PERIOD 2 SEMI.BURN_IN 1 TEST.MAX_IMAGES 2 SOLVER.IMS_PER_BATCH 2
SOLVER.IMS_PER_BATCH_UNLABELED 2 INPUT.CROP.SIZE [32,32] MODEL.DEVICE cpu""".split()


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_every_row_of_the_papers_is_a_config(path):
    seen = {}
    for each in read_tables(path):
        for row in each.rows:
            if row.recipe is not None and (row.recipe, row.overrides) not in seen:
                seen[row.recipe, row.overrides] = load_config(str(row.recipe), list(row.overrides))
    assert seen


def test_the_papers_are_whole():
    tables = {path.stem: [each.key for each in read_tables(path)] for path in PAPERS}
    figures = ["figure2", "figure4", "figure7a", "figure7b", "figure7c", "figure7d", "figure7e", "figure8", "figure9"]
    assert tables["rc2l"] == [f"table{n}" for n in range(1, 6)]
    assert tables["reco"] == [f"table{n}" for n in range(1, 6)] + figures
    assert tables["dgcl"] == ["table2", "table3", "sampling", "clusters"] and tables["shapes"] == ["shapes"]
    table3 = {row.name: row for row in read_tables(PAPERS[1])[2].rows}
    row = table3["SMC + RCC, VOC Aug 1/4"]
    cfg = load_config(str(row.recipe), list(row.overrides))
    assert (cfg.RC2L.RCC_WEIGHT, cfg.RC2L.RMC_WEIGHT, cfg.RC2L.RFC_WEIGHT, row.paper) == (1, 0, 0, 77.89)


def table_of(folder, rows, **more):
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"tables": {"t": {"rows": rows, **more}}}))
    return path


RECIPE = str(REPO / "configs/shapes/supervised.yaml")


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([], {}, r"mine\.yaml: t: rows is \[\]; it must be a list"),
        ([{"name": "a"}], {}, r"row 1 \(a\): it has no recipe"),
        ([{"name": "a", "recipe": "none.yaml"}], {}, r"recipe: there is no file .*none\.yaml"),
        ([{"name": "a", "recipe": None, "paper": "77"}], {}, r"paper is '77'; it must be mIoU"),
        ([{"name": "a", "recipe": None}] * 2, {}, r"two rows are named 'a'"),
        ([{"name": "a", "recipe": None, "seed": 1}], {}, r"unknown: seed; known: name"),
        ([{"name": "a", "recipe": None}], {"baseline": "b"}, r"baseline is 'b'; it must be the name of a row: a"),
        ([{"name": "a", "recipe": RECIPE, "overrides": {"SEED": 1}}], {}, r"overrides sets SEED"),
        ([{"name": "a", "recipe": RECIPE, "overrides": [1]}], {}, r"overrides is \[1\]; it must be a mapping"),
        (["a"], {}, r"row 1: it is 'a'; it must be a mapping"),
    ],
)
def test_bad_table_files_are_one_line(rows, more, message, tmp_path):
    with pytest.raises(YamlError, match=message) as error:
        read_tables(table_of(tmp_path, rows, **more))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "table9"], "--only table9: there is no such table; the file has t"),
        (["--seeds", "0", "0"], "seeds of 0 or more, each once"),
        (["--overrides", "SEED"], "KEY VALUE pairs"),
        (["--overrides", "SEMI.METHOD", "magic"], "SEMI.METHOD is 'magic'"),
    ],
)
def test_bad_arguments_are_one_line(words, message, tmp_path, capsys):
    path = table_of(tmp_path, [{"name": "a", "recipe": RECIPE}])
    with pytest.raises(SystemExit) as end:
        table.main([str(path), *words, "--output", str(tmp_path)])
    assert end.value.code == 2 and message in (said := capsys.readouterr().err) and said.count("\n") == 1


@pytest.fixture
def quick_start(monkeypatch):
    """The commands of a table run as they stand, in processes that start at once."""
    run = subprocess.run

    def run_quickly(command, **options):
        if command[0] != sys.executable:
            return run(command, **options)
        done = run_python(*command[1:], folder=options["cwd"], environment=options["env"])
        options["stdout"].write(done.stdout + done.stderr)
        return done

    monkeypatch.setattr(table.subprocess, "run", run_quickly)


@pytest.mark.whole_run
def test_runs_what_is_missing_once_and_prints_it(tmp_path, capsys, monkeypatch, quick_start):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    generate_shapes(tmp_path / "datasets", num_train=48, num_val=4)
    rows = [
        {"name": "few", "recipe": RECIPE, "paper": 50},
        {"name": "the same", "recipe": RECIPE},
        {"name": "also", "recipe": RECIPE, "overrides": {"TEST.EVAL_PERIOD": 7}},
        {"name": "quoted", "recipe": None, "paper": 61.5},
    ]
    path, output = table_of(tmp_path, rows, title="mine", baseline="few"), tmp_path / "out"
    command = [str(path), "--output", str(output), "--seeds", "3", "4", "--overrides", *TINY]
    table.main([*command, "--dry-run"])
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 2 and not output.exists()  # EVAL_PERIOD is an override for all: one row is the other
    assert "SEED 3 DATASETS.SPLIT.SEED 3" in listed[0] and "--resume" in listed[0]

    table.main(command)
    assert "0 runs are done, 2 are missing" in capsys.readouterr().out
    written = json.loads((output / "t.json").read_text())
    few, same, _, quoted = written["rows"]
    assert few["last"].keys() == {"3", "4"} and few["mean"] == pytest.approx(sum(few["last"].values()) / 2)
    assert few["sd"] == pytest.approx(abs(few["last"]["3"] - few["last"]["4"]) / 2**0.5)
    assert (same["wins"], same["pairs"], few["wins"]) == (0, 2, None)
    assert (quoted["mean"], quoted["paper"], few["paper"]) == (None, 61.5, 50)
    results = sorted(output.glob("runs/*/seed*/result.json"))
    result = json.loads(results[0].read_text())
    assert len(results) == 2 and result["curve"][-1][0] == 2
    assert result["curve"][-1][1] == pytest.approx(result["last"]) and result["best"] >= result["last"]
    assert len(result["IoU"]) == 9 and result["command"] == listed[0] and "commit" in result
    assert "| few" in (output / "t.md").read_text() and "61.50" in (output / "t.txt").read_text()

    before = results[0].stat().st_mtime_ns
    results[1].unlink()  # stopped before its result was written: continued from its last checkpoint, not begun anew
    table.main(command)
    assert "1 runs are done, 1 are missing" in capsys.readouterr().out
    assert results[0].stat().st_mtime_ns == before and results[1].exists()
    assert not list(results[1].parent.glob("earlier_*"))


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path, capsys, monkeypatch):
    ready = table.Run(table.Path(RECIPE), (), 0, tmp_path / "runs/x/seed0")
    monkeypatch.setattr(table.Run, "command", ["python3", "-c", "print('no such weights'); raise SystemExit(2)"])
    assert "x, seed 0 failed with status 2: no such weights" in table.train(ready, 1)
    assert ready.result is None
