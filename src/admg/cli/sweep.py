"""`admg sweep`: samples, figures and curves over guidance scales, samplers and steps; what guidance trades."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from admg.checkpoints import loading
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.evaluation.evaluate import FEW, warn_if_few
from admg.evaluation.report import describe as described
from admg.files import check_output_folder, remove
from admg.generation.labels import random_labels, shares
from admg.generation.sampler_specs import SAMPLERS
from admg.generation.shards import Shards

from . import guides, stages, work
from .curves import Report
from .guides import Guidance
from .judging import add_network_arguments
from .stages import Stage
from .sweeping import FIGURES, KEPT, Cell, Keeper, Row, load_keeper, number
from .work import Work

SCALES = "0,0.5,1,2,4,8"

EPILOG = """examples:
  admg sweep --scale 0,0.5,1,2,4,8 --sampler ddim,ddpm --steps 25,250 --reference VIRTUAL_imagenet64.npz --out sweep
  admg sweep --scale 0,4 --sampler ddim:25,ddpm:250 --reference data/fashion-mnist --fit pad \\
      --network efficientnet-lite0 --label-classifier tests/judge/judge.py:Judge --out sweep
  admg sweep --cfg 1,1.5,2,4 --interval 0.3,5 --reference data/fashion-mnist --fit pad --out sweep
  torchrun --nproc-per-node 8 --no-python -- admg sweep --scale 0,1,2,4 --reference reference.npz --out sweep

Every list is an axis: all combinations are sampled, each in a folder of OUT as `admg sample` makes it; of --scale and
--cfg as well, since the two kinds of guidance add up. The same command continues, and longer lists only add cells.
OUT/sweep.csv, table.md and curves.png are of the cells of this command, and are written after each of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--model", default="fashion-mnist", metavar="NAME", help="a name or a folder (default: fashion-mnist)")
    add("--num", type=int, default=10_000, metavar="N", help="samples of each combination (default: 10,000)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--label", action="append", metavar="LABEL", help="name or number; may be repeated")
    text = "balanced, random, or a list, as of admg sample (default: balanced, or random for fewer samples than labels)"
    which.add_argument("--labels", metavar="WHICH", help=text)
    text = "of " + ", ".join(sorted(SAMPLERS)) + "; or pairs such as ddim:25,ddpm:250, without --steps"
    add("--sampler", metavar="A,B,...", help=f"{text} (default: as usual for the model, else ddim)")
    text = "numbers, or others as of admg sample that have no comma, such as karras10"
    add("--steps", metavar="A,B,...", help=f"{text} (default: as usual for the model, else 25)")
    stages.add_recipe_rest(parser)
    guides.add_guides(parser, f"{SCALES} with a classifier, unless --cfg or --guide is in its place", lists=True)
    group = parser.add_argument_group("figures")
    add = group.add_argument
    add("--reference", required=True, metavar="DATA", help="an .npz, a folder of images, or a data set")
    add("--num-reference", type=int, metavar="N", help="of its images, spread evenly (default: all)")
    add(
        "--label-classifier",
        metavar="NAME",
        help="label accuracy: a noisy classifier, or file.py:name",
    )
    add("--metrics", metavar="A,B,...", help=f"as of admg evaluate (default: of {','.join(FIGURES)} all there can be)")
    add("--no-interval", action="store_true", help="without 95 %% intervals")
    add_network_arguments(parser, split="test", within=True)
    work.add_work(parser, "sweep", holds="the cells, sweep.csv, table.md and curves.png", images="no")
    parser.add_argument("--dry-run", action="store_true", help="say which cells there are, and what is left to do")


def run(args: argparse.Namespace) -> None:
    cells, how = cells_of(args), work.work_of(args)
    how = dataclasses.replace(how, images=bool(args.images))
    planned = plan(args, cells)
    runs = {
        cell: work.check_run(stage.settings, stage.shards(how.shard_size), how.overwrite)
        for cell, stage in planned.items()
    }
    if args.dry_run:
        return tell(planned, runs, how.overwrite)
    labelled = [stage for cell, stage in planned.items() if runs[cell].labelled]
    if args.label_classifier and not labelled:
        raise ValueError("--label-classifier needs labels: neither the model nor the guidance uses any")
    keeper, notes = load_keeper(args, (labelled or [*planned.values()])[0], how)
    try_out([stage for cell, stage in planned.items() if not runs[cell].target.exists()])
    out = check_output_folder(args.out)
    if how.overwrite:
        for stage in planned.values():
            work.clear(stage.out)
            remove(stage.out / KEPT)
        how = dataclasses.replace(how, overwrite=False)
    warn_if_few(args.num)
    rows = sweep(planned, runs, keeper, how, lambda rows: report(args, planned, rows, keeper).write(out))
    if how.rank == 0:
        print("\n".join([report(args, planned, rows, keeper).markdown(), *notes]))
        written = [out / name for name in ("curves.png", "table.md", "sweep.csv")]
        print("   ".join(str(path) for path in written if path.exists()))


def sweep(
    planned: Mapping[Cell, Stage],
    runs: Mapping[Cell, Shards],
    keeper: Keeper,
    how: Work,
    done: Callable[[list[Row]], None],
) -> list[Row]:
    """Make what is missing, cell by cell; done is told of all finished rows, after each cell or if none is left."""
    rows: dict[Cell, Row] = {}

    def keep(cell: Cell) -> None:
        if (found := keeper.kept(planned[cell], runs[cell])) is not None:
            rows[cell] = Row(cell, kind_of(planned[cell].guide), runs[cell].num, *found)

    for cell in planned:
        keep(cell)
    todo = [cell for cell in planned if cell not in rows]
    if rows and how.rank == 0:
        print(f"{len(rows)} of {len(planned)} cells are done")
    if todo:
        _ = keeper.comparison.reference_features  # a reference that cannot be used must show before hours of sampling
    for cell in todo:
        if how.rank == 0:
            print(f"cell {list(planned).index(cell) + 1} of {len(planned)}: {cell.title}")
        seconds = produce(planned[cell], runs[cell], how)
        keeper.make(planned[cell], runs[cell], seconds)
        if how.rank == 0:
            keep(cell)
            done([rows[cell] for cell in planned if cell in rows])
    if not todo and how.rank == 0:
        done([*rows.values()])
    return [rows[cell] for cell in planned if cell in rows]


def produce(stage: Stage, shards: Shards, how: Work) -> float | None:
    """Make the samples that are missing; seconds for each, if one process made any of them."""
    left = 0 if shards.target.exists() else sum(len(shards.span(k)) for k in shards.missing())
    start = time.perf_counter()
    work.carry_out([stage], how, together=True)
    return (time.perf_counter() - start) / left if left and how.processes == 1 else None


# -- what there is to do ---------------------------------------------------------------------------------------------


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """All combinations, in the order of the lists. ValueError: an empty list, a bad number, an unknown sampler."""
    if args.num < 2:
        raise ValueError(f"--num must be at least 2, got {args.num}")
    usual = loading.recommended(args.model)
    names = items("--sampler", args.sampler) if args.sampler is not None else [usual.sampler]
    if any(":" in name for name in names):
        if args.steps is not None:
            raise ValueError("--sampler has pairs of sampler and steps, such as ddim:25: leave out --steps")
        pairs = [(name.partition(":")[0], name.partition(":")[2]) for name in names]
        if not all(steps for _, steps in pairs):
            raise ValueError(f"--sampler {args.sampler}: either all or none are pairs such as ddim:25")
    else:
        steps = items("--steps", args.steps) if args.steps is not None else None
        pairs = [(name, step) for name in names
                 for step in steps or [usual.steps if name == usual.sampler else "25"]]  # fmt: skip
    for name, _ in pairs:
        if name not in SAMPLERS:
            raise ValueError(f"--sampler: unknown sampler {name!r}: {', '.join(sorted(SAMPLERS))}")
    scale = args.scale
    in_place = args.cfg is not None or any(".py" not in spec for spec in args.guide or ())
    if scale is None and not in_place and (args.classifier or loading.default_classifier(args.model)):
        scale = SCALES
    scales, cfgs = (numbers(f"--{name}", text) for name, text in (("scale", scale), ("cfg", args.cfg)))
    found = [Cell(*pair, *both) for pair in dict.fromkeys(pairs) for both in itertools.product(scales, cfgs)]
    return [*{cell.name: cell for cell in found}.values()]


def items(option: str, text: str) -> list[str]:
    """ValueError: none, or an empty one."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError(f"{option} must be a list such as A,B,C, got {text!r}")
    return [*dict.fromkeys(parts)]


def numbers(option: str, text: str | None) -> Sequence[float | None]:
    if text is None:
        return [None]
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{option} must be a list of numbers such as 0,1,2,4, got {text!r}")
    return [*dict.fromkeys(value + 0.0 for value in values)]  # -0.0 is 0.0


def plan(args: argparse.Namespace, cells: Sequence[Cell]) -> dict[Cell, Stage]:
    """What `admg sample` would do for each cell. ValueError: an option out of range, or that is of none of them."""
    model = load_model(args.model)
    known = {name for cell in cells for name in stages.own_options(cell.sampler)}
    for text in args.sampler_option or ():
        if text.partition("=")[0] not in known:
            stages.parse_options(cells[0].sampler, [text])  # which says what is allowed
    if args.eta and all(cell.sampler != "ddim" for cell in cells):
        raise ValueError("--eta is of the sampler ddim, which --sampler does not name")
    guide = Scaled.load(args, model, cells)
    stages.to_device(args.device, model, *guide.classifiers)
    found = {cell: stage_of(args, model, cell, guide(cell)) for cell in cells}
    for stage in found.values():
        stage.guide()
        model.respace(stage.recipe.steps)
    return found


def stage_of(args: argparse.Namespace, model: Model, cell: Cell, guide: Guidance) -> Stage:
    own = stages.own_options(cell.sampler)
    options = [text for text in args.sampler_option or () if text.partition("=")[0] in own]
    here = {"sampler": cell.sampler, "steps": cell.steps, "sampler_option": options,
            "eta": args.eta if cell.sampler == "ddim" else 0.0}  # fmt: skip
    args = argparse.Namespace(**vars(args) | here)
    recipe = stages.recipe_of(args)
    table, steered = labels_of(model, guide, args.unconditional)
    if not steered:  # nothing can be asked for
        args.label = args.labels = None
    labels, chosen = choose_labels(args, table, steered)
    return Stage(
        out=Path(args.out) / cell.name, name=args.model, model=model, recipe=recipe, guide=guide,
        labels=labels, names=table, chosen=chosen, batch_size=args.batch_size, compile=args.compile,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scaled:
    """The guidance of each cell: with the classifier's, or without it, as `admg sample` has it at scale 0."""

    guided: Guidance | None
    unguided: Guidance | None

    @classmethod
    def load(cls, args: argparse.Namespace, model: Model, cells: Sequence[Cell]) -> Scaled:
        scale = next((cell.scale for cell in cells if cell.scale), 0.0)
        of = {"scale": scale, "cfg": cells[0].cfg}
        guided = guides.load_guidance(argparse.Namespace(**vars(args) | of), model, 0.0) if scale else None
        if all(cell.scale for cell in cells):
            return cls(guided, None)
        bare = {"interval": None} if scale and cells[0].cfg is None and not args.guide else {}
        of = {"scale": 0.0, "cfg": cells[0].cfg, **bare}
        return cls(guided, guides.load_guidance(argparse.Namespace(**vars(args) | of), model, 0.0))

    @property
    def classifiers(self) -> list[Classifier | None]:
        return [guide.classifier for guide in (self.guided, self.unguided) if guide is not None]

    def __call__(self, cell: Cell) -> Guidance:
        guide = self.guided if cell.scale else self.unguided
        assert guide is not None
        return dataclasses.replace(guide, scale=cell.scale or 0.0, cfg=cell.cfg)


def kind_of(guide: Guidance) -> str:
    """`classifier + classifier-free`"""
    kinds = ["classifier"] if guide.classifier and guide.scale else []
    kinds += ["classifier-free"] if guide.cfg is not None else []
    return " + ".join([*kinds, *(other.record.partition(",")[0] for other in guide.others)]) or "none"


def try_out(planned: Sequence[Stage]) -> None:
    """A step of each sampler with each kind of guidance. ValueError: they do not fit together."""
    for stage in {(stage.recipe.sampler, kind_of(stage.guide)): stage for stage in planned}.values():
        stage.try_out()


def tell(planned: dict[Cell, Stage], runs: dict[Cell, Shards], anew: bool) -> None:
    left = 0
    for cell, stage in planned.items():
        shards = runs[cell]
        todo = range(len(shards)) if anew else [] if shards.target.exists() else shards.missing()
        missing = sum(len(shards.span(k)) for k in todo)
        steps = len(stage.model.respace(cell.steps).diffusion)
        left += missing * steps
        print(f"{cell.name:<32} {missing:>9,} images to sample, of {steps} steps; guidance: {kind_of(stage.guide)}")
    print(f"{len(planned)} cells, {left:,} steps of one image to sample")


# -- output ----------------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, planned: dict[Cell, Stage], rows: Sequence[Row], keeper: Keeper) -> Report:
    stage, comparison = next(iter(planned.values())), keeper.comparison
    reference = described(comparison.reference)
    unchanged = [f"seed {args.seed}", f"precision {args.precision}"]
    unchanged += ["the labels not told to the model"] if args.unconditional else []
    unchanged += [f"eta {number(args.eta)}"] if args.eta else []
    unchanged += [*(args.sampler_option or ()), *(f"guide {spec}" for spec in args.guide or ())]
    unchanged += [f"guidance at noise levels {args.interval}"] if args.interval else []
    caption = (
        f"{args.num:,} samples of {args.model} a row ({', '.join(unchanged)}) against {reference}, in features of "
    )
    caption += f"{comparison.network.name}"
    caption += f"; accuracy: of the labels, by {keeper.judge.name}" if keeper.judge else ""
    caption += ". Bold: the best of each column. In sweep.csv: all digits"
    caption += ".\n" if args.no_interval else ", and 95 % intervals.\n"
    if args.num < FEW:
        caption += (
            f"\nFewer than {FEW:,} samples: distances are far too high, and compare only with others of as many.\n"
        )
    model, data = (Path(name).name if Path(name).exists() else name for name in (stage.name, args.reference))
    title = f"{model}: {args.num:,} samples a point against {data}, in features of {comparison.network.name}"
    return Report(rows, title, caption.rstrip())


def load_model(name: str) -> Model:
    """ValueError: it upsamples."""
    model = loading.load(name)
    if model.upsamples:
        raise ValueError(f"{name} makes images larger: use admg upsample, or give it as --upsampler")
    return model


def labels_of(model: Model, guide: Guidance, unconditional: bool) -> tuple[Labels, bool]:
    """The labels that may be asked for, and whether anything is steered by them."""
    table = model.labels if model.labels.count or guide.classifier is None else guide.classifier.labels
    steered = guide.classifier is not None or bool(guide.others) or (model.conditional and not unconditional)
    return table, steered


def choose_labels(args: argparse.Namespace, table: Labels, steered: bool) -> tuple[list[int | None], Any]:
    """A label for each image, and how they were chosen, for run.json. ValueError: unknown ones, or of no effect."""
    asked = args.labels if args.label is None else args.label
    if not steered or not table.count:
        if asked is not None:
            why = "this model has no labels" if not table.count else "neither the model nor a classifier is told labels"
            raise ValueError(f"--label{'' if args.label else 's'}: {why}")
        return [None] * (args.num or 8), None
    if asked is not None and asked not in ("balanced", "random"):
        numbers = [table.parse(label) for label in args.label or args.labels.split(",")]
        return shares(numbers, args.num or 8 * len(numbers)), numbers
    num = args.num or (8 * table.count if table.count <= 20 else 64)
    if (asked or ("random" if num < table.count else "balanced")) == "balanced":
        return shares(range(table.count), num), "balanced"
    return [*random_labels(args.seed, table.count, num)], "random"
