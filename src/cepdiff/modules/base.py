"""Base of the LightningModules: manual optimisation over blocks of minibatches, noise, averages, alarms."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from cepdiff.errors import ConfigError, DivergenceError
from cepdiff.modules.graphs import CapturedSteps, make_portable
from cepdiff.modules.noise import RandomStream, seed_global
from cepdiff.networks.mlp import all_finite
from cepdiff.precision import uncached_casts
from cepdiff.randomness import stream_seed
from cepdiff.ranges import Count, NonNegative, OpenUnit, Positive, Whole, check_arguments
from cepdiff.types import STEP_SEEDS, Batch, Metrics


class StageModule(LightningModule, ABC):
    """Base of the trained stages. A subclass defines `loss`, and may override any of the small hooks below it.

    One `training_step` takes a *block*: a batch whose tensors are (T, B, ...) with the seeds of its T steps under
    "step_seeds" (what `OfflineDataModule` yields), or one plain minibatch (B, ...) from any DataLoader.

    Args:
        learning_rate: of Adam.
        batch_size: rows per step over all processes.
        lr_schedule: "constant", or "cosine" to zero at the Trainer's `max_steps`.
        warmup_steps: the learning rate rises linearly over this many first steps; without a warm-up a high rate can
            leave a network dead. 0 for none.
        weight_decay: decoupled (AdamW) if above 0.
        max_grad_norm: gradients are clipped to this norm; None leaves them.
        ema_decay: per-step decay of an exponential moving average of `net`, which is then used for sampling; None
            keeps no average.
        micro_batch_size: rows per backward pass; gradients add up over a process's share of a batch, which it must
            divide: the same step in less memory. None takes all rows at once.
        cuda_graphs: on one GPU, capture an optimiser step as a CUDA graph and replay it, see `modules.graphs`. False
            for a loss that cannot be captured, or if hooks around backward and the optimiser's step must be called,
            which a replay does not do. Several processes and CPUs always run step by step.
    """

    stage: ClassVar[str]
    supplied: ClassVar[frozenset[str]] = frozenset({"observation_size", "action_size", "schedule"})
    batch_fields: tuple[str, ...]

    def __init__(
        self,
        net: nn.Module,
        learning_rate: Positive,
        batch_size: Count,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: Whole = 0,
        weight_decay: NonNegative = 0.0,
        max_grad_norm: Positive | None = None,
        ema_decay: OpenUnit | None = None,
        cuda_graphs: bool = True,
        micro_batch_size: Count | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        check_arguments(StageModule, locals(), self.stage)
        if micro_batch_size is not None and batch_size % micro_batch_size:
            raise ConfigError(
                f"{self.stage}.micro_batch_size is {micro_batch_size}; expected a divisor of batch_size {batch_size}"
            )
        self.net = net
        self.ema_net = None if ema_decay is None else frozen_copy(net)
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.lr_schedule = lr_schedule
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.ema_decay = ema_decay
        self.cuda_graphs = cuda_graphs
        self.micro_batch_size = micro_batch_size
        self._captured: CapturedSteps | None = None
        self._gradients_checked = False

    @abstractmethod
    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        """Loss (scalar) and metrics of one minibatch; the only method that a new stage must define."""

    def accumulate(self, batch: Batch, noise: RandomStream, backward: Callable[[Tensor], object]) -> Metrics:
        """Add up a minibatch's gradients, `micro_batch_size` rows at a time; return the mean or maximum of each metric.

        The loss must be a mean over independent rows; if it is not, see `check_micro_batch`.
        """
        rows, size = len(next(iter(batch.values()))), self.micro_batch_size
        if size is not None and rows > size and rows % size:
            raise ConfigError(f"{self.stage}.micro_batch_size is {size}; expected a divisor of a process's {rows} rows")
        count = 1 if size is None else max(1, rows // size)
        if count == 1:
            loss, metrics = self.loss(batch, noise)
            backward(loss)
            return metrics
        found: list[Metrics] = []
        for part, part_noise in enumerate(noise.parts(count)):
            loss, metrics = self.loss({name: values[part::count] for name, values in batch.items()}, part_noise)
            backward(loss / count)
            found.append(metrics)
        stacked = {name: torch.stack([metrics[name] for metrics in found]) for name in found[0]}
        return {name: values.amax(0) if name.endswith("_max") else values.mean(0) for name, values in stacked.items()}

    def check_micro_batch(self, contrasted: bool) -> None:
        """Raise ConfigError if rows are `contrasted` with each other, so that a batch cannot be split."""
        if contrasted and self.micro_batch_size is not None:
            raise ConfigError(f"{self.stage}.micro_batch_size: this loss compares all rows of a batch; leave it null")

    def network_spec(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Class and arguments from which a policy file builds `net`; `arguments` are the module's, as plain values."""
        spec: dict[str, Any] = arguments["net"]
        return spec

    @property
    def sampling_net(self) -> nn.Module:
        """The network to use once trained: the moving average if there is one."""
        return self.net if self.ema_net is None else self.ema_net

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that are optimised, clipped and checked for NaN: all that require a gradient."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def clip(self) -> None:
        """Clip the gradients to `max_grad_norm`; Lightning's own way refuses fused optimisers in bfloat16."""
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.trained_parameters(), self.max_grad_norm)

    def check_gradients(self) -> None:
        """Raise ConfigError for a parameter that is optimised but has no gradient; called once per fit."""
        trained = {id(parameter) for parameter in self.trained_parameters()}
        missing = [name for name, p in self.named_parameters() if id(p) in trained and p.grad is None]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ConfigError(
                f"the {self.stage} stage's loss gives no gradient to {missing[0]}{more}, which would never train: use "
                f"it in {type(self).__name__}.loss, or freeze it with requires_grad_(False)"
            )
        self._gradients_checked = True

    def after_step(self) -> None:
        """Run after every optimiser step; moves the average."""
        if self.ema_net is not None and self.ema_decay is not None:
            polyak_update(self.ema_net, self.net, 1.0 - self.ema_decay)

    def from_all_ranks(self, values: Tensor, noise: RandomStream, axis: int = 0) -> Tensor:
        """`values` of all ranks, concatenated along `axis`, with gradients.

        For losses over the global batch, which are then equal on all ranks: each rank's gradient is the sum over the
        ranks of equal losses, which DDP's mean over the ranks corrects.
        """
        if noise.world == 1:
            return values
        gathered = self.all_gather(values, sync_grads=values.requires_grad)  # (ranks, ...)
        assert isinstance(gathered, Tensor)
        return torch.cat(list(gathered), axis)

    def check_block(self, metrics: dict[str, Tensor], first_step: int) -> None:
        """Raise DivergenceError on unusable values; `metrics` are (T,) each, for the steps from `first_step`."""
        finite = torch.stack([values.isfinite() for values in metrics.values()]).all(0)
        if not bool(finite.all()):
            step = first_step + int((~finite).nonzero()[0])
            raise DivergenceError(f"the {self.stage} stage's loss became NaN or infinite at step {step}")

    @property
    def depends_on_length(self) -> bool:
        """True if steps depend on the Trainer's `max_steps`, so that a finished training cannot go on to more of them.

        Taken to be so for a class with a `configure_optimizers` of its own, unless it overrides this too.
        """
        return self.lr_schedule == "cosine" or type(self).configure_optimizers is not StageModule.configure_optimizers

    def configure_optimizers(self) -> Any:
        """Adam (AdamW with weight decay) on `trained_parameters`, fused."""
        parameters = self.trained_parameters()
        if self.ema_net is not None and {id(p) for p in parameters} - {id(p) for p in self.net.parameters()}:
            raise ConfigError(
                f"{self.stage}.ema_decay averages `net` only, but {type(self).__name__} trains more: set it to null, "
                "and average the rest in after_step"
            )
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        cosine = self.lr_schedule == "cosine"
        if not cosine and not self.warmup_steps:
            return optimizer
        total = self.trainer.max_steps
        if cosine and total < 1:
            raise ConfigError(f"{self.stage}.lr_schedule 'cosine' needs the Trainer's max_steps")

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
            return warm * (0.5 * (1.0 + math.cos(math.pi * min(step, total) / total)) if cosine else 1.0)

        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]

    def training_step(self, block: Batch, batch_idx: int) -> None:
        """One optimiser step per minibatch of the block; metrics are logged once, as the block's means."""
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        first_step = self.global_step
        history: list[Metrics] = []
        with uncached_casts():
            if self._are_captured(block):
                stacked = self._replay_steps(block, optimizer, scheduler)
            else:
                for batch, noise in self.minibatches(block):
                    optimizer.zero_grad(set_to_none=True)
                    history.append(self.accumulate(batch, noise, self.manual_backward))
                    if not self._gradients_checked:
                        self.check_gradients()
                    self.clip()
                    optimizer.step()
                    if scheduler is not None:
                        scheduler.step()
                    self.after_step()
                stacked = {name: torch.stack([metrics[name] for metrics in history]) for name in history[0]}
        self._on_all_ranks(stacked, first_step)
        means = {f"{self.stage}/{name}": values.mean() for name, values in stacked.items()}
        self.log_dict(means, prog_bar=False, sync_dist=self.trainer.world_size > 1)
        self.log(f"{self.stage}/learning_rate", float(optimizer.param_groups[0]["lr"]))
        self.log("step", float(self.global_step))  # TensorBoard's x axis counts optimiser steps, not blocks

    def on_fit_start(self) -> None:
        """A captured step belongs to one fit; raises ConfigError if losses would have to be scaled."""
        self._captured = None
        self._gradients_checked = False
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise ConfigError("trainer.precision 16-mixed needs scaled losses, which no step here does; use bf16-mixed")

    def on_fit_end(self) -> None:
        """Free the memory of the captured step."""
        self._captured = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to replace a good checkpoint by one whose weights are not finite."""
        for state in checkpoint.get("optimizer_states", ()):
            make_portable(state)
        if not all_finite(self.trained_parameters()):
            raise DivergenceError(f"the {self.stage} stage's weights became NaN or infinite by step {self.global_step}")

    def _are_captured(self, block: Batch) -> bool:
        """True if the steps of this block are replays of a captured one."""
        one_gpu = self.device.type == "cuda" and self.trainer.world_size == 1
        if not (self.cuda_graphs and one_gpu and STEP_SEEDS in block):
            return False
        return not any(isinstance(part, _DropoutNd) and part.p > 0.0 for part in self.modules())

    def _replay_steps(self, block: Batch, optimizer: Any, scheduler: Any) -> dict[str, Tensor]:
        """The steps of a block as replays of a captured one; returns the metrics, (T,) each."""
        if self._captured is None or not self._captured.fits(block):
            self._captured = None  # its memory is free before the next one is made
            self._captured = CapturedSteps(self, optimizer.optimizer, block)

        def count() -> None:
            optimizer._on_before_step()  # Lightning's own count of optimiser steps
            if scheduler is not None:
                scheduler.step()
            optimizer._on_after_step()

        return self._captured.run(block, count)

    def minibatches(self, block: Batch) -> Iterator[tuple[Batch, RandomStream]]:
        rank, world = self.global_rank, self.trainer.world_size
        seeds = block.get(STEP_SEEDS)
        if seeds is None:
            yield block, RandomStream(None, self.device, rank, world)
            return
        for i, seed in enumerate(seeds.tolist()):
            seed_global(stream_seed(seed, "global", rank), self.device)
            batch = {name: values[i] for name, values in block.items() if name != STEP_SEEDS}
            yield batch, RandomStream(seed, self.device, rank, world)

    def _on_all_ranks(self, metrics: dict[str, Tensor], first_step: int) -> None:
        """`check_block`, raised on every rank if it is raised on one, so that no rank waits for another."""
        error: DivergenceError | None = None
        try:
            self.check_block(metrics, first_step)
        except DivergenceError as found:
            error = found
        if self.trainer.world_size > 1 and self.trainer.strategy.reduce_boolean_decision(error is not None, all=False):
            error = error or DivergenceError(f"the {self.stage} stage diverged on another rank near step {first_step}")
        if error is not None:
            raise error


def frozen_copy(net: nn.Module) -> nn.Module:
    """Deep copy that is neither trained nor in training mode."""
    return copy.deepcopy(net).requires_grad_(False).eval()


@torch.no_grad()
def polyak_update(average: nn.Module, net: nn.Module, rate: float) -> None:
    """average <- (1 - rate) average + rate net, over all parameters in one fused call."""
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), rate)
