"""The tasks as lm-eval reads them, for ``lm-eval run --include_path`` and for triune: one YAML file each."""

from pathlib import Path

TASKS = Path(__file__).parent
