"""The stages of images: prior, energies with heads, and guided samples held against what they should be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from cepdiff import __version__
from cepdiff.callbacks.images import ImageGridCallback
from cepdiff.callbacks.progress import progress
from cepdiff.data.blocks import StageDataModule
from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.data.images.energies import LABELS
from cepdiff.energy.heads import FunctionEnergy, HeadedLogits
from cepdiff.errors import ConfigError
from cepdiff.files import written_aside
from cepdiff.modules.base import StageModule
from cepdiff.networks.images.pretrained import pretrained_hash
from cepdiff.policy.images import ImageSampler, SamplerRecipe
from cepdiff.stages.artifacts import RunFolder, compare, made_from_of
from cepdiff.stages.classifier import ClassJudge, check_class_sizes, kept_classifier
from cepdiff.stages.config import Config
from cepdiff.stages.distances import GUIDED, write_samples
from cepdiff.stages.fit import Fit
from cepdiff.stages.image_evaluation import (
    EnergyJudge,
    ImageRow,
    Judge,
    format_rows,
    is_hue,
    judge_samples,
    read_rows,
    write_rows,
)
from cepdiff.stages.image_figures import plot_grids, plot_hues, shown_heads
from cepdiff.stages.inception import check_inception, with_fid
from cepdiff.stages.logs import log_result
from cepdiff.stages.processes import Processes
from cepdiff.stages.settings import ImageEvaluationSettings, ImageStages

# Arguments of the data module whose result its hashes name.
NAMED_BY_HASH = frozenset({
    "dataset", "image_size", "channels", "tint", "horizontal_flip", "energy", "holdout", "split", "image_column",
    "label_column", "on_broken", "num_images", "block_size",
})  # fmt: skip
# What names the files of a pretrained network: a run's record has the hash of these instead.
PRETRAINED = ("pretrained", "revision", "cache_dir")


class ImageFit(Fit):
    """Images of p_h(x) ∝ q(x) exp(-beta E_h(x)), one energy E_h a head."""

    stages = ("behavior", "guidance", "evaluation")
    not_recorded = NAMED_BY_HASH

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        data: ImageDataModule,
        processes: Processes,
        sources: Sequence[str] = (),
        reuse: RunFolder | None = None,
    ) -> None:
        assert isinstance(config.stages, ImageStages)
        assert isinstance(config.evaluation, ImageEvaluationSettings)
        self.data = data
        self.lengths = config.stages
        self.settings = config.evaluation
        self.seed = config.seed if config.evaluation.seed is None else config.evaluation.seed
        super().__init__(config, run, data, processes, sources, reuse)
        self.objective = self.guidance.objective
        self._check()

    @classmethod
    def complete(cls, config: Config, data: StageDataModule) -> Config:
        """Channels, heads and schedule of the networks, which the data and the run's own schedule say."""
        assert isinstance(data, ImageDataModule)
        if not data.num_heads:
            raise ConfigError("data.energy is missing; expected labels, hues or package.module.function")
        known = {"channels": data.image_shape[0], "schedule": config.values["schedule"]}
        return config.supplied({"behavior": known, "guidance": {**known, "num_heads": data.num_heads}})

    @property
    def analytic(self) -> bool:
        """Whether the energy itself guides, and no network of it."""
        return self.lengths.guidance.max_steps == 0

    def fit_behavior(self) -> None:
        """The prior q, on images alone: its record does not know the energies, and other runs may reuse it."""
        behavior = self.values("behavior")
        net = behavior["init_args"]["net"]
        arguments = {**net["init_args"]}
        if arguments.get("pretrained") is not None:
            files = {name: arguments.pop(name) for name in PRETRAINED}
            arguments["pretrained"] = self.processes.on_main(lambda: pretrained_hash(**files))
        named = {**behavior["init_args"], "net": {**net, "init_args": arguments}}
        record = {
            **self.common,
            "dataset": self.data.points_hash,
            "behavior": {**behavior, "init_args": named},
            "schedule": self.values("schedule"),
        }
        if self.lengths.behavior.max_steps:
            self.train(self.behavior, self.data, self.lengths.behavior, record, self._callbacks(False))
        else:
            self._keep_untrained(self.behavior, record)
        if not self.processes.on_main(lambda: self.run.stage("guidance").done):
            self._save_sampler(False)

    def fit_guidance(self) -> None:
        """The energy network, on images and energies."""
        record = {**self.common, "guidance": self.values("guidance"), "schedule": self.values("schedule")}
        if self.analytic:
            self._keep_untrained(self.guidance, record)
        else:
            self.train(self.guidance, self.data, self.lengths.guidance, record, self._callbacks(True))
        self._save_sampler(True)

    def fit_evaluation(self) -> list[ImageRow]:
        """Samples of every head and scale against what they should be; again only when something changed."""
        made_from = {
            "dataset": self.data.content_hash,
            "behavior_checkpoint": self.final_hash("behavior"),
            "guidance_checkpoint": self.final_hash("guidance"),
            "solver": self.values("solver"),
            "evaluation": self.values("evaluation") | {"seed": self.seed},
        }
        done = self.processes.on_main(lambda: self._evaluated(made_from))
        self.announce("evaluation", done)
        if not done:
            samples = {scale: self._sample(scale) for scale in sorted(set(self.settings.scales))}
            self.processes.on_main(lambda: self._judge(samples, made_from))
        rows, about = self.processes.on_main(lambda: read_rows(self.run.images))
        if self.processes.is_main:
            print(f"\n{about['title']}\n{format_rows(rows, about['columns'], about['real'])}\n")
            print(self.closing_lines(f"results {self.run.images}, grids {self.grids}"))
        return rows

    @property
    def grids(self) -> Path:
        """The picture of samples."""
        return self.run.path / "grids.png"

    @property
    def hues(self) -> Path:
        """The picture of hues, where the energies are of these."""
        return self.run.path / "hues.png"

    def _evaluated(self, made_from: dict[str, Any]) -> bool:
        """Whether results of just these networks and settings lie in the run folder."""
        files = [self.grids, self.run.samples, *([self.hues] if is_hue(self.data) else [])]
        wanted = json.loads(json.dumps(made_from))
        return not any(compare(made_from_of(self.run.images), wanted)) and all(path.exists() for path in files)

    def _sample(self, scale: float) -> Tensor:
        """Images (heads, M, C, H, W) uint8 of all processes, on the CPU."""
        heads, count = self.data.num_heads, self.settings.num_samples
        rows = torch.arange(self.processes.rank, heads * count, self.processes.world)
        sampler = self.sampler(guided=True)
        shown = self.processes.settings.progress_bar and self.processes.is_main
        images = []
        with progress(len(rows), f"scale {scale:g}", "image", enabled=shown) as bar:
            for batch in sampler.batches(rows // count, rows % count, scale, self.seed, self.settings.batch_size):
                images.append(batch)
                bar.update(len(batch))
        gathered = self.processes.gather_rows(torch.cat(images), heads * count)
        return gathered.cpu().reshape(heads, count, *gathered.shape[1:])  # (H*M, C, H, W) -> (H, M, C, H, W)

    def _judge(self, samples: dict[float, Tensor], made_from: dict[str, Any]) -> None:
        """Measures, draws and writes; images.json last, which says that it is done."""
        judge = self._new_judge()
        means, by_head = judge_samples(samples, judge, self.data.head_names)
        columns = dict(judge.columns)
        if self.settings.fid_weights is not None:
            means = with_fid(means, samples, self.data, self.settings.fid_weights, self.processes.device)
            columns["fid"] = "FID"
        about = {
            "title": f"{self._title()}, {judge.remark}",
            "dataset": self.dataset_name,
            "energy": self.data.energy,
            "objective": type(self.objective).__name__,
            "inverse_temperature": self.objective.inverse_temperature,
            "seed": self.config.seed,
            "num_samples": self.settings.num_samples,
            "columns": columns,
            "distance": judge.distance,
            "real": judge.real,
            "cepdiff": __version__,
            "seconds": self.seconds(),
            "made_from": made_from,
        }
        shown = shown_heads(self.data.num_heads)
        pictures = {scale: images[shown, : self.settings.grid_columns] for scale, images in samples.items()}
        write_samples(self.run.samples, {GUIDED.format(scale): images for scale, images in pictures.items()})
        names = [self.data.head_names[head] for head in shown]
        plot_grids(pictures, names, self.grids, self._title())
        step = self.lengths.guidance.max_steps
        values = {f"eval/{k}/s={row.guidance_scale}": v for row in means for k, v in row.metrics.items()}
        log_result(self.run.logs / "evaluation", values, self.grids, step)
        if isinstance(judge, EnergyJudge) and judge.hues is not None:
            plot_hues(samples, shown, judge, self.data.head_names, self.hues, self._title())
            log_result(self.run.logs / "evaluation", {}, self.hues, step)
        write_rows(self.run.images, means, by_head, about)

    def _new_judge(self) -> Judge:
        """By a classifier of the labels, which is trained or read, or by the energy as a function of the image."""
        repeats = self.settings.floor_repeats
        if self.data.energy != LABELS:
            return EnergyJudge(self.data, self.objective.inverse_temperature, repeats, self.seed)
        path = self.run.path / "evaluation" / "classifier.pt"
        steps = self.settings.classifier_steps
        classifier = kept_classifier(path, self.data, steps, self.seed, self.processes.device)
        return ClassJudge(self.data, classifier, self.settings.num_samples, repeats, self.seed)

    def _title(self) -> str:
        beta = self.objective.inverse_temperature
        return f"{self.dataset_name}, {type(self.objective).__name__}, beta {beta:g}, seed {self.config.seed}"

    def sampler(self, guided: bool) -> ImageSampler:
        """The sampler as it stands, of the finished stages."""
        energy_net: HeadedLogits | None = None
        if guided and self.analytic:
            energy_net = FunctionEnergy(
                self.data.energies_of, self.data.image_shape, self.objective.inverse_temperature
            )
        elif guided:
            energy_net = self.guidance.sampling_net
        return self._sampler_of(self.behavior, energy_net)

    def _sampler_of(self, behavior: Any, energy_net: HeadedLogits | None) -> ImageSampler:
        return ImageSampler(
            self.data.image_shape,
            self.data.head_names,
            behavior.sampling_net,
            behavior.schedule,
            self.solver,
            energy_net,
            self.objective,
            behavior.device,
        )

    def _save_sampler(self, guided: bool) -> None:
        """Leaves `sampler.pt` in the run folder."""
        behavior, guidance = (self.values(key)["init_args"] for key in ("behavior", "guidance"))
        recipe = SamplerRecipe(
            dataset=self.dataset_name,
            image_shape=list(self.data.image_shape),
            head_names=list(self.data.head_names),
            behavior_net=rebuilt(behavior["net"], self.behavior.net),
            energy_net=rebuilt(guidance["net"], self.guidance.net) if guided and not self.analytic else None,
            energy=self.data.energy if guided and self.analytic else None,
            objective=guidance["objective"],
            schedule=self.values("schedule"),
            solver=self.values("solver"),
            scales=list(self.settings.scales),
            sources=self.sources,
        )
        self.processes.on_main(lambda: self.sampler(guided).save(self.run.path, recipe))

    def _keep_untrained(self, module: StageModule, record: dict[str, Any]) -> None:
        """A stage of 0 steps: the weights that the module began with, as its result."""
        done = self.claim(module.stage, record | {"max_steps": 0})
        self.announce(module.stage, done, ", 0 steps")
        module.to(self.processes.device).eval().requires_grad_(False)
        if not done:
            self.processes.on_main(lambda: keep_weights(self.run, module))

    def _callbacks(self, guided: bool) -> list[Callback]:
        """Grids while a stage trains, of the module in training itself."""
        if self.settings.every_n_steps is None:
            return []

        def sampler_of(module: LightningModule) -> ImageSampler:
            assert isinstance(module, StageModule)
            return self._sampler_of(self.behavior, module.sampling_net) if guided else self._sampler_of(module, None)

        columns = min(self.settings.grid_columns, 8)
        return [ImageGridCallback(sampler_of, self.settings.every_n_steps, columns=columns, seed=self.seed)]

    def _check(self) -> None:
        """Raises ConfigError for stages of 0 steps that leave nothing to sample with."""
        net = self.values("behavior")["init_args"]["net"]["init_args"]
        if not self.lengths.behavior.max_steps and net.get("pretrained") is None:
            raise ConfigError(
                "stages.behavior.max_steps is 0, but behavior.net.pretrained names no prior to use as it is"
            )
        if self.analytic and not self.objective.on_clean:
            raise ConfigError(
                "stages.guidance.max_steps is 0: the energy itself then guides, at the predicted clean image; expected "
                f"DPS as guidance.objective, found {type(self.objective).__name__}"
            )
        if self.analytic:
            self.data.energies_of(torch.zeros(1, *self.data.image_shape))  # there is a function, and not labels alone
        if self.data.energy == LABELS:
            check_class_sizes(self.data)
        if self.settings.fid_weights is not None:
            check_inception(self.settings.fid_weights)


def rebuilt(net: dict[str, Any], built: nn.Module) -> dict[str, Any]:
    """A network's specification without the files that it was made from."""
    return {**net, "init_args": {**net["init_args"], **getattr(built, "rebuild_args", {})}}


def keep_weights(run: RunFolder, module: StageModule) -> None:
    """Leaves an untrained stage's `final.ckpt`, and marks it as done."""
    folder = run.stage(module.stage)
    weights = {name: value.cpu() for name, value in module.state_dict().items()}
    with written_aside(folder.final) as file:
        torch.save({"state_dict": weights}, file)
    folder.finish(0.0)
