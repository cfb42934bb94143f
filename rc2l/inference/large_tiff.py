"""TIFF files that are larger than memory: read and written by rows, with their place on the map."""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import tifffile

from rc2l.data.errors import DatasetError

#: Side of the tiles that are written, in pixels.
_TILE = 256
#: Memory of decoded tiles, in megabytes; by default GDAL takes a twentieth of the machine's.
_CACHE = 64
_ORIENTATION = 274


def _rasterio():
    try:
        import rasterio
    except ImportError as error:
        raise ValueError(
            "TIFF files are read in pieces by rasterio, which is not installed: pip install 'rc2l[large]', or rasterio"
        ) from error
    return rasterio


class LargeTiff:
    """An open TIFF file.

    Args:
        path: of a file that GDAL reads as GTiff, tiled or in strips, with palette, alpha or any number of bands.

    Raises:
        ValueError: rasterio is not installed.
        DatasetError: the file is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        rasterio = _rasterio()
        self.path = Path(path)
        self._stack = ExitStack()
        try:
            with _quiet(), ExitStack() as stack:
                stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE))
                self.file = stack.enter_context(rasterio.open(path, driver="GTiff"))
                colors = self.file.colorinterp
                self._alpha = sum(color == rasterio.enums.ColorInterp.alpha for color in colors)
                self._palette = None
                if colors[0] == rasterio.enums.ColorInterp.palette:
                    table = self.file.colormap(1)
                    self._palette = np.array([table.get(i, (0, 0, 0))[:3] for i in range(256)], dtype=np.uint8)
                self._stack = stack.pop_all()
        except rasterio.errors.RasterioError as error:
            raise _unreadable(self.path, error) from error
        if self._turned():
            self._stack.close()
            raise DatasetError(
                f"{path}: this image is stored turned (EXIF orientation): save it upright to label pieces"
            )

    def _turned(self) -> bool:
        with tifffile.TiffFile(self.path, is_ome=False) as tiff:
            tag = tiff.pages.first.tags.get(_ORIENTATION)
            return tag is not None and tag.value != 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.file.height, self.file.width

    def read_rows(self, top: int, count: int) -> np.ndarray:
        """Values as stored, (count, width, bands); alpha is left out, and of palettes the colours are taken.

        Raises:
            DatasetError: the file is damaged there.
        """
        bands = list(range(1, self.file.count - self._alpha + 1))
        with self._reading() as window_of:
            values = self.file.read(bands, window=window_of(top, count))
        return self._palette[values[0]] if self._palette is not None else values.transpose(1, 2, 0)

    def read_valid(self, top: int, count: int) -> np.ndarray:
        """(count, width) bool: False where the file says that there is no data, by a value, a mask or alpha 0."""
        with self._reading() as window_of:
            return self.file.dataset_mask(window=window_of(top, count)) > 0

    @contextmanager
    def _reading(self):
        rasterio = _rasterio()
        try:
            yield lambda top, count: rasterio.windows.Window(0, top, self.file.width, count)
        except rasterio.errors.RasterioError as error:
            raise _unreadable(self.path, error) from error

    def __enter__(self) -> "LargeTiff":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class TiffRows:
    """A tiled, compressed TIFF that is written from top to bottom; its name appears when it is whole.

    Args:
        path: of the file.
        like: the image, whose size and place on the map the file has.
        bands: number of them.
        colors: RGB of each value, for a palette.
        nodata: the value of pixels that say nothing.
    """

    def __init__(
        self, path: Path, like: LargeTiff, bands: int = 1, colors: list | None = None, nodata: int | None = None
    ) -> None:
        rasterio = _rasterio()
        self.path, self._scratch = path, path.with_name(f"{path.name}.tmp")
        self._top, self._waiting = 0, np.empty((bands, 0, like.file.width), np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        points, system = like.file.gcps
        with _quiet():
            self._file = rasterio.open(
                self._scratch,
                "w",
                driver="GTiff",
                dtype="uint8",
                count=bands,
                height=like.file.height,
                width=like.file.width,
                crs=system if points else like.file.crs,
                **({"gcps": points} if points else {"transform": like.file.transform}),
                nodata=nodata,
                compress="deflate",
                tiled=True,
                blockxsize=_TILE,
                blockysize=_TILE,
                bigtiff="IF_SAFER",
            )
        if colors is not None:
            table = {value: (*map(int, color), 255) for value, color in enumerate(colors)}
            self._file.write_colormap(1, table | ({nodata: (0, 0, 0, 0)} if nodata is not None else {}))

    def write(self, rows: np.ndarray) -> None:
        """Append rows: (bands, count, width) uint8."""
        waiting = np.concatenate([self._waiting, rows], axis=1)
        last = self._top + waiting.shape[1] == self._file.height
        # Whole rows of tiles: a tile that is written twice takes room twice.
        count = waiting.shape[1] if last else waiting.shape[1] // _TILE * _TILE
        if count:
            window = _rasterio().windows.Window(0, self._top, self._file.width, count)
            self._file.write(waiting[:, :count], window=window)
        self._top, self._waiting = self._top + count, waiting[:, count:]

    def close(self, whole: bool = True) -> None:
        """Close the file, and give it its name, or take it away if it did not become whole."""
        self._file.close()
        if whole:
            os.replace(self._scratch, self.path)
        else:
            self._scratch.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """A picture without a place on the map is no reason to warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _rasterio().errors.NotGeoreferencedWarning)
        yield


def _unreadable(path: Path, error: Exception) -> DatasetError:
    reason = " ".join(str(error).split())
    return DatasetError(f"{path}: cannot read this image ({type(error).__name__}: {reason}); restore the file")
