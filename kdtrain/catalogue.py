"""All methods with what a person wants to know before choosing one: for `kd-train methods` and docs/methods.md."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods import METHODS, PLUGINS
from kdtrain.methods.base import Paper, Range, Space


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method. Costs are (first quartile, median, third quartile) by teacher/student pair."""

    name: str
    formula: str  # the loss
    paper: Paper | None
    teacher: tuple[str, ...]  # the outputs of the teacher that it looks at
    cacheable: bool  # whether the teacher's outputs can be computed once for many trials
    defaults: Mapping[str, Any]  # None: not set, or decided by the others
    choices: Mapping[str, tuple[Any, ...]]  # of the parameters that have a few values only
    plugged: Mapping[str, Mapping[str, Any]]  # the defaults of `host+name`, by part
    search_space: Space
    step: Mapping[str, tuple[float, float, float]]  # time of a step / the plain student's
    without_teacher: Mapping[str, tuple[float, float, float]]  # the same without the forward passes of teachers


def entries() -> list[Entry]:
    """All of METHODS, in their order."""
    return [_entry(name) for name in METHODS]


def _entry(name: str) -> Entry:
    cls, ref = METHODS[name], MethodRef(name=name)
    hosts = PLUGINS[name].hosts if name in PLUGINS else ()
    costs = {pair: its[name] for pair, its in measured()["pairs"].items() if name in its}
    return Entry(
        name=name,
        formula=(inspect.getdoc(cls) or "").partition("\n")[0],
        paper=cls.paper,
        teacher=tuple(sorted(methods.needs(ref))),
        cacheable=methods.cacheable(ref),
        defaults=cls.Config().model_dump(mode="json"),
        choices=_choices(cls.Config),
        plugged={host: methods.params(MethodRef(name=f"{host}+{name}")) for host in hosts},
        search_space=cls.search_space,
        step={pair: tuple(cost["step"]) for pair, cost in costs.items()},
        without_teacher={pair: tuple(cost["without_teacher"]) for pair, cost in costs.items()},
    )


@cache
def measured() -> dict[str, Any]:
    """What `make bench-methods` measured: {machine, rounds, batch, pairs: {pair: {method: costs}}}."""
    text = (resources.files("kdtrain") / "assets" / "step_costs.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def listing() -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of all methods; the cost is that of the first pair measured."""
    header = ["method", "paper", "year", "teacher", "cacheable", "defaults", "search space", "step / plain"]
    rows = [
        [
            entry.name, entry.paper.title if entry.paper else "", _year(entry), _teacher(entry), _cacheable(entry),
            _values({key: value for key, value in entry.defaults.items() if value is not None}),
            _space(entry.search_space), _cost(entry.step),
        ]
        for entry in entries()
    ]  # fmt: skip
    return header, rows


def described(name: str) -> list[str]:
    """Lines about one method; ConfigError if there is none of that name."""
    methods.classes(MethodRef(name=name), "NAME")
    if name not in METHODS:
        raise ConfigError(f"NAME must be one method, but got {name!r}.")
    entry = _entry(name)
    costs = [f"step / plain, {pair}: {_cost(entry.step, pair)}, loss {_cost(entry.without_teacher, pair)}"
             for pair in measured()["pairs"]]  # fmt: skip
    return [
        f"{name}: {entry.formula}",
        *([_cited(entry.paper)] if entry.paper else []),
        f"teacher: {_teacher(entry)}{', cacheable' if entry.cacheable and entry.teacher else ''}",
        f"defaults: {_values(entry.defaults, entry.choices) or 'none'}",
        *(f"as the plug-in of {host}: {_parts(parts)}" for host, parts in entry.plugged.items()),
        f"search space: {_space(entry.search_space) or 'none'}",
        *costs,
    ]


def about_costs() -> str:
    """What the costs are of."""
    costs = measured()
    return (
        f"step / plain: time of a step of {next(iter(costs['pairs']))} beside the plain student's, fp32, batch "
        f"{costs['batch']}; median [quartiles] of {costs['rounds']} rounds ({costs['machine']})."
    )


def markdown() -> str:
    """docs/methods.md."""
    costs = measured()
    pairs = list(costs["pairs"])
    lines = [
        "# Methods",
        "",
        "Written by `make docs`. The loss of a method is the first line of its class, its defaults are its `Config`.",
        "*Cacheable*: the teacher's outputs are a few numbers an image that no step changes, so many trials can share",
        "them. *Search space*: what a search tries by default; `log` is uniform in the logarithm.",
        "",
        f"The time of a step is relative to that of the plain student's, fp32, batch {costs['batch']}, by",
        f"`make bench-methods`: medians of {costs['rounds']} rounds, quartiles in brackets ({costs['machine']}).",
        "*Loss*: the same without the forward passes of teacher and assistants.",
        "",
        "| method | year | teacher | cacheable | plug-in of | "
        + " | ".join(f"{pair}: step | loss" for pair in pairs)
        + " |",
        "|---|---|---|---|---|" + "---|" * (2 * len(pairs)),
    ]
    for entry in entries():
        cells = [f"[{entry.name}](#{entry.name})", _year(entry), _teacher(entry), _cacheable(entry)]
        cells.append(", ".join(entry.plugged))
        for pair in pairs:
            cells += [_cost(entry.step, pair), _cost(entry.without_teacher, pair)]
        lines.append("| " + " | ".join(cells) + " |")
    for entry in entries():
        lines += ["", f"## {entry.name}", "", *_section(entry)]
    return "\n".join(lines) + "\n"


def _section(entry: Entry) -> list[str]:
    lines = [f"`{entry.formula}`", ""]
    if entry.paper:
        lines += [_cited(entry.paper), ""]
    lines.append(f"- defaults: {_code(_values(entry.defaults, entry.choices)) or 'none'}")
    lines += [f"- as the plug-in of {host}: {_code(_parts(parts))}" for host, parts in entry.plugged.items()]
    lines.append(f"- search space: {_code(_space(entry.search_space)) or 'none'}")
    return lines


def _cited(paper: Paper) -> str:
    return f"{paper.authors}, {paper.title}, {paper.venue} {paper.year}."


def _year(entry: Entry) -> str:
    return str(entry.paper.year) if entry.paper else ""


def _teacher(entry: Entry) -> str:
    return ", ".join(entry.teacher) or "none"


def _cacheable(entry: Entry) -> str:
    return "" if not entry.teacher else "yes" if entry.cacheable else "no"


def _choices(config: type[BaseModel]) -> dict[str, tuple[Any, ...]]:
    """The values of the fields that are literals."""
    fields = config.model_fields.items()
    return {name: get_args(field.annotation) for name, field in fields if get_origin(field.annotation) is Literal}


def _values(values: Mapping[str, Any], choices: Mapping[str, tuple[Any, ...]] | None = None) -> str:
    """`a = 1, b = "x" (or "y"), c unset`."""
    parts = []
    for key, value in values.items():
        others = [json.dumps(other) for other in (choices or {}).get(key, ()) if other != value]
        shown = f"{key} unset" if value is None else f"{key} = {json.dumps(value)}"
        parts.append(shown + (f" (or {', '.join(others)})" if others else ""))
    return ", ".join(parts)


def _parts(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """`a = { x = 1 }, b = { y = 2 }`, as in a spec."""
    return ", ".join(f"{name} = {{ {_values(values)} }}" for name, values in parts.items())


def _space(space: Space) -> str:
    parts = []
    for key, values in space.items():
        if isinstance(values, Range):
            parts.append(f"{key}: {values.low:g} .. {values.high:g}{' log' if values.log else ''}")
        else:
            parts.append(f"{key}: {' | '.join(map(str, values))}")
    return "; ".join(parts)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cost(costs: Mapping[str, tuple[float, float, float]], pair: str | None = None) -> str:
    """Median [quartiles] for a pair; for None those of the first pair measured."""
    pair = pair or next(iter(measured()["pairs"]), "")
    if pair not in costs:
        return "-"
    low, middle, high = costs[pair]
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"
