"""Configurations with one odd value, key or byte: every leaf of the shipped ones, with a table of odd values."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cepdiff.runs.config import load_config
from fault_cases import CANARY, Case, Part, Verdict, call, chosen, random_of
from fault_toy import write_toy

CONFIGS = Path(__file__).parent.parent / "configs"
OFFLINE = [
    "data.dataset=TOY", "data.reward_rule=null", "data.block_size=2", "behavior.batch_size=8", "critic.batch_size=8",
    "behavior.net={class_path: cepdiff.networks.score.MLPScore, hidden: [8]}", "critic.net.hidden=[8]",
    "guidance.net.hidden=[8]", "guidance.batch_size=8", "solver.num_steps=2", "stages.behavior.max_steps=4",
    "stages.support={num_actions: 3, chunk_size: 64}", "stages.critic.max_steps=4", "stages.guidance.max_steps=4",
    "evaluation={scales: [0, 1], episodes: 0}", "trainer.progress_bar=false",
]  # fmt: skip
POINTS = [
    "data.num_points=100", "data.block_size=2", "behavior.batch_size=8", "guidance.batch_size=8", "solver.num_steps=2",
    "behavior.net={class_path: cepdiff.networks.score.MLPScore, hidden: [8]}", "stages.behavior.max_steps=4",
    "stages.guidance.max_steps=4", "evaluation={scales: [0, 1], num_samples: 8, floor_repeats: 2}",
    "trainer.progress_bar=false",
]  # fmt: skip
IMAGES = [
    "data.num_images=400", "data.block_size=1", "behavior.batch_size=4", "guidance.batch_size=4", "solver.num_steps=2",
    "behavior.net.block_channels=[8]", "guidance.net.block_channels=[8]", "stages.behavior.max_steps=1",
    "stages.guidance.max_steps=1", "evaluation={scales: [0, 1], num_samples: 10, classifier_steps: 2}",
    "trainer.progress_bar=false",
]  # fmt: skip
SHIPPED = {  # name -> (file, overrides that shorten a whole run to a second)
    "quickstart": ("quickstart.yaml", OFFLINE),
    "hopper": ("hopper.yaml", OFFLINE),
    "antmaze": ("antmaze.yaml", [*OFFLINE, "data.reward_rule=minus_one"]),
    "moons": ("toy/moons.yaml", POINTS),
    "8gaussians": ("toy/8gaussians.yaml", [*POINTS, "guidance.objective.class_path=MSE"]),
    "digits": ("images/digits_class.yaml", IMAGES),
}
SIGNED = ("action_low", "action_high", "seed", "fourier_scale")  # leaves that may be negative
LARGE = ("checkpoint_every", "block_size", "chunk_size", "max_envs")  # leaves that may be large and change no number
PROCESSES = ("devices", "num_nodes")  # leaves whose large values start processes: see OPTIONS
NEGATIVE = ("negative", "minus one", "huge", "2^63", "minus 2^63")
OPEN = ("dataset_dir", "run_dir", "env_kwargs")  # any value of their type is valid
REFUSED, EITHER = "refused", "either"  # "either": refused, or accepted and trained to the end
NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**20
ODD: dict[str, dict[str, Any]] = {  # kind of the leaf -> name of the fault -> value
    "number": {
        "text": "seven", "empty text": "", "quoted": "8", "NaN": NAN,
        "infinite": INFINITE, "minus infinite": -INFINITE, "negative": -3,
        "minus one": -1, "zero": 0, "huge": HUGE, "tiny": 1e-300,
        "large": 1e39, "boolean": True, "list": [8], "mapping": {"a": 8},
        "unicode": "Ω\u202e７", "date": "2020-01-01", "hexadecimal": "0xZZ",
        "list of lists": [[]], "null byte": "8\0", "words": "1 000",
    },
    "integer": {"fraction": 2.5, "huge": HUGE, "2^63": 2**63, "large": 1e39,
                "minus 2^63": -(2**63), "tiny": 1e-300},
    "flag": {
        "text": "maybe", "two": 2, "NaN": NAN, "list": [True],
        "mapping": {"a": True}, "quoted": "true", "empty text": "",
    },
    "text": {
        "unknown": "nonsense", "empty text": "", "unicode": "Ω\u202e７",
        "number": 3, "NaN": NAN, "list": ["a"], "mapping": {"a": 1},
        "null byte": "a\0b", "boolean": True, "long": "a" * 500,
        "up": "../../..", "space": " ",
    },
    "class": {
        "unknown": "nonsense", "unknown module": "nowhere.Net", "foreign": "torch.nn.Linear",
        "function": "os.system", "module": "cepdiff.networks", "empty text": "",
        "other kind": "cepdiff.diffusion.solver.DPMSolver", "number": 3, "list": [],
        "dots": "..", "dictionary": "collections.OrderedDict", "abstract": "abc.ABC",
        "null byte": "a\0.b", "unicode": "cepdiff.Ω", "mapping": {"a": 1},
        "private": "cepdiff.cli._Missing", "builtin": "builtins.exec",
    },
    "list": {
        "empty": [], "texts": ["a"], "NaN": [NAN], "infinite": [INFINITE],
        "negative": [-1], "zero": [0], "huge": [HUGE], "large": [1e39],
        "nested": [[1]], "nulls": [None], "flags": [True], "text": "seven",
        "number": 8, "mapping": {"a": 1}, "mappings": [{"a": 1}],
    },
    "options": {
        "text": "seven", "number": 8, "list": [1], "unknown": {"nonsense": 1},
        "NaN": {"a": NAN}, "nested": {"a": {"b": [None]}},
    },
    "nothing": {
        "text": "seven", "NaN": NAN, "infinite": INFINITE, "negative": -3,
        "zero": 0, "huge": HUGE, "list": [], "list of texts": ["a"],
        "mapping": {"nonsense": 1}, "boolean": True, "large": 1e39,
        "list with NaN": [NAN], "null byte": "a\0b", "unicode": "Ω\u202e７",
    },
}  # fmt: skip
ANY: dict[str, Any] = {  # the same for all leaves
    "missing": "???", "itself": "${HERE}", "nowhere": "${nowhere.key}",
    "broken reference": "${", "unknown resolver": "${nonsense:1}", "a section": "${data}",
}  # fmt: skip
MAY = {  # odd values that may be accepted, if the run trains to the end
    "number": ("quoted", "zero", "huge", "tiny", "large"),
    "flag": ("quoted",),
    "text": ("empty text",),
    "class": ("empty text",),
    "list": ("empty", "zero"),
    "options": ("unknown", "nested"),
    "nothing": ("text", "negative", "zero", "huge", "list", "list of texts", "boolean", "large", "unicode"),
}
SECTION = {
    "text": "seven", "number": 8, "list": [1], "NaN": NAN, "missing": "???", "itself": "${HERE}", "flag": True,
    "list of mappings": [{"a": 1}], "unicode": "Ω\u202e７",
}  # fmt: skip
KEYS: dict[str, Any] = {
    "unknown": "nonsense", "number": 7, "null": None, "flag": True, "empty": "", "dotted": "a.b", "method": "items",
    "dunder": "__class__", "unicode": "Ωmega", "space": "max steps", "null byte": "a\0b", "dashes": "--seed",
}  # fmt: skip
COMMAND = f"\nextra: !!python/object/apply:os.system ['touch {CANARY}']\n"
FILES: dict[str, tuple[Callable[[bytes, np.random.Generator], bytes], str]] = {
    "cut off": (lambda text, rng: text[: int(rng.integers(len(text)))], EITHER),
    "a byte changed": (lambda text, rng: replaced(text, rng, 1), EITHER),
    "ten bytes changed": (lambda text, rng: replaced(text, rng, 10), EITHER),
    "a line lost": (lambda text, rng: without_line(text, rng), EITHER),
    "a line twice": (lambda text, rng: with_line_twice(text, rng), EITHER),
    "lines indented": (lambda text, rng: indented(text, rng), EITHER),
    "binary": (lambda text, rng: rng.bytes(500), REFUSED),
    "byte order mark": (lambda text, rng: b"\xef\xbb\xbf" + text, EITHER),
    "UTF-16": (lambda text, rng: text.decode().encode("utf-16"), EITHER),
    "Latin-1": (lambda text, rng: text + "# Zeit für mehr\n".encode("latin-1"), EITHER),
    "tabs": (lambda text, rng: text.replace(b"  ", b"\t"), REFUSED),
    "CRLF": (lambda text, rng: text.replace(b"\n", b"\r\n"), EITHER),
    "duplicate section": (lambda text, rng: text + b"\ndata: {}\n", REFUSED),
    "empty": (lambda text, rng: b"", REFUSED),
    "only comments": (lambda text, rng: b"# nothing\n", REFUSED),
    "null bytes": (lambda text, rng: text + b"\0\0\0", REFUSED),
    "list": (lambda text, rng: b"- 1\n- 2\n", REFUSED),
    "number": (lambda text, rng: b"7\n", REFUSED),
    "text": (lambda text, rng: b"seven\n", REFUSED),
    "two documents": (lambda text, rng: text + b"\n---\nseed: 1\n", REFUSED),
    "anchor of itself": (lambda text, rng: text + b"\nextra: &a [*a]\n", REFUSED),
    "mapping in itself": (lambda text, rng: text + b"\nextra: &a {b: *a}\n", REFUSED),
    "many aliases": (lambda text, rng: text + laughs(), REFUSED),
    "deep lists": (lambda text, rng: text + b"\nextra: " + b"[" * 3000 + b"]" * 3000 + b"\n", REFUSED),
    "deep mappings": (lambda text, rng: text + b"\nextra: " + b"{a: " * 3000 + b"1" + b"}" * 3000 + b"\n", REFUSED),
    "unknown tag": (lambda text, rng: text + b"\nextra: !nonsense 3\n", REFUSED),
    "merge key": (lambda text, rng: text + b"\n<<: {seed: 1}\n", EITHER),
    "merge of a number": (lambda text, rng: text + b"\n<<: 3\n", REFUSED),
    "complex key": (lambda text, rng: text + b"\n? [1, 2]\n: 3\n", REFUSED),
    "directive": (lambda text, rng: b"%NONSENSE\n---\n" + text, EITHER),
    "runs a command": (lambda text, rng: text + COMMAND.encode(), REFUSED),
    "makes an object": (lambda text, rng: text + b"\nextra: !!python/object:builtins.object {}\n", REFUSED),
    "JSON": (lambda text, rng: json.dumps(yaml.safe_load(text)).encode(), EITHER),
}  # fmt: skip
OPTIONS = (
    "--", "--.a", "--a.", "--a..b", "--=3", "--seed", "--seed=", "--data", "--seed=[", "--seed={", "--stages..x=1",
    "--critic.tau=${", "--data.dataset.name=3", "--seed.x=1", "--a[0]=1", "--callbacks=[1]", "--callbacks=nonsense",
    "--trainer=3", "--data=null", "--seed=1e400", "--seed=''", "--problem=3", "--problem=os.path",
    "--problem=[1]", "--data.class_path=", "--run_dir=", "--run_dir=a\0b", "--run_dir=/dev/null",
    "--run_dir=/dev/null/x", "--run_dir=/proc/x", "--run_dir=[1]", "--run_dir=" + "a" * 300,
    "--reuse=nowhere", "--reuse=/dev/null", "--reuse=",
    "--stage=nonsense", "--stage=", "--config=/dev/null", "--config=.", "--config=nowhere.yaml", "--config=",
    "--config=a\0b", "--config=/proc/self/mem", "nonsense", "-x", "--seed=1,2", "--evaluation.scales=1", "--Ω=1",
    "--callbacks=[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: behavior/loss}}]",
    "--callbacks=[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: nonsense}}]",
    "--callbacks=[{class_path: lightning.pytorch.callbacks.ModelCheckpoint}]",
    "--callbacks=[{class_path: lightning.pytorch.callbacks.LearningRateMonitor}]",
    "--callbacks=[{class_path: torch.nn.Linear}]", "--trainer.precision=64-true", "--trainer.precision=16-mixed",
    "--trainer.precision=nonsense", "--trainer.accelerator=gpu", "--trainer.accelerator=tpu", "--trainer.devices=-1",
    "--trainer.devices=0", "--trainer.num_nodes=0", "--trainer.strategy=nonsense",
)  # fmt: skip


def prepare(folder: Path) -> None:
    """Write the toy buffer and each shipped configuration, complete and short."""
    toy = write_toy(folder / "toy.hdf5")
    for name, (file, short) in SHIPPED.items():
        config = load_config([CONFIGS / file], [text.replace("TOY", str(toy)) for text in short])
        tree = yaml.safe_load(config.to_yaml())
        for section in ("behavior", "guidance"):
            for supplied in ("channels", "schedule", "num_heads"):  # from the images
                tree[section]["init_args"]["net"]["init_args"].pop(supplied, None)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def cases(folder: Path, seed: int, count: int) -> list[Case]:
    """Undamaged configurations, then odd ones in random order."""
    whole = [
        Case(f"{name}: unchanged", partial(run_file, (folder / f"{name}.yaml").read_bytes(), "accepted"))
        for name in SHIPPED
    ]
    trees = {name: yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in SHIPPED}
    values = [case for name, tree in trees.items() for case in odd_values(name, tree)]
    files = list(damaged_files(folder, seed))
    options = [
        Case(f"{name}: option {option[:70]!r}", partial(run_option, folder / f"{name}.yaml", option))
        for name in ("quickstart", "moons") for option in OPTIONS
    ]  # fmt: skip
    shares = [(files, 0.12), (options, 0.12)]
    few = [case for pool, share in shares for case in chosen("configs", pool, seed, int(share * count))]
    rest = chosen("configs", values, seed, count - len(few) - len(whole))
    return [*whole, *few, *rest]


def odd_values(base: str, tree: Any) -> Iterator[Case]:
    """Every leaf with every odd value of its kind, every section with odd ones, and odd keys."""
    for path, value in nodes(tree):
        where = ".".join(path)
        if path[-1] in PROCESSES:
            continue
        if isinstance(value, dict) and value:
            for name, odd in SECTION.items():
                yield changed(base, tree, path, fill(odd, where), REFUSED, f"{where} is a {name}")
            for name, key in KEYS.items():
                expected = EITHER if path[-1] in ("env_kwargs", "metadata") else REFUSED
                yield changed(base, tree, (*path, key), 1, expected, f"{where} has a key, {name}")
            for known in value:
                swapped = known[1] + known[0] + known[2:] if len(known) > 1 and known[0] != known[1] else known + "_"
                yield changed(base, tree, (*path, swapped), value[known], REFUSED, f"{where}.{known} is misspelt")
            continue
        kind = kind_of(path, value)
        whole = isinstance(value, int) and not isinstance(value, bool)
        for name, odd in {**ODD[kind], **(ODD["integer"] if whole else {}), **ANY}.items():
            signed = path[-1] in SIGNED and name in NEGATIVE
            may = ("quoted", "zero") if whole else MAY.get(kind, ())
            harmless = path[-1] in LARGE and name in ("huge", "2^63")
            expected = EITHER if harmless or signed or path[-1] in OPEN or name in may else REFUSED
            yield changed(base, tree, path, fill(odd, where), expected, f"{where} is {name}")


def kind_of(path: Sequence[str], value: Any) -> str:
    """The row of the table of odd values for a leaf."""
    if path[-1] in ("class_path", "problem"):
        return "class"
    kinds: list[tuple[Any, str]] = [
        (bool, "flag"),
        ((int, float), "number"),
        (str, "text"),
        (list, "list"),
        (dict, "options"),
    ]
    return next((kind for cls, kind in kinds if isinstance(value, cls)), "nothing")


def nodes(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, value) of all sections and leaves."""
    for key, value in tree.items():
        yield (*path, key), value
        if isinstance(value, dict):
            yield from nodes(value, (*path, key))


def fill(odd: Any, where: str) -> Any:
    return odd.replace("HERE", where) if isinstance(odd, str) else odd


def changed(base: str, tree: Any, path: Sequence[Any], value: Any, expected: str, name: str) -> Case:
    """The case of one changed value."""

    def run(place: Path) -> Verdict:
        odd = copy.deepcopy(tree)
        section = odd
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = value
        return run_file(yaml.safe_dump(odd, sort_keys=False, allow_unicode=True).encode(), expected, place)

    return Case(f"{base}: {name}", run)


def damaged_files(folder: Path, seed: int) -> Iterator[Case]:
    """Every kind of damage to a file, on several configurations; the random kinds several times."""
    for name, (damage, expected) in FILES.items():
        random = name.split()[0] in ("cut", "a", "ten", "lines")
        for index in range(12 if random else 2):
            base = list(SHIPPED)[index % 4]
            rng = random_of(f"configs {name}", seed, index)
            text = damage((folder / f"{base}.yaml").read_bytes(), rng)
            yield Case(f"{base}: file {name} ({index})", partial(run_file, text, expected))


def run_file(text: bytes, expected: str, place: Path) -> Verdict:
    """Fit with a file of this text."""
    path = place / "config.yaml"
    path.write_bytes(text)
    return verdict(expected, "fit", "--config", path, "--run_dir", place / "run")


def run_option(config: Path, option: str, place: Path) -> Verdict:
    """Fit with an odd option."""
    return verdict(EITHER, "fit", "--config", config, "--run_dir", place / "run", option)


def verdict(expected: str, *arguments: object) -> Verdict:
    """Judge a run: accepting what must be refused is "silent", refusing what is right is "traceback"."""
    found = call(*arguments)
    if found.kind == "valid" and expected == REFUSED:
        return Verdict("silent", "accepted, and trained to the end")
    if found.kind == "line" and expected == "accepted":
        return Verdict("traceback", f"refused although nothing is wrong: {found.line}")
    return Verdict(found.kind, found.detail if found.kind != "valid" else "")


def replaced(text: bytes, rng: np.random.Generator, count: int) -> bytes:
    changed = bytearray(text)
    for place in rng.integers(len(text), size=count):
        changed[place] = int(rng.integers(256))
    return bytes(changed)


def indented(text: bytes, rng: np.random.Generator) -> bytes:
    return b"\n".join(b" " * int(rng.integers(3)) + line for line in text.split(b"\n"))


def without_line(text: bytes, rng: np.random.Generator) -> bytes:
    lines = text.split(b"\n")
    del lines[int(rng.integers(len(lines)))]
    return b"\n".join(lines)


def with_line_twice(text: bytes, rng: np.random.Generator) -> bytes:
    lines = text.split(b"\n")
    place = int(rng.integers(len(lines)))
    return b"\n".join([*lines[:place], lines[place], *lines[place:]])


def laughs() -> bytes:
    """Nested aliases that stand for 10^9 values."""
    lines = ["extra0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"extra{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    return ("\n" + "\n".join(lines) + "\n").encode()


PART = Part("configs", 1000, 50, 30, prepare, cases)
