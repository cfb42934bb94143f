"""Images of more than 8 bits or other bands: refused by name and kind, or made 8-bit RGB by their dataset's rule."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
from contextlib import nullcontext

import imagecodecs
import numpy as np
import pytest
import tifffile
from detectron2.data.catalog import Metadata
from PIL import Image

from rc2l.data.errors import DatasetError
from rc2l.data.image_rule import ImageRule, read_rule
from rc2l.data.reading import read_image, read_image_size, read_label

BANDS = {"photometric": "minisblack"}
CHUNKY = {**BANDS, "planarconfig": "contig"}
PLANAR = {**BANDS, "planarconfig": "separate"}
RGB = {"photometric": "rgb"}
ALPHA = {**RGB, "extrasamples": ["unassalpha"]}
GRAYS = np.linspace(0, 4095, 30).astype(np.uint16).reshape(5, 6)


def stack(*arrays):
    return np.stack(arrays, axis=-1)


FIVE = stack(*[GRAYS // 16 + k * (GRAYS < 3000) for k in range(5)]).astype(np.uint16)
#: File -> stored values (H, W) or (H, W, C) as they are to be found, what the refusal says, how it is written.
KINDS = {
    "gray.png": (GRAYS, "16 bits per channel", {}),
    "colour.png": (stack(GRAYS, GRAYS[::-1], GRAYS.T.reshape(5, 6)), "16 bits per channel", {}),
    "alpha.png": (stack(GRAYS, GRAYS[::-1], GRAYS, GRAYS), "16 bits per channel", {}),
    "gray_alpha.png": (stack(GRAYS, GRAYS), "16 bits per channel", {}),
    "gray.pgm": (GRAYS, "12 bits per channel", {}),
    "text.pgm": (GRAYS, "12 bits per channel", {}),
    "colour.ppm": (stack(GRAYS, GRAYS[::-1], GRAYS), "12 bits per channel", {}),
    "gray16.tif": (GRAYS, "16 bits per channel", {}),
    "big_endian.tif": (GRAYS, "16 bits per channel", {"byteorder": ">"}),
    "bigtiff.tif": (GRAYS, "16 bits per channel", {"bigtiff": True}),
    "lzw.tif": (GRAYS, "16 bits per channel", {"compression": "lzw", "predictor": True}),
    "zstd.tif": (GRAYS, "16 bits per channel", {"compression": "zstd"}),
    "tiles.tif": (GRAYS, "16 bits per channel", {"tile": (16, 16), "compression": "deflate"}),
    "colour16.tif": (stack(GRAYS, GRAYS[::-1], GRAYS), "16 bits per channel", RGB),
    "planar.tif": (stack(GRAYS, GRAYS[::-1], GRAYS), "16 bits per channel", {**RGB, "planarconfig": "separate"}),
    "signed.tif": (GRAYS.astype(np.int16) - 2000, "signed values of 16 bits", {}),
    "signed8.tif": ((GRAYS // 16).astype(np.uint8).view(np.int8), "signed values of 8 bits", {}),
    "int32.tif": (GRAYS.astype(np.int32) * -100, "signed values of 32 bits", {}),
    "uint32.tif": (GRAYS.astype(np.uint32) * 1000000, "32 bits per channel", {}),
    "int64.tif": (GRAYS.astype(np.int64), "signed values of 64 bits", {}),
    "half.tif": ((GRAYS / 4095).astype(np.float16), "floating-point values of 16 bits", {}),
    "float.tif": ((GRAYS / 4095).astype(np.float32), "floating-point values of 32 bits", {}),
    "degrees.tif": ((GRAYS / 50 - 20).astype(np.float32), "floating-point values of 32 bits", {"compression": "lzw"}),
    "double.tif": (GRAYS / 16, "floating-point values of 64 bits", {"compression": "deflate", "predictor": True}),
    "two.tif": (stack(GRAYS, GRAYS[::-1]), "2 bands of 16 bits", CHUNKY),
    "two_planar.tif": (stack(GRAYS, GRAYS[::-1]), "2 bands of 16 bits", PLANAR),
    "five.tif": (FIVE.astype(np.uint8), "5 bands of 8 bits", CHUNKY),
    "five_lzw.tif": (FIVE * 16, "5 bands of 16 bits", {**PLANAR, "compression": "lzw"}),
    "infrared.tif": (FIVE[..., :4].astype(np.uint8), "4 bands of 8 bits", {**RGB, "extrasamples": ["unspecified"]}),
    "pages.tif": (stack(GRAYS, GRAYS[::-1], GRAYS, GRAYS), r"4 bands \(4 pages\) of 16 bits", BANDS),
    "imagej.tif": (stack(GRAYS, GRAYS[::-1]), r"2 bands \(2 pages\) of 16 bits", {"imagej": True}),
}  # fmt: skip


def write(path, values, options):
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(values))
    elif path.suffix in (".pgm", ".ppm"):
        kind = {".pgm": b"P5", ".ppm": b"P6"}[path.suffix] if path.stem != "text" else b"P2"
        header = kind + b"\n# by hand\n6 5\n4095\n"
        text = " ".join(map(str, values.ravel().tolist())).encode()
        path.write_bytes(header + (text if kind == b"P2" else values.astype(">u2").tobytes()))
    elif options.get("planarconfig") == "separate" or path.stem in ("pages", "imagej"):
        tifffile.imwrite(path, np.ascontiguousarray(np.moveaxis(values, -1, 0)), **options)
    else:
        tifffile.imwrite(path, values, **options)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_refused_by_name_or_scaled_by_the_rule(tmp_path, name):
    values, kind, options = KINDS[name]
    path = tmp_path / name
    write(path, values, options)
    for read in (read_image_size, lambda file: read_image(file, "RGB")):
        with pytest.raises(DatasetError, match=f"{name}: this image has {kind}, .*(value_range|bands): "):
            read(str(path))
    values = values[..., None] if values.ndim == 2 else values
    lo, hi = float(values.min()), float(values.max())
    colours = values[..., :1] if "alpha" in name and values.shape[2] == 2 else values[..., :3]
    shown = [0, 1, 2] if colours.shape[2] == 3 else [0]
    bands = None if "bands" not in kind else tuple(shown)
    rule = ImageRule((lo, hi), bands)
    expected = np.rint((colours[..., shown].astype(np.float64) - lo) / (hi - lo) * 255).astype(np.uint8)
    image = read_image(str(path), "RGB", rule)
    assert image.shape == (5, 6, 3) and (image == expected).all() and len(np.unique(image)) > 20
    assert read_image_size(str(path), rule) == (5, 6)
    assert (read_image(str(path), "BGR", rule) == image[..., ::-1]).all()
    assert (rule.to_rgb(values[1:3, 2:] if bands else colours[1:3, 2:]) == image[1:3, 2:]).all()


@pytest.mark.parametrize(
    "name, bands, options",
    [("a.png", 1, {}), ("b.png", 4, {}), ("c.tif", 3, RGB), ("d.jpg", 3, {}), ("e.tif", 4, ALPHA), ("f.pgm", 1, {})],
)
def test_8_bits_and_alpha_need_no_word(tmp_path, name, bands, options):
    path = tmp_path / name
    values = np.full((4, 5, bands), 200, dtype=np.uint8)
    if path.suffix == ".tif":
        tifffile.imwrite(path, values, **options)
    else:
        Image.fromarray(values.squeeze()).save(path)
    assert read_image_size(str(path)) == (4, 5) and (read_image(str(path), "RGB") == 200).all()
    assert (read_image(str(path), "RGB", ImageRule((0.0, 400.0))) == 128).all()
    assert (read_image(str(path), "RGB", ImageRule((100.0, 150.0))) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_files_are_turned_upright_once(tmp_path, orientation, bits):
    values = np.arange(12, dtype=f"u{bits // 8}").reshape(3, 4)
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(274, "H", 1, orientation, True)])
    Image.fromarray(values.astype(np.uint8)).save(
        tmp_path / "a.png", exif=(exif := Image.Exif(), exif.__setitem__(274, orientation))[0]
    )
    rule = ImageRule((0.0, 255.0))
    turned = read_image(str(tmp_path / "a.png"), "RGB")
    assert (read_image(str(tmp_path / "a.tif"), "RGB", rule) == turned).all()
    assert read_image_size(str(tmp_path / "a.tif"), rule) == turned.shape[:2]


def test_values_beyond_the_range_are_clipped_and_nan_is_its_lower_end():
    rule = ImageRule((-10.0, 41.0))
    for dtype in (np.float16, np.float32, np.float64):
        values = np.array([[-np.inf, -11, -10, 0, 41, 300, np.inf, np.nan]], dtype=dtype)
        assert rule.to_rgb(values)[0, :, 0].tolist() == [0, 0, 0, 50, 255, 255, 255, 0]
    for dtype in (np.int8, np.int16, np.int32, np.int64, ">i2"):
        assert rule.to_rgb(np.array([[-100, -10, 0, 41, 100]], dtype))[0, :, 1].tolist() == [0, 0, 50, 255, 255]


def test_twelve_bits_in_sixteen_keep_their_grays():
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    assert len(np.unique(ImageRule((0.0, 4095.0)).to_rgb(values))) == 256


def test_bands_are_chosen_in_their_order_and_those_that_are_missing_are_named(tmp_path):
    path = tmp_path / "five.tif"
    values = np.arange(5 * 12, dtype=np.uint8).reshape(3, 4, 5)
    tifffile.imwrite(path, values, **CHUNKY)
    assert (read_image(str(path), "RGB", ImageRule(bands=(4, 2, 0))) == values[..., [4, 2, 0]]).all()
    assert (read_image(str(path), "RGB", ImageRule(bands=(3,))) == values[..., [3, 3, 3]]).all()
    with pytest.raises(DatasetError, match=r"five.tif: .*5 bands.*bands \[0, 1, 5\] asks for band 5.*there are 5"):
        read_image_size(str(path), ImageRule(bands=(0, 1, 5)))
    rgba, gray = tmp_path / "rgba.png", tmp_path / "gray.png"
    Image.fromarray(values[..., :4]).save(rgba)
    Image.fromarray(values[..., 0]).save(gray)
    assert (read_image(str(rgba), "RGB", ImageRule(bands=(3, 0, 1))) == values[..., [3, 0, 1]]).all()
    assert (read_image(str(gray), "RGB", ImageRule(bands=(2, 1, 0))) == values[..., [0, 0, 0]]).all()
    with pytest.raises(DatasetError, match=r"gray.png: .*asks for band 3"):
        read_image(str(gray), "RGB", ImageRule(bands=(3, 1, 0)))


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
def test_damaged_tiff_and_png_files_of_16_bits_are_named(tmp_path, compression):
    rule = ImageRule((0.0, 65535.0))
    noise = np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", noise, compression=compression, rowsperstrip=8)
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(noise))
    (tmp_path / "c.pgm").write_bytes(b"P5 64 64 65535\n" + noise.tobytes())
    stack = noise.reshape(4, 32, 32)
    tifffile.imwrite(tmp_path / "d.tif", stack, compression=compression, **BANDS, metadata=None)
    rule = ImageRule((0.0, 65535.0), (0,))
    for name in ("a.tif", "b.png", "c.pgm", "d.tif"):
        path = tmp_path / name
        content = path.read_bytes()
        read_image(str(path), "RGB", rule)
        for kept in (*range(20, len(content) - 300, len(content) // 9), len(content) - 300):
            path.write_bytes(content[:kept])
            with pytest.raises(DatasetError, match=f"{name}: cannot read this image"):
                read_image(str(path), "RGB", rule)


def test_the_limit_of_pixels_is_of_the_dataset_and_leaves_pillow_alone(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    Image.new("1", (20000, 9100)).save(tmp_path / "big.png")
    tifffile.imwrite(tmp_path / "big.tif", np.zeros((5, 5), np.uint16))
    with tifffile.TiffFile(tmp_path / "big.tif", mode="r+b") as tiff:
        for tag, value in (("ImageWidth", 20000), ("ImageLength", 9100)):
            tiff.pages[0].tags[tag].overwrite(value)
    text = r"this {} has 20000x9100 pixels \(width x height\), 182.0 million, and the limit is 179.0 million: cut it "
    text += r"into tiles, or raise the limit by max_pixels: 182000000 in .*--max-pixels"
    metadata = Metadata(name="toy", stuff_classes=["ground"])
    for name in ("big.png", "big.tif"):
        with pytest.raises(DatasetError, match=text.format("image")):
            read_image_size(str(tmp_path / name))
        with pytest.raises(DatasetError, match=text.format("label")):
            read_label(str(tmp_path / name), metadata)
    assert read_image_size(str(tmp_path / "big.png"), ImageRule(max_pixels=182_000_000)) == (9100, 20000)
    Image.new("L", (20, 10)).save(tmp_path / "small.png")
    for limit, reads in ((199, False), (200, True)):
        metadata = Metadata(name="toy", stuff_classes=["ground"], max_pixels=limit)
        with nullcontext() if reads else pytest.raises(DatasetError, match="this image has 20x10 pixels"):
            assert read_image(str(tmp_path / "small.png"), "RGB", ImageRule(max_pixels=limit)).shape == (10, 20, 3)
        with nullcontext() if reads else pytest.raises(DatasetError, match="this label has 20x10 pixels"):
            assert read_label(str(tmp_path / "small.png"), metadata).shape == (10, 20)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "key, value",
    [
        *[("value_range", value) for value in (5, "0, 1", [0], [0, 1, 2], [1, 1], [4095, 0], [0, float("nan")])],
        *[("value_range", value) for value in ([0, float("inf")], [True, 2], [0, "1"])],
        *[("value_range", value) for value in ({}, [0, 10**400], [-2e299, 1e308])],
        *[("bands", value) for value in (0, [], [0, 1], [0, 1, 2, 3], [-1], [0, 1.0, 2], [True], "012", {0: 1})],
        *[("max_pixels", value) for value in (0, -1, 1e9, "9", True, [9])],
    ],
)  # fmt: skip
def test_bad_rules_are_refused_by_key_and_value(key, value):
    with pytest.raises(DatasetError, match=f"here: '{key}' is .*; it must be .*such as"):
        read_rule({key: value}, "here")


LABELS = {
    "i8.tif": (np.int8, [[-1, 0, 1, 2]], {}),
    "i16.tif": (np.int16, [[-1, 0, 1, 2]], {}),
    "i32.tif": (np.int32, [[-1, 0, 1, 2]], {"compression": "lzw"}),
    "i64.tif": (np.int64, [[-1, 0, 1, 2]], {"compression": "deflate"}),
}


@pytest.mark.parametrize("name", LABELS)
def test_ids_of_signed_tiff_files(tmp_path, name):
    dtype, ids, options = LABELS[name]
    tifffile.imwrite(tmp_path / name, np.array(ids, dtype), **options)
    metadata = Metadata(name="toy", stuff_classes=["a", "b", "c"], ignore_label=-1)
    assert read_label(str(tmp_path / name), metadata).tolist() == [[255, 0, 1, 2]]
    tifffile.imwrite(tmp_path / name, np.array([[-2, 0]], dtype), **options)
    with pytest.raises(DatasetError, match=f"{name}: label ids -2 are out of range"):
        read_label(str(tmp_path / name), metadata)


def test_ids_of_16_and_32_bits(tmp_path):
    metadata = Metadata(name="toy", stuff_classes=["a", "b"], label_map={7: 0, 60000: 1}, ignore_label=65535)
    ids = np.array([[7, 60000, 65535]])
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(ids.astype(np.uint16)))
    (tmp_path / "b.pgm").write_bytes(b"P5 3 1 65535 " + ids.astype(">u2").tobytes())
    for name, dtype in (("c.tif", np.uint16), ("d.tif", np.uint32), ("e.tif", np.uint64)):
        tifffile.imwrite(tmp_path / name, ids.astype(dtype))
    for name in ("a.png", "b.pgm", "c.tif", "d.tif", "e.tif"):
        assert read_label(str(tmp_path / name), metadata).tolist() == [[0, 1, 255]], name
    tifffile.imwrite(tmp_path / "d.tif", np.array([[7, 4_000_000_000]], np.uint32))
    with pytest.raises(DatasetError, match=r"d.tif: label ids 4000000000 are out of range"):
        read_label(str(tmp_path / "d.tif"), metadata)
    (tmp_path / "few.pgm").write_bytes(b"P5 3 1 11 " + bytes([0, 1, 0]))
    few = Metadata(name="toy", stuff_classes=["a", "b"])
    assert read_label(str(tmp_path / "few.pgm"), few).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("name", ["half.tif", "float.tif", "double.tif", "two.tif", "colour.png", "planar.tif"])
def test_labels_without_whole_numbers_are_refused_by_kind(tmp_path, name):
    values, kind, options = KINDS[name]
    write(tmp_path / name, values, options)
    metadata = Metadata(name="toy", stuff_classes=["a", "b", "c"])
    with pytest.raises(DatasetError, match=f"{name}: this label is an image of {kind}; labels must hold one class id"):
        read_label(str(tmp_path / name), metadata)
    with pytest.raises(DatasetError, match=f"{name}: this label is an image of {kind}; with a color_map"):
        read_label(str(tmp_path / name), Metadata(name="toy", stuff_classes=["a"], color_map={(0, 0, 0): 0}))
