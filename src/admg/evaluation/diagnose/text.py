"""The result of a diagnosis as text: a table of candidates, the verdict, and advice."""

from __future__ import annotations

import shlex

from admg.checkpoints import openai
from admg.checkpoints.openai import OpenAIConfig
from admg.diffusion.config import DiffusionConfig

from .candidates import Candidate
from .search import Diagnosis, Trial

MAX_TRIALS = 10


def candidate_columns(candidate: Candidate) -> tuple[str, str, str, str]:
    """Return process, prediction, heads and order."""
    process, attention = candidate.process, candidate.attention
    heads = f"heads of {attention.head_channels}" if attention.head_channels else f"{attention.num_heads} heads"
    heads += f", {attention.num_heads_upsample} up" if attention.num_heads_upsample else ""
    order = "new" if attention.new_order else "old"
    return process_name(process), process.predict, heads, order


def process_name(process: DiffusionConfig) -> str:
    """Return `linear 1000`, `linear 4000 rescaled` or `linear 1000 zero SNR`."""
    changes = " rescaled" * process.rescale_timesteps + " zero SNR" * process.zero_terminal_snr
    return f"{process.noise_schedule} {process.diffusion_steps}{changes}"


def joined(candidate: Candidate) -> str:
    """Return `linear 1000, eps, heads of 64, old`."""
    return ", ".join(candidate_columns(candidate))


def table(diagnosis: Diagnosis) -> str:
    """Return a table of the best candidates."""
    levels = "".join(f"{f'{level:g} dB':>9}" for level in diagnosis.levels)
    head = (
        f"{'ratio':>8} {'error':>9}  {'process':22} {'predicts':8}  {'attention':16} {'order':5} {'rows':>6} {levels}"
    )
    lines = ["", head]
    shown = [*diagnosis.trials[:MAX_TRIALS]]
    shown += [diagnosis.stated] if diagnosis.stated not in shown else []
    for trial in shown:
        process, predict, heads, order = candidate_columns(trial.candidate)
        by_level = "".join(f"{error:9.3f}" for error in trial.by_level)
        errors = f"{trial.ratio:8.3f} {trial.error:9.4f}"
        lines.append(f"{errors}  {process:22} {predict:8}  {heads:16} {order:5} {0 - trial.rows:6.0f} {by_level}")
    tried = f"{len(diagnosis.trials)} candidates were tried; ratio: error relative to the best, on the same images"
    rows = "rows: log-likelihood of the rows of qkv in nats"
    return "\n".join([*lines, f"({tried}; {rows}; dB: signal-to-noise ratio)"])


def verdict(diagnosis: Diagnosis, images: int, given: str) -> str:
    """Return the verdict. given: source of the model's own settings: "flags", "checkpoint", or "" for a guess"""
    best = diagnosis.best
    if diagnosis.verdict == "none":
        size = "" if given == "flags" else ", is --image-size right"
        return (
            f"No candidate fits: the error of the best is {best.error:.2f}, and 1 means no knowledge of the images. "
            f"Are the images similar to the training data{size}, and is the model trained? --exhaustive tries all "
            f"combinations."
        )
    lines = []
    if diagnosis.verdict == "tied":
        others = "; ".join(joined(trial.candidate) for trial in diagnosis.rivals[:5])
        lines.append(f"Best: {joined(best.candidate)}. Indistinguishable from it: {others}.")
        lines.append(f"More images may decide: --num {4 * images}.")
    else:
        lines.append(f"Clear: {joined(best.candidate)}. Its error is {best.error:.3f}; {margin(diagnosis)}")
    if diagnosis.by_rows:
        nats = min(trial.rows for trial in diagnosis.trials if trial.rows > diagnosis.best.rows)
        lines.append(
            "The error of this model hardly depends on heads and order, but the rows of its qkv weights do: with this "
            "arrangement the rows of queries, of keys and of values are each alike, which makes it likelier by "
            f"{nats:.0f} nats than those that were excluded."
        )
    return "\n".join([*lines, *stated(diagnosis, given)])


def margin(diagnosis: Diagnosis) -> str:
    """Return the margin of the best over other processes and predictions, and over other attention settings."""
    best = diagnosis.best.candidate
    others = [t for t in diagnosis.trials[1:] if t.candidate.process != best.process]
    attention = [t for t in diagnosis.trials[1:] if t.candidate.process == best.process]
    parts = [f"{times(t)} with the next process or prediction" for t in others[:1]]
    parts += [f"{times(t)} with the next attention" for t in attention[:1] if not diagnosis.by_rows]
    return ", ".join(parts) + "."


def times(trial: Trial) -> str:
    """Return `12 % more` or `3.40 times as much`."""
    if trial.ratio < 1.1:
        return f"{100 * (trial.ratio - 1):.2g} % more"
    return f"{trial.ratio:.2g} times as much"


def stated(diagnosis: Diagnosis, given: str) -> list[str]:
    """Return whether the flags, or the settings of a native checkpoint, are right."""
    if not given:
        return []
    what = "The flags" if given == "flags" else "The settings of the checkpoint"
    if diagnosis.as_stated:
        return [f"{what} are right." if diagnosis.verdict == "clear" else f"{what} are among them."]
    pairs = zip(
        candidate_columns(diagnosis.stated.candidate),
        candidate_columns(diagnosis.best.candidate),
        ("", "", "", " order"),
    )
    wrong = [f"{said}{noun}, but {found} fits" for said, found, noun in pairs if said != found]
    return [f"{what} are wrong: {'; '.join(wrong)}. Their error is {times(diagnosis.stated)}."]


def remarks(diagnosis: Diagnosis) -> list[str]:
    """Return remarks on equivalent processes and on the learned variance."""
    lines = []
    if diagnosis.equivalent:
        same = ", ".join(map(process_name, diagnosis.equivalent))
        lines.append(f"Equivalent for the network: {same}.")
    if diagnosis.variance:
        bits = ", ".join(f"{kind} {value:.3g}" for kind, value in diagnosis.variance.items())
        fits = diagnosis.variance["learned_range"] < 1.05 * min(diagnosis.variance.values())
        lines.append(f"The learned range of its variance {'fits' if fits else 'does not fit'} (bits per dim: {bits}).")
    return lines


def flags_of(diagnosis: Diagnosis, upsamples: bool) -> str:
    """Return the flags of guided-diffusion for the best candidate. Raises ValueError if no flags describe it."""
    return openai.flags_of(config_of(diagnosis, upsamples))


def config_of(diagnosis: Diagnosis, upsamples: bool) -> OpenAIConfig:
    """Return the configuration of the best candidate."""
    return OpenAIConfig("upsampler" if upsamples else "diffusion", diagnosis.network, diagnosis.process)


def how_to_import(diagnosis: Diagnosis, upsamples: bool, checkpoint: str | None) -> list[str]:
    """Return the flags of the best candidate, as a command if the checkpoint is a .pt file."""
    try:
        flags = flags_of(diagnosis, upsamples)
    except ValueError as error:
        process = config_of(diagnosis, upsamples).diffusion
        names = ("noise_schedule", "diffusion_steps", "predict", "rescale_timesteps", "zero_terminal_snr")
        words = ", ".join(f"{name} {getattr(process, name)}" for name in names)
        return [
            f"No flags of guided-diffusion describe this: {error}. Import it without, and set in config.json: {words}"
        ]
    if checkpoint is not None:
        return ["", f'admg import-openai {shlex.quote(checkpoint)} --flags "{flags}" --out MODEL']
    return ["", f"flags: {flags}"]
