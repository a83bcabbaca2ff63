"""`train_diffusion`, `train_classifier` and `train_upsampler`: start a run, or resume it, from data and options."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from admg.checkpoints import native
from admg.checkpoints.compatibility import check_pair, facts_in, facts_of
from admg.checkpoints.initial import Initial
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.openai import GivenFlags
from admg.checkpoints.provenance import label_dropout
from admg.data import DataConfig, Dataset, ImageDataset
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig
from admg.warn import warn

from .augmentation import AugmentConfig
from .choices import Choices, record_of
from .config import ObjectiveConfig, TrainConfig
from .defaults import CLASSIFIER_PROCESS
from .distance import EvaluationConfig, frechet_distances
from .held_out import Parts, divide
from .initialisation import Init, fit_to_data, folder_to_resume, initialised, open_initial, process_of, start_from
from .opening import Data, check_outside, data_name, image_fields, open_data
from .run_settings import reading_of
from .tasks import ClassifierTask, DiffusionTask
from .trainer import TrainingRun
from .upsampler import UpsamplerTask
from .validation import Measure, ValidationLoss


def train_diffusion(
    data: Data,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    network: UNetConfig | Mapping[str, Any] | None = None,
    diffusion: DiffusionConfig | Mapping[str, Any] | None = None,
    objective: ObjectiveConfig | None = None,
    validation: Data | float | None = None,
    val_images: int = 200,
    evaluation: EvaluationConfig | None = None,
    init: Init | None = None,
    init_flags: GivenFlags | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> TrainingRun[Model]:
    """Train a diffusion model, or resume its training. Iterate over the run to train; `run.model` is the result.

    data: a data set of `admg.data`, any map-style `torch.utils.data.Dataset` of (image, label), or a path
    out: run directory; one that holds a checkpoint is resumed
    config: steps, batch size, learning rate, ...; see TrainConfig, and `defaults` for options that are not given
    network: architecture, or only some of its fields; the others are those of the resumed run or of the initial
        model, or are chosen by the number of images. The image size, the channels and the number of labels follow from
        the data.
    diffusion: diffusion process, or only some of its fields; the others are those of the resumed run or of the
        initial model, or else v-prediction with the cosine schedule
    objective: loss and share of labels that are dropped; see ObjectiveConfig
    validation: images for measuring the loss by noise level, or the share of the training images (a float below 1)
        that is held out for this
    val_images: number of those images, spread over all
    evaluation: measurement of the distance of samples to the training images; see EvaluationConfig
    init: model to start from: a name, folder or file of weights, or a loaded model. The run takes over its architecture
        and its process, and its weights as far as labels, channels and image size are the same; see transfer()
    init_flags: flags of OpenAI's scripts for a file in their format (default: inferred)
    provenance: further entries for the "training" section of the model's config.json
    overwrite: start over if `out` holds a run, whose files are removed when the first step is taken

    Raises ValueError if the options or the data do not fit together, OSError if `out` cannot be written.

    Example::

        >>> import numpy as np
        >>> import admg
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
        >>> dataset = admg.data.from_arrays(images, ["cat", "dog"] * 10)
        >>> small = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}
        >>> config = admg.TrainConfig(steps=3, batch_size=4, lr=1e-3, warmup=2)
        >>> run = admg.train_diffusion(dataset, "runs/mine", config, network=small)
        >>> for step in run:
        ...     print(step["step"], step["lr"], step["loss"] > 0)
        1 0.0005 True
        2 0.001 True
        3 0.001 True
        >>> admg.sample(run.model, ["cat", "dog"], steps=2, progress=False).x.shape
        torch.Size([2, 1, 8, 8])
        >>> admg.load("runs/mine").label_names
        ('cat', 'dog')
    """
    objective = objective or ObjectiveConfig()
    dataset = open_data(data, objective.unlabelled)
    out = Path(out).expanduser()
    check_outside(out, data, dataset)
    initial = open_initial(init, init_flags, "diffusion", None if overwrite else out)
    choices = choices_for(dataset, None if overwrite else out, initial)
    config, process = choices.training(config), process_of(choices.process(diffusion), initial)
    objective = choices.objective(objective)
    fields = unet_fields(dataset, process, objective)
    unet = initialised(UNet, fit_to_data(UNetConfig, choices.network(network), initial, **fields), config.seed)
    model = build_model(unet, process, dataset)
    task = DiffusionTask(model, **objective.task_options())
    note_untrained(process, objective)
    resumed = check_resumed(model, out, overwrite)
    parts = divide(data, dataset, validation, seed=config.seed, resumed=resumed, unlabelled=objective.unlabelled)
    measures = measures_of(parts, config, val_images, evaluation)
    record = {**data_record(data, dataset), **choices.record, **(provenance or {})}
    record |= start_from(model, initial, init, "diffusion")
    record |= {"objective": dataclasses.asdict(objective)}
    record |= parts.record | evaluation_record(evaluation) | dropout_record(model, dataset, objective, resumed)
    config.class_sampling.order_of(parts.training, config.seed)  # raises before anything is written
    return TrainingRun(task, parts.training, out, config, record, measures, overwrite)


def train_classifier(
    data: Data,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    network: ClassifierConfig | Mapping[str, Any] | None = None,
    diffusion: DiffusionConfig | Mapping[str, Any] | None = None,
    validation: Data | float | None = None,
    val_images: int = 1000,
    noised: bool = True,
    init: Init | None = None,
    init_flags: GivenFlags | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> TrainingRun[Classifier]:
    """Train a noisy classifier for guidance, or resume its training. `run.model` is the classifier.

    data, out, config, init, init_flags, provenance, overwrite: see `train_diffusion`; the data must have labels
    network: architecture, or only some of its fields; see `train_diffusion`
    diffusion: process that noises the images, which should be that of the model to be guided
    validation: images for measuring the accuracy, in addition to as many training images; or the share of the training
        images (a float below 1) that is held out for this. Classes are matched by name, and some may be missing
    val_images: number of those images, spread over all
    noised: False to train on clean images only, as a baseline: such a classifier guides badly

    Raises ValueError and OSError as `train_diffusion` does.

    Example::

        >>> import numpy as np
        >>> import admg
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
        >>> dataset = admg.data.from_arrays(images, ["cat", "dog"] * 10)
        >>> small = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}
        >>> config = admg.TrainConfig(steps=2, batch_size=4)
        >>> run = admg.train_classifier(dataset, "runs/classifier", config, network=small, validation=dataset)
        >>> for step in run:
        ...     print(step["step"], 0 <= step["accuracy"] <= 1)
        1 True
        2 True
        >>> guide = admg.guidance.ClassifierGuidance(run.model, scale=2.0)
    """
    dataset = open_data(data)
    out = Path(out).expanduser()
    check_outside(out, data, dataset)
    if not dataset.label_names:
        raise ValueError(
            f"{data_name(data)} has no labels: use class sub-folders, or file names such as label_name.png"
        )
    initial = open_initial(init, init_flags, "classifier", None if overwrite else out)
    choices = choices_for(dataset, None if overwrite else out, initial)
    config = choices.training(config)
    process = of_classifier(process_of(choices.process(diffusion, CLASSIFIER_PROCESS), initial))
    labels = Labels(len(dataset.label_names), dataset.label_names)
    fields = {**image_fields(dataset), "num_classes": labels.count}
    architecture = fit_to_data(ClassifierConfig, choices.network(network), initial, **fields)
    module = initialised(NoisyClassifier, architecture, config.seed)
    classifier = Classifier(module, process.build(), labels, process)
    parts = divide(data, dataset, validation, seed=config.seed, resumed=check_resumed(classifier, out, overwrite))
    measured = None if parts.held_out is None else parts.training
    task = ClassifierTask(classifier, parts.held_out, val_images, noised, measured)
    record = {**data_record(data, dataset), **choices.record, **(provenance or {}), **parts.record}
    record |= start_from(classifier, initial, init, "classifier")
    record |= {} if noised else {"noised": False}
    config.class_sampling.order_of(parts.training, config.seed)  # raises before anything is written
    return TrainingRun(task, parts.training, out, config, record, overwrite=overwrite)


def train_upsampler(
    data: Data,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    small_size: int | None = None,
    augment: AugmentConfig | None = None,
    network: SuperResConfig | Mapping[str, Any] | None = None,
    diffusion: DiffusionConfig | Mapping[str, Any] | None = None,
    objective: ObjectiveConfig | None = None,
    validation: Data | float | None = None,
    val_images: int = 200,
    evaluation: EvaluationConfig | None = None,
    init: Init | None = None,
    init_flags: GivenFlags | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> TrainingRun[Model]:
    """Train a super-resolution model, or resume its training. `run.model` takes `low_res` images.

    The small images are made from the large ones as in guided-diffusion, by averaging areas of pixels.

    data, out, config, diffusion, objective, validation, val_images, evaluation, init, init_flags, provenance,
        overwrite: see `train_diffusion`
    small_size: side of the images to enlarge in pixels (default: a quarter of the data's, or the factor of `init`)
    augment: noise and blur of the small images; see AugmentConfig. `augment_noise` becomes a field of the network
    network: architecture, or only some of its fields; see `train_diffusion`

    Raises ValueError and OSError as `train_diffusion` does.

    Example::

        >>> import numpy as np
        >>> import admg
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
        >>> dataset = admg.data.from_arrays(images)
        >>> small = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}
        >>> config = admg.TrainConfig(steps=2, batch_size=4)
        >>> run = admg.train_upsampler(dataset, "runs/upsampler", config, small_size=4, network=small)
        >>> for step in run:
        ...     print(step["step"], step["loss"] > 0)
        1 True
        2 True
        >>> x, _ = dataset.batch([0])
        >>> low_res = torch.nn.functional.interpolate(x, 4, mode="area")
        >>> admg.sample(run.model, [None], low_res=low_res, steps=2, progress=False).x.shape
        torch.Size([1, 1, 8, 8])
    """
    objective, augment = objective or ObjectiveConfig(), augment or AugmentConfig()
    dataset = open_data(data, objective.unlabelled)
    out = Path(out).expanduser()
    check_outside(out, data, dataset)
    initial = open_initial(init, init_flags, "upsampler", None if overwrite else out)
    small = default_small_size(dataset.image_size, initial) if small_size is None else small_size
    if not 0 < small < dataset.image_size:
        raise ValueError(f"small_size must be from 1 to {dataset.image_size - 1}, got {small}")
    choices = choices_for(dataset, None if overwrite else out, initial)
    config, process = choices.training(config), process_of(choices.process(diffusion), initial)
    objective = choices.objective(objective)
    fields: dict[str, Any] = {**unet_fields(dataset, process, objective), "small_size": small}
    if augment.augment_noise is not None:
        fields["augment_noise"] = augment.augment_noise
    architecture = fit_to_data(SuperResConfig, choices.network(network), initial, **fields)
    unet = initialised(SuperResUNet, architecture, config.seed)
    model = build_model(unet, process, dataset)
    note_untrained(process, objective)
    resumed = check_resumed(model, out, overwrite)
    parts = divide(data, dataset, validation, seed=config.seed, resumed=resumed, unlabelled=objective.unlabelled)
    options = {**objective.task_options(), "augment_blur": augment.augment_blur}
    task = UpsamplerTask(model, small, **options, examples=parts.held_out or parts.training)
    measures = measures_of(parts, config, val_images, evaluation)
    record = {**data_record(data, dataset), **choices.record, **(provenance or {})}
    record |= start_from(model, initial, init, "upsampler")
    record |= {"augment_blur": augment.augment_blur} if augment.augment_blur else {}
    record |= {"objective": dataclasses.asdict(objective)}
    record |= parts.record | evaluation_record(evaluation) | dropout_record(model, dataset, objective, resumed)
    config.class_sampling.order_of(parts.training, config.seed)  # raises before anything is written
    return TrainingRun(task, parts.training, out, config, record, measures, overwrite)


def measures_of(
    parts: Parts, config: TrainConfig, val_images: int, evaluation: EvaluationConfig | None
) -> list[Measure]:
    """Return the measures for training a diffusion model or an upsampler."""
    measures: list[Measure] = [*frechet_distances(evaluation or EvaluationConfig(), parts.training)]
    if parts.held_out is not None:
        measures.append(ValidationLoss(config.preview_every, parts.held_out, parts.training, val_images))
    return measures


def of_classifier(diffusion: DiffusionConfig) -> DiffusionConfig:
    """Return the process, predicting v instead of eps if it ends in pure noise, where eps is not allowed.

    A classifier predicts neither.
    """
    ends_in_noise = diffusion.predict == "eps" and diffusion.schedule().is_pure_noise(-1)
    return dataclasses.replace(diffusion, predict="v") if ends_in_noise else diffusion


def note_untrained(diffusion: DiffusionConfig, objective: ObjectiveConfig) -> None:
    """Warn if the objective does not train the variance, or the step at which sampling begins."""
    if objective.objective == "simple" and diffusion.variance.startswith("learned"):
        warn(
            f"the objective simple does not train the variance, which is {diffusion.variance}: choose the objective "
            "hybrid, or variance fixed_small"
        )
    if objective.weighting != "uniform" and diffusion.schedule().is_pure_noise(-1):
        warn(
            f"weighting {objective.weighting} gives the last step, pure noise, the weight 0: the prediction there is "
            "determined only by neighbouring steps"
        )


def evaluation_record(evaluation: EvaluationConfig | None) -> dict[str, Any]:
    """Return the options of evaluation for the provenance, if there is any."""
    return {"evaluation": dataclasses.asdict(evaluation)} if evaluation and evaluation.evaluate_every else {}


def data_record(data: Data, dataset: ImageDataset) -> dict[str, Any]:
    """Return the name of the data, how the images were fitted to the size, and the date, for the provenance."""
    named = isinstance(data, str | Path | DataConfig)
    reading: dict[str, Any] = {}
    if isinstance(dataset, Dataset):
        known = {name: value for name, value in reading_of(dataset).items() if value is not None and name != "frames"}
        reading = {"fit": dataset.fit} | known
        reading |= {"byte_range": dataset.decoding.byte_range} if dataset.decoding.byte_range else {}
    name = Path(data_name(data)).name if named else type(data).__name__
    return {"data": name, **reading, "date": time.strftime("%Y-%m-%d")}


def choices_for(dataset: ImageDataset, out: Path | str | None, initial: Initial | None) -> Choices:
    """Return the choices of options that are not given, for this data set and an existing run in `out`."""
    recorded = {} if out is None else record_of(out)
    return Choices(dataset.image_size, len(dataset), recorded, initial=initial is not None)


def unet_fields(dataset: ImageDataset, diffusion: DiffusionConfig, objective: ObjectiveConfig) -> dict[str, int]:
    """Return the fields of a UNetConfig that follow from the data and the diffusion process."""
    return {
        **image_fields(dataset),
        "num_classes": 0 if objective.unlabelled else len(dataset.label_names),
        "learn_variance": diffusion.build().learns_variance,
    }


def default_small_size(size: int, initial: Initial | None) -> int:
    """Return the side of the images to enlarge: by the same factor as the model to start from, or else by four."""
    theirs = None if initial is None else initial.architecture
    if isinstance(theirs, SuperResConfig) and theirs.small_size:
        return max(1, size * theirs.small_size // theirs.image_size)
    return size // 4


def build_model(network: nn.Module, diffusion: DiffusionConfig, dataset: ImageDataset) -> Model:
    shape = (dataset.channels, dataset.image_size, dataset.image_size)
    labels = Labels(len(dataset.label_names), dataset.label_names)
    return Model(network, diffusion.build(), shape, labels, diffusion)


def check_resumed(part: Model | Classifier, out: Path | str, overwrite: bool = False) -> Mapping[str, Any]:
    """Compare with the run in the directory, and return its provenance; {} if there is none.

    overwrite: whether that run will be replaced

    Raises ValueError if its weights mean something else.
    """
    folder = None if overwrite else folder_to_resume(out)
    if folder is None:
        return {}
    try:
        check_pair("resume", facts_of(part, "this run"), facts_in(folder, f"the run in {out}"))
    except ValueError as error:
        raise ValueError(f"{error}; choose another --out, or --overwrite it") from None
    training: Mapping[str, Any] = native.read_config(folder).get("training", {})
    return training


def dropout_record(
    model: Model, dataset: ImageDataset, objective: ObjectiveConfig, resumed: Mapping[str, Any]
) -> dict[str, float]:
    """Return the share of images that the network is trained on without their label, for the provenance.

    resumed: provenance of the resumed run; the larger of both shares is returned. The result is {} if it is unknown
    whether a data set that is not ours has images without a label.
    """
    if not model.conditional:
        return {}
    share = max(objective.label_dropout or 0.0, label_dropout(resumed) or 0.0)
    if share == 0 and isinstance(dataset, Dataset) and dataset.labels is not None:
        share = float((np.asarray(dataset.labels) < 0).mean())
    return {"label_dropout": share} if share or isinstance(dataset, Dataset) else {}
