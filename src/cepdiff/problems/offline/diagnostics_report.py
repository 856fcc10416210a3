"""Diagnostics of a run as a figure and in TensorBoard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from cepdiff.figures import GUIDE, legend_above, new_panels, save_figure, styled
from cepdiff.policy.diagnostics import PERCENTILES, Diagnostics
from cepdiff.runs.logs import Logs, values_table


def diagnostic_scalars(diagnostics: Diagnostics) -> dict[str, float]:
    """Names and values, without the curves over diffusion time."""
    of_run = asdict(diagnostics)
    values = {name: float(value) for name, value in of_run.items() if isinstance(value, float | int)}
    for of in ("q_data", "q_support"):
        values |= {f"{of}_{level}": value for level, value in of_run[of].items()}
    for name, test in diagnostics.ranking.figures.items():
        values |= {name: test.value, f"{name}_error": test.error}
    values["guidance_to_score"] = max(diagnostics.norms.ratios)
    for evidence in diagnostics.scales:
        of_scale = asdict(evidence)
        scale = of_scale.pop("guidance_scale")
        values |= {f"{name}/s={scale}": value for name, value in of_scale.items() if value is not None}
    return {f"diagnostics/{name}": value for name, value in values.items()}


def log_diagnostics(logs: Logs, diagnostics: Diagnostics, figure: Path, step: int) -> None:
    """Log tables of all values and the `figure` at `step`, and norms over diffusion time with 1000 t as the x axis."""
    norms, values = diagnostics.norms, diagnostic_scalars(diagnostics)
    curves = {
        name: [(round(1000 * t), value) for t, value in zip(norms.times, found, strict=True)]
        for name, found in (("diagnostics/guidance_norm", norms.guidance), ("diagnostics/score_norm", norms.score))
    }
    texts = {"diagnostics": values_table(values)}
    logs.result("diagnostics", {}, [figure], step, texts=texts, others=values, curves=curves)


@styled()
def plot_diagnostics(diagnostics: Diagnostics, path: Path, title: str = "") -> None:
    """Four panels: Q percentiles; guidance and score over t; value and inside share, and distance, against scale."""
    d = diagnostics
    figure, (values, norms, choice, distances) = new_panels(4, 2, 4.0, 3.0)
    figure.suptitle(title)

    for label, found in (("buffer's actions", d.q_data), ("support actions", d.q_support)):
        values.plot(PERCENTILES, [found[f"p{level}"] for level in PERCENTILES], marker="o", label=label)
    values.set(xlabel="percentile", ylabel="Q (scaled reward)")

    norms.loglog(d.norms.times, d.norms.score, marker="o", label="behavior score")
    norms.loglog(d.norms.times, d.norms.guidance, marker="o", label="guidance at scale 1")
    norms.set(xlabel="diffusion time t", ylabel="mean norm of the gradient")

    scales = [e.guidance_scale for e in d.scales]
    choice.plot(scales, [e.value for e in d.scales], marker="o", label="Q of guided actions")
    choice.plot(scales, [e.penalized_value for e in d.scales], marker=".", linestyle="--", label="offline value")
    choice.axvline(d.offline_choice, color="tab:green", linestyle=":", label="offline choice")
    choice.set(xlabel="guidance scale", ylabel="Q (scaled reward)")
    share = choice.twinx()
    share.plot(scales, [e.inside_support for e in d.scales], color="0.5", marker="s", label="inside (right axis)")
    share.set(ylim=(0.0, 1.02), ylabel="share inside the support")

    distances.plot(scales, [e.distance for e in d.scales], marker="o", label="guided actions")
    distances.axhline(d.data_distance, color="tab:orange", linestyle="--", label="buffer's actions")
    distances.axhline(d.support_distance, **GUIDE, label="support actions")
    distances.set(xlabel="guidance scale", ylabel="distance to nearest action", ylim=(0.0, None))

    for axes in (values, norms, choice, distances):
        axes.grid()
    legend_above(choice, share)
    for axes in (values, norms, distances):
        legend_above(axes)
    save_figure(figure, path)
