"""Each finding of the doctor, good and bad, and its exit status."""

import pytest

from tests.processes import run_python
from tests.test_train_net import datasets, datasets_folder  # noqa: F401  fixtures
from tests.tool_modules import load_tool

doctor = load_tool("doctor")


def levels(findings) -> list[str]:
    findings = list(findings)
    for finding in findings:
        assert "\n" not in str(finding)
        assert bool(finding.fix) == (finding.level != doctor.OK)
    return [finding.level for finding in findings]


def test_this_environment_is_healthy():
    assert doctor.PROBLEM not in levels(doctor.versions())
    assert levels(doctor.detectron2_flavour()) == [doctor.OK]
    assert levels(doctor.self_test()) == [doctor.OK]


def test_a_missing_or_old_package_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {"torch": (99, 0), "no-such-package": (1, 0)})
    assert levels(doctor.versions())[1:] == [doctor.PROBLEM] * 2


def test_too_little_room_is_told(tmp_path):
    assert levels(doctor.disk(tmp_path / "not/yet", needed=0)) == [doctor.OK]
    assert levels(doctor.disk(tmp_path, needed=2**60)) == [doctor.WARNING]
    assert levels(doctor.shared_memory(tmp_path, needed=2**60)) == [doctor.WARNING]
    assert levels(doctor.shared_memory(tmp_path / "none")) == []


def test_a_folder_that_cannot_be_written_to_is_a_problem(monkeypatch, tmp_path):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert levels(doctor.disk(tmp_path, needed=0)) == [doctor.OK, doctor.PROBLEM]


def test_datasets_of_a_config_must_be_there_and_others_may_be(tmp_path, monkeypatch):
    assert levels(doctor.datasets(("shapes_sem_seg_train", "shapes_sem_seg_val"))) == [doctor.OK] * 2
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert levels(doctor.datasets(("shapes_sem_seg_train",))) == [doctor.PROBLEM]
    assert set(levels(doctor.datasets(None))) == {doctor.WARNING}


def test_weights_of_a_config_must_be_at_hand_and_what_to_bring_is_told(tmp_path, monkeypatch):
    from rc2l.config import get_rc2l_cfg

    cfg = get_rc2l_cfg()
    assert levels(doctor.weights(cfg)) == []
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    assert levels(doctor.weights(cfg)) == [doctor.PROBLEM]
    (tmp_path / "weights.pth").write_bytes(b"")
    assert levels(doctor.weights(cfg)) == [doctor.OK]
    cfg.MODEL.WEIGHTS = "package://no_such_package/x.pth"
    (finding,) = doctor.weights(cfg)
    assert finding.level == doctor.PROBLEM and "install no-such-package" in str(finding)

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr("iopath.common.file_io.download", unreachable)
    cfg.MODEL.WEIGHTS = "https://example.org/a/b.pth"
    (finding,) = doctor.weights(cfg)
    assert finding.level == doctor.PROBLEM
    assert finding.fix.startswith(f"download https://example.org/a/b.pth elsewhere and put it at {tmp_path}/a/b.pth")


def test_a_check_that_fails_is_a_finding():
    def broken():
        raise RuntimeError("first line\nsecond line")

    assert levels(doctor.guarded(broken, "devices")) == [doctor.PROBLEM]


@pytest.mark.whole_run
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--config-file", "configs/shapes/rc2l.yaml"], 0, "0 problem(s)"),
        (["--config-file", "configs/none.yaml"], 1, "configs/none.yaml: no such file"),
    ],
)
def test_exit_status(arguments, status, said):
    done = run_python("tools/doctor.py", *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout
