"""Store the results of a run beside the notebooks: its results.json without configurations, with six digits.

python notebooks/results/store.py runs/heterogeneity/short-seed0 heterogeneity/short-seed0
"""

import json
import sys
from pathlib import Path
from typing import Any


def rounded(value: Any) -> Any:
    """The same lists and dicts, their numbers with six digits."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def store(run_dir: Path, name: str) -> Path:
    """Write `NAME.json` below this file's folder from a run that was trained and tested.

    Raises:
        ValueError: If the run was not trained or not tested.
    """
    results = json.loads((run_dir / "results.json").read_text())
    for command in ("fit", "test"):
        if command not in results:
            raise ValueError(f"{run_dir} must hold the results of `fit` and `test`, but has none of `{command}`")
        del results[command]["config"]
    path = Path(__file__).parent / f"{name}.json"
    path.write_text(json.dumps(rounded(results), indent=0))
    return path


if __name__ == "__main__":
    print(store(Path(sys.argv[1]), sys.argv[2]))
