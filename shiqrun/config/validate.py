"""`check` checks a config: every key and value against the signature of the function or class that will receive it.

There is no second schema. The valid keys and types of a node are the keyword-only parameters of its `_target_`, and
those of the settings class that the command names for the node. All problems are reported together, before anything
is made.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from shiqrun.config.locate import locate
from shiqrun.config.suggest import did_you_mean, unknown_key
from shiqrun.errors import InputError

Settings = TypeVar("Settings")
Parameters = Mapping[str, inspect.Parameter]
LARGEST = 2**63 - 1
"""The largest integer that a key may have."""
RESERVED = ("_target_", "_partial_")


@dataclass(frozen=True)
class Schema:
    """A schema names the classes that a command's config is checked against, by dotted names that import nothing.

    Attributes:
        root: the class whose keyword-only parameters are the keys of the root, nodes aside.
        nodes: the settings class of every node; None where the node's `_target_` has all parameters.
        groups: the nodes that a config group fills; every choice has a name.
    """

    root: str
    nodes: Mapping[str, str | None] = field(default_factory=dict)
    groups: Sequence[str] = ()


COMMON_NODES = {
    "data": "shiqrun.batching.logged_data.DataSettings",
    "model": "shiqrun.models.policy.ModelSettings",
    "hardware": None,
    "logger": None,
}
"""The nodes of `conf/_command.yaml`, which every command has; all are groups."""

ENDPOINT_NODE = {"endpoint": "shiqrun.sampling.endpoint.EndpointSettings"}
"""The node of `conf/_endpoint.yaml`, for commands whose samples a server may draw."""


def check(config: DictConfig, schema: Schema) -> None:
    """Check every key and value of a config, its `hydra` node aside.

    Raises:
        InputError: keys are unknown, absent or still `???`, or values have a wrong type or are out of bounds; the
            message has a line for each, with the value met, the value expected and the nearest valid name.
    """
    given = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    raw = OmegaConf.to_container(given, resolve=False)
    assert isinstance(raw, dict)
    problems = [f"{key}: not set (???); give {key}=VALUE" for key in _unset_keys("", raw)]
    chosen = {
        node for node, value in raw.items() if value is not None and (node not in schema.groups or _has_name(value))
    }
    problems += [f"{node}: missing; choose one with {node}=NAME" for node in schema.nodes if node not in chosen]
    if not problems:
        problems = list(_problems(_resolve(given), schema))
    if problems:
        raise InputError("\n".join(problems))


def settings(node: DictConfig, kind: type[Settings]) -> Settings:
    """Return an instance of a settings class, built from the keys of a checked node that are its parameters."""
    values = _resolve(node)
    return kind(**{key: values[key] for key in parameters(kind) if key in values})


def build(node: DictConfig, kind: type[Settings]) -> tuple[Any, Settings]:
    """Return what the `_target_` of a node returns (a partial with `_partial_: true`), and the node's settings.

    Raises:
        InputError: the target itself raised it.
    """
    return target(node), settings(node, kind)


def target(node: DictConfig) -> Any:
    """Call the `_target_` of a node with the keys of the node that are its parameters, and return the result."""
    values = _resolve(node)
    own = parameters(locate("_target_", values["_target_"]))
    chosen = {key: value for key, value in values.items() if key in own or key in RESERVED}
    try:
        return instantiate(chosen, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise


def parameters(called: Callable[..., Any]) -> Parameters:
    """Return the keyword-only parameters of a function or of a constructor, with evaluated annotations."""
    signature = inspect.signature(called, eval_str=True)
    return {name: p for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}


def _has_name(node: Any) -> bool:
    """Return whether a choice filled the node, which then has a name."""
    return not isinstance(node, dict) or "name" in node


def _unset_keys(prefix: str, node: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the dotted keys whose value is still `???`."""
    for key, value in node.items():
        if value == "???":
            yield f"{prefix}{key}"
        elif isinstance(value, dict):
            yield from _unset_keys(f"{prefix}{key}.", value)


def _resolve(node: DictConfig) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(str(error)) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _problems(values: Mapping[str, Any], schema: Schema) -> Iterator[str]:
    root = parameters(locate("root", schema.root))
    plain = {key: value for key, value in values.items() if key not in schema.nodes}
    yield from _mismatches("", plain, root, also=schema.nodes)
    for key, kind in schema.nodes.items():
        if isinstance(values[key], dict):
            yield from _node_problems(key, values[key], parameters(locate(key, kind)) if kind else {})
        else:
            yield f"{key}: met {values[key]!r}, expected a group of settings; choose one with {key}=NAME"


def _node_problems(path: str, node: Mapping[str, Any], shared: Parameters) -> Iterator[str]:
    valid = dict(shared)
    if "_target_" in node:
        called = locate(f"{path}._target_", node["_target_"])
        valid = {**_keys(name=str, _target_=str, _partial_=bool), **valid, **parameters(called)}
    elif not shared:
        valid = _keys(name=str)
    yield from _mismatches(f"{path}.", node, valid)


def _kind_of_nodes(annotation: Any) -> Any:
    """Return the settings class of nodes by name, where an annotation is `dict[str, C]` and C names it as `keys`."""
    inner = get_args(annotation)[-1:] if get_origin(annotation) is dict else ()
    return getattr(inner[0], "keys", None) if inner and isinstance(inner[0], type) and inner[0] is not dict else None


def _nodes_problems(path: str, nodes: Mapping[str, Any], kind: Any) -> Iterator[str]:
    """Yield the problems of nodes by name, each with a `_target_` and the keys of a settings class."""
    for name, node in nodes.items():
        if isinstance(node, dict) and "_target_" in node:
            yield from _node_problems(f"{path}.{name}", node, parameters(kind))
        else:
            here = f"{path.rpartition('.')[2]}.{name}"
            yield (
                f"{path}.{name}: met {node!r}, expected the node of a choice; on the command line give "
                f"{path}.{name}={{data:NAME,...}}, in a YAML of the group the default `/data@{here}: [_part, NAME]`"
            )


def _keys(**types: type) -> dict[str, inspect.Parameter]:
    """Return parameters that may be left out, with these types."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return {key: inspect.Parameter(key, kind, default=None, annotation=wanted) for key, wanted in types.items()}


def _mismatches(
    prefix: str, values: Mapping[str, Any], valid: Parameters, also: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Yield one line for every unknown key, every value that does not fit, and every required key left out."""
    for key, value in values.items():
        if key not in valid:
            names = (*(name for name in valid if name not in RESERVED), *(also or ()))
            yield unknown_key(prefix + key, [prefix + name for name in names])
        elif isinstance(value, dict) and "_target_" in value:
            yield from _node_problems(prefix + key, value, {})
        elif isinstance(value, dict) and (kind := _kind_of_nodes(valid[key].annotation)):
            yield from _nodes_problems(prefix + key, value, kind)
        elif expected := _expectation(value, valid[key].annotation):
            yield f"{prefix}{key}: met {value!r}, expected {expected}"
    for key, parameter in valid.items():
        if parameter.default is parameter.empty and key not in values:
            yield f"{prefix}{key}: missing; give {prefix}{key}=VALUE"


def _expectation(value: Any, annotation: Any) -> str:
    """Return in words what the annotation expects instead of the value; empty if the value fits."""
    if _is_beyond_64_bits(value):
        return f"an integer of at most 64 bits (up to {LARGEST})"
    try:
        _adapter(annotation).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        wanted = [_wording(detail["msg"], detail["loc"]) for detail in error.errors()]
        return " or ".join(dict.fromkeys(wanted)) + _hint(value, annotation)
    return ""


def _is_beyond_64_bits(value: Any) -> bool:
    """Return whether a value is, or holds, an integer that NumPy and PyTorch cannot represent."""
    if isinstance(value, dict):
        return any(map(_is_beyond_64_bits, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_beyond_64_bits, value))
    return isinstance(value, int) and abs(value) > LARGEST


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    if annotation is inspect.Parameter.empty:
        return TypeAdapter(Any)
    try:
        return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))
    except PydanticUserError:  # a class with a config of its own
        return TypeAdapter(annotation)


def _wording(message: str, where: tuple[int | str, ...]) -> str:
    places = "".join(f"[{step}]" for step in where if isinstance(step, int))
    text = message.removeprefix("Input should be ").replace("a valid ", "a ").replace("a integer", "an integer")
    return f"{text} at {places}" if places else text


def _hint(value: Any, annotation: Any) -> str:
    if not isinstance(value, str):
        return ""
    if value.lower() == "none" and type(None) in _members(annotation):
        return "; did you mean null?"
    return did_you_mean(value, [option for option in _members(annotation) if isinstance(option, str)])


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the types and literals inside an annotation, at any depth of unions and lists."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_args(annotation):
        for part in get_args(annotation):
            yield from _members(part)
    else:
        yield annotation
