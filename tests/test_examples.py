"""Own code beside the project trains, resumes exactly and is evaluated, through the command line with ``--import``."""

import json

import pytest
import torch

from rc2l.data.datasets.shapes import generate_shapes
from tests.processes import run_python
from tests.shared_data import REPO

SHORT = """SOLVER.IMS_PER_BATCH 2 SOLVER.IMS_PER_BATCH_UNLABELED 2 SEMI.BURN_IN 1 SOLVER.CHECKPOINT_PERIOD 2
SOLVER.MAX_ITER 4 TEST.EVAL_PERIOD 0 DATASETS.SPLIT.FRACTION 1/4 MODEL.DEVICE cpu DATALOADER.NUM_WORKERS 0
MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32 MODEL.MASK_FORMER.HIDDEN_DIM 32
MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 RECO.DIM 16 VIS_PERIOD 0""".split()
#: Module -> config, overrides, a loss that it gives.
EXAMPLES = {
    "cross_pseudo_supervision": ("examples/cross_pseudo_supervision.yaml", [], "second/loss_self_training"),
    "prototype_loss": ("configs/shapes/rc2l.yaml", ["PROTOTYPE.ENABLED", "True"], "loss_prototype"),
    "own_network": ("examples/own_network.yaml", ["RECO.ENABLED", "True"], "loss_reco"),
}
#: All runs of a case in one process, since importing takes longest.
RUNS = """
import shutil, sys
from rc2l.engine.command import main
from rc2l.engine.launch import launch
from rc2l.engine.run import argument_parser
folder, arguments = sys.argv[1], sys.argv[2:]
def run(name, *options):
    launch(main, argument_parser("").parse_args([*options, *arguments, "OUTPUT_DIR", f"{folder}/{name}"]))
run("whole")
(shutil.os.mkdir(f"{folder}/resumed"), shutil.copy(f"{folder}/whole/model_0000001.pth", f"{folder}/resumed"))
run("resumed", "--resume")
arguments += ["MODEL.WEIGHTS", f"{folder}/whole/model_final.pth"]
run("whole", "--eval-only")
"""


@pytest.mark.whole_run
@pytest.mark.parametrize("name", EXAMPLES)
def test_own_code_trains_by_import(name, tmp_path):
    generate_shapes(tmp_path, num_train=8, num_val=1, size=64)
    config, overrides, loss = EXAMPLES[name]
    options = ["--import", f"examples.{name}", "--config-file", config, *SHORT, *overrides]
    environment = {"DETECTRON2_DATASETS": str(tmp_path), "PATH": "", "PYTHONPATH": str(REPO), "HOME": str(tmp_path)}
    (tmp_path / "runs.py").write_text(RUNS)
    done = run_python(str(tmp_path / "runs.py"), str(tmp_path), *options, environment=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads((tmp_path / "whole/metrics.json").read_text().splitlines()[-1])
    assert row[loss] > 0
    whole, resumed = (
        torch.load(tmp_path / folder / "model_final.pth", weights_only=True) for folder in ("whole", "resumed")
    )
    networks = whole["trainer"]["networks"]
    assert networks == (["student", "second"] if name.startswith("cross") else ["teacher", "student"])
    for network in networks:
        entry = "model" if network == "student" else network
        assert all(torch.equal(value, resumed[entry][key]) for key, value in whole[entry].items()), network
        assert row[f"{network}/mIoU"] >= 0
        (table,) = (tmp_path / "whole/eval_only/inference").glob(f"*_{network}.json")
        assert json.loads(table.read_text())["mIoU"] == pytest.approx(row[f"{network}/mIoU"])


def test_an_unknown_module_is_one_line(tmp_path):
    done = run_python("train_net.py", "--import", "no_such_module", "--config-file", "configs/shapes/rc2l.yaml")
    assert done.returncode != 0 and "no_such_module" in done.stderr and "Traceback" not in done.stderr
