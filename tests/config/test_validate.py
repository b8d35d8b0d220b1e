from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt
from omegaconf import OmegaConf

from shiqrun.config.validate import Schema, build, check, settings, target
from shiqrun.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Root:
    seed: Annotated[int, Ge(0)]
    note: str | None


@dataclass(frozen=True, kw_only=True)
class Shared:
    limit: int | None
    mode: Literal["cached", "frozen"]
    offset: float | Literal["none", "mean"]
    pair: list[float] | None
    strict: bool


def loss(batch: int, *, beta: Annotated[float, Gt(0)], lam: float = 1.0) -> tuple[int, float, float]:
    return batch, beta, lam


class Source:
    def __init__(self, path: str = "by the program", *, size: int) -> None:
        if size == 13:
            raise InputError("size=13 is unlucky")
        if size == 14:
            raise ZeroDivisionError("a defect")
        self.size = size


class Nested:
    def __init__(self, *, inner: Source, factory: Callable[[], Any] | None = None) -> None:
        self.inner = inner


NOT_CALLABLE = 3
SCHEMA = Schema(f"{__name__}.Root", nodes={"algo": f"{__name__}.Shared", "data": None, "plain": f"{__name__}.Shared"})


def config(**changes: Any):
    shared = {"limit": None, "mode": "cached", "offset": "none", "pair": [1, -1], "strict": True}
    values = {
        "seed": 0,
        "note": None,
        "algo": {"name": "loss", "_target_": f"{__name__}.loss", "_partial_": True, "beta": 0.1, **shared},
        "data": {"name": "source", "_target_": f"{__name__}.Source", "size": 3},
        "plain": dict(shared),
    }
    made = OmegaConf.create(values)
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value, force_add=True)
    return made


def problems(made) -> list[str]:
    with pytest.raises(InputError) as caught:
        check(made, SCHEMA)
    return str(caught.value).split("\n")


def test_a_config_that_fits_passes():
    check(config(), SCHEMA)


def test_the_hydra_node_is_left_out():
    check(config(hydra={"anything": "???"}), SCHEMA)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algo__beta", 1),
        ("algo__lam", 0.5),
        ("algo__offset", 2.5),
        ("algo__offset", "mean"),
        ("algo__limit", 7),
        ("algo__pair", None),
        ("note", "text"),
        ("note", "${data.name}"),
    ],
)
def test_a_value_of_the_annotated_type_passes(key, value):
    check(config(**{key: value}), SCHEMA)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "seed: met -1, expected greater than or equal to 0"),
        ("seed", 1.5, "seed: met 1.5, expected an integer"),
        ("seed", True, "seed: met True, expected an integer"),
        ("note", 3, "note: met 3, expected a string"),
        ("algo__beta", 0, "algo.beta: met 0, expected greater than 0"),
        ("algo__beta", "abc", "algo.beta: met 'abc', expected a number"),
        ("algo__beta", None, "algo.beta: met None, expected a number"),
        ("algo__beta", float("nan"), "algo.beta: met nan, expected a finite number"),
        ("algo__beta", float("inf"), "algo.beta: met inf, expected a finite number"),
        ("algo__mode", "cachd", "algo.mode: met 'cachd', expected 'cached' or 'frozen'; did you mean cached?"),
        ("algo__offset", "men", "algo.offset: met 'men', expected a number or 'none' or 'mean'; did you mean mean?"),
        ("algo__limit", "None", "algo.limit: met 'None', expected an integer; did you mean null?"),
        ("algo__pair", [1, "a"], "algo.pair: met [1, 'a'], expected a number at [1]"),
        ("algo__strict", "yes", "algo.strict: met 'yes', expected a boolean"),
        ("algo__name", 3, "algo.name: met 3, expected a string"),
        ("algo___partial_", "x", "algo._partial_: met 'x', expected a boolean"),
        ("plain__strict", 1, "plain.strict: met 1, expected a boolean"),
        ("data", 3, "data: met 3, expected a group of settings; choose one with data=NAME"),
        ("algo__btea", 1, "algo.btea: unknown key; did you mean algo.beta?"),
        ("algo__batch", 1, "algo.batch: unknown key; known are"),
        ("data__path", "x", "data.path: unknown key; known are data.name, data.size"),
        ("data__sizes", 1, "data.sizes: unknown key; did you mean data.size?"),
        ("plain__name", "x", "plain.name: unknown key"),
        ("sed", 1, "sed: unknown key; did you mean seed?"),
        ("daat", 1, "daat: unknown key; did you mean data?"),
        ("data__name", "???", "data.name: not set (???); give data.name=VALUE"),
        ("algo", None, "algo: missing; choose one with algo=NAME"),
        ("note", "${nowhere}", "Interpolation key 'nowhere' not found"),
        ("data___target_", "shiqrun.nothing", "data._target_: cannot import 'shiqrun.nothing'"),
        ("data___target_", f"{__name__}.NOT_CALLABLE", "expected a function or a class"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_was_expected(key, value, message):
    (line, *_) = problems(config(**{key: value}))
    assert message in line


@pytest.mark.parametrize("key", ["seed", "algo.beta", "algo.mode", "data.size", "plain.limit"])
def test_a_required_key_that_is_absent_is_named(key):
    made = config()
    parent, _, leaf = key.rpartition(".")
    del (OmegaConf.select(made, parent) if parent else made)[leaf]
    assert problems(made) == [f"{key}: missing; give {key}=VALUE"]


def test_all_problems_are_told_at_once():
    assert len(problems(config(seed=-1, algo__btea=1, data__size="x"))) == 3


def test_a_nested_target_is_checked_against_its_own_signature():
    inner = {"_target_": f"{__name__}.Source", "size": "x"}
    made = config(data={"_target_": f"{__name__}.Nested", "inner": inner})
    made.data = {"_target_": f"{__name__}.Nested", "inner": inner}
    assert problems(made) == ["data.inner.size: met 'x', expected an integer"]


def test_build_gives_the_target_its_own_keys_and_the_settings_theirs():
    made = config(algo__beta=0.3)
    bound, shared = build(made.algo, Shared)
    assert isinstance(bound, partial)
    assert bound(7) == (7, 0.3, 1.0)
    assert shared == Shared(limit=None, mode="cached", offset="none", pair=[1, -1], strict=True)


def test_settings_are_plain_python_values():
    assert type(settings(config().plain, Shared).pair) is list


def test_a_target_is_built_without_its_name():
    assert target(config().data).size == 3


def test_wrong_input_found_by_a_target_is_said_in_its_own_words():
    with pytest.raises(InputError, match=r"^size=13 is unlucky$"):
        target(config(data__size=13).data)


def test_a_defect_of_a_target_is_no_wrong_input():
    with pytest.raises(Exception, match="a defect") as caught:
        target(config(data__size=14).data)
    assert not isinstance(caught.value, InputError)
