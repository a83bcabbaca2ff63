"""Images on disk -> x in [-1, 1] and labels y: `open_dataset` opens them, `batches` feeds them to training."""

from .dataset import Dataset
from .errors import DataError
from .open import FASHION_MNIST_LABELS, open_dataset
from .stream import batches, evaluation_batches
from .transforms import center_crop, pad, random_crop

__all__ = [
    "FASHION_MNIST_LABELS",
    "DataError",
    "Dataset",
    "batches",
    "center_crop",
    "evaluation_batches",
    "open_dataset",
    "pad",
    "random_crop",
]
