"""Store what a tested Comparison sees, beside what the diagnosis of its data had recommended.

python notebooks/results/store_visibility.py runs/compare-seed0 runs/diagnosis-seed0 vision/visibility-seed0
"""

import json
import sys
from pathlib import Path


def store(run_dir: Path, diagnosis: Path, name: str) -> Path:
    """Write `NAME.json` below this file's folder, without the lists of single latents."""
    seen = json.loads((run_dir / "visibility.json").read_text())
    asked = json.loads((diagnosis / "diagnosis.json").read_text())
    for pair in seen["pairs"]:
        pair["latents"] = len(pair["latents"])
    members = json.loads((run_dir / "results.json").read_text())["model"]["init_args"]["members"]
    seen["architectures"] = {sae: member["class_path"].rpartition(".")[2] for sae, member in members.items()}
    seen["recommendation"] = asked["recommendation"]
    seen["dimensions"] = {c["name"]: c["dimension"] for c in asked["concepts"]}
    path = Path(__file__).parent / f"{name}.json"
    path.write_text(json.dumps(seen, indent=0))
    return path


if __name__ == "__main__":
    print(store(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
