"""Images on disk or in memory -> x in [-1, 1] and labels y.

`open` reads files, `from_arrays` takes arrays, and `from_dataset` wraps any `torch.utils.data.Dataset`. `batches` is
the endless, exactly resumable stream that training reads. `survey` describes a data set, and `pack` writes it
resized to one zip.
"""

from .config import DataConfig
from .dataset import Dataset, ImageDataset
from .errors import DataError
from .layouts import FASHION_MNIST_LABELS, open
from .memory import from_arrays
from .pack import pack
from .sampling import ClassSampling
from .stream import batches, evaluation_batches
from .survey import Survey, survey
from .torch_dataset import TorchDataset, from_dataset
from .transforms import center_crop, pad, random_crop

__all__ = [
    "FASHION_MNIST_LABELS",
    "ClassSampling",
    "DataConfig",
    "DataError",
    "Dataset",
    "ImageDataset",
    "Survey",
    "TorchDataset",
    "batches",
    "center_crop",
    "evaluation_batches",
    "from_arrays",
    "from_dataset",
    "open",
    "pack",
    "pad",
    "random_crop",
    "survey",
]
