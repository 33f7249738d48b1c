"""What a merge method is, as data: its name, its parameters with their ranges, and the function that does the work.

The signature of the function is read once, without importing torch, and everything else follows from it: the checks, the
listing of ``triune methods``, the keys that a recipe may hold, the JSON Schema.
"""

from __future__ import annotations

import inspect
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar

from triune.errors import ParameterError, did_you_mean

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PER_MODEL = "one value for each expert"
PerModel = Annotated[Sequence[T], PER_MODEL]
"""A parameter with one value for each expert. Callers may give one number for all."""

Semantics = Literal["mergekit", "paper"]
Takes = Literal["tensors", "deltas"]
Grain = Literal["entry", "row", "tensor"]
REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Interval:
    """A range of numbers, written as in mathematics.

    >>> Interval("(0, 1]").holds(0.0), Interval("(0, 1]").holds(1.0)
    (False, True)
    """

    text: str

    def holds(self, value: float) -> bool:
        low, high = (float(end) for end in self.text[1:-1].split(","))
        above = value > low or (self.text[0] == "[" and value == low)
        below = value < high or (self.text[-1] == "]" and value == high)
        return above and below


Weight = Annotated[PerModel[float], Interval("(-inf, inf)")]
Density = Annotated[PerModel[float], Interval("[0, 1]")]
Scaling = Annotated[float, Interval("(-inf, inf)")]


@dataclass(frozen=True)
class Parameter:
    """One knob of a method."""

    name: str
    kind: type
    """float, int, bool or str."""
    default: Any = REQUIRED
    per_model: bool = False
    interval: Interval | None = None
    choices: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    def check(self, value: Any) -> Any:
        """The value as this parameter's type, or a :class:`ParameterError` that states value and rule."""
        if self.kind is bool:
            if not isinstance(value, bool):
                raise ParameterError(f"{self.name} must be true or false, got {value!r}.")
            return value
        if self.kind is str:
            if value not in self.choices:
                hint = did_you_mean(str(value), self.choices)
                raise ParameterError(f"{self.name} must be one of {', '.join(self.choices)}, got {value!r}.{hint}")
            return value
        number = _number(value)
        if not math.isfinite(number) or (self.kind is int and number != int(number)):
            what = "a finite" if math.isinf(number) else "a whole" if math.isfinite(number) else "a"
            raise ParameterError(f"{self.name} must be {what} number, got {value!r}.")
        if self.interval and not self.interval.holds(number):
            hint = f" For {number:g} % write {number / 100:g}." if self.name == "density" and 1 < number <= 100 else ""
            raise ParameterError(f"{self.name} must lie in {self.interval.text}, got {value}.{hint}")
        return self.kind(number)


@dataclass(frozen=True)
class View:
    """Where a block of entries stands, for methods whose answer depends on it (random masks, exact selections)."""

    tensor: str = ""
    experts: tuple[str, ...] = ()
    """A stable name for each expert: random masks depend on it, not on the order of the experts."""
    seed: int = 0
    start: int = 0
    """Flat index, in the whole tensor, of the block's first entry."""
    shape: tuple[int, ...] = ()
    """Shape of the whole tensor."""

    def expert(self, index: int) -> str:
        return self.experts[index] if self.experts else str(index)


class Scan(ABC):
    """A statistic of whole tensors, gathered block by block in a fixed number of passes before the method runs.

    The engine never needs a whole tensor in memory for it: it shows every block once in each pass, or a sample of the rows.
    """

    passes: int = 1
    """How many passes it needs; may shrink as it learns."""

    @abstractmethod
    def see(self, turn: int, deltas: torch.Tensor, view: View) -> None:
        """Take in one block, float32, experts first. Blocks of one tensor come in order of their start."""

    def one_of(self, turn: int) -> int:
        """This pass wants to see one entry in so many, in rows spread over the tensor; 1: all of them."""
        return 1

    def close(self, turn: int) -> None:  # noqa: B027 - most scans have nothing to do here
        """All blocks of this pass were seen."""

    @abstractmethod
    def result(self) -> Any:
        """What the method receives as ``stats``."""


class WholeModelScan(Scan):
    """One statistic for all tensors of the model together, as for TIES's global trim; gathered in parts by many threads."""

    @abstractmethod
    def part(self) -> WholeModelScan:
        """An empty copy for another thread, to be given back to :meth:`add`."""

    @abstractmethod
    def add(self, part: Any) -> None:
        """Take in what a part has seen. Must not depend on the order of the parts."""


class Maths(Protocol):
    """The signature of a method's function."""

    __name__: str

    def __call__(self, deltas: torch.Tensor, **keywords: Any) -> torch.Tensor:
        """Merge one block of entries, experts first, into one."""


@dataclass(frozen=True)
class Method:
    """A merge method. Call it on a stack of tensors, or let the engine stream a checkpoint through it."""

    name: str
    title: str
    paper: str
    takes: Takes
    function: Maths = field(repr=False)
    grain: Grain = "entry"
    """The smallest piece that can be merged alone: any run of entries, whole rows, or only the whole tensor."""
    grain_of: Callable[[Mapping[str, Any], View], Grain] | None = field(default=None, repr=False)
    """For methods whose grain depends on their parameters or on the tensor; given bound parameters."""
    workspace: Callable[[Mapping[str, Any], int, tuple[int, ...]], int] | None = field(default=None, repr=False)
    """Peak bytes that merging a whole tensor takes, from bound parameters, number of experts and shape. For whole-tensor
    grain only: smaller grains work in blocks of fixed size."""
    scan: Callable[..., Scan | None] | None = field(default=None, repr=False)
    factors: Callable[..., Any] | None = field(default=None, repr=False)
    """Merges low-rank deltas (None: zero) into one without ever building the matrices."""
    not_low_rank: Callable[[Mapping[str, Any]], str | None] | None = field(default=None, repr=False)
    """Why, with these bound parameters, low-rank deltas do not merge into a low-rank one, and what to do for it; None where
    they do."""
    parts: Callable[..., Any] | None = field(default=None, repr=False)
    """For whole-tensor grain: the part of the work that neither weight nor scaling changes, from a stack of deltas to an
    :class:`triune.methods._spectral.Orthogonal`. What a cache keeps."""
    parameters: tuple[Parameter, ...] = ()
    aliases: tuple[str, ...] = ()
    minimum: int = 1
    """Fewest experts."""
    from_mergekit: bool = True
    check: Callable[[Mapping[str, Any]], None] | None = field(default=None, repr=False)
    """Rules that tie several bound parameters together; raises :class:`ParameterError`."""

    @property
    def doc(self) -> str:
        return inspect.cleandoc(self.function.__doc__ or "")

    @property
    def summary(self) -> str:
        return self.doc.splitlines()[0]

    def parameter(self, name: str) -> Parameter:
        """Look a parameter up; an unknown name is refused with the nearest known one."""
        if name in PARAMETER_ALIASES:
            name = next((alias for alias in PARAMETER_ALIASES if alias in self._by_name), name)
        if name not in self._by_name:
            hint = did_you_mean(name, self._by_name)
            known = ", ".join(self._by_name)
            raise ParameterError(f"{self.name} has no parameter {name!r}; it has {known}.{hint}")
        return self._by_name[name]

    @property
    def _by_name(self) -> dict[str, Parameter]:
        return {p.name: p for p in self.parameters}

    def refuses_factors(self, bound: Mapping[str, Any]) -> str | None:
        """Why this method cannot stay in factors with these bound parameters, and what would; None if it can."""
        if self.factors is None:
            return f"{self.name} works entry by entry, so its result has full rank. Take a method such as tsvm"
        return self.not_low_rank(bound) if self.not_low_rank else None

    def grain_at(self, values: Mapping[str, Any], view: View) -> Grain:
        return self.grain_of(values, view) if self.grain_of else self.grain

    def bind(self, values: Mapping[str, Any], models: int) -> dict[str, Any]:
        """Checked keyword arguments for :attr:`function`: defaults filled in, one value for each expert where due."""
        if models < self.minimum:
            raise ParameterError(f"{self.name} needs at least {self.minimum} experts, got {models}.")
        named: dict[str, Any] = {}
        for name, value in values.items():
            known = self.parameter(name).name
            if known in named:
                raise ParameterError(f"{known} is given twice, once as {name}. Keep one.")
            named[known] = value
        bound: dict[str, Any] = {}
        for p in self.parameters:
            value = named.get(p.name, p.default)
            if value is REQUIRED:
                raise ParameterError(f"{self.name} needs {p.name}: give it to every expert, or to all at once.")
            if p.per_model:
                each = value if isinstance(value, Sequence) and not isinstance(value, str) else [value] * models
                if len(each) != models:
                    raise ParameterError(f"{p.name} must hold one value for each of {models} experts, got {len(each)}.")
                bound[python_name(p.name)] = tuple(p.check(v) for v in each)
            else:
                bound[python_name(p.name)] = p.check(value)
        if self.check:
            self.check(bound)
        return bound

    def __call__(self, deltas: torch.Tensor, /, *, view: View | None = None, **values: Any) -> torch.Tensor:
        """Merge one whole stack ``[experts, ...]`` of deltas (or tensors, see :attr:`takes`) in float32."""
        bound = self.bind({public_name(k): v for k, v in values.items()}, len(deltas))
        deltas = deltas.float()
        view = replace(view or View(), shape=tuple(deltas.shape[1:]))
        scan = self.scan(len(deltas), deltas[0].numel(), **bound) if self.scan else None
        if scan is None:
            return self.function(deltas, view=view, **bound)
        return self.function(deltas, view=view, stats=measure(scan, deltas, view), **bound)


def _number(value: Any) -> float:
    """A number, also from text (YAML reads 1e-5 as text); NaN for anything else, such as true."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


PARAMETER_ALIASES = ("lambda", "scaling", "scaling_factor", "alpha")
"""Names in use for the last factor, of which a method has at most one: mergekit says lambda, the papers say alpha or
lambda, TSVM's code says scaling."""


def python_name(name: str) -> str:
    return "lambda_" if name == "lambda" else name


def public_name(name: str) -> str:
    return name.rstrip("_")


def measure(scan: Scan, deltas: torch.Tensor, view: View) -> Any:
    """Run a scan over one stack that is held in memory."""
    turn = 0
    while turn < scan.passes:
        scan.see(turn, deltas, view)
        scan.close(turn)
        turn += 1
    return scan.result()


def merge_method(
    *,
    title: str,
    paper: str,
    takes: Takes = "deltas",
    grain: Grain = "entry",
    grain_of: Callable[[Mapping[str, Any], View], Grain] | None = None,
    workspace: Callable[[Mapping[str, Any], int, tuple[int, ...]], int] | None = None,
    scan: Callable[..., Scan | None] | None = None,
    factors: Callable[..., Any] | None = None,
    not_low_rank: Callable[[Mapping[str, Any]], str | None] | None = None,
    parts: Callable[..., Any] | None = None,
    aliases: tuple[str, ...] = (),
    minimum: int = 1,
    from_mergekit: bool = True,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> Callable[[Any], Method]:
    """Make a :class:`Method` of a function; its keyword-only arguments are the parameters."""

    def wrap(function: Any) -> Method:
        return Method(
            name=public_name(function.__name__),
            title=title,
            paper=paper,
            takes=takes,
            function=function,
            grain=grain,
            grain_of=grain_of,
            workspace=workspace,
            scan=scan,
            factors=factors,
            not_low_rank=not_low_rank,
            parts=parts,
            parameters=tuple(_parameters(function)),
            aliases=aliases,
            minimum=minimum,
            from_mergekit=from_mergekit,
            check=check,
        )

    return wrap


def _parameters(function: Any) -> list[Parameter]:
    found = []
    for p in inspect.signature(function).parameters.values():
        if p.kind is not inspect.Parameter.KEYWORD_ONLY or p.name in ("view", "stats"):
            continue
        # Only these annotations are evaluated: the tensors' would import torch.
        hint = eval(p.annotation, function.__globals__) if isinstance(p.annotation, str) else p.annotation
        notes = getattr(hint, "__metadata__", ())
        inner = hint.__origin__ if notes else hint
        per_model = PER_MODEL in notes
        if per_model:
            (inner,) = typing.get_args(inner)
        choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
        interval = next((n for n in notes if isinstance(n, Interval)), None)
        kind = str if choices else inner
        found.append(Parameter(public_name(p.name), kind, p.default, per_model, interval, choices))
    return found
