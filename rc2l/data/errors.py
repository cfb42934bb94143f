"""The errors of every problem with a data set, its files or its split."""


class DatasetError(ValueError):
    """Something about the data is wrong; the message names the file, the value, what is allowed and the fix."""


class DamagedImageError(DatasetError):
    """An image file is missing, empty, cut off or no image at all: what ``DATASETS.DAMAGED`` is about."""
