"""Which candidate fits: in turn the best process and the best attention, until neither changes.

Within each turn candidates race: all see a few images, and only those that are not beaten yet see more.
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

from admg.checkpoints.model import DiffusionConfig, Model
from admg.diffusion.gaussian import Images, Variance
from admg.models import UNet, UNetConfig

from .candidates import PREDICTIONS, Attention, Candidate, attentions, processes, restored, use
from .denoising import LEVELS, Probe, noised, outputs, relative_errors, variance_bits
from .rows import decisive, log_likelihood

FIRST_IMAGES = 4
FAR = 0.5
"""A mean difference of log errors that beats whatever its spread: a factor of 1.65."""
LEAST = 0.0005
"""And one that does not, however certain it is."""
KNOWS_NOTHING = 0.75
"""No candidate fits if the best one's error is above this."""

Verdict = Literal["clear", "tied", "none"]
Run = tuple[DiffusionConfig, Attention]
"""What one pass through the network needs; its output is then read as each of the predictions."""


@dataclass(frozen=True)
class Trial:
    """How well one candidate denoises.

    error: relative to knowing nothing (1), see denoising.relative_errors; geometric mean over images and levels
    by_level: the same at each level; ratio: to the best candidate's, on the images that both have seen
    rows: how much less likely the rows of qkv are under its attention than under the likeliest, in nats, see rows.py
    """

    candidate: Candidate
    error: float
    by_level: tuple[float, ...]
    ratio: float
    rows: float
    images: int


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    trials: the best first
    rivals: those that cannot be told from the best one
    verdict: clear; tied: there are rivals; none: even the best knows next to nothing of these images
    by_rows: whether the rows of qkv had to decide the attention, since the denoising errors did not
    stated: the trial of the settings that the model came with
    equivalent: other processes that look the same to the network as the best one's
    variance: bits per dimension of the bound's terms by kind of variance, for the best; empty if it learns none
    network, process: the configuration of the best
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
        return self.trials[0]

    @property
    def as_stated(self) -> bool:
        """Whether the settings that the model came with are the best, or cannot be told from it."""
        return self.verdict != "none" and self.stated in (self.best, *self.rivals)


@dataclass
class Board:
    """The score of a search: logarithms of the relative errors of each candidate, (images, levels).

    planned: the number of passes through the network, an estimate; done: those that are over
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
        """Let a run see the first `count` images."""
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
        return len(self.scores.get(_candidates(run)[0], ()))

    def difference(self, a: Candidate, b: Candidate) -> tuple[Tensor, float]:
        """log error of a less that of b for each image that both have seen, and the mean."""
        count = min(len(self.scores[a]), len(self.scores[b]))
        difference = (self.scores[a][:count] - self.scores[b][:count]).mean(1)
        return difference, float(difference.mean())

    def beaten(self, a: Candidate, by: Candidate) -> bool:
        """Whether a's error is larger than the other's by more than chance."""
        difference, mean = self.difference(a, by)
        if mean > FAR or len(difference) < FIRST_IMAGES:
            return mean > 0.2 * FAR
        spread = float(difference.std()) / len(difference) ** 0.5
        return mean > max(LEAST, (4 if len(difference) >= 2 * FIRST_IMAGES else 6) * spread)

    def contenders(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that the best of them does not beat; what rows contradict is dropped. The best comes first."""
        leader = min(candidates, key=lambda c: float(self.scores[c].mean()))
        unbeaten = [c for c in candidates if not self.beaten(c, leader)]
        likely = self.likely(unbeaten)
        return sorted(likely, key=lambda c: float(self.scores[c].mean()))

    def likely(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Without those whose attention the rows of qkv contradict."""
        most = max(self.rows[c.attention] for c in candidates)
        least = most - decisive(cast(UNet, self.model.network))
        return [c for c in candidates if self.rows[c.attention] >= least]


def diagnose(
    model: Model, x0: Images, y: Tensor | None = None, *, levels: Sequence[float] = LEVELS, seed: int = 0
) -> Diagnosis:
    """How a diffusion model or upsampler wants to be used, of what its weights cannot tell.

    x0: real images (N, C, H, W) in [-1, 1], such as it was trained on; 4 are seldom enough, 16 mostly are
    y: their labels (N,), if the network takes them
    levels: signal-to-noise ratios in dB
    The network is as it was afterwards. ValueError: images that do not fit the model, or without contrast.
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
    """The search as diagnose() does it, step by step: the board after each pass through the network, for conclude().

    exhaustive: begin with all combinations of process and attention, on a few images
    """
    network = _network(model)
    own, probe = _own(model), noised(model, x0, y, levels, seed)
    groups, settings = processes(own.process, levels), attentions(network)
    board = Board(model, probe, groups, len(groups) + len(settings) - 1)
    board.rows = {attention: log_likelihood(network, attention) for attention in settings}
    firsts = [group[0] for group in groups]
    attention = board.likely([Candidate(own.process, a) for a in settings])[0].attention
    with restored(network):
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
    """Sets board.best to the best candidate of the runs; as_in: only those that predict what this one does."""
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
    """What the search has found."""
    best = cast(Candidate, board.best)
    unbeaten = [c for c in board.scores if c != best and not board.beaten(c, best)]
    likely = board.likely([best, *unbeaten])
    rivals = tuple(_trial(board, c, best) for c in unbeaten if c in likely)
    others = sorted((_trial(board, c, best) for c in board.scores if c != best), key=lambda trial: trial.ratio)
    first = _trial(board, best, best)
    verdict: Verdict = "none" if first.error > KNOWS_NOTHING else "tied" if rivals else "clear"
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
    with restored(network):
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
        raise ValueError("only a diffusion model or an upsampler with a U-Net of this package can be diagnosed")
    return model.network


def _own(model: Model) -> Candidate:
    """The settings that the model came with."""
    if model.config is None:
        raise ValueError("only a model with its DiffusionConfig can be diagnosed")
    process = model.config
    if process.diffusion_steps == 1000:
        process = dataclasses.replace(process, rescale_timesteps=False)  # of 1000 steps it is the same
    return Candidate(process, Attention.of(_network(model).config))


def _candidates(run: Run) -> list[Candidate]:
    process, attention = run
    return [Candidate(dataclasses.replace(process, predict=predict), attention) for predict in PREDICTIONS]


def _run(candidate: Candidate) -> Run:
    return _neutral((candidate.process, candidate.attention))


def _neutral(run: Run) -> Run:
    """The run, whatever is predicted."""
    return dataclasses.replace(run[0], predict="eps"), run[1]


def _same_but_predict(a: DiffusionConfig, b: DiffusionConfig) -> bool:
    return dataclasses.replace(a, predict="eps") == dataclasses.replace(b, predict="eps")
