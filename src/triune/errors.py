"""Every error that triune raises on purpose.

The rule for adding one: a new class only where a caller would catch it apart from the others. Each is also a standard
type, so code that knows nothing of triune can still handle it, and each can be pickled, so it survives a trip between
processes.

The command line maps them to exit codes: :class:`CheckFailed` 1, :class:`UserError` 2, :class:`Interrupted` 3. Anything
else is our own mistake and exits with 70.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class TriuneError(Exception):
    """The root: ``except TriuneError`` catches all that triune raises on purpose."""


class UserError(TriuneError, ValueError):
    """Something in the input is wrong. The message names the place, the value, the rule and the next step."""


class RecipeError(UserError):
    """A recipe or a flag says something that cannot be done."""


class ParameterError(UserError):
    """A method's parameter lies outside its range. The method states value and rule, the engine adds the place."""


class CheckpointError(UserError):
    """A model folder or an adapter is missing, damaged, or does not fit the others."""


class CheckFailed(TriuneError, RuntimeError):
    """The work is done, but a check of its result failed (the gate, ``verify``)."""


class Interrupted(TriuneError, RuntimeError):
    """Stopped on request. What was finished is kept, and the same command continues."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint to append to a message, or nothing.

    >>> did_you_mean("dare-ties", ["dare_ties", "ties"])
    ' Did you mean dare_ties?'
    >>> did_you_mean("zzz", ["ties"])
    ''
    """
    near = get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""
