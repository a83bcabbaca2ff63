"""Requests that are sampled together, each with its own labels, guidance, steps, sampler and seed."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from admg.checkpoints.loading import as_model
from admg.checkpoints.model import Model
from admg.checkpoints.networks import unwrapped
from admg.config import check_integer, with_fields
from admg.diffusion.gaussian import Images
from admg.engine.acceleration import accelerate_parts, with_networks
from admg.engine.compiling import Compile
from admg.engine.precision import Precision
from admg.guidance import ClassifierGuidance, Guide, State, log_prob_gradient
from admg.guidance.numbers import scale_at
from admg.models import UNet
from admg.models.surgery import Replace, with_replaced

from .batching import Call, CallBatcher
from .labels import LabelsArgument, as_tensor, check_labels_used, label_names, label_table, resolve_labels
from .modes import evaluation_mode, modules_in
from .pairing import check_guide, check_null_label, note_empty_intervals
from .recipe import BatchSampler, Inputs, Recipe
from .sample import check_low_res
from .samples import Samples


class Batcher:
    """Sample independent requests together: calls of the same network are combined into one batch.

    Each request runs its own sampler until it needs a network. Once all requests are waiting, the network with the most
    waiting images is called once for all of them, each image with its own timestep and label. A request can be
    submitted at any time and joins the others. Its images equal those of admg.sample() up to rounding.

    Calls of the denoiser and the gradients of ClassifierGuidance are batched. Other guides that differentiate, through
    the denoiser or through a loss, also work, but their calls are not batched.

    >>> import admg
    >>> with admg.generation.Batcher("fashion-mnist") as batcher:
    ...     requests = [batcher.submit(label, steps=steps) for label, steps in (("coat", 2), ("bag", 3))]
    ...     [request.result() for request in requests]
    [Samples(1 image of 32x32, 1 channel; labels: Coat), Samples(1 image of 32x32, 1 channel; labels: Bag)]

    model: a Model, or anything that admg.load accepts
    max_images: largest number of images in one call of a network
    max_requests: number of requests that are sampled at the same time; others wait until one of these ends
    precision, compile: as in admg.sample(), but with "auto" as the default precision
    """

    def __init__(
        self,
        model: Model | str | Path,
        *,
        max_images: int = 64,
        max_requests: int = 64,
        precision: Precision = "auto",
        compile: Compile = "auto",
    ) -> None:
        check_integer("max_images", max_images)
        check_integer("max_requests", max_requests)
        self.model, self.precision, self.compile = as_model(model), precision, compile
        self.max_images = max_images
        self._modes = ExitStack()  # in which networks stay in evaluation mode until the end
        self._evaluated: set[nn.Module] = set()
        self._modes.enter_context(evaluation_mode(self.model))
        self._calls = CallBatcher(max_images)
        self._networks: dict[int, tuple[nn.Module, BatchedNetwork]] = {}
        self._pool = ThreadPoolExecutor(max_requests, thread_name_prefix="request")
        self._closed = False

    def submit(
        self,
        labels: LabelsArgument = None,
        *,
        num: int | None = None,
        guide: Guide | None = None,
        sampler: Any = "ddim",
        steps: int | str = 25,
        seed: int = 0,
        unconditional: bool = False,
        bound_guidance: bool = True,
    ) -> Future[Samples]:
        """Submit a request, and return a Future of its Samples. The arguments are those of admg.sample().

        Raises ValueError as admg.sample() does, and RuntimeError after close(). Later errors are raised by the result()
        of this request.
        """
        if self._closed:
            raise RuntimeError("this batcher is closed: it takes no more requests")
        recipe = Recipe(
            guide=guide, sampler=sampler, steps=steps, seed=seed, unconditional=unconditional,
            bound_guidance=bound_guidance, batch_size=self.max_images, precision=self.precision,
        )  # fmt: skip
        model, numbers = self.model.respace(steps), resolve_labels(self.model, guide, labels, num)
        check_guide(model, guide)
        note_empty_intervals(model, guide)
        check_labels_used(model, guide, unconditional, numbers)
        check_null_label(model, numbers, unconditional)
        check_low_res(model, None, len(numbers))
        if new := set(modules_in((guide, recipe.sampler))) - self._evaluated:
            self._modes.enter_context(evaluation_mode(*new))
            self._evaluated |= new
        names = label_names(label_table(model, guide), numbers)
        model = with_fields(with_networks(model, self._batched), takes_labels=model.conditional)
        batched = None if guide is None else batched_guide(with_networks(guide, self._batched))
        labelled = any(number is not None for number in numbers)
        drawer = BatchSampler(model, dataclasses.replace(recipe, guide=batched), labelled)

        def draw() -> Samples:
            with self._calls.worker():
                x = torch.cat([*drawer.in_batches(numbers, Inputs(), halve=False)])
            y = as_tensor(numbers)
            return Samples(x, y, tuple(names))

        return self._pool.submit(draw)

    def close(self) -> None:
        """Wait for all requests, and leave the networks as they were."""
        self._closed = True
        self._pool.shutdown()
        self._calls.close()
        self._modes.close()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # give up unfinished requests
            self._pool.shutdown(cancel_futures=True, wait=False)
            self._calls.close()
        self.close()

    def _batched(self, network: nn.Module) -> nn.Module:
        """Return the BatchedNetwork of this network, the same object each time."""
        if id(network) not in self._networks:
            (fast,) = accelerate_parts((network,), precision=self.precision, compile=self.compile)
            self._networks[id(network)] = network, BatchedNetwork(network, fast, self._calls)
        return self._networks[id(network)][1]


class BatchedNetwork(nn.Module):
    """Proxy of a network: its calls without gradients are batched with those of other requests.

    plain: the network
    fast: the same network, accelerated
    """

    fast: nn.Module
    calls: CallBatcher

    def __init__(self, plain: nn.Module, fast: nn.Module, calls: CallBatcher) -> None:
        super().__init__()
        self.plain = plain
        vars(self).update(fast=fast, calls=calls)  # not submodules: the weights are those of `plain`
        own = unwrapped(plain)
        self.knows_no_label = isinstance(own, UNet) and own.config.num_classes > 0  # -1

    def forward(self, x: Images, timesteps: Tensor, y: Tensor | None = None, **given: Tensor) -> Tensor:
        if y is None and self.knows_no_label:  # images with and without labels share one call
            y = torch.full((len(x),), -1, device=x.device)
        labels = {} if y is None else {"y": y}
        if torch.is_grad_enabled() and x.requires_grad:
            return call(self.fast, x, timesteps, **labels, **given)

        @torch.no_grad()
        def compute(x: Tensor, t: Tensor, y: Tensor | None, given: dict[str, Tensor]) -> Tensor:
            return call(self.fast, x, t, **({} if y is None else {"y": y}), **given)

        shapes = tuple((name, value.shape[1:], value.dtype) for name, value in sorted(given.items()))
        key = id(self), "forward", x.shape[1:], x.dtype, y is None, shapes
        return self.calls.submit(Call(key, x.detach(), per_image(timesteps, x), y, given, compute))

    def with_replaced(self, replace: Replace) -> nn.Module:
        """Return the fast network with other layers, as perturbed attention needs; its calls are not batched."""
        return with_replaced(self.fast, replace)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("plain"), name)

    def gradient(self, x: Images, t: Tensor, y: Tensor) -> Tensor:
        """Return ∇ log p(y | x_t), as guidance.log_prob_gradient does."""

        def compute(x: Tensor, t: Tensor, y: Tensor | None, given: dict[str, Tensor]) -> Tensor:
            assert y is not None
            return log_prob_gradient(lambda x, t: call(self.fast, x, t), x, t, y)

        key = id(self), "gradient", x.shape[1:], x.dtype
        return self.calls.submit(Call(key, x.detach(), per_image(t, x), y, {}, compute))


@dataclass(frozen=True, eq=False)
class BatchedClassifierGuidance(ClassifierGuidance):
    """ClassifierGuidance of a BatchedNetwork: its gradients are batched with those of other requests."""

    def __call__(self, state: State) -> Images | None:
        scale = scale_at(self.scale, state.sigma)
        if scale == 0 or state.y is None:
            return super().__call__(state)
        network: Any = self.classifier.network  # type: ignore[attr-defined]
        gradient: Tensor = network.gradient(state.x, state.t, state.y)
        return scale * gradient


def batched_guide(guide: Any) -> Any:
    """Return the guide with the classifier gradients of its batched networks batched, too."""
    if type(guide) is ClassifierGuidance and isinstance(getattr(guide.classifier, "network", None), BatchedNetwork):
        return BatchedClassifierGuidance(guide.classifier, guide.scale)
    if isinstance(guide, list | tuple):
        return type(guide)(batched_guide(part) for part in guide)
    if dataclasses.is_dataclass(guide) and not isinstance(guide, type):
        values = {f.name: getattr(guide, f.name) for f in dataclasses.fields(guide) if f.init}
        new = {name: batched_guide(value) for name, value in values.items() if name in ("guide", "guides")}
        return with_fields(guide, **new) if new else guide
    return guide


def per_image(t: Tensor, x: Images) -> Tensor:
    """Return a timestep for each image."""
    return t.expand(len(x)) if len(t) == 1 else t


def call(network: nn.Module, *arguments: Tensor, **given: Tensor) -> Tensor:
    output: Tensor = network(*arguments, **given)
    return output
