"""``triune studio``"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from triune.cli._options import Base, Experts, Settings, recipe_of

EXPERTS = ("helpful", "honest", "harmless")


def studio(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE.yaml]", help="As for `triune merge`.")] = None,
    base: Base = None,
    expert: Experts = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="Method to begin with; a quick one if not given.")
    ] = None,
    setting: Settings = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for recipes and models that you keep.")] = Path(
        "triune-studio"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 7860,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; only this machine if not given.")] = (
        "127.0.0.1"
    ),
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Move a point between specialists on a local page, and read at once what the merge answers.

    Alone it opens the demo specialists. Keeps all models in memory; adapters cost next to nothing.
    """
    with _until_stopped():
        import webbrowser
        from contextlib import nullcontext
        from importlib.util import find_spec

        from triune.cli._show import console
        from triune.errors import UserError

        if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
            are = "is" if len(missing) == 1 else "are"
            raise UserError(
                f'This needs {" and ".join(missing)}, which {are} not installed. Run: pip install "triune[studio]"'
            )
        from triune.studio.gate import is_loopback, listen
        from triune.studio.point import quick
        from triune.studio.server import serve
        from triune.studio.session import Studio

        if recipe is None and base is None and not expert:
            base, expert = "demo:base", [f"{e}=demo:{e}" for e in EXPERTS]
        if recipe is None and expert and len(expert) < 2:
            raise UserError(f"The studio moves between experts: name at least two with -e, got {len(expert)}.")
        with listen(host, port) as found:  # before minutes go into loading
            start = recipe_of(recipe, base, expert, method or (None if recipe else quick(base, expert)), setting)
            with console.status("loading the models") if console.is_terminal else nullcontext():
                opened = Studio(start, out)
            shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
            url = f"http://{f'[{shown}]' if ':' in shown else shown}:{found.getsockname()[1]}/"
            print(f"triune studio: {url}  (Ctrl-C stops it)", flush=True)
            if not is_loopback(host):
                console.print(
                    f"Anyone who reaches {host} can use the models and write into {out}: there is no password.",
                    soft_wrap=True,
                )
            if browser:
                webbrowser.open(url)
            serve(opened, found, host)


@contextmanager
def _until_stopped() -> Iterator[None]:
    """Ctrl-C and SIGTERM are how the studio ends, also while it loads.

    An interrupt that comes where Python ignores exceptions, as in a callback of an import, comes again a moment later.
    """
    hook = sys.unraisablehook

    def again(told: sys.UnraisableHookArgs) -> None:
        if isinstance(told.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            hook(told)

    before = {n: signal.signal(n, signal.default_int_handler) for n in (signal.SIGTERM, signal.SIGALRM)}
    sys.unraisablehook = again
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
    print("Stopped.", file=sys.stderr)
