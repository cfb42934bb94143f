"""Tables of runs: their files, what is run and what is not, and what is printed."""

import json
import subprocess
import sys
from types import MappingProxyType

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
    table3 = {row.name: row for row in read_tables(REPO / "configs/papers/rc2l.yaml")[2].rows}
    row = table3["SMC + RCC, VOC Aug 1/4"]
    cfg = load_config(str(row.recipe), list(row.overrides))
    assert (cfg.RC2L.RCC_WEIGHT, cfg.RC2L.RMC_WEIGHT, cfg.RC2L.RFC_WEIGHT, row.paper) == (1, 0, 0, 77.89)


def table_of(folder, rows, of_file=MappingProxyType({}), **more):
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"tables": {"t": {"rows": rows, **more}}, **of_file}))
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
    ("key", "value"), [("seeds", []), ("seeds", [0, 0]), ("seeds", [True]), ("seeds", 3), ("results", 3), ("runs", "x")]
)
def test_bad_keys_of_the_file_are_one_line(key, value, tmp_path):
    with pytest.raises(YamlError, match=rf"mine\.yaml: (unknown: )?{key}") as error:
        read_tables(table_of(tmp_path, [{"name": "a", "recipe": None}], {key: value}))
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
    path = table_of(tmp_path, rows, {"results": "kept"}, title="mine", baseline="few")
    output = tmp_path / "out"
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

    kept = sorted((tmp_path / "kept").iterdir())
    assert [json.loads(file.read_text()) for file in kept] == [json.loads(file.read_text()) for file in results]
    assert kept[0].name == f"{results[0].parent.parent.name}_seed3.json"

    before = results[0].stat().st_mtime_ns
    kept[1].unlink()
    results[1].unlink()  # stopped before its result was written: continued from its last checkpoint, not begun anew
    table.main(command)
    assert "1 runs are done, 1 are missing" in capsys.readouterr().out
    assert results[0].stat().st_mtime_ns == before and results[1].exists()
    assert not list(results[1].parent.glob("earlier_*"))


def kept_results(folder, scores):
    """A table file with two rows, and results of its runs that another day left, {row: {seed: (last, best)}}."""
    rows = [{"name": "few", "recipe": RECIPE}, {"name": "more", "recipe": RECIPE, "overrides": {"SOLVER.MAX_ITER": 9}}]
    path = table_of(folder, rows, {"seeds": [5, 6, 7], "results": "kept"}, baseline="few", title="mine")
    file = table.read_table_file(path)
    choice = table.Choice([5, 6, 7], [], [], folder / "out", file.results)
    for row in file.tables[0].rows:
        for run in table.runs_of(row, choice):
            if run.seed in scores[row.name]:
                last, best = scores[row.name][run.seed]
                digest = table.settings_digest(run.recipe, run.overrides)
                run.kept.parent.mkdir(exist_ok=True)
                run.kept.write_text(json.dumps({"settings": digest, "last": last, "best": best}))
    return path


def test_results_of_another_day_are_done_and_go_into_a_document(tmp_path, capsys):
    path = kept_results(tmp_path, {"few": {5: (40, 42), 6: (50, 50)}, "more": {5: (44, 44), 6: (49, 51), 7: (60, 60)}})
    command = [str(path), "--output", str(tmp_path / "out")]
    table.main([*command, "--dry-run"])
    (listed,) = capsys.readouterr().out.splitlines()
    assert "SEED 7 " in listed and listed.startswith("python train_net.py --config-file configs/shapes/supervised.yaml")

    document = tmp_path / "results.md"
    document.write_text("before\n\n<!-- table: t -->\nold\n<!-- end of table -->\n\nafter\n")
    for _ in range(2):  # the second time in place of the first
        table.main([*command, "--no-training", "--write", str(document)])
        assert "5 runs are done, 1 are missing" in capsys.readouterr().out
    said = document.read_text()
    assert said.startswith("before\n\n<!-- table: t -->\n\n|") and said.endswith(
        "|\n\n<!-- end of table -->\n\nafter\n"
    )
    more = next(line for line in said.splitlines() if line.startswith("| more"))
    cells = [cell.strip() for cell in more.strip("|").split("|")]
    assert cells[1:] == ["51.00 ± 8.19", "44.00 49.00 60.00", "51.67 ± 8.02", "44.00 51.00 60.00", "1, 2 of 2 (+1.50)"]
    assert "40.00 50.00 -" in said and "old" not in said and "paper" not in said

    document.write_text("no place\n")
    with pytest.raises(SystemExit):
        table.main([*command, "--no-training", "--write", str(document)])
    assert "it has no line <!-- table: t -->" in capsys.readouterr().err


def test_a_result_that_is_not_of_these_settings_or_damaged_is_refused(tmp_path, capsys):
    path = kept_results(tmp_path, {"few": {5: (40, 42)}, "more": {}})
    (kept,) = (tmp_path / "kept").iterdir()
    for content, message in (
        ({"settings": "0", "last": 1, "best": 2}, "with other settings than configs/shapes/supervised.yaml"),
        ({"settings": "0"}, "is damaged"),
    ):
        kept.write_text(json.dumps(content))
        with pytest.raises(SystemExit):
            table.main([str(path), "--no-training", "--output", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert message in said and str(kept) in said and said.count("\n") == 1


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path, capsys, monkeypatch):
    ready = table.Run(table.Path(RECIPE), (), 0, tmp_path / "runs/x/seed0")
    monkeypatch.setattr(table.Run, "command", ["python3", "-c", "print('no such weights'); raise SystemExit(2)"])
    assert "x, seed 0 failed with status 2: no such weights" in table.train(ready, 1)
    assert ready.result is None
