"""Every config key has a range: wrong values of every kind are one line, and what is accepted lies in the range."""

import math
from collections import Counter

import pytest
from detectron2.config import CfgNode, get_cfg

from rc2l.config import get_rc2l_cfg
from rc2l.config.detectron2_keys import without_effect
from rc2l.engine.config_file import check_config, load_config
from rc2l.ranges import RANGES, Range, flatten, integer, number, smallest_largest
from tests.shared_data import REPO

DECLARE = """
{keys}: no range is declared. Beside the key (rc2l/config/) or beside what reads it, write
    declare("NODE", {{"KEY": number(at_least=0)}})
with one of the descriptions in rc2l/ranges.py: number, integer, flag, one_of, text, several, exactly, ..."""
#: Values that no key shall take unless its range says so: kind -> value.
WRONG = {
    "type": object(),
    "text": "nonsense",
    "number": 0.5,
    "none": None,
    "flag": True,
    "negative": -7,
    "negative fraction": -0.5,
    "zero": 0,
    "huge": 10**30,
    "huge fraction": 1e300,
    "nan": math.nan,
    "infinity": math.inf,
    "empty list": [],
    "long list": [1.0] * 99,
    "list of nan": [math.nan, math.nan],
    "list of text": ["nonsense"],
    "nested": [[1]],
    "reversed": [2, 1],
    "newline": "a\nb",
}


def test_every_own_key_has_a_range():
    """Keys of detectron2 that nothing here reads need none; config values of them are warned of."""
    foreign = set(dict(flatten(get_cfg())))
    missing = [key for key in dict(flatten(get_rc2l_cfg())) if key not in foreign and key not in RANGES]
    assert not missing, DECLARE.format(keys=", ".join(missing))


def test_every_range_has_a_key():
    assert set(RANGES) <= set(dict(flatten(get_rc2l_cfg())))


def put(cfg: CfgNode, key: str, value: object) -> None:
    *path, name = key.split(".")
    node = cfg
    for part in path:
        node = node[part]
    dict.__setitem__(node, name, value)


def attempts(key: str, default: object) -> dict[str, object]:
    values = dict(WRONG)
    if isinstance(default, (list, tuple)):
        values |= {
            "one less": list(default)[:-1],
            "one more": [*default, *default[:1], *([] if default else ["x"])],
            "with nan": [math.nan, *list(default)[1:]],
            "with negative": [-1, *list(default)[1:]],
        }
    return values


def test_every_key_with_every_wrong_value():
    """One line that names key and value, or a value inside the declared range; never another kind of error."""
    counts: Counter[str] = Counter()
    cfg = get_rc2l_cfg()
    for key, default in flatten(get_rc2l_cfg()):
        for kind, value in attempts(key, default).items():
            put(cfg, key, value)
            try:
                check_config(cfg)
                assert key not in RANGES or RANGES[key].accepts(value)
                assert "nan" not in kind and kind != "infinity", f"{key} takes {value}"
                assert kind != "huge" or key not in RANGES or not isinstance(default, int), f"{key} takes {value}"
                counts["accepted" if key in RANGES else "without effect"] += 1
            except ValueError as error:
                message = str(error)
                assert key in message or RANGES[key].accepts(value), message  # a check between keys may name the other
                assert "\n" not in message and len(message) < 1000
                counts["refused"] += 1
            finally:
                put(cfg, key, default)
    check_config(cfg)
    assert counts["refused"] > 10 * counts["accepted"]
    print(dict(counts))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEMI.MIXING.AREA", "[0.2]"),
        ("SEMI.MIXING.AREA", "[0.5, 0.2]"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "-1.0"),
        ("SEMI.UNSUPERVISED_WEIGHT", "-1"),
        ("SOLVER.MAX_ITER", "-1"),
        ("SOLVER.MAX_ITER", "0"),
        ("SOLVER.CHECKPOINT_PERIOD", "-1"),
        ("SOLVER.CHECKPOINT_PERIOD", "0"),
        ("SOLVER.CHECKPOINTS_KEPT", "-1"),
        ("SEMI.PSEUDO_LABEL.MIN_CONFIDENCE", "2"),
        ("INPUT.MIN_SIZE_TEST", "-5"),
        ("MODEL.PIXEL_MEAN", "[1.0, 2.0]"),
        ("MODEL.PIXEL_MEAN", "[-1.0, 0.0, 0.0]"),
        ("SOLVER.MAX_ITER", "1" + "0" * 400),
        ("INPUT.CROP.SIZE", f"[1{'0' * 400}, 32]"),
        ("MODEL.PIXEL_STD", "[1.0, 2.0, 0.0]"),
        ("INPUT.CROP.SIZE", "[10000000, 10000000]"),
        ("SOLVER.IMS_PER_BATCH", "0"),
        ("MODEL.RESNETS.NORM", "Nonsense"),
        ("SOLVER.BASE_LR", "1e999"),
        ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0"),
        ("TEST.AUG.MIN_SIZES", "[-5]"),
    ],
)
def test_overrides_out_of_range_are_one_line(key, value):
    with pytest.raises(ValueError) as error:
        load_config(str(REPO / "configs/shapes/rc2l.yaml"), [key, value])
    message = str(error.value)
    assert message.startswith(f"{key} is ") and "it must be" in message and "\n" not in message and len(message) < 500


def test_a_whole_number_beyond_all_others_is_one_line(tmp_path):
    path = tmp_path / "huge.yaml"
    path.write_text(f"_BASE_: {REPO}/configs/shapes/rc2l.yaml\nMODEL: {{MASK_FORMER: {{DICE_WEIGHT: 1{'0' * 400}}}}}\n")
    with pytest.raises(ValueError, match=r"MODEL\.MASK_FORMER\.DICE_WEIGHT is inf: it must be a number"):
        load_config(str(path), [])


def test_configs_pass():
    """In range, and nothing that has no effect; every fourth of them, as many differ in one number only."""
    found = sorted((REPO / "configs").rglob("*.yaml"))
    configs = [path for path in found if path.parent.name != "papers" and path.name != "my_dataset.yaml"][::4]
    assert configs
    for path in configs:
        cfg = load_config(str(path), ["DATASETS.CUSTOM", "None"])
        assert not without_effect(cfg), path


def test_keys_without_effect_are_warned_of(caplog):
    cfg = load_config(
        str(REPO / "configs/shapes/rc2l.yaml"),
        ["TEST.DETECTIONS_PER_IMAGE", "5", "DATALOADER.ASPECT_RATIO_GROUPING", "False"],
    )
    assert without_effect(cfg) == ["DATALOADER.ASPECT_RATIO_GROUPING", "TEST.DETECTIONS_PER_IMAGE"]
    assert [record.message for record in caplog.records if "no effect" in record.message] == [
        "no effect here, though the config sets them: DATALOADER.ASPECT_RATIO_GROUPING, TEST.DETECTIONS_PER_IMAGE "
        "(keys of detectron2)"
    ]


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (number(at_least=0, below=1), [0, 0.99], [1, -0.01, True, "0", None, math.nan]),
        (number(above=0, at_most=1), [1, 1e-9], [0, 1.01]),
        (integer(at_least=4, multiple_of=4), [4, 8], [5, 4.0, 0, False]),
        (smallest_largest(number(above=0)), [[1, 1], (0.5, 2)], [[2, 1], [1], [1, 2, 3], 1]),
    ],
)
def test_bounds(allowed: Range, inside: list, outside: list):
    assert all(allowed.accepts(value) for value in inside)
    assert not any(allowed.accepts(value) for value in outside)
