"""The whole guided sampler of a policy as one graph of tensor operators, and as a file that needs no cepdiff.

The solver is unrolled, the energy gradient is written out as operators, and everything that depends on the diffusion
time only (embeddings, coefficients) is computed once, here. A file takes keyword inputs and returns actions; which
inputs depends on the policy, see `input_names`.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._decomp import decomposition_table
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from cepdiff import __version__
from cepdiff.errors import ConfigError, MissingExtraError, RunError
from cepdiff.policy.export.noise import noise_of_seed
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.sampler import GuidedSampler, is_static

Format = Literal["torch", "onnx"]
Randomness = Literal["seed", "noise"]
SUFFIXES: dict[Format, str] = {"torch": ".pt2", "onnx": ".onnx"}
DEFAULT_OPSET = 18
MIN_OPSET = 18  # the first with bitwise operators
# Where a file keeps its metadata: an extra file of a .pt2, an entry of an .onnx file.
TORCH_METADATA = "cepdiff.json"
ONNX_METADATA = "cepdiff"
# Batch sizes to trace with: one that no other axis has, or both would be taken for the same axis.
BATCH_SIZES = (13, 17, 19, 23)


@dataclass(frozen=True)
class TracedSampler:
    """A policy's sampler as a graph with a free batch size."""

    program: ExportedProgram
    inputs: dict[str, Tensor]
    metadata: dict[str, Any]

    def call_text(self) -> str:
        """Inputs and outputs in one line."""
        inputs, outputs = (
            ", ".join(f"{name} ({', '.join(map(str, of['shape']))}) {of['dtype']}" for name, of in side.items())
            for side in (self.metadata["inputs"], self.metadata["outputs"])
        )
        return f"{inputs} -> {outputs}"


def input_names(policy: GuidedPolicy, randomness: Randomness) -> tuple[str, ...]:
    """The file's inputs, of "observations" (B, S), "guidance_scale" (B,), "seed" () and "noise" (B, noise_size).

    An unconditional policy (S = 0) takes no observations, and one without an energy network no guidance scale. Raises
    RunError if no input is left that has the batch size.
    """
    names = ["observations"] if policy.spec.observation_size else []
    names += ["guidance_scale"] if policy.sampler.has_energy else []
    if not names and randomness == "seed":
        raise RunError(
            "this density has no energy network yet, so no input says how many samples to draw from a seed: finish the "
            "run with `cepdiff fit`, or use --randomness noise"
        )
    return (*names, randomness)


def trace(policy: GuidedPolicy, randomness: Randomness = "seed") -> TracedSampler:
    """The sampler of `policy`, on the CPU, as a graph; `input_names` says what it takes.

    With "seed", noise is `noise_of_seed(seed, B, noise_size)`.

    Raises:
        ConfigError: a network, solver, schedule or sampler that is not one fixed sequence of tensor operators, or a
            policy with its own `act`.
        RunError: as `input_names`.
    """
    if not is_static(policy.sampler.sample):
        raise ConfigError(f"{type(policy.sampler).__name__}.sample cannot be exported: it takes no `static`")
    if type(policy).act is not GuidedPolicy.act:
        raise ConfigError(f"{type(policy).__name__}.act cannot be exported: a file holds only the sampler")
    inputs = _example_inputs(policy, input_names(policy, randomness))

    def sampler(*values: Tensor) -> Tensor:
        named = dict(zip(inputs, values, strict=True))
        scale, noise = named.get("guidance_scale"), named.get("noise")
        if noise is None:
            noise = noise_of_seed(named["seed"], values[0].shape[0], policy.noise_size)  # len() would fix it
        observations = named.get("observations")
        condition = noise[:, :0] if observations is None else policy.condition(observations)
        return policy.in_bounds(policy.sampler.sample(condition, noise, scale, static=True))

    # Written out as simple operators: ONNX has none of a backward pass.
    table: dict[Any, Callable[..., Any]] = {
        operator: function for operator, function in decomposition_table.items() if "_backward" in str(operator)
    }
    with torch.no_grad(), _quiet(), _named(policy.sampler), _named_parts(policy.sampler):
        sampler(*inputs.values())  # grids of times are computed in float64 here, and found again by the tracer
        tracer = make_fx(sampler, table, tracing_mode="symbolic", _allow_non_fake_inputs=True)
        graph = _with_constants_computed(tracer(*inputs.values()), list(inputs))
        batch = Dim("batch", min=1)
        shapes = {name: {0: batch} if value.ndim else {} for name, value in inputs.items()}
        program = torch.export.export(graph, (), inputs, dynamic_shapes=shapes, strict=False)
    return TracedSampler(program, inputs, _metadata(policy, inputs))


def torch_file(sampler: TracedSampler) -> bytes:
    """The content of a .pt2 file, for `torch.export.load`."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(sampler.program, file, extra_files={TORCH_METADATA: json.dumps(sampler.metadata)})
    return file.getvalue()


def onnx_file(sampler: TracedSampler, opset: int = DEFAULT_OPSET) -> bytes:
    """The content of an .onnx file.

    Raises:
        ConfigError: ONNX lacks an operator, or `opset` cannot be written.
        MissingExtraError: packages of the extra "onnx" are missing.
    """
    require_onnx(opset)
    try:
        with _quiet():
            model = torch.onnx.export(
                sampler.program,
                kwargs=sampler.inputs,
                output_names=["actions"],
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # of many kinds, all of them about an operator
        raise ConfigError(
            f"this policy cannot be written as ONNX with opset {opset} ({_cause(error)}); --format torch can hold it"
        ) from error
    assert model is not None
    proto = model.model_proto
    written = next(entry.version for entry in proto.opset_import if not entry.domain)
    if written != opset:  # the exporter falls back silently
        raise ConfigError(f"the exporter cannot write opset {opset}, it wrote {written}; use --opset {written}")
    proto.metadata_props.add(key=ONNX_METADATA, value=json.dumps(sampler.metadata))
    content: bytes = proto.SerializeToString()
    return content


def require_onnx(opset: int = DEFAULT_OPSET) -> None:
    """Raise what `onnx_file` does, before any work."""
    if not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        raise MissingExtraError("the format onnx", "onnx")
    if opset == DEFAULT_OPSET:
        return
    from onnx.defs import onnx_opset_version

    newest = onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise ConfigError(f"the ONNX opset is {opset}; expected {MIN_OPSET} to {newest}, the newest of this onnx")


def _example_inputs(policy: GuidedPolicy, names: tuple[str, ...]) -> dict[str, Tensor]:
    size, action_size = policy.spec.observation_size, policy.action_size
    axes = (size, size + 1, action_size, policy.noise_size)  # S + 1 with the scale, as `Tempered` networks take it
    rows = next(n for n in BATCH_SIZES if n not in axes)
    examples = {"observations": torch.zeros(rows, size), "guidance_scale": torch.ones(rows), "seed": torch.tensor(0)}
    examples["noise"] = torch.zeros(rows, policy.noise_size)
    return {name: examples[name] for name in names}


def _with_constants_computed(module: fx.GraphModule, names: list[str]) -> fx.GraphModule:
    """The graph with one stored tensor for each part that depends on no input; inputs get their `names`.

    Stored tensors are copies: a view would bring the whole parameter into the file, and a parameter ask for gradients.
    """
    values: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = getattr(module, node.target)
        elif node.op == "call_function" and all(source in values for source in node.all_input_nodes):
            arguments, options = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*arguments, **options)
    stored = nn.Module()
    known: dict[tuple[Any, ...], str] = {}
    for node, value in values.items():
        if isinstance(value, Tensor) and any(user not in values for user in node.users):
            place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if place not in known:
                known[place] = f"constant_{len(known)}"
                stored.register_buffer(known[place], value.detach().clone())
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(known[place]), lambda user: user not in values)
    for node in reversed(values):
        module.graph.erase_node(node)
    for node, name in zip(module.graph.find_nodes(op="placeholder"), names, strict=True):
        node.target = name
    graph_module = fx.GraphModule(stored, module.graph)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _metadata(policy: GuidedPolicy, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """A file's metadata; plain types."""
    sizes = {"observations": ["B", policy.spec.observation_size], "guidance_scale": ["B"], "seed": []}
    sizes["noise"] = ["B", policy.noise_size]
    recipe = policy.recipe
    return {
        "cepdiff": __version__,
        "task": None if recipe is None else recipe.dataset,
        "observation_size": policy.spec.observation_size,
        "action_size": policy.action_size,
        "action_low": list(policy.spec.action_low),
        "action_high": list(policy.spec.action_high),
        "guidance_scales": [] if recipe is None else recipe.scales,
        "num_solver_steps": policy.sampler.solver.num_steps,
        "inputs": {
            name: {"shape": sizes[name], "dtype": str(value.dtype).removeprefix("torch.")}
            for name, value in inputs.items()
        },
        "outputs": {"actions": {"shape": ["B", policy.action_size], "dtype": "float32"}},
    }


@contextmanager
def _named(part: object) -> Iterator[None]:
    """Turn an error while `part` is traced into one line that names its class."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # a user's code may raise anything
        raise ConfigError(
            f"{type(part).__name__} cannot be exported ({_cause(error)}): it must be one fixed sequence of tensor "
            "operators, without branches, shapes or numbers that depend on a tensor's values (x.shape[0], not len(x))"
        ) from error


@contextmanager
def _named_parts(sampler: GuidedSampler) -> Iterator[None]:
    """`_named` for each network and the solver, while they are called."""
    parts = [*((net, "forward") for net in sampler.networks.values()), (sampler.solver, "sample")]
    for part, method in parts:
        object.__setattr__(part, method, partial(_call_named, part, getattr(part, method)))
    try:
        yield
    finally:
        for part, method in parts:
            object.__delattr__(part, method)


def _call_named(part: object, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with _named(part):
        return method(*args, **options)


def _cause(error: BaseException) -> str:
    """The first line of the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' own warnings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
