"""The command rc2l: the same code and options as the scripts, --run in place of config and checkpoint."""

import shutil
import subprocess
from argparse import ArgumentParser, Namespace

import pytest

from rc2l import cli
from rc2l.engine import command
from rc2l.engine.arguments import add_trained_network_arguments, read_arguments, split_overrides
from rc2l.engine.config_file import find_config, load_config
from tests.processes import run_python
from tests.shared_data import REPO


@pytest.fixture
def run_folder(tmp_path):
    cfg = load_config("configs/shapes/rc2l.yaml", [])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "model_final.pth").touch()
    return tmp_path


@pytest.fixture
def launched(monkeypatch):
    """Arguments with which processes would have been started."""
    given: list[Namespace] = []
    monkeypatch.setattr(command, "launch", lambda main, args: given.append(args))
    return given


def network_arguments(*words: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("inputs", nargs="*")
    add_trained_network_arguments(parser)
    parser.add_argument("--opts", nargs="*", default=[])
    return read_arguments(parser, list(words))


def test_usage_names_the_commands_that_exist_and_each_has_its_script(capsys):
    cli.main([])
    said = capsys.readouterr().out
    for name in cli.available():
        assert f"\n  {name} " in said
    assert {"train", "eval", "predict", "export", "check", "doctor", "demo"} <= set(cli.available())
    scripts = [target for target, _ in cli.COMMANDS.values() if isinstance(target, str)]
    assert all((REPO / "tools" / script).is_file() for script in scripts)


def test_an_unknown_command_is_one_line_with_the_choices(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["trian"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: there is no command 'trian'; there are new, train, eval")


def test_train_and_eval_take_the_folder_of_a_run(run_folder, launched):
    cli.main(["eval", "--run", str(run_folder), "TEST.MAX_IMAGES", "3"])
    args = launched.pop()
    assert args.eval_only and not args.resume and args.config_file == str(run_folder / "config.yaml")
    checkpoint = str(run_folder / "model_final.pth")
    assert args.opts == ["OUTPUT_DIR", str(run_folder), "MODEL.WEIGHTS", checkpoint, "TEST.MAX_IMAGES", "3"]
    (run_folder / "model_best.pth").touch()
    cli.main(["eval", "--run", str(run_folder)])
    assert launched.pop().opts[-1] == str(run_folder / "model_best.pth")
    cli.main(["train", "--run", str(run_folder)])
    args = launched.pop()
    assert args.resume and not args.eval_only and args.opts == ["OUTPUT_DIR", str(run_folder)]
    cli.main(["train", "--config-file", "configs/shapes/rc2l.yaml", "SEED", "3"])
    args = launched.pop()
    assert (args.resume, args.opts) == (False, ["SEED", "3"])


def test_tools_take_the_folder_of_a_run_and_pairs_at_the_end(run_folder):
    args = network_arguments("photos", "--run", str(run_folder), "INPUT.MIN_SIZE_TEST", "64")
    assert args.inputs == ["photos"] and args.opts == ["INPUT.MIN_SIZE_TEST", "64"]
    assert args.checkpoint == str(run_folder / "model_final.pth")
    args = network_arguments("photos", "--run", str(run_folder), "--checkpoint", "other.pth")
    assert args.checkpoint == "other.pth" and args.config_file == str(run_folder / "config.yaml")
    older = network_arguments("--config-file", "a", "--opts", "SEED", "1", "--checkpoint", "b")
    assert (older.opts, older.checkpoint) == (["SEED", "1"], "b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--config-file is missing: name the folder of a run by --run"),
        (["--config-file", "a.yaml"], "--checkpoint is missing"),
        (["--run", "nowhere"], "--run nowhere: it holds no config.yaml"),
    ],
)
def test_what_is_missing_is_said(words, message):
    with pytest.raises(ValueError, match=message):
        network_arguments(*words)


def test_a_run_without_a_checkpoint_is_refused(run_folder):
    (run_folder / "model_final.pth").unlink()
    with pytest.raises(ValueError, match=r"holds neither model_best\.pth nor model_final\.pth"):
        network_arguments("--run", str(run_folder))


def test_pairs_begin_at_the_first_config_key():
    assert split_overrides(["a.PNG", "--x", "B.jpg", "OUTPUT_DIR", "o"]) == (
        ["a.PNG", "--x", "B.jpg"],
        ["OUTPUT_DIR", "o"],
    )
    assert split_overrides(["IMG_01.png", "MODEL.WEIGHTS", "w"]) == (["IMG_01.png"], ["MODEL.WEIGHTS", "w"])
    assert split_overrides(["OTHER"]) == (["OTHER"], [])


def test_configs_of_the_project_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/shapes/rc2l.yaml").is_file()
    with pytest.raises(FileNotFoundError, match=r"none\.yaml: no such file"):
        find_config("configs/shapes/none.yaml")
    with pytest.raises(FileNotFoundError):
        find_config("shapes/rc2l.yaml")
    mine = tmp_path / "mine.yaml"
    mine.write_text("_BASE_: configs/shapes/rc2l.yaml\nSEED: 7\n")
    cfg = load_config(str(mine), [])
    assert (cfg.SEED, cfg.SEMI.METHOD) == (7, "rc2l")
    mine.write_text("_BASE_: configs/../pyproject.toml\n")
    with pytest.raises(ValueError, match="there is no file"):
        load_config(str(mine), [])
    own = tmp_path / "configs/shapes/rc2l.yaml"
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_config("configs/shapes/rc2l.yaml").resolve() == own


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_completion_completes(tmp_path):
    script = cli.completion("bash")
    program = f'{script}\nCOMP_WORDS=(rc2l ex); COMP_CWORD=1; _rc2l; echo "${{COMPREPLY[@]}}"'
    program += '\nCOMP_WORDS=(rc2l train --conf); COMP_CWORD=2; _rc2l; echo "${COMPREPLY[@]}"'
    said = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == ["export", "--config-file"]
    with pytest.raises(ValueError, match="must be bash or zsh"):
        cli.completion("tcsh")


def test_a_script_runs_under_the_name_of_its_command(tmp_path):
    ended = run_python("-m", "rc2l.cli", "predict", folder=tmp_path)
    assert ended.returncode == 2 and "usage: rc2l predict" in ended.stderr
