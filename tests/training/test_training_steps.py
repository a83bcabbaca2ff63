"""Options that save time or memory do not change the results: accumulation, threads, compilation, fused updates."""

from __future__ import annotations

import csv
import threading

import pytest
import torch
from helpers import CPU, learned, make, resume, state_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from admg.data import batches
from admg.data import open as open_dataset
from admg.training import TrainConfig, TrainingRun, checkpointing
from admg.training.ema import EMA
from admg.training.prefetch import draw_batches, in_background, prefetch, step_seed
from admg.training.step import Learner


def run(digits: str, out, task, **changes) -> list[dict[str, str]]:
    """Train for six steps, and return the log."""
    options = {"steps": 6, "batch_size": 10, "log_every": 1, "preview_every": 100, "precision": "fp32", "lr": 1e-3}
    list(TrainingRun(task, open_dataset(digits, 8), out, TrainConfig(**options | {"warmup": 1} | changes)))
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def difference(a: nn.Module, b: nn.Module) -> float:
    """Return the distance of all weights, relative to their norm."""
    pairs = list(zip(a.parameters(), b.parameters()))
    return (sum((p - q).square().sum() for p, q in pairs) / sum(p.square().sum() for p, _ in pairs)).sqrt().item()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_a_batch_computed_in_parts_gives_the_same_step(digits, kind):
    """Parts of 4, 4 and 2 of 10 images: the same noise, losses, gradients and weights as in one."""
    whole, one = learned(digits, make(kind), lr=2e-5, ema=0.9999)
    parts, three = learned(digits, make(kind), lr=2e-5, ema=0.9999, accumulate=3)
    for a, b in zip(whole, parts, strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-6)
    assert difference(one.network, three.network) < 1e-5 and difference(one.average.network, one.network) > 1e-5
    assert whole[-1]["loss"] != pytest.approx(whole[0]["loss"], rel=1e-3)


def test_more_parts_than_images_are_refused(digits):
    with pytest.raises(ValueError, match="accumulate must be at most the batch size 2, got 3"):
        TrainConfig(batch_size=2, accumulate=3)
    with pytest.raises(ValueError, match="accumulate must be at least 1 and at most 1,048,576, got 0"):
        TrainConfig(accumulate=0)


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="precision must be one of auto, fp32, bf16, fp16, got 'fp8'"):
        TrainConfig(precision="fp8")
    with pytest.raises(ValueError, match="compile must be one of auto, on, off, got True"):
        TrainConfig(compile=True)


@pytest.mark.thorough
def test_parts_are_computed_one_after_the_other(digits):
    task, sizes = make(), []
    task.network.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    learned(digits, task, steps=2, accumulate=3)
    assert sizes == [4, 4, 2] * 2


@pytest.mark.thorough
def test_recomputing_activations_gives_the_same_steps(digits):
    """Dropout must draw the same random numbers the second time."""
    plain, small = (learned(digits, make(dropout=0.3, checkpoint=flag)) for flag in (False, True))
    for a, b in zip(plain[0], small[0], strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    assert difference(plain[1].network, small[1].network) < 1e-4


@pytest.mark.thorough
def test_one_step_is_adamw_of_the_clipped_mean_gradient(digits):
    """Compare with the formulas of AdamW (Loshchilov & Hutter 2019) and the gradient of autograd."""
    task, twin = make(), make()
    options = {"lr": 1e-2, "weight_decay": 0.1, "grad_clip": 0.05}
    fed = draw_batches(task, batches(open_dataset(digits, 8), 10, seed=0), 0, 0)
    drawn = next(fed)
    terms = twin.loss(*drawn)
    gradients = torch.autograd.grad(terms["loss"].mean(), twin.network.parameters())
    norm = sum(g.double().square().sum() for g in gradients).sqrt()
    learner = Learner(task, TrainConfig(batch_size=10, precision="fp32", warmup=2, **options), CPU)
    measurements = learner.step(0, drawn)
    assert measurements["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-5) and norm > 0.1
    assert measurements["loss"].item() == pytest.approx(terms["loss"].mean().item(), rel=1e-5)
    assert learner.lr == pytest.approx(5e-3)  # the first of two steps of warm-up
    expected = []
    for p, g in zip(twin.network.parameters(), gradients):
        g = g * (0.05 / norm)
        expected.append(p - 5e-3 * (0.1 * p + g / (g.abs() + 1e-8)))  # at the first step m/sqrt(v) is g/|g|
    for (name, p), q in zip(task.network.named_parameters(), expected):
        assert (p - q).abs().max() < 1e-3 * 5e-3, name
    assert difference(learner.average.network, task.network) == 0  # the first update of the average copies


@pytest.mark.no_cover
@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_compiled_training_gives_the_same_steps(digits, monkeypatch, kind):
    """The graphs are traced by the compiler, and run by a backend that does not change them."""
    import admg.engine.acceleration as module

    inside, calls = module.compiled, []

    def backend(graph, inputs):
        calls.append(graph)
        return graph

    monkeypatch.setattr(module, "compiled", lambda network: inside(network, backend=backend))
    torch._dynamo.reset()
    plain, fast = (learned(digits, make(kind), compile=mode) for mode in ("off", "on"))
    for a, b in zip(plain[0], fast[0], strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    assert calls


# -- prefetching -------------------------------------------------------------------------------------------------------


def test_a_background_thread_keeps_the_items_and_their_order():
    done = []

    def items():
        for i in range(5):
            done.append(threading.get_ident())
            yield i

    made = in_background(items(), 2)
    assert next(made) == 0 and list(made) == [1, 2, 3, 4]
    assert len(set(done)) == 1 and done[0] != threading.get_ident()


def test_an_exception_of_the_background_thread_is_raised_in_its_turn():
    def items():
        yield 1
        raise ValueError("not an image")

    made = in_background(items(), 3)
    assert next(made) == 1
    with pytest.raises(ValueError, match="not an image"):
        next(made)


def test_closing_the_generator_ends_the_background_thread():
    before = threading.active_count()
    made = in_background(iter(range(10**9)), 2)
    assert next(made) == 0 and threading.active_count() == before + 1
    made.close()
    assert threading.active_count() == before


def test_random_numbers_depend_on_the_seed_and_the_step_alone(digits):
    task, data = make(), open_dataset(digits, 8)

    def drawn(first: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
        return next(draw_batches(task, batches(data, 4, seed=seed, start=first), seed, first))

    stream = draw_batches(task, batches(data, 4, seed=0), 0, 0)
    third = [next(stream) for _ in range(3)][2]
    assert all(torch.equal(a, b) for a, b in zip(third, drawn(2)))
    assert not torch.equal(third[3], drawn(2, seed=1)[3]) and not torch.equal(third[3], drawn(3)[3])
    assert torch.equal(third[2], torch.randint(50, (4,), generator=torch.Generator().manual_seed(step_seed(0, 2))))


# -- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_checkpoint_with_torchs_averaged_model_is_resumed(digits, tmp_path):
    """Older checkpoints hold an AveragedModel; its average of three updates is continued."""
    task = make()
    old = AveragedModel(task.network, multi_avg_fn=lambda mine, theirs, n: torch._foreach_lerp_(mine, theirs, 0.5))
    optimizer = torch.optim.AdamW(task.network.parameters(), fused=True)
    for _ in range(3):
        task.network(torch.randn(2, 1, 8, 8), torch.tensor([3]), torch.tensor([1, 2])).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        old.update_parameters(task.network)
    state = {"network": task.network.state_dict(), "average": old.state_dict(), "optimizer": optimizer.state_dict()}
    folder = tmp_path / checkpointing.FOLDER / "0000003"
    folder.mkdir(parents=True)
    torch.save({"step": 3, **state}, folder / checkpointing.STATE)
    checkpointing.write_checksums(folder)

    other = make()
    learner = Learner(other, TrainConfig(ema=0.9999), CPU)
    assert resume(tmp_path, learner) == 3 and learner.average.count == 3
    assert difference(other.network, task.network) == 0 and difference(learner.average.network, old.module) == 0
    checkpointing.save(tmp_path / "again", checkpointing.checkpoint_state(learner, 3))
    again = torch.load(state_file(tmp_path / "again"), weights_only=True)
    assert again["average"].keys() == old.state_dict().keys()
    assert [int(s["step"]) for s in again["optimizer"]["state"].values()] == [3] * len(optimizer.state)
    old.load_state_dict(again["average"])  # and AveragedModel loads ours


def test_ema_equals_torchs_averaged_model():
    """Compare over steps of random weights, with the same decay."""
    torch.manual_seed(0)
    network, n = nn.Linear(5, 3), 0
    average = EMA(network, 0.5)
    torchs = AveragedModel(network, avg_fn=lambda a, b, n: a + (1 - min(0.5, (1 + int(n)) / (10 + int(n)))) * (b - a))
    for n in range(12):
        for p in network.parameters():
            nn.init.normal_(p)
        average.update(network)
        torchs.update_parameters(network)
        assert difference(average.network, torchs.module) < 1e-6 and average.count == n + 1


@pytest.mark.thorough
def test_a_run_is_resumed_in_another_memory_format(digits, tmp_path):
    """Weights are channels-last on a GPU, and AdamW pairs weights and moments by their place in memory."""
    measurements, _ = learned(digits, make(), steps=5)
    fed = prefetch(make(), batches(open_dataset(digits, 8), 10, seed=0), 0, 0, CPU)
    config = TrainConfig(batch_size=10, precision="fp32", warmup=1)
    first = Learner(make(), config, CPU)
    first.network.to(memory_format=torch.channels_last)
    for k in range(3):
        first.step(k, next(fed))
    checkpointing.save(tmp_path, checkpointing.checkpoint_state(first, 3))
    second = Learner(make(), config, CPU)
    assert resume(tmp_path, second) == 3
    for k in (3, 4):
        assert second.step(k, next(fed))["loss"].item() == pytest.approx(measurements[k]["loss"], rel=1e-4)


@pytest.mark.thorough
def test_a_loss_that_is_not_finite_stops_the_training(digits, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"10 steps in a row .* no checkpoint to go back to: choose a smaller lr"
    ):
        run(digits, tmp_path, make(), lr=1e25, steps=20)
    assert not checkpointing.saved_checkpoints(tmp_path)


@pytest.mark.thorough
def test_a_preview_that_is_not_finite_is_left_out(digits, tmp_path, monkeypatch):
    def overflow(*args, **options):
        raise FloatingPointError("pixels of image 0 are not finite numbers")

    monkeypatch.setattr("admg.training.tasks.sample", overflow)
    with pytest.warns(UserWarning, match="no preview at step 2: pixels of image 0 are not finite"):
        run(digits, tmp_path, make(), steps=3, preview_every=2)
    assert checkpointing.saved_checkpoints(tmp_path) and not list((tmp_path / "samples").glob("*.png"))


@pytest.mark.thorough
def test_a_loss_that_is_not_finite_leaves_the_weights_unchanged(digits):
    _, learner = learned(digits, make(), steps=1)
    before = {name: p.clone() for name, p in learner.network.state_dict().items()}
    x, *rest = next(prefetch(learner.task, batches(open_dataset(digits, 8), 10, seed=0), 0, 0, CPU))
    found = learner.step(1, (x * float("nan"), *rest))
    assert found["loss"].isnan() and found["skipped"] == 1
    for network in (learner.network, learner.average.network):
        assert all(torch.equal(p, before[name]) for name, p in network.state_dict().items())
    assert learner.step(2, (x, *rest))["skipped"] == 0
    assert not torch.equal(learner.network.out[2].weight, before["out.2.weight"])


@pytest.mark.thorough
def test_a_run_may_be_resumed_with_another_number_of_parts(digits, tmp_path):
    """Started with one part and resumed with three, it logs the losses of a run with one."""
    whole = run(digits, tmp_path / "a", make())
    run(digits, tmp_path / "b", make(), steps=3)
    parts = run(digits, tmp_path / "b", make(), accumulate=3)
    assert [float(row["loss"]) for row in parts] == pytest.approx([float(row["loss"]) for row in whole], rel=1e-3)
