"""How long the studio takes from a moved point to the first token of five answers, over HTTP as the page asks.

``python -m benchmarks.studio`` starts `triune studio` on the demo models, moves the point five times and prints the median.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from typing import Any

MOVES = ([1, 1, 1], [6, 2, 2], [2, 6, 2], [2, 2, 6], [4, 4, 2], [8, 1, 1])
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("linear", {}),
    ("task_arithmetic", {}),
    ("tsvm", {}),
    ("r_tsvm", {"outlier_scope": "channel"}),
    ("ties", {"density": 0.3}),
)
PROMPT = "Give me two tips for a job interview."


def first_token(url: str, method: str, shares: list[int], parameters: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds of the merge, to the first token, and tokens a second of each of five answers."""
    point = {"method": method, "shares": shares, "parameters": parameters}
    body = json.dumps({"point": point, "prompt": PROMPT, "max_tokens": 8}).encode()
    request = urllib.request.Request(f"{url}api/answer", data=body, headers={"content-type": "application/json"})
    start, merge, at, event = time.monotonic(), 0.0, list[float](), ""
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            if line.startswith(b"event: "):
                event = line[7:].decode().strip()
            elif line.startswith(b"data: ") and event == "merged":
                merge = json.loads(line[6:])["seconds"]
            elif line.startswith(b"data: ") and event == "heard":
                at.append(time.monotonic() - start)
    return merge, at[0], (len(at) - 1) / (at[-1] - at[0])


def main() -> None:
    command = [sys.executable, "-m", "triune", "studio", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        url = program.stdout.readline().split()[2]
        print(
            "method           first merge   merge   to first token   tokens/s of each   (seconds, medians after the first)"
        )
        for method, parameters in METHODS:
            found = [first_token(url, method, shares, parameters) for shares in MOVES]
            merge, token, rate = (statistics.median(column) for column in zip(*found[1:], strict=True))
            print(f"{method:<16} {found[0][0]:>11.2f} {merge:>7.2f} {token:>16.2f} {rate:>18.1f}", flush=True)
        program.terminate()


if __name__ == "__main__":
    main()
