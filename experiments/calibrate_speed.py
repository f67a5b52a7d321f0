"""Time and memory of ``petm calibrate`` on a million rows: python -m experiments.calibrate_speed [ROWS] [OUTPUT]."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

WAYS = {
    "probabilities of 10 classes": ("--probability-columns", "p_"),
    "prediction and score": ("--prediction-column", "prediction", "--score-column", "score"),
    "the same in groups": ("--prediction-column", "prediction", "--score-column", "score", "--group-column", "site"),
}


def table(rows: int) -> pa.Table:
    """Returns predictions of a calibrated classifier that is wrong on about one row in ten."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(rows, 10))
    logits[np.arange(rows), random.integers(0, 10, rows)] += 6
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = (p.cumsum(1) > random.random((rows, 1))).argmax(1)
    cells = {"label": label, "prediction": p.argmax(1), "score": np.log(p.max(1))}
    cells["site"] = random.integers(0, 20, rows)
    return pa.table(cells | {f"p_{place}": p[:, place].round(6) for place in range(10)})


def main(rows: int, output: Path) -> None:
    """Runs each way on CSV and Parquet, with a guaranteed risk, and writes seconds and the greatest memory."""
    found = list[dict[str, object]]()
    with tempfile.TemporaryDirectory() as folder:
        held = table(rows)
        arrow_csv.write_csv(held, Path(folder) / "t.csv")
        pq.write_table(held, Path(folder) / "t.parquet")
        del held
        for name, how in WAYS.items():
            for kind in ("csv", "parquet"):
                place = Path(folder) / f"t.{kind}"
                verb = [sys.executable, "-m", "petm", "calibrate", str(place), *how, "--max-risk", "0.02", "--json"]
                started = time.monotonic()
                code = "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], stdout=-3).returncode; \
u = resource.getrusage(resource.RUSAGE_CHILDREN); print(r, u.ru_maxrss, round(1000 * (u.ru_utime + u.ru_stime)))"
                verb += ["-o", f"{folder}/{len(found)}.calibration"]
                told = subprocess.run([sys.executable, "-c", code, *verb], capture_output=True, text=True, check=True)
                status, peak, processor = map(int, told.stdout.split())
                if status:
                    raise RuntimeError(told.stderr)
                seconds = time.monotonic() - started
                told_of = {"seconds": round(seconds, 2), "processor_seconds": processor / 1000, "peak_mib": peak >> 10}
                found.append({"input": name, "kind": kind, **told_of})
                print(found[-1], flush=True)
    output.write_text(json.dumps({"rows": rows, "runs": found}, indent=2) + "\n")


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["1000000"])[0]), Path((sys.argv[2:] or ["docs/measured/calibrate_speed.json"])[0]))
