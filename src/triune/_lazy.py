"""``torch``, imported at its first use.

Importing torch takes seconds. The files of the methods name it in every line, yet ``triune methods`` and ``triune plan``
only read their signatures, so they get this stand-in and stay fast. Type checkers see the real module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
else:

    class _Lazy:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(importlib.import_module(self._name), attribute)

    torch = _Lazy("torch")

__all__ = ["torch"]
