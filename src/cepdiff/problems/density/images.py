"""Densities of images: energies with heads, and guided samples compared with real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from cepdiff.bars import progress
from cepdiff.callbacks.images import ImageGridCallback
from cepdiff.components import Component, class_path_of
from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.data.images.energies import LABELS
from cepdiff.energy.heads import FunctionEnergy
from cepdiff.errors import ConfigError
from cepdiff.modules.base import StageModule
from cepdiff.modules.headed import HeadedEnergyGuidance
from cepdiff.networks.images.half_unet import HalfUNet
from cepdiff.networks.images.inception import check_inception, inception_distance
from cepdiff.networks.images.pretrained import pretrained_hash
from cepdiff.networks.images.unet import UNetScore
from cepdiff.policy.images import ImageSampler
from cepdiff.policy.recipe import Recipe
from cepdiff.policy.sampler import SamplerParts
from cepdiff.problems.density.classifier import ClassJudge, check_class_sizes, kept_classifier
from cepdiff.problems.density.gallery import SHOWN_HUES, plot_grids, plot_hues, shown_heads
from cepdiff.problems.density.judges import EnergyJudge, Judge, is_hue, judge_samples
from cepdiff.problems.density.problem import DensityProblem
from cepdiff.problems.density.report import image_sections
from cepdiff.problems.density.samples import GUIDED, write_samples
from cepdiff.problems.guided import OBJECTIVE
from cepdiff.ranges import AtLeastTwo, Count, NonNegative, Range, Whole
from cepdiff.runs.report import OFFLINE, Section
from cepdiff.runs.results import Results, Row
from cepdiff.runs.run import Run
from cepdiff.runs.stage import StageSettings
from cepdiff.runs.threads import settle_threads

# Arguments that name the files of a pretrained network: a record has the hash of these files instead.
PRETRAINED = ("pretrained", "revision", "cache_dir")
ANALYTIC = "{} (analytic)"  # the method if the energy function guides, not a network


@dataclass
class ImageStageSettings(StageSettings):
    """Length of a trained stage; 0 steps leave it untrained.

    Args:
        max_steps: optimiser steps, or 0.
        checkpoint_every: steps between writes of `last.ckpt`, at least 1.
    """

    max_steps: Whole


@dataclass
class ImageStages:
    """The stages of a run on images.

    With 0 steps, the behavior stage uses a pretrained prior unchanged, and the guidance stage guides by the energy
    function itself, which must be differentiable, at the predicted clean sample (objective DPS).
    """

    behavior: ImageStageSettings = field(default_factory=lambda: ImageStageSettings(500_000))
    guidance: ImageStageSettings = field(default_factory=lambda: ImageStageSettings(500_000))


@dataclass
class ImageEvaluation:
    """Comparison of guided images with real ones.

    Args:
        scales: guidance scales; 1 is exact, 0 samples the prior.
        inverse_temperatures: s beta for each scale s, instead of `scales`; null uses `scales`.
        num_samples: per head and scale; at least 8 (neighbours up to the fifth, and a covariance).
        batch_size: images sampled at a time on a process.
        classifier_steps: class energies only: training steps of the independent classifier of clean images.
        floor_repeats: pairs of independent draws of real images, whose mean distance is the noise floor; at least 2.
        grid_columns: images per head in the grids.
        seed: of the samples' noise, the draws and the classifier; null is the run's seed.
        every_n_steps: also show a small grid during the behavior and guidance stages; null only at the end.
        fid_weights: a file of torch-fidelity's Inception weights, for the FID; null for none.
    """

    scales: list[NonNegative] = field(default_factory=lambda: [0.0, 0.5, 1.0, 2.0, 4.0])
    inverse_temperatures: list[NonNegative] | None = None
    num_samples: Annotated[int, Range(8)] = 250
    batch_size: Count = 250
    classifier_steps: Count = 1000
    floor_repeats: AtLeastTwo = 8
    grid_columns: Count = 10
    seed: int | None = None
    every_n_steps: Count | None = None
    fid_weights: str | None = None


class ImageDensity(DensityProblem):
    """Images of p_h(x) ∝ q(x) exp(-beta E_h(x)), one energy E_h per head.

    Args:
        run: the run.
        data: images and their energies.
        guidance: the energy network with a head per energy.
        stages: lengths.
        evaluation: comparison with real images.
        sections: those of `GuidedProblem`.
    """

    nested: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "behavior": {"net": {"class_path": class_path_of(UNetScore)}},
        "guidance": {"net": {"class_path": class_path_of(HalfUNet)}, **OBJECTIVE},
    }
    # The data's hashes cover these.
    not_recorded = frozenset({
        "dataset", "image_size", "channels", "tint", "horizontal_flip", "energy", "holdout", "split", "image_column",
        "label_column", "on_broken", "num_images", "cache_dir", "block_size",
    })  # fmt: skip

    def __init__(
        self,
        run: Run,
        data: ImageDataModule,
        guidance: Component[HeadedEnergyGuidance] = Component(HeadedEnergyGuidance),
        *,
        stages: ImageStages,
        evaluation: ImageEvaluation,
        **sections: Any,
    ) -> None:
        super().__init__(run, data, guidance=guidance, stages=stages, evaluation=evaluation, **sections)
        self.grids = run.folder.path / "grids.png"
        self.hues = run.folder.path / "hues.png"
        self._check()

    from_data: ClassVar[Mapping[str, Sequence[str]]] = {
        "behavior": ("channels", "schedule"),
        "guidance": ("channels", "schedule", "num_heads"),
    }

    @classmethod
    def network_arguments(cls, data: Any, values: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Channels, heads and schedule."""
        if not data.num_heads:
            raise ConfigError("data.energy is missing; expected labels, hues or package.module.function")
        known = {"channels": data.image_shape[0], "schedule": values["schedule"]}
        return {"behavior": known, "guidance": {**known, "num_heads": data.num_heads}}

    @property
    def analytic(self) -> bool:
        """True if the energy function itself guides, without a network."""
        return bool(self.lengths.guidance.max_steps == 0)

    def behavior_record(self) -> dict[str, Any]:
        record = super().behavior_record()
        spec = record["behavior"]
        net = spec["init_args"]["net"]
        arguments = {**net["init_args"]}
        if arguments.get("pretrained") is not None:
            files = {name: arguments.pop(name) for name in PRETRAINED if name in arguments}
            arguments["pretrained"] = self.run.processes.on_main(lambda: pretrained_hash(**files))
        named = {**spec["init_args"], "net": {**net, "init_args": arguments}}
        return {**record, "behavior": {**spec, "init_args": named}}

    def networks(self) -> dict[str, nn.Module]:
        found = super().networks()
        if "energy" in found and self.analytic:
            beta = self.objective.inverse_temperature
            sizes, shape = self.data.sizes, self.data.image_shape
            found["energy"] = FunctionEnergy(sizes[0], sizes[1], self.data.energies_of, shape, beta)
        return found

    def network_specs(self) -> dict[str, dict[str, Any]]:
        specs = super().network_specs()
        for name, section in self.network_sections.items():  # without the files that a network was made from
            rebuilt = getattr(self.modules[section].net, "rebuild_args", {})
            specs[name] = {**specs[name], "init_args": {**specs[name]["init_args"], **rebuilt}}
        if self.analytic:
            arguments = {
                "function": self.data.energy,
                "image_shape": list(self.data.image_shape),
                "inverse_temperature": self.objective.inverse_temperature,
            }
            specs["energy"] = {"class_path": class_path_of(FunctionEnergy), "init_args": arguments}
        return specs

    def parts(self, networks: Mapping[str, nn.Module]) -> SamplerParts:
        return replace(super().parts(networks), headed=True)

    def recipe(self) -> Recipe:
        spec = {"observation_size": 0, "action_size": self.data.sizes[1], "action_low": [-1.0], "action_high": [1.0]}
        shape, heads = list(self.data.image_shape), list(self.data.head_names)
        return replace(super().recipe(), spec=spec, image_shape=shape, head_names=heads)

    def policy(self, networks: Mapping[str, nn.Module] | None = None) -> ImageSampler:
        """The image sampler of what has been trained so far, or of those networks."""
        return ImageSampler(self.data.image_shape, self.data.head_names, self.sampler(networks))

    def files(self) -> list[Path]:
        return [self.run.folder.samples, self.grids, *([self.hues] if is_hue(self.data) else [])]

    def judge(self) -> Results:
        settings, policy = self.settings, self.policy()
        rows = min(settings.batch_size, self.data.num_heads * settings.num_samples)
        evaluations = len(self.scales) * policy.sampler.solver.num_steps * self.data.num_heads * settings.num_samples
        with self.run.processes.autocast():
            settle_threads(self.run.processes, "evaluation", policy.evaluation(rows), evaluations / rows)
        samples = {scale: self._sample(scale) for scale in sorted(set(self.scales))}
        return self.run.processes.on_main(lambda: self._judge(samples))

    @classmethod
    def report(cls, runs: Sequence[Results], output: Path, scale: float | str = OFFLINE) -> list[Section]:
        return image_sections(runs, output)

    def callbacks(self, section: str) -> list[Callback]:
        """Grids of the module in training."""
        if self.settings.every_n_steps is None:
            return []

        def sampler_of(module: LightningModule) -> ImageSampler:
            assert isinstance(module, StageModule)
            if section == "behavior":
                return self.policy({"behavior": module.sampling_net})
            return self.policy({"behavior": self.behavior.sampling_net, "energy": module.sampling_net})

        columns = min(self.settings.grid_columns, 8)
        return [ImageGridCallback(sampler_of, self.settings.every_n_steps, columns=columns, seed=self.seed)]

    def _sample(self, scale: float) -> Tensor:
        """Images (heads, M, C, H, W) uint8 of all processes, on the CPU."""
        processes, heads, count = self.run.processes, self.data.num_heads, self.settings.num_samples
        rows = torch.arange(processes.rank, heads * count, processes.world)
        batches = self.policy().batches(rows // count, rows % count, scale, self.seed, self.settings.batch_size)
        images = []
        with (
            progress(len(rows), f"scale {scale:g}", "image", enabled=processes.shows_progress) as bar,
            processes.autocast(),
        ):
            for batch in batches:
                images.append(batch)
                bar.update(len(batch))
        gathered = processes.gather_rows(torch.cat(images), heads * count)
        return gathered.cpu().reshape(heads, count, *gathered.shape[1:])  # (H*M, C, H, W) -> (H, M, C, H, W)

    def _judge(self, samples: dict[float, Tensor]) -> Results:
        """Measure, draw and write."""
        judge, data, settings = self._new_judge(), self.data, self.settings
        rows, columns = judge_samples(samples, judge, data.head_names), dict(judge.columns)
        if settings.fid_weights is not None:
            device = self.run.processes.device
            for scale, images in samples.items():
                real = (data.images[some] for some in torch.split(data.train_rows, settings.batch_size))
                distance = inception_distance(real, images.flatten(0, 1), settings.fid_weights, device)
                rows.append(Row(scale, "fid", distance))
            columns["fid"] = ("FID", ".3f")
        objective = type(self.objective).__name__
        results = self.results_of(
            rows,
            columns,
            title=f"{self.title}, {judge.remark}",
            method=ANALYTIC.format(objective) if self.analytic else objective,
            real=judge.real,
            about={
                "energy": data.energy, "distance": judge.distance, "heads": list(data.head_names),
                "num_samples": settings.num_samples, "image_shape": list(data.image_shape),
            },
        )  # fmt: skip
        shown = shown_heads(data.num_heads)
        pictures = {scale: images[shown, : settings.grid_columns] for scale, images in samples.items()}
        write_samples(self.run.folder.samples, {GUIDED.format(scale): images for scale, images in pictures.items()})
        names = [data.head_names[head] for head in shown]
        grids = [(f"scale {scale:g}", images, names) for scale, images in pictures.items()]
        plot_grids(grids, self.grids, self.title)
        figures = [self.grids]
        if isinstance(judge, EnergyJudge) and judge.hues is not None:
            figures.append(self.hues)
            plot_hues(samples, shown_heads(data.num_heads, SHOWN_HUES), judge, data.head_names, self.hues, self.title)
        self.log(results, *figures)
        return results

    def _new_judge(self) -> Judge:
        """A classifier of the labels, trained or read, or the energy as a function of the image."""
        repeats, settings = self.settings.floor_repeats, self.settings
        if self.data.energy != LABELS:
            return EnergyJudge(self.data, self.objective.inverse_temperature, repeats, self.seed)
        path = self.run.folder.path / "evaluation" / "classifier.pt"
        device = self.run.processes.device
        classifier = kept_classifier(path, self.data, settings.classifier_steps, self.seed, device)
        return ClassJudge(self.data, classifier, settings.num_samples, repeats, self.seed)

    def _check(self) -> None:
        """Raise ConfigError for stages of 0 steps that leave nothing to sample with."""
        net = self.components["behavior"].spec["init_args"]["net"]["init_args"]
        if not self.lengths.behavior.max_steps and net.get("pretrained") is None:
            raise ConfigError("stages.behavior.max_steps is 0, but behavior.net.pretrained names no prior")
        classes = getattr(self.behavior.net, "num_classes", None)
        if classes is not None and (self.data.energy != LABELS or classes != self.data.num_heads):
            raise ConfigError(
                f"behavior.net.num_classes is {classes}: the class of a sample is the head that guides it; expected "
                f"data.energy labels with as many classes, found {self.data.energy} with {self.data.num_heads} heads"
            )
        if self.analytic and not self.objective.on_clean:
            raise ConfigError(
                "stages.guidance.max_steps is 0: the energy itself then guides, at the predicted clean image; expected "
                f"DPS as guidance.objective, found {type(self.objective).__name__}"
            )
        if self.analytic:
            self.data.energies_of(torch.zeros(1, *self.data.image_shape))  # labels are no function of the image
        if self.data.energy == LABELS:
            check_class_sizes(self.data)
        if self.settings.fid_weights is not None:
            check_inception(self.settings.fid_weights)
