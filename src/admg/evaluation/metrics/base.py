"""`Metric`: a function of the features of samples and reference, with its name and requirements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from jaxtyping import Float
from numpy import ndarray

from admg.evaluation.features.base import Activations, FeatureNetwork
from admg.generation.identity import identity_of
from admg.userfile import errors_of

from .intervals import Estimate
from .statistics import Features, Gaussian, StoredStatistics

T = TypeVar("T")
Needs = Literal["features", "spatial", "probabilities", "labels"]


@dataclass(frozen=True)
class FeatureSet:
    """The features of a set of images, their stored statistics, or both."""

    activations: Activations | None = None
    stored: StoredStatistics | None = None

    @property
    def features(self) -> Float[ndarray, "n d"]:
        assert self.activations is not None
        return self.activations.features

    def gaussian_or_features(self, spatial: bool) -> Gaussian | Features:
        """Return the stored statistics if there are some, as the published evaluator does, and else the features."""
        if self.stored is not None:
            found = self.stored.spatial if spatial else self.stored.features
            if found is not None:
                return found
        assert self.activations is not None
        features = self.activations.spatial if spatial else self.activations.features
        assert features is not None
        return features


@dataclass(frozen=True)
class Inputs:
    """Everything that metrics are computed from.

    samples, reference: features of the images that are compared
    network: the network that computed the features
    interval: whether to compute 95 % confidence intervals
    seed: seed of the random groups used for the intervals
    correct: the numbers of samples that a classifier assigns to their label, and of all labelled samples
    label_classifier: name of that classifier
    """

    samples: FeatureSet
    reference: FeatureSet
    network: FeatureNetwork
    interval: bool = True
    seed: int = 0
    correct: tuple[int, int] | None = None
    label_classifier: str = ""
    _computed: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return function(self, *arguments), computed once for all metrics that share it."""
        key = (function, arguments)
        if key not in self._computed:
            self._computed[key] = function(self, *arguments)
        return cast(T, self._computed[key])


@dataclass(frozen=True)
class Metric:
    """A metric of samples against a reference.

    name: its name in options and in reports
    compute: the function that computes it
    title: display name; by default the capitalised name
    note: a remark about the value
    needs: requirement on the network, or "labels"
    compares: whether it compares with a reference
    lower_is_better: whether smaller values are better
    by_default: whether it is computed if no metrics are chosen
    stored: whether stored statistics are enough to compute it
    neighbours: numbers of nearest neighbours, among the samples and among the reference images, that it uses
    identity: checksum of a user's function; cached values of another identity are discarded
    """

    name: str
    compute: Callable[[Inputs], Estimate]
    title: Callable[[FeatureNetwork], str] | None = None
    note: Callable[[Inputs], str] = lambda inputs: ""
    needs: Needs = "features"
    compares: bool = True
    lower_is_better: bool = False
    by_default: bool = True
    stored: bool = False
    neighbours: tuple[int, int] = (0, 0)
    identity: str = ""

    @classmethod
    def of(cls, function: Callable[[Features, Features], Estimate | float], spec: str = "") -> Metric:
        """Make a metric from a function of the features (N, D) of samples and (M, D) of the reference.

        spec: the user's file with the function, `path/to/file.py:name`, for error messages
        """

        def compute(inputs: Inputs) -> Estimate:
            with errors_of(spec):
                value = function(inputs.samples.features, inputs.reference.features)
                return value if isinstance(value, Estimate) else Estimate(float(value))

        name = getattr(function, "__name__", type(function).__name__)
        return cls(name, compute, title=lambda network: name, identity=identity_of(function))

    def display_name(self, network: FeatureNetwork | None) -> str:
        """Return the name in tables."""
        return self.name.capitalize() if self.title is None or network is None else self.title(network)
