"""Memory that training on a memory-mapped set of images takes: by default, as many as ImageNet at 128 pixels.

    python benchmarks/image_memory.py                          # 63 GB, of which 10 GB are allocated
    python benchmarks/image_memory.py --images 2000 --side 32

The file has every image's size, but only the first block of each image is written (noise); the rest are holes, which
the kernel reads as zeros: memory is that of a full file, the speed of the disk is not measured. A child process makes
the file as `data.cache_dir` does, hashes it, gathers blocks of rows from all over it and trains a small prior. If this
user may make control groups, the child runs in one with a limit of `--limit` GiB, which also counts cached pages of
files; otherwise only its own memory is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from cepdiff.data.blocks import BlockLoader
from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.data.images.files import ImageSet
from cepdiff.data.images.mapped import mapped_images
from cepdiff.files import write_json
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.networks.images.unet import UNetScore
from cepdiff.runs.processes import quieten

GIB = 1 << 30
CLASSES = 1000
GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # of version 1, of version 2
LIMITS, PEAKS = ("memory.limit_in_bytes", "memory.max"), ("memory.max_usage_in_bytes", "memory.peak")


class SyntheticImages(ImageDataModule):
    """Images (N, 3, side, side) in `folder` whose first 4 KiB are noise, with labels in turn."""

    def __init__(self, folder: Path, count: int, side: int, **options: Any) -> None:
        super().__init__(str(folder), channels=3, **options)
        self.folder, self.count, self.side = folder, count, side

    def load(self) -> ImageSet:
        return mapped_images(self.folder, {"count": self.count, "side": self.side}, self.make)

    def make(self, file: Path) -> ImageSet:
        """Write the file."""
        draws = np.random.default_rng(0)
        shape = (self.count, 3, self.side, self.side)
        images: Any = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
        start, size = images.offset, images[0].size
        images = torch.from_numpy(images)
        block = min(4096, size)
        with file.open("r+b") as pixels:
            for row in range(self.count):
                pixels.seek(start + row * size)
                pixels.write(draws.bytes(block))
        labels = torch.arange(self.count) % CLASSES
        return ImageSet(images, labels, tuple(map(str, range(CLASSES))))


class Peak(threading.Thread):
    """The largest memory of this process's own (not of mapped files), in bytes; looked at ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.start()

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            (own,) = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")]
            self.bytes = max(self.bytes, own)
            time.sleep(0.1)


def child(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the set, gather and train; seconds and bytes."""
    quieten()
    peak, seconds = Peak(), {}
    started = time.perf_counter()
    data = SyntheticImages(folder, args.images, args.side, energy="labels", horizontal_flip=True, block_size=args.block)
    data.prepare_data()
    data.setup()
    seconds["make and hash"] = time.perf_counter() - started
    again = SyntheticImages(folder, args.images, args.side, energy="labels", horizontal_flip=True)
    started = time.perf_counter()
    again.setup()
    seconds["open again"] = time.perf_counter() - started
    fields = ("samples", "labels")
    blocks = iter(
        BlockLoader(
            data.gatherer(fields),
            data.rows(fields),
            batch_size=args.batch_size,
            block_size=args.block,
            seed=1,
            stage="x",
        )
    )
    started = time.perf_counter()
    for _ in range(args.blocks):
        next(blocks)
    seconds["gather a batch"] = (time.perf_counter() - started) / (args.blocks * args.block)
    module = BehaviorDiffusion(
        0, data.sizes[1],
        partial(UNetScore, block_channels=(8, 8, 8), layers_per_block=1, num_classes=CLASSES),
        batch_size=args.batch_size, micro_batch_size=min(16, args.batch_size),
    )  # fmt: skip
    started = time.perf_counter()
    trainer = Trainer(
        accelerator="cpu", max_steps=args.steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    seconds["step of the small prior"] = (time.perf_counter() - started) / args.steps
    used = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
    return {"own_memory": peak.bytes, "file": data.images.numel(), "allocated": used, "seconds": seconds}


@contextmanager
def limited(limit: float) -> Iterator[Path | None]:
    """A new control group with that many GiB of memory, None if this user may not make one."""
    for root in GROUPS:
        group = root / f"cepdiff-{os.getpid()}"
        try:
            group.mkdir()
            (name,) = [name for name in LIMITS if (group / name).exists()]
            (group / name).write_text(str(int(limit * GIB)))
        except (OSError, ValueError):
            if group.is_dir():
                group.rmdir()
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    yield None


def report(args: argparse.Namespace, found: dict[str, Any], whole: int | None) -> None:
    """Print what the child `found` and write it; `whole` is the peak of its control group in bytes."""
    sizes = f"{found['file'] / 1e9:.1f} GB, {found['allocated'] / 1e9:.1f} of them on disk"
    print(f"{args.images:,} images of {args.side} pixels: {sizes}")
    print(f"peak of the process's own memory: {found['own_memory'] / GIB:.2f} GiB")
    limit = "not limited (no right to make a control group)" if whole is None else f"limited to {args.limit:g} GiB"
    print(f"{limit}" + ("" if whole is None else f"; peak with cached pages of files {whole / GIB:.2f} GiB"))
    for name, seconds in found["seconds"].items():
        print(f"{name}: {seconds:.3f} s", flush=True)
    write_json(
        args.output, {**found, "group_peak": whole, "limit": args.limit, "images": args.images, "side": args.side}
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; exit code 1 if the child did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167, help="images; default: ImageNet's")
    parser.add_argument("--side", type=int, default=128, help="pixels (%(default)s)")
    parser.add_argument("--limit", type=float, default=8.0, help="GiB of memory (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=256, help="images per step (%(default)s)")
    parser.add_argument("--block", type=int, default=10, help="steps per block (%(default)s)")
    parser.add_argument("--blocks", type=int, default=20, help="blocks to gather (%(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps to train (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where to make the file; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=Path("report/image_memory.json"), help="%(default)s")
    parser.add_argument("--group", help=argparse.SUPPRESS)  # of the child
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child is not None:
        if args.group:
            (Path(args.group) / "cgroup.procs").write_text(str(os.getpid()))
        print(json.dumps(child(args, args.child)))
        return 0
    given = list(sys.argv[1:] if arguments is None else arguments)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, limited(args.limit) as group:
        command = [sys.executable, __file__, *given, "--child", folder, "--group", str(group or "")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"the child ended with {done.returncode}: with more than {args.limit:g} GiB the kernel kills it")
            return 1
        peaks = [] if group is None else [group / name for name in PEAKS if (group / name).exists()]
        whole = int(peaks[0].read_text()) if peaks else None
        report(args, json.loads(done.stdout.splitlines()[-1]), whole)  # removing that many blocks takes minutes
    return 0


if __name__ == "__main__":
    sys.exit(main())
