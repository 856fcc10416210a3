"""Errors of guidance and solver on a density with closed-form guidance (Gaussian mixture, quadratic energy).

    python benchmarks/exactness.py solver                     # exact score and guidance: only the solver's error
    python benchmarks/exactness.py steps                      # the same for few steps, by order and spacing
    python benchmarks/exactness.py guidance --dims 2 8        # error of each objective, same network, same budget

`guidance` trains only on samples of q with their energies, and measures the relative error of the gradient over t at
points of p_t, and as one number weighted as the sampler uses it: Σ sigma_t |g - g*| / Σ sigma_t |g*| over the solver's
log-SNR grid. Samples are drawn with the exact score, so that their distance to exact ones comes only from guidance.
Tables are printed, and written with everything else to --output.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from cepdiff.data.blocks import StageDataModule
from cepdiff.diffusion.guidance import logits_gradient, predicted_data_logits
from cepdiff.diffusion.process import perturb
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.diffusion.solver import DPMSolver, Spacing
from cepdiff.energy.distances import noise_floor, sliced_wasserstein
from cepdiff.energy.objectives import CEP, MSE, EnergyObjective, ExponentialMSE
from cepdiff.figures import new_panels, save_figure, shared_legend, styled
from cepdiff.files import write_json
from cepdiff.modules.guidance import BatchEnergyGuidance
from cepdiff.networks.energy import EnergyMLP, ResidualEnergy
from cepdiff.randomness import generator
from cepdiff.runs.comparison import TITLES
from cepdiff.runs.processes import quieten
from cepdiff.types import Batch, DataSpec, EnergyLogits
from closed_form import ClosedForm, exact_draws, problem

GRID = 25
OBJECTIVES: dict[str, Callable[[float], EnergyObjective]] = {
    "CEP": CEP,
    "CEP, as in the paper": CEP,
    "ExponentialMSE": ExponentialMSE,
    "MSE": MSE,
}


class MixtureData(StageDataModule):
    """A million samples of the prior with their energies, as fields `actions` and `energies`."""

    dataset_name = content_hash = "mixture"

    def __init__(self, exact: ClosedForm, seed: int) -> None:
        super().__init__(seed=seed)
        points, component = exact.prior.sample(1_000_000, generator(seed, "points"))
        self.fields = {"samples": points.float(), "energies": exact.energy(points, component).float()}

    @property
    def spec(self) -> DataSpec:
        size = self.fields["samples"].shape[1]
        return DataSpec(0, size, (-1.0,) * size, (1.0,) * size)

    def rows(self, fields: Sequence[str]) -> Tensor:
        return torch.arange(len(self.fields["energies"]))

    def gatherer(self, fields: Sequence[str], device: torch.device | str = "cpu") -> Callable[[Tensor], Batch]:
        return lambda rows: {field: self.fields[field][rows] for field in fields}


def train(
    exact: ClosedForm,
    data: MixtureData | None,
    method: str,
    args: argparse.Namespace,
    guidance: Callable[..., BatchEnergyGuidance] = BatchEnergyGuidance,
) -> tuple[EnergyLogits, float]:
    """Logits that a method learns from `data`, and the CPU seconds it took; DPS needs no training."""
    if method == "DPS":  # at its best: the exact energy at the exact prediction of x_0
        clean: EnergyLogits = lambda x, t, condition: -exact.inverse_temperature * exact.clean_energy(x)  # noqa: E731
        return predicted_data_logits(clean, exact.noise, exact.schedule), 0.0
    size = exact.prior.size
    paper = method == "CEP, as in the paper"
    net: Callable[[int, int], nn.Module] = EnergyMLP if paper else functools.partial(
        ResidualEnergy, width=128 if size <= 2 else 256, depth=2, position_features=32 if size <= 2 else 0
    )  # fmt: skip
    learning_rate = args.learning_rate or (3e-3 if size <= 2 else 1e-3)
    options: dict[str, Any] = {"learning_rate": learning_rate, "lr_schedule": "cosine", "warmup_steps": 200}
    if paper:
        options = {"learning_rate": 3e-4, "times_per_step": 1, "average_targets": False, "time_exponent": 1.0}
        options["batch_size"] = args.batch_size * args.times
    else:
        options |= {"ema_decay": 0.999, "times_per_step": args.times, "batch_size": args.batch_size}
    torch.manual_seed(args.seed)
    options |= {"schedule": exact.schedule, "objective": OBJECTIVES[method](exact.inverse_temperature)}
    module = guidance(0, size, net, **options)
    trainer = Trainer(
        max_steps=args.steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, precision=args.precision,
    )  # fmt: skip
    torch.set_float32_matmul_precision(args.matmul_precision)
    started = time.process_time()
    trainer.fit(module, datamodule=data)
    seconds = time.process_time() - started
    torch.set_float32_matmul_precision("high")  # all measurements use the same precision
    network = module.sampling_net.eval().requires_grad_(False)

    def logits(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        given = None if condition is None else condition.float()
        return network(x.float(), t.float(), given).double()  # type: ignore[no-any-return]

    return logits, seconds


def gradient_errors(exact: ClosedForm, logits: EnergyLogits) -> dict[str, Any]:
    """Relative root mean squared error of ∇f at each grid time under p_t, and over t as the sampler weighs it."""
    schedule, draws = exact.schedule, generator(0, "errors")
    ends = schedule.lam(torch.tensor([1.0, schedule.t_min], dtype=torch.float64))
    times = schedule.inverse_lambda(torch.linspace(float(ends[0]), float(ends[1]), GRID, dtype=torch.float64))
    x0 = exact.target.sample(4000, draws)[0]
    errors, sizes = [], []
    for t in times:
        x = perturb(schedule, x0, t, torch.randn(x0.shape, generator=draws, dtype=torch.float64))
        true = exact.guidance(x, t)
        errors.append(float((logits_gradient(logits, x, t, None) - true).square().sum(-1).mean().sqrt()))
        sizes.append(float(true.square().sum(-1).mean().sqrt()))
    sigma = schedule.sigma(times).tolist()
    weighted = sum(s * e for s, e in zip(sigma, errors, strict=True)) / sum(
        s * n for s, n in zip(sigma, sizes, strict=True)
    )
    relative = [error / size for error, size in zip(errors, sizes, strict=True)]
    return {"weighted": weighted, "times": times.tolist(), "relative": relative}


def sample(exact: ClosedForm, logits: EnergyLogits, solver: DPMSolver, noise: Tensor) -> Tensor:
    """Samples with the exact score and guidance by `logits`."""
    with torch.no_grad():
        return sample_guided(
            exact.noise, exact.schedule, solver, None, noise, logits=logits, guidance_scale=torch.ones(len(noise))
        )


def guidance(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record per dimension, beta and method."""
    for size in args.dims:
        for beta in args.betas:
            exact = problem(size, beta)
            data = MixtureData(exact, args.seed) if set(args.methods) - {"DPS"} else None
            draw = exact_draws(exact, args.samples)
            floor = noise_floor(sliced_wasserstein, draw, 4).mean
            noise = torch.randn(args.samples, size, generator=generator(0, "noise"), dtype=torch.float64)
            for method in args.methods:
                logits, seconds = train(exact, data, method, args)
                errors = gradient_errors(exact, logits)
                samples = sample(exact, logits, DPMSolver(num_steps=args.num_solver_steps), noise)
                distance = sum(float(sliced_wasserstein(samples, draw(i))) for i in range(4)) / 4
                record = {"size": size, "beta": beta, "method": method, "seconds": seconds, "gradient_error": errors}
                print(
                    f"{size:3d}-D  beta {beta:4g}  {method:22}  gradient error {errors['weighted']:7.1%}"
                    f"  sliced W2 {distance:.4f} ({distance / floor:.2f} x floor)  {seconds:4.0f} s",
                    flush=True,
                )
                yield {**record, "sliced_wasserstein": distance, "multiple": distance / floor}


def solver(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record per dimension, method and order: error by NFE, relative to 1,000 third-order steps."""
    for size in args.dims:
        exact = problem(size, args.betas[0])
        draw = exact_draws(exact, args.samples)
        floor = noise_floor(sliced_wasserstein, draw, 4).mean
        noise = torch.randn(args.samples, size, generator=generator(0, "noise"), dtype=torch.float64)
        few = noise[:1000]
        converged = sample(exact, exact.logits, DPMSolver(1000, order=3), few)
        for method, order in ((m, o) for m in ("multistep", "singlestep") for o in (1, 2, 3)):
            errors: list[float] = []
            multiples: dict[str, float] = {}
            for steps in args.nfe:
                chosen = DPMSolver(steps, order=order, method=method)  # type: ignore[arg-type]
                error = (sample(exact, exact.logits, chosen, few) - converged).square().sum(-1).mean().sqrt()
                errors.append(float(error))
                if steps in (15, 25):
                    samples = sample(exact, exact.logits, chosen, noise)
                    multiples[str(steps)] = float(sliced_wasserstein(samples, draw(0))) / floor
            record = {"size": size, "method": method, "order": order, "nfe": args.nfe, "error": errors}
            print(f"{size:3d}-D  {method:10} order {order}  error at NFE "
                  + "  ".join(f"{n}: {e:.1e}" for n, e in zip(args.nfe, errors, strict=True))
                  + "".join(f"  | {m:.2f} x floor" for m in multiples.values()), flush=True)  # fmt: skip
            yield {**record, "multiples": multiples}


def steps(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record per dimension, order and spacing of multistep solvers: distance to exact samples in floors, by NFE."""
    for size in args.dims:
        exact = problem(size, args.betas[0])
        draw = exact_draws(exact, args.samples)
        floor = noise_floor(sliced_wasserstein, draw, 4).mean
        draws = [draw(index) for index in range(3)]
        noise = torch.randn(args.samples, size, generator=generator(0, "noise"), dtype=torch.float64)
        for order, spacing in itertools.product((2, 3), get_args(Spacing)):
            multiples = []
            for nfe in args.nfe:
                samples = sample(exact, exact.logits, DPMSolver(nfe, order, spacing=spacing), noise)  # type: ignore[arg-type]
                distance = sum(float(sliced_wasserstein(samples, other)) for other in draws) / len(draws)
                multiples.append(distance / floor)
            cells = "  ".join(f"{n}: {m:.2f}" for n, m in zip(args.nfe, multiples, strict=True))
            print(f"{size:3d}-D  order {order}  {spacing:14}  multiple of the floor at NFE {cells}", flush=True)
            yield {"size": size, "order": order, "spacing": spacing, "nfe": args.nfe, "multiples": multiples}


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "solver": solver,
    "steps": steps,
    "guidance": guidance,
}


@styled()
def plot(records: Sequence[dict[str, Any]], path: Path, kind: str) -> None:
    """Draw one panel per dimension (and beta): error over t, or over NFE."""
    keys = list(dict.fromkeys((r["size"], r.get("beta")) for r in records))
    figure, panels = new_panels(len(keys), 2, 4.0, 2.6)
    for axes, (size, beta) in zip(panels, keys, strict=True):
        for record in records:
            if (record["size"], record.get("beta")) != (size, beta):
                continue
            if kind == "guidance":
                label = TITLES.get(record["method"], record["method"])
                axes.plot(record["gradient_error"]["times"], record["gradient_error"]["relative"], label=label)
            else:
                style = "-" if record["method"] == "multistep" else "--"
                label = f"{record['method']}, order {record['order']}"
                axes.plot(record["nfe"], record["error"], style, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"{size}-D" + (f", beta {beta:g}" if beta is not None else ""))
        axes.set_xlabel("diffusion time t" if kind == "guidance" else "network evaluations")
        axes.grid()
        if kind == "guidance":
            axes.set_ylim(5e-3, 20)
    figure.supylabel("relative error of the gradient" if kind == "guidance" else "error of a sample", fontsize=10)
    shared_legend(figure, panels, 4 if kind == "guidance" else 3)
    save_figure(figure, path)


def main(arguments: Iterable[str] | None = None) -> None:
    """Run one part and write `exactness-<part>.json` and `.png`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--dims", nargs="+", type=int, help="default: 2 8 for guidance, else 1 2 8 32")
    parser.add_argument("--betas", nargs="+", type=float, help="default: 1 3 10 20 for guidance, else 3")
    parser.add_argument("--methods", nargs="+", choices=[*OBJECTIVES, "DPS"], default=[*OBJECTIVES, "DPS"])
    parser.add_argument("--nfe", nargs="+", type=int, help="default: 6 to 200 for the solver, 6 to 20 for steps")
    parser.add_argument("--steps", type=int, default=20_000, help="optimiser steps of every method")
    parser.add_argument("--batch_size", type=int, default=256, help="K, the contrastive set")
    parser.add_argument("--times", type=int, default=4, help="diffusion times per step")
    parser.add_argument("--learning_rate", type=float, help="default: 3e-3 up to 2-D, 1e-3 beyond")
    parser.add_argument(
        "--matmul_precision", choices=["highest", "high", "medium"], default="high", help="of training (%(default)s)"
    )
    parser.add_argument(
        "--precision", choices=["32-true", "bf16-mixed"], default="32-true", help="of training (%(default)s)"
    )
    parser.add_argument("--num_solver_steps", type=int, default=50)
    parser.add_argument("--samples", type=int, default=10_000, help="samples compared with exact ones")
    parser.add_argument("--seed", type=int, default=0, help="seed of training; problems and exact samples are fixed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("report"))
    args = parser.parse_args(None if arguments is None else list(arguments))
    learned = args.part == "guidance"
    args.dims = args.dims or ([2, 8] if learned else [1, 2, 8, 32])
    args.betas = args.betas or ([1.0, 3.0, 10.0, 20.0] if learned else [3.0])
    args.nfe = args.nfe or ([6, 8, 10, 12, 15, 20] if args.part == "steps" else [6, 9, 15, 25, 50, 100, 200])
    if not learned and len(args.betas) > 1:
        parser.error(f"the {args.part} part takes one beta")
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    quieten()
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    target = args.output / f"exactness-{args.part}.json"
    records: list[dict[str, Any]] = []
    for record in PARTS[args.part](args):
        records.append(record)
        write_json(target, {"settings": settings, "records": records})  # after each, in case a run is stopped
    if args.part == "steps":  # a table says it all
        print(f"written {target}")
        return
    plot(records, target.with_suffix(".png"), args.part)
    print(f"written {target} and {target.with_suffix('.png')}")


if __name__ == "__main__":
    main()
