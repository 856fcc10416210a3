"""Odd values by kind: each gets one line at the door, before anything is built."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from cepdiff.errors import ConfigError
from cepdiff.ranges import Range, check_arguments
from cepdiff.runs.config import load_config

Fault = Callable[..., str]
ODD = {
    "a size of no rows": (
        "critic.net.hidden=[-1]",
        r"^critic.net.hidden is \[-1\]; expected .* at least 1",
    ),
    "a width of 0": ("behavior.net.widths=[8,0,8]", r"^behavior.net.widths is \[8, 0, 8\]; expected one or more"),
    "an odd number": ("guidance.net.time_features=7", "^guidance.net.time_features is 7; expected an even number"),
    "too many to build": ("critic.net.num_critics=1000000000000", "num_critics is 1000000000000; .* at most 1000$"),
    "more than 64 bits": ("stages.behavior.max_steps=100000000000000000000", "max_steps is 1000.*at most 64 bits"),
    "a seed beyond 64 bits": ("seed=9223372036854775808", "^seed is 9223372036854775808; .*at most 64 bits"),
    "infinite in float32": ("evaluation.scales=[1e39]", r"^evaluation.scales is \[1e\+39\]; .* float32 can hold"),
    "0 in float32": ("critic.learning_rate=1e-300", "^critic.learning_rate is 1e-300; .* float32 can hold"),
    "an infinity": ("critic.weight_decay=.inf", "^critic.weight_decay is inf; expected finite numbers"),
    "no number": ("guidance.objective.inverse_temperature=.nan", "^guidance.objective.inverse_temperature is nan"),
    "a quoted number": ("critic.tau='0.5'", "^critic.tau is the text '0.5'; expected float"),
    "a quoted number in a list": ("critic.net.hidden=['8']", "^critic.net.hidden is the text '8'; expected int"),
    "a quoted truth value": ("trainer.deterministic='true'", "^trainer.deterministic"),
    "true for 1": ("solver.order=true", "^solver.order is True; expected 1, 2 or 3$"),
    "true for an integer": ("seed=true", "^seed: expected int, found True"),
    "no value": ("data.dataset=???", r"^data.dataset is \?\?\?; expected a value"),
    "an empty text": ("data.env_id=''", "^data.env_id is empty; leave it out"),
    "a blank text": ("trainer.accelerator=' '", "^trainer.accelerator is empty"),
    "an empty run folder": ("run_dir=''", "^run_dir is empty"),
    "a text with NUL": ('data.dataset_dir="a\\0"', "^data.dataset_dir is .* without NUL"),
    "float64": ("trainer.precision=64-true", "^trainer.precision: expected one of 32-true, bf16-mixed, found 64-true"),
    "a date": ("data.env_kwargs={a: !!timestamp 2020-01-01}", "^data.env_kwargs"),
    "a key a thousand levels deep": ("a." * 2000 + "a=1", "^a.a.a"),
    "a path without names": ("guidance.objective='...'", "^guidance.objective: '...' is not a class path"),
    "a class without a signature": ("guidance.net.class_path=builtins.int", "^guidance.net: builtins.int cannot be"),
    "a function": ("behavior.net.class_path=os.getcwd", "^behavior.net: os.getcwd is not a class"),
    "arguments that are none": ("critic.init_args=[]", r"^critic: its arguments are \[\]; expected a mapping"),
}


@pytest.mark.parametrize(("override", "message"), ODD.values(), ids=ODD)
def test_odd_values_get_one_line(fault: Fault, override: str, message: str) -> None:
    assert re.search(message, fault(overrides=[override]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: " + "{a: " * 1500 + "1" + "}" * 1500, "nested too deeply"),
        ("data: &a {dataset: x, env_kwargs: *a}", "recursive aliases"),
        ("data: {dataset: x}\nseed: " + "9" * 5000, "not valid YAML"),
        ("data: {dataset: x}\nbehavior: ${critic}\ncritic: ${behavior}", "^behavior: Recursive interpolation"),
        ("data: ???", "^data: Missing mandatory value"),
    ],
)  # fmt: skip
def test_files_that_do_not_end_or_hold_no_value(fault: Fault, text: str, message: str) -> None:
    assert re.search(message, fault(text, bare=True))


def test_early_stopping_is_refused_because_it_would_stop_nothing(fault: Fault) -> None:
    early = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: behavior/loss}}"
    assert re.search("^callbacks: EarlyStopping acts at the end of an epoch.*max_steps", fault(f"callbacks: [{early}]"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ZeroDivisionError('no')", "behavior: importing odd_module fails at .*odd_module.py, line 1: Zero.*no"),
        ("import sys; sys.exit(3)", "odd_module fails at .*odd_module.py, line 1: SystemExit"),
        ("import nowhere_at_all", "behavior: odd_module imports nowhere_at_all, which cannot be found"),
    ],
)
def test_a_module_that_cannot_be_imported(
    fault: Fault, tmp_path: Path, source: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_module.py").write_text(source)
    monkeypatch.delitem(sys.modules, "odd_module", raising=False)
    assert re.search(message, fault("behavior: {class_path: odd_module.Net}"))


def test_an_argument_without_a_type_is_named(fault: Fault, tmp_path: Path) -> None:
    (tmp_path / "untyped_module.py").write_text(
        "from cepdiff.diffusion.schedule import LinearVP\n"
        "class Own(LinearVP):\n    def __init__(self, x): super().__init__()\n"
    )
    message = fault("schedule: {class_path: untyped_module.Own, x: 1}")
    assert re.search("^schedule: parameter 'x' of untyped_module.Own needs a type", message)


def test_ranges_of_ones_own_class_are_checked_too(fault: Fault, tmp_path: Path) -> None:
    (tmp_path / "ranged_module.py").write_text(
        "from typing import Annotated\nfrom cepdiff import SoftmaxQCritic\nfrom cepdiff.ranges import Range\n"
        "class Own(SoftmaxQCritic):\n"
        "    def __init__(self, *sizes: int, margin: Annotated[float, Range(0, 1)] = 0.5, **options: float):\n"
        "        super().__init__(*sizes, **options)\n"
    )
    text = "critic: {class_path: ranged_module.Own, margin: 1.0}"
    assert fault(text) == "critic.margin is 1.0; expected a number in [0, 1)"


class Ranged:
    """A class with arguments of each kind."""

    def __init__(
        self,
        share: Annotated[float, Range(0, 1, "(]")] = 1.0,
        even: Annotated[int, Range(0, 8, "[]", step=2)] = 2,
        numbers: list[Annotated[float, Range(0, ends="()")]] | None = None,
        bound: Annotated[float | None, Range(0)] = None,
        mode: Literal["auto", True, False] = True,
        prefix: str = "",
    ) -> None: ...


@pytest.mark.parametrize(
    "fitting",
    [
        {"share": 1},
        {"share": 1e-9},
        {"even": 0},
        {"even": 8},
        {"numbers": None},
        {"numbers": (1, 0.5)},
        {"bound": None},
        {"bound": 1},
        {"mode": True},
        {"mode": "auto"},
        {"prefix": ""},
    ],
)
def test_the_ends_of_a_range(fitting: dict[str, Any]) -> None:
    check_arguments(Ranged, fitting)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"share": 0}, r"a number in \(0, 1\]"),
        ({"share": 1.0001}, r"a number in \(0, 1\]"),
        ({"share": float("nan")}, "a number in"),
        ({"share": True}, "a number in"),
        ({"mode": 1}, "auto, True or False"),
        ({"bound": -1}, "0 or more"),
        ({"even": 2.5}, "an even number"),
        ({"even": 3}, "an even number, at least 0 and at most 8"),
        ({"even": 10}, "an even number"),
        ({"numbers": []}, "one or more numbers, each a number above 0"),
        ({"numbers": [1.0, float("inf")]}, r"numbers, each"),
    ],
)
def test_what_lies_outside_a_range(arguments: dict[str, Any], expected: str) -> None:
    (name,) = arguments
    with pytest.raises(ConfigError, match=rf"^where\.{name} is .*; expected .*{expected}"):
        check_arguments(Ranged, arguments, "where")


def test_a_value_that_a_later_file_gives_may_be_missing_in_the_first(tmp_path: Path) -> None:
    for name, text in (("first", "data: {dataset: '???'}"), ("second", "data: {dataset: some-buffer}")):
        (tmp_path / f"{name}.yaml").write_text(text)
    config = load_config([tmp_path / "first.yaml", tmp_path / "second.yaml"])
    assert config.values["data"]["init_args"]["dataset"] == "some-buffer"
