"""Weak and strong augmentations, padding, and the mappers that apply them."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import argparse
import pickle
import random
import runpy

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image
from torchvision.transforms import functional as F

from rc2l.config import get_rc2l_cfg
from rc2l.data.color import ColorAugSSD, ColorJitter
from rc2l.data.datasets import load_records
from rc2l.data.errors import DatasetError
from rc2l.data.mapper import EvaluationMapper, LabeledMapper, UnlabeledMapper, seeded_randomness
from rc2l.data.transforms import (
    ResizeCropTransform,
    build_padding,
    build_strong_augmentations,
    build_test_resize,
    build_weak_augmentations,
)
from tests.mini_datasets import build_mini_camvid
from tests.shared_data import REPO


def config(crop=(32, 40), sizes=(24, 48)):
    cfg = get_rc2l_cfg()
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", list(crop)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = sizes, "range"
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    return cfg


def strong_config(**strong):
    cfg = config()
    for key, value in strong.items():
        cfg.INPUT.STRONG[key] = value
    return cfg


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(build_mini_camvid(tmp_path, num_train=2, num_val=1)))
    return load_records("camvid_sem_seg_train")


def test_padding_has_the_mean_color_and_the_ignore_label():
    pad = build_padding(config(crop=(6, 5))).get_transform(np.zeros((4, 5, 3), dtype=np.uint8))
    image = pad.apply_image(np.zeros((4, 5, 3), dtype=np.uint8))
    label = pad.apply_segmentation(np.ones((4, 5), dtype=np.uint8))
    assert image.shape == (6, 5, 3) and label.shape == (6, 5)
    assert (image[4:] == (124, 116, 104)).all() and not image[:4].any()
    assert (label[4:] == 255).all() and (label[:4] == 1).all()


def test_size_divisibility_rounds_the_padded_size_up():
    cfg = config(crop=(33, 64))
    cfg.INPUT.SIZE_DIVISIBILITY = 32
    assert build_padding(cfg).size == (64, 64)


@pytest.mark.parametrize("sizes", [(16, 20), (60, 80), (24, 48)])
def test_labeled_sample_has_the_crop_size_whatever_the_scale(records, sizes):
    mapper = LabeledMapper(config(sizes=sizes))
    for seed in range(5):
        with seeded_randomness(seed):
            sample = mapper(records[0])
        assert sample["image"].shape == (3, 32, 40) and sample["image"].dtype == torch.uint8
        assert sample["target"].shape == (32, 40) and sample["target"].dtype == torch.uint8
        assert set(sample["target"].unique().tolist()) <= {*range(11), 255}


def test_image_and_label_stay_aligned(records):
    """The label is painted into the image; after all geometry the two must still agree, pixel by pixel."""
    record = dict(records[0])
    label = np.array(Image.open(record["sem_seg_file_name"]))
    np.copyto(label, 0, where=label == 11)
    Image.fromarray(label).save(record["sem_seg_file_name"])
    record["file_name"] = record["file_name"].replace(".jpg", ".png")
    Image.fromarray(np.repeat(label[..., None] * 20, 3, axis=2)).save(record["file_name"])
    mapper = LabeledMapper(config(crop=(30, 30), sizes=(36, 36)))  # no interpolation at the original scale
    flips = set()
    for seed in range(12):
        with seeded_randomness(seed):
            sample = mapper(record)
        assert torch.equal(sample["image"][0], sample["target"] * 20)
        flips.add(bool(sample["target"][:, :15].sum() > sample["target"][:, 15:].sum()))
    assert flips == {True, False}


def test_channel_order_follows_the_config(records):
    cfg = config()
    rgb = EvaluationMapper(cfg)(records[0])["image"]
    cfg.INPUT.FORMAT = "BGR"
    assert torch.equal(EvaluationMapper(cfg)(records[0])["image"], rgb.flip(0))


@pytest.mark.parametrize("new_size", [(37, 53), (120, 160), (200, 301), (60, 160), (300, 40)])
def test_resize_and_crop_in_one_step_equal_the_two(new_size):
    random_state = np.random.default_rng(0)
    image = random_state.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    label = random_state.integers(0, 9, (120, 160), dtype=np.uint8)
    resize = T.ResizeTransform(120, 160, *new_size)
    for _ in range(10):
        height, width = (int(random_state.integers(1, size + 1)) for size in new_size)
        top, left = (int(random_state.integers(0, n - m + 1)) for n, m in zip(new_size, (height, width), strict=True))
        both = ResizeCropTransform((120, 160), new_size, (top, left, height, width))
        crop = (slice(top, top + height), slice(left, left + width))
        difference = np.abs(both.apply_image(image).astype(int) - resize.apply_image(image)[crop])
        assert difference.max() <= 1  # Pillow rounds between rows and columns, and goes first where it is cheaper
        rows, columns = (  # in the middle between two pixels, either is right
            ((2 * np.arange(new) + 1) * old % (2 * new) > 0)[part]
            for old, new, part in zip((120, 160), new_size, crop, strict=True)
        )
        clear = np.ix_(rows, columns)
        assert np.array_equal(both.apply_segmentation(label)[clear], resize.apply_segmentation(label)[crop][clear])
    assert both.apply_coords(np.array([[160.0, 120.0]])).tolist() == [[new_size[1] - left, new_size[0] - top]]


def resized_shapes(cfg, size, count=60) -> set[tuple[int, int]]:
    """Sizes to which an image of ``size`` is resized before the crop."""
    shapes, image = set(), np.zeros((*size, 3), dtype=np.uint8)
    for seed in range(count):
        with seeded_randomness(seed):
            shapes.add(build_weak_augmentations(cfg)[0].get_transform(image, None).new_size)
    return shapes


def test_scale_range_is_relative_to_each_image():
    """ReCo appendix A: a random scale in [0.5, 1.5], whatever the size of the image."""
    cfg = config()
    cfg.INPUT.SCALE_RANGE = [0.5, 1.5]
    for size in ((100, 200), (300, 100)):
        scales = np.array([(h / size[0], w / size[1]) for h, w in resized_shapes(cfg, size)])
        assert scales.min() < 0.6 and scales.max() > 1.4 and scales.min() > 0.49 and scales.max() < 1.51
        assert np.abs(scales[:, 0] - scales[:, 1]).max() < 0.02


def test_base_size_comes_first_in_training_and_tests(records):
    cfg = config()
    cfg.INPUT.BASE_SIZE = [48, 60]
    assert resized_shapes(cfg, (36, 48)) == resized_shapes(cfg, (100, 20)) == {(48, 60)}
    sample = EvaluationMapper(cfg)(records[0])
    assert sample["image"].shape == (3, 48, 60) and sample["sem_seg"].shape == (sample["height"], sample["width"])
    assert build_test_resize(config()).short_edge_length == (800, 800)
    cfg.INPUT.SCALE_RANGE = [0.5, 0.5]
    assert resized_shapes(cfg, (100, 20)) == {(24, 30)}


def test_views_have_color_changes_of_their_own():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for view in ("LABELED", "WEAK"):
        cfg = config(crop=(64, 64), sizes=(64, 64))
        cfg.INPUT.RANDOM_FLIP = "none"
        cfg.INPUT[view].GRAYSCALE_PROB = 1.0
        gray = []
        for labeled in (True, False):
            augmented = T.AugInput(image)
            T.AugmentationList(build_weak_augmentations(cfg, labeled=labeled))(augmented)
            gray.append(bool((augmented.image[..., 0] == augmented.image[..., 1]).all()))
        assert gray == [view == "LABELED", view == "WEAK"]


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_ssd_colors_are_those_of_detectron2(image_format):
    """The same draws; a difference only where detectron2 rounds between saturation and hue."""
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    exact = 0
    for seed in range(40):
        with seeded_randomness(seed):
            theirs = ColorAugSSDTransform(image_format).apply_image(image)
            after = random.random()
        with seeded_randomness(seed):
            ours = ColorAugSSD(image_format).get_transform(image).apply_image(image)
            assert random.random() == after
        exact += np.array_equal(ours, theirs)
        assert np.abs(ours.astype(int) - theirs).mean() < 2
    assert 20 < exact < 40


@pytest.mark.parametrize("operation", range(4))
def test_jitter_does_what_torchvision_does(operation):
    """On a picture of smooth colours; hue is in steps of 2 degrees in OpenCV, of 1.4 in Pillow."""
    rows, columns = np.mgrid[0:64, 0:64]
    image = np.stack([40 + 3 * rows, 230 - 3 * columns, 60 + rows + columns], axis=-1).astype(np.uint8)
    strengths = np.eye(4)[operation] * [0.5, 0.5, 0.5, 0.25]
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)[operation]
    for seed in range(6):
        with seeded_randomness(seed):
            ours = ColorJitter(tuple(strengths), "RGB").get_transform(image).apply_image(image)
        with seeded_randomness(seed):
            amounts = [np.random.uniform(1 - x, 1 + x) for x in strengths[:3]]
            amounts.append(np.random.uniform(-strengths[3], strengths[3]))
        theirs = np.asarray(adjust(Image.fromarray(image), amounts[operation]))
        assert np.abs(ours.astype(int) - theirs).max() <= (12 if operation == 3 else 2)


def test_speed_table_has_a_row_for_every_part(capsys):
    tool = runpy.run_path(str(REPO / "tools/benchmark_data.py"))
    small = ["INPUT.CROP.SIZE", "[64,64]", "INPUT.MIN_SIZE_TRAIN", "(64,80)"]
    parser = argparse.ArgumentParser()
    tool["add_arguments"](parser)
    tool["run"](parser.parse_args(["--images", "voc", "--num-images", "1", "--repeats", "1", *small]))
    table = capsys.readouterr().out
    parts = "decode image|decode label|ResizeCrop|ColorAugSSD|RandomFlip|PadToSize|ColorJitter|GaussianBlur|collate"
    for part in [*parts.split("|"), "whole labelled sample", "whole unlabelled sample"]:
        assert part in table
    with pytest.raises(ValueError, match=r"--repeats is 0; it must be 1 or more"):
        tool["run"](parser.parse_args(["--repeats", "0"]))


def test_single_category_crops_are_avoided():
    cfg = config(crop=(16, 16), sizes=(64, 64))
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.9
    cfg.INPUT.RANDOM_FLIP = "none"
    label = np.zeros((64, 64), dtype=np.uint8)
    label[:, 24:40] = 1
    image = np.zeros((64, 64, 3), dtype=np.uint8)

    def share_of_single_class_crops(cfg):
        augmentations, single = T.AugmentationList(build_weak_augmentations(cfg)), 0
        for seed in range(60):
            view = T.AugInput(image, sem_seg=label)
            with seeded_randomness(seed):
                augmentations(view)
            single += np.bincount(view.sem_seg.ravel()).max() >= 0.9 * 256
        return single / 60

    constrained = share_of_single_class_crops(cfg)
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    assert constrained < 0.1 < 0.3 < share_of_single_class_crops(cfg)


def test_unlabeled_views_share_geometry_and_padding(records):
    cfg = strong_config(COLOR_JITTER=[0.5, 0.5, 0.5, 0.25], COLOR_JITTER_PROB=1.0, BLUR_PROB=1.0)
    cfg.INPUT.MIN_SIZE_TRAIN = (20, 20)
    cfg.INPUT.COLOR_AUG_SSD = True
    unlabeled = {key: value for key, value in records[0].items() if key != "sem_seg_file_name"}
    with seeded_randomness(0):
        sample = UnlabeledMapper(cfg)(unlabeled)
    valid = sample["valid"]
    assert valid[:20, :27].all() and valid.sum() == 20 * 27 and valid.dtype == torch.bool
    mean = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None]
    (strong,) = sample["strong"]
    assert (sample["image"][:, ~valid] == mean).all() and (strong[:, ~valid] == mean).all()
    assert not torch.equal(sample["image"], strong)


def test_strong_view_is_the_weak_tensor_where_nothing_is_asked_for(records):
    assert build_strong_augmentations(config()) == []
    sample = UnlabeledMapper(config())(records[0])
    assert len(sample["strong"]) == 1 and sample["strong"][0] is sample["image"]


def test_unlabeled_mapper_opens_no_label(records):
    record = records[0] | {"sem_seg_file_name": "/nowhere.png"}
    cfg = config()
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.5
    assert "target" not in UnlabeledMapper(cfg)(record)


def apply_strong(image, seed=0, image_format="RGB", **strong):
    cfg = strong_config(**strong)
    cfg.INPUT.FORMAT = image_format
    view = T.AugInput(image)
    with seeded_randomness(seed):
        T.AugmentationList(build_strong_augmentations(cfg))(view)
    return view.image


def test_strong_operations():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    gray = apply_strong(image, GRAYSCALE_PROB=1.0)
    assert (gray[..., 0] == gray[..., 1]).all() and (gray[..., 1] == gray[..., 2]).all()
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(gray[..., 0] - luma).max() <= 1
    blurred = apply_strong(image, BLUR_PROB=1.0, BLUR_SIGMA=[2.0, 2.0])
    assert blurred.std() < 0.3 * image.std() and abs(blurred.mean() - image.mean()) < 4
    brighter = [apply_strong(np.full_like(image, 100), s, COLOR_JITTER=[0.5, 0, 0, 0], COLOR_JITTER_PROB=1.0).max()
                for s in range(20)]  # fmt: skip
    assert 50 <= min(brighter) < 75 < 125 < max(brighter) <= 150


def test_strong_operations_know_the_channel_order():
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    options = {"COLOR_JITTER": [0.4, 0.4, 0.4, 0.2], "COLOR_JITTER_PROB": 1.0, "GRAYSCALE_PROB": 0.5}
    for seed in range(4):
        rgb = apply_strong(image, seed, **options)
        bgr = apply_strong(np.ascontiguousarray(image[..., ::-1]), seed, "BGR", **options)
        assert np.array_equal(rgb, bgr[..., ::-1])


def test_seeded_randomness_reproduces_and_leaves_no_trace(records):
    mapper = UnlabeledMapper(strong_config(COLOR_JITTER=[0.5, 0.5, 0.5, 0.2], BLUR_PROB=0.5))
    mapper.weak.augs.insert(0, T.RandomApply(T.RandomFlip(), 0.5))
    np.random.seed(1)
    random.seed(1)
    expected = np.random.rand(), random.random()
    np.random.seed(1)
    random.seed(1)
    samples = []
    for key in ((0, 1, 5), (0, 1, 5), (0, 1, 6)):
        with seeded_randomness(*key):
            samples += mapper(records[0])["strong"]
    assert (np.random.rand(), random.random()) == expected
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])


def test_evaluation_sample(records):
    cfg = config()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 18, 100
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    sample = EvaluationMapper(cfg)(records[0])
    assert np.random.rand() == expected  # evaluation must not move the generators of training
    assert sample["image"].shape == (3, 18, 24) and sample["sem_seg"].shape == (36, 48)
    assert (sample["height"], sample["width"], sample["image_id"]) == (36, 48, "train_00000")
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert EvaluationMapper(cfg)(records[0])["image"].shape == (3, 36, 48)


def test_damaged_image_is_named(records, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff no image")
    with pytest.raises(DatasetError, match=r"broken.jpg: cannot read this image"):
        UnlabeledMapper(config())(records[0] | {"file_name": str(path)})


def test_sizes_that_differ_are_named(records):
    with pytest.raises(DatasetError, match=r"is 10x8 pixels .* 48x36; both must have the same size"):
        Image.new("RGB", (10, 8)).save(records[0]["file_name"])
        LabeledMapper(config())(records[0])


def test_mappers_can_be_sent_to_worker_processes():
    cfg = strong_config(COLOR_JITTER=[0.5, 0.5, 0.5, 0.2], GRAYSCALE_PROB=0.2, BLUR_PROB=0.5)
    cfg.INPUT.COLOR_AUG_SSD = True
    for mapper in (LabeledMapper(cfg), UnlabeledMapper(cfg), EvaluationMapper(cfg)):
        pickle.loads(pickle.dumps(mapper))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.CROP.ENABLED", False, "INPUT.CROP is ENABLED False"),
        ("INPUT.CROP.TYPE", "relative", "TYPE 'relative'.*TYPE absolute"),
        ("INPUT.CROP.SIZE", [0.5, 0.5], r"SIZE \[0.5, 0.5\]"),
        ("INPUT.DATASET_MAPPER_NAME", "mask_former_panoptic", "semantic segmentation only"),
        ("INPUT.RANDOM_FLIP", "both", "RANDOM_FLIP is 'both'"),
        ("INPUT.FORMAT", "L", "INPUT.FORMAT is 'L'"),
        ("INPUT.MIN_SIZE_TRAIN", (512,), "MIN_SIZE_TRAIN is .* with 'range'"),
        ("INPUT.BASE_SIZE", [512], r"INPUT.BASE_SIZE is \[512\]; it must be \[height, width\]"),
        ("INPUT.BASE_SIZE", [0, 512], r"INPUT.BASE_SIZE is \[0, 512\]"),
        ("INPUT.SCALE_RANGE", [1.5, 0.5], r"INPUT.SCALE_RANGE is \[1.5, 0.5\]; it must be"),
        ("INPUT.SCALE_RANGE", [0.0, 0.5], r"INPUT.SCALE_RANGE is"),
        ("INPUT.WEAK.COLOR_JITTER", [0.1, 0.1], r"INPUT.WEAK.COLOR_JITTER is \[0.1, 0.1\]"),
        ("INPUT.WEAK.BLUR_PROB", -0.5, r"INPUT.WEAK.BLUR_PROB is -0.5"),
        ("INPUT.STRONG.COLOR_JITTER", [0.1, 0.1, 0.1, 0.6], "COLOR_JITTER is .*hue at most 0.5"),
        ("INPUT.STRONG.BLUR_PROB", 1.5, r"BLUR_PROB is 1.5; it must be in \[0, 1\]"),
        ("INPUT.STRONG.BLUR_SIGMA", [2.0, 1.0], "BLUR_SIGMA is"),
    ],
)
def test_bad_keys_are_named(key, value, message):
    cfg = config()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        UnlabeledMapper(cfg)
