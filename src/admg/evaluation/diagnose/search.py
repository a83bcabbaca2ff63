"""The search for the best candidate: alternately the best process and the best attention, until neither changes.

Candidates race: all are tried on a few images, and only those that are still undefeated are tried on more.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from admg.checkpoints.model import Model
from admg.diffusion.config import DiffusionConfig
from admg.diffusion.gaussian import Images, Variance
from admg.models import UNet, UNetConfig

from .candidates import PREDICTIONS, Attention, Candidate, attentions, processes, restoring_attention, use
from .denoising import LEVELS, Probe, make_probe, outputs, relative_errors, variance_bits
from .rows import decisive, log_likelihood

FIRST_IMAGES = 4
DECISIVE_DIFFERENCE = 0.5
"""A mean difference of log errors that is decisive for any spread: a factor of 1.65."""
MIN_DIFFERENCE = 0.0005
"""A mean difference of log errors that is never decisive."""
MAX_BEST_ERROR = 0.75
"""If the error of the best candidate is above this, no candidate fits."""

Verdict = Literal["clear", "tied", "none"]
Run = tuple[DiffusionConfig, Attention]
"""The settings of one pass through the network, whose output is then interpreted as each of the predictions."""


@dataclass(frozen=True)
class Trial:
    """The denoising result of one candidate.

    candidate: the candidate
    error: relative error, 1 for no knowledge (see denoising.relative_errors); geometric mean over images and levels
    by_level: relative error at each level
    ratio: error divided by that of the best candidate, on the images that both were tried on
    rows: how much less likely the rows of qkv are than under the likeliest attention, in nats (see rows.py)
    images: number of images that the candidate was tried on
    """

    candidate: Candidate
    error: float
    by_level: tuple[float, ...]
    ratio: float
    rows: float
    images: int


@dataclass(frozen=True)
class Diagnosis:
    """The result of a search.

    trials: all candidates, the best first
    rivals: candidates that are statistically indistinguishable from the best
    verdict: "clear"; "tied" if there are rivals; "none" if even the best knows almost nothing about these images
    by_rows: whether the rows of qkv decided the attention, because the denoising errors did not
    stated: the trial of the model's own settings
    equivalent: other processes that look the same to the network as that of the best
    variance: bits per dimension of the bound's terms for each kind of variance; empty if the model learns none
    network, process: the configuration of the best candidate
    levels: signal-to-noise ratios in dB
    """

    trials: tuple[Trial, ...]
    rivals: tuple[Trial, ...]
    verdict: Verdict
    by_rows: bool
    stated: Trial
    equivalent: tuple[DiffusionConfig, ...]
    variance: dict[str, float]
    network: UNetConfig
    process: DiffusionConfig
    levels: tuple[float, ...]

    @property
    def best(self) -> Trial:
        """The best trial."""
        return self.trials[0]

    @property
    def as_stated(self) -> bool:
        """Whether the model's own settings are the best, or indistinguishable from it."""
        return self.verdict != "none" and self.stated in (self.best, *self.rivals)


@dataclass
class Board:
    """The state of a search.

    model, probe: the model and the noisy images
    groups: processes that look the same to the network
    planned, done: estimated number of passes through the network, and number of finished ones
    scores: logarithms of the relative errors of each candidate, (images, levels)
    rows: log-likelihood of the rows of qkv under each attention
    best: the best candidate so far
    """

    model: Model
    probe: Probe
    groups: list[tuple[DiffusionConfig, ...]]
    planned: int
    done: int = 0
    scores: dict[Candidate, Float[Tensor, "n l"]] = field(default_factory=dict)
    rows: dict[Attention, float] = field(default_factory=dict)
    best: Candidate | None = None

    def try_out(self, run: Run, count: int) -> None:
        """Try a run on the first `count` images."""
        process, attention = run
        seen = len(self.scores.get(_candidates(run)[0], ()))
        probe = self.probe.images(slice(seen, count))
        use(cast(UNet, self.model.network), attention)
        output = outputs(self.model, process, probe)
        for candidate in _candidates(run):
            errors = relative_errors(output, candidate.predict, probe).log()
            self.scores[candidate] = torch.cat([self.scores[candidate], errors]) if seen else errors
        self.done += 1

    def seen(self, run: Run) -> int:
        """Return the number of images that a run was tried on."""
        return len(self.scores.get(_candidates(run)[0], ()))

    def difference(self, a: Candidate, b: Candidate) -> tuple[Tensor, float]:
        """Return the difference of the log errors of a and b for each image that both were tried on, and its mean."""
        count = min(len(self.scores[a]), len(self.scores[b]))
        difference = (self.scores[a][:count] - self.scores[b][:count]).mean(1)
        return difference, float(difference.mean())

    def beaten(self, a: Candidate, by: Candidate) -> bool:
        """Whether the error of a is significantly larger."""
        difference, mean = self.difference(a, by)
        if mean > DECISIVE_DIFFERENCE or len(difference) < FIRST_IMAGES:
            return mean > 0.2 * DECISIVE_DIFFERENCE
        spread = float(difference.std()) / math.sqrt(len(difference))
        return mean > max(MIN_DIFFERENCE, (4 if len(difference) >= 2 * FIRST_IMAGES else 6) * spread)

    def contenders(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that the best does not beat and the rows of qkv do not contradict, the best first."""
        leader = min(candidates, key=lambda c: float(self.scores[c].mean()))
        unbeaten = [c for c in candidates if not self.beaten(c, leader)]
        likely = self.likely(unbeaten)
        return sorted(likely, key=lambda c: float(self.scores[c].mean()))

    def likely(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates whose attention the rows of qkv do not contradict."""
        most = max(self.rows[c.attention] for c in candidates)
        least = most - decisive(cast(UNet, self.model.network))
        return [c for c in candidates if self.rows[c.attention] >= least]


def diagnose(
    model: Model, x0: Images, y: Tensor | None = None, *, levels: Sequence[float] = LEVELS, seed: int = 0
) -> Diagnosis:
    """Infer the settings of a diffusion model or upsampler that its weights do not determine, from real images.

    x0: real images (N, C, H, W) in [-1, 1], similar to the training data; 16 are usually enough, and 4 seldom
    y: labels (N,) that the network is conditioned on, or None
    levels: signal-to-noise ratios in dB
    seed: seed of the noise
    The network is unchanged afterwards. Raises ValueError if the images do not fit the model or have no contrast.
    """
    *_, board = search(model, x0, y, levels=levels, seed=seed)
    return conclude(board)


def search(
    model: Model,
    x0: Images,
    y: Tensor | None = None,
    *,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    exhaustive: bool = False,
) -> Iterator[Board]:
    """Search as `diagnose` does, and yield the board after each pass through the network; `conclude` takes the last.

    exhaustive: whether to begin with all combinations of process and attention, on a few images
    """
    network = _network(model)
    own, probe = _own(model), make_probe(model, x0, y, levels, seed)
    groups, settings = processes(own.process, levels), attentions(network)
    board = Board(model, probe, groups, len(groups) + len(settings) - 1)
    board.rows = {attention: log_likelihood(network, attention) for attention in settings}
    firsts = [group[0] for group in groups]
    attention = board.likely([Candidate(own.process, a) for a in settings])[0].attention
    with restoring_attention(network):
        if exhaustive:
            runs = list(itertools.product(firsts, settings))
            board.planned += len(runs)
            yield from race(board, runs)
            attention = cast(Candidate, board.best).attention
        tried: set[Attention] = set()
        while attention not in tried:
            tried.add(attention)
            yield from race(board, [(process, attention) for process in firsts])
            best = cast(Candidate, board.best)
            process = dataclasses.replace(best.process, predict=own.predict)
            yield from race(board, [(process, other) for other in settings], best)
            attention = cast(Candidate, board.best).attention
        if board.seen((own.process, own.attention)) == 0:
            board.try_out((own.process, own.attention), min(FIRST_IMAGES, len(x0)))
            yield board


def race(board: Board, runs: Sequence[Run], as_in: Candidate | None = None) -> Iterator[Board]:
    """Set board.best to the best candidate of the runs. as_in: only candidates with the prediction of this one"""
    alive, count, total = list(runs), FIRST_IMAGES, len(board.probe.x0)
    while True:
        count = min(count, total)
        for run in alive:
            if board.seen(run) < count:
                board.try_out(run, count)
                yield board
        candidates = [c for run in alive for c in _candidates(run) if as_in is None or c.predict == as_in.predict]
        contenders = board.contenders(candidates)
        board.best = contenders[0]
        kept = {_run(candidate) for candidate in contenders}
        alive = [run for run in alive if _neutral(run) in kept]
        if len(contenders) == 1 or count == total:
            return
        board.planned += len(alive)
        count *= 2


def conclude(board: Board) -> Diagnosis:
    """Return the result of a search."""
    best = cast(Candidate, board.best)
    unbeaten = [c for c in board.scores if c != best and not board.beaten(c, best)]
    likely = board.likely([best, *unbeaten])
    rivals = tuple(_trial(board, c, best) for c in unbeaten if c in likely)
    others = sorted((_trial(board, c, best) for c in board.scores if c != best), key=lambda trial: trial.ratio)
    first = _trial(board, best, best)
    verdict: Verdict = "none" if first.error > MAX_BEST_ERROR else "tied" if rivals else "clear"
    group = next(group for group in board.groups if _same_but_predict(group[0], best.process))
    return Diagnosis(
        trials=(first, *others),
        rivals=tuple(sorted(rivals, key=lambda trial: trial.ratio)),
        verdict=verdict,
        by_rows=len(likely) <= len(unbeaten),
        stated=_trial(board, _own(board.model), best),
        equivalent=tuple(dataclasses.replace(process, predict=best.predict) for process in group[1:]),
        variance=_variance(board, best),
        network=best.attention.on(_network(board.model).config),
        process=best.process,
        levels=board.probe.levels,
    )


def _variance(board: Board, best: Candidate) -> dict[str, float]:
    if not _network(board.model).config.learn_variance:
        return {}
    probe = board.probe.images(slice(0, FIRST_IMAGES))
    network = _network(board.model)
    with restoring_attention(network):
        use(network, best.attention)
        output = outputs(board.model, best.process, probe)
    kinds = get_args(Variance)
    return {k: variance_bits(output, dataclasses.replace(best.process, variance=k), probe) for k in kinds}


def _trial(board: Board, candidate: Candidate, best: Candidate) -> Trial:
    scores = board.scores[candidate]
    by_level = tuple(scores.mean(0).exp().tolist())
    _, mean = board.difference(candidate, best)
    rows = max(board.rows.values()) - board.rows[candidate.attention]
    return Trial(candidate, float(scores.mean().exp()), by_level, math.exp(mean), rows, len(scores))


def _network(model: Model) -> UNet:
    if not isinstance(model.network, UNet):
        raise ValueError("only diffusion models and upsamplers with a U-Net of this package can be diagnosed")
    return model.network


def _own(model: Model) -> Candidate:
    """Return the model's own settings."""
    if model.config is None:
        raise ValueError("only models with a DiffusionConfig can be diagnosed")
    process = model.config
    if process.diffusion_steps == 1000:
        process = dataclasses.replace(process, rescale_timesteps=False)  # for 1000 steps it is the same
    return Candidate(process, Attention.of(_network(model).config))


def _candidates(run: Run) -> list[Candidate]:
    process, attention = run
    possible = [p for p in PREDICTIONS if not (p == "eps" and process.zero_terminal_snr)]
    return [Candidate(dataclasses.replace(process, predict=predict), attention) for predict in possible]


def _run(candidate: Candidate) -> Run:
    return _neutral((candidate.process, candidate.attention))


def _neutral(run: Run) -> Run:
    """Return the run with a fixed prediction, for comparison."""
    return dataclasses.replace(run[0], predict="eps"), run[1]


def _same_but_predict(a: DiffusionConfig, b: DiffusionConfig) -> bool:
    return dataclasses.replace(a, predict="eps") == dataclasses.replace(b, predict="eps")
