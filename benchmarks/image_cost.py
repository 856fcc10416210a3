"""Cost of the image networks: seconds and memory of an optimiser step, images per second of guided sampling.

    python benchmarks/image_cost.py --sizes 8 32 --batch_size 8                   # two cores
    python benchmarks/image_cost.py --device cuda --matmul_precision high         # all five sizes, 32 images per step

Runs the networks of the recipes in `configs/images` on random images of their size, with random weights (a prior that
a recipe downloads has its published architecture). Each row runs in its own process to measure its peak memory: the
resident memory added since before the network was built, or what PyTorch allocated on a GPU. Steps are those of
`cepdiff fit` on one device, without micro-batches.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.data.images.files import ImageSet
from cepdiff.files import write_json
from cepdiff.modules.base import StageModule
from cepdiff.policy.images import ImageSampler
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.runs.config import Config, load_config
from cepdiff.runs.processes import Processes, TrainerSettings
from floors import machine, synchronise, weights

Record: TypeAlias = "dict[str, Any]"

CONFIGS = Path(__file__).parent.parent / "configs" / "images"
# Side of the images -> recipe, channels, classes.
RECIPES = {
    8: ("digits_class", 1, 10),
    32: ("cifar10_class", 3, 10),
    64: ("imagenet64_class", 3, 1000),
    128: ("imagenet128_class", 3, 1000),
    256: ("imagenet256_class", 3, 1000),
}
# Architecture of google/ddpm-cifar10-32, which the recipe downloads.
DOWNLOADED = {
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
NETWORKS = {"prior": "behavior", "energy": "guidance"}  # trained networks -> their stages
SAMPLING = "sampling"
CHECKPOINTING, CHANNELS_LAST, BF16 = "gradient_checkpointing", "channels_last", "bf16"
# Options switched on per row; precision and checkpointing do not affect sampling, which `fit` does in float32.
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "checkpointing": (CHECKPOINTING,),
    "channels_last": (CHANNELS_LAST,),
    "bf16": (BF16,),
    "all": (CHECKPOINTING, CHANNELS_LAST, BF16),
}
SAMPLED = ("plain", "channels_last")
WARM_BLOCKS = 1


class RandomImages(ImageDataModule):
    """One image of random bytes per class."""

    def __init__(self, side: int, channels: int, classes: int, block_size: int) -> None:
        super().__init__(channels=channels, energy="labels", holdout=0.0, block_size=block_size)
        self.shape = classes, channels, side, side

    def load(self) -> ImageSet:
        images = torch.randint(256, self.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return ImageSet(images, torch.arange(len(images)), tuple(map(str, range(len(images)))))


class BlockTimes(Callback):
    """Seconds of each block of optimiser steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._mark = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        synchronise(pl_module.device)
        now = time.perf_counter()
        self.seconds.append(now - self._mark)
        self._mark = now


def settings_of(args: argparse.Namespace, variant: str) -> TrainerSettings:
    """Trainer settings of a row."""
    return TrainerSettings(
        accelerator="gpu" if args.device == "cuda" else "cpu",
        precision="bf16-mixed" if BF16 in VARIANTS[variant] else "32-true",
        matmul_precision=args.matmul_precision,
        num_threads=args.threads,
        progress_bar=False,
    )


def recipe(side: int, variant: str, batch_size: int, data: ImageDataModule) -> Config:
    """The recipe for this side, with the row's changes."""
    given = [f"{stage}.batch_size={batch_size}" for stage in NETWORKS.values()]
    for option in (CHECKPOINTING, CHANNELS_LAST):
        value = str(option in VARIANTS[variant]).lower()
        given += [f"{stage}.net.{option}={value}" for stage in NETWORKS.values()]
    path = CONFIGS / f"{RECIPES[side][0]}.yaml"
    config = load_config([path], [*given, "behavior.micro_batch_size=null"])
    if config.values["behavior"]["init_args"]["net"]["init_args"]["pretrained"] is not None:
        scheduler = {"beta_schedule": "linear", "prediction_type": "epsilon"}
        own = {"pretrained": None, "config": DOWNLOADED, "scheduler": scheduler}
        given += [f"behavior.net.{name}={json.dumps(value)}" for name, value in own.items()]
        config = load_config([path], [*given, "behavior.micro_batch_size=null"])
    return config.supplied(config.problem.network_arguments(data, config.values))


def module_of(config: Config, stage: str, data: ImageDataModule) -> StageModule:
    """A stage's module, with the same random weights in every process."""
    torch.manual_seed(0)
    module: StageModule = config.components[stage](*data.sizes, schedule=config.components["schedule"]())
    return module


def memory_bytes(device: torch.device, peak: bool) -> int:
    """Memory on the device now, or at its peak: allocated on a GPU, resident on a CPU (on macOS always the peak).

    Linux reports this program's peak in `status`; `getrusage` starts from that of the parent process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(values["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def trained(module: StageModule, data: ImageDataModule, processes: Processes, blocks: int) -> Record:
    """Seconds per optimiser step, without the first block, where kernels are chosen and graphs captured."""
    times = BlockTimes()
    trainer = Trainer(
        **processes.trainer_arguments(),
        max_steps=data.block_size * (WARM_BLOCKS + blocks),
        max_epochs=-1,
        logger=False,
        callbacks=[times],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)
    steps = [seconds / data.block_size for seconds in times.seconds[WARM_BLOCKS:]]
    return {"seconds": statistics.median(steps), "best": min(steps), "parameters": weights(module.net)}


def sampled(config: Config, data: ImageDataModule, processes: Processes, num_steps: int | None, count: int) -> Record:
    """Images per second of the prior and of guidance at scale 1, `count` at a time."""
    behavior, guidance = (module_of(config, stage, data) for stage in NETWORKS.values())
    solver, schedule = config.components["solver"](), config.components["schedule"]()
    solver.num_steps = num_steps or solver.num_steps
    networks = {
        "behavior": behavior.sampling_net.to(processes.device), "energy": guidance.sampling_net.to(processes.device)
    }  # fmt: skip
    objective = config.components["guidance"].arguments["objective"]
    parts = SamplerParts(data.sizes[1], networks, schedule, solver, objective, headed=True)
    sampler = ImageSampler(data.image_shape, data.head_names, GuidedSampler(parts))
    found: Record = {"num_steps": solver.num_steps, "parameters": weights(behavior.net, guidance.net)}
    for name, scale in (("prior_images_per_second", 0.0), ("images_per_second", 1.0)):
        if processes.device.type == "cuda":
            sampler.sample(count, 0, scale, batch_size=count)  # warm-up: kernels are chosen
        started = time.perf_counter()
        sampler.sample(count, 0, scale, batch_size=count)  # ends on the CPU
        found[name] = count / (time.perf_counter() - started)
    return found


def measure(args: argparse.Namespace, side: int, network: str, variant: str) -> Record:
    """Record of one row; memory is the whole process's, so measure only one row per process."""
    processes = Processes(settings_of(args, variant))
    data = RandomImages(side, *RECIPES[side][1:], block_size=args.block_size)
    data.setup()
    config = recipe(side, variant, args.batch_size, data)
    before = memory_bytes(processes.device, peak=False)
    if network == SAMPLING:
        found = sampled(config, data, processes, args.solver_steps, args.batch_size)
    else:
        found = trained(module_of(config, NETWORKS[network], data), data, processes, args.blocks)
    return found | {"memory": memory_bytes(processes.device, peak=True) - before}


def row(side: int, network: str, variant: str, options: Sequence[str]) -> Record:
    """Run `measure` in its own process; the record says so if memory runs out."""
    known = {"side": side, "recipe": RECIPES[side][0], "network": network, "variant": variant}
    command = [sys.executable, __file__, *options, "--child", str(side), network, variant]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        found: Record = json.loads(done.stdout.splitlines()[-1])
        return known | found
    if done.returncode == -9 or "OutOfMemoryError" in done.stderr:
        return known | {"failed": "out of memory"}
    raise SystemExit(done.stderr)


def line(record: Mapping[str, Any]) -> str:
    """A row of the table."""
    words = f"{record['side']:4}  {record['network']:9} {record['variant']:14}"
    if "failed" in record:
        return f"{words} {record['failed']}"
    size = f"{record['parameters'] / 1e6:7.1f} M  {record['memory'] / 2**20:8,.0f} MiB"
    if record["network"] == SAMPLING:
        speeds = f"{record['images_per_second']:.3g} images/s, prior only {record['prior_images_per_second']:.3g}"
        return f"{words} {size}  {speeds} ({record['num_steps']} evaluations)"
    return f"{words} {size}  {record['seconds']:9.4g} s per step"


def parse(arguments: Iterable[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sizes", nargs="+", type=int, choices=list(RECIPES), default=list(RECIPES), help="sides")
    parser.add_argument("--batch_size", type=int, default=32, help="images per step and sampling batch (%(default)s)")
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS, SAMPLING], default=[*NETWORKS, SAMPLING])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--block_size", type=int, default=2, help="optimiser steps timed together (%(default)s)")
    parser.add_argument("--blocks", type=int, default=3, help="timed blocks (%(default)s)")
    parser.add_argument("--solver_steps", type=int, help="network evaluations of sampling; default: the recipe's")
    parser.add_argument("--matmul_precision", choices=["highest", "high", "medium"], default="highest")
    parser.add_argument("--threads", type=int, help="PyTorch's threads; default: its own choice")
    parser.add_argument("--quick", action="store_true", help="few steps of few images, only to check that it runs")
    parser.add_argument("--output", type=Path, default=Path("report"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # one row, in its own process
    args = parser.parse_args(None if arguments is None else list(arguments))
    if args.batch_size < 2:
        parser.error("--batch_size must be 2 or more: energies are contrasted over the batch")
    if args.quick:
        args.batch_size, args.block_size, args.blocks, args.solver_steps = 2, 1, 1, 2
    return args


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the table and write `image_cost.json`."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    args = parse(given)
    if args.child:
        side, network, variant = args.child
        print(json.dumps(measure(args, int(side), network, variant)))
        return
    words = machine(torch.device(args.device))
    print(words)
    records = []
    for side in args.sizes:
        for network in args.networks:
            for variant in args.variants:
                if network == SAMPLING and variant not in SAMPLED:
                    continue
                records.append(row(side, network, variant, given))
                print(line(records[-1]), flush=True)
    options = {name: value for name, value in vars(args).items() if name not in ("output", "child")}
    target = args.output / "image_cost.json"
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(target, {"machine": words, "options": options, "records": records})
    print(f"written {target}")


if __name__ == "__main__":
    main()
