"""Real data for the segment benchmark, fetched once by `make bench-data` with pip (python -m benchmarks.data) into build/bench-data.

* La Haute Borne: SCADA of four wind turbines, ten minutes, 2014 and 2015, published by ENGIE; ships in the examples of openoa (BSD-3).
* Tennessee Eastman: the process of Downs and Vogel with Ricker's control, simulated for 48 hours in steps of 1.8 s by tep-studio (BSD-3), which
  compiles the published C model; 41 measurements with noise. Simulated, yet nobody here chose its values.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

from buffer import limits
from buffer.types import Columns, Kind

DATA: Final = Path(__file__).parents[1] / "build" / "bench-data"
WIND: Final = DATA / "la-haute-borne-data-2014-2015.csv"
TEP: Final = DATA / "tennessee-eastman.csv"
_BAD: Final = 0x809B_0000  # Bad_NoData
_SIMULATE: Final = """
import numpy as np, sys
from tep_studio import ClosedLoopSimulation
result = ClosedLoopSimulation(horizon=48.0).run(seed=1)
values = np.array([step.measurements for step in result.results], float)
assert values.ndim == 2 and values.shape[1] == 41, values.shape
np.savetxt(sys.argv[1], values, delimiter=",", fmt="%.17g")
"""


def fetch() -> None:
    """Get what is not there yet."""
    DATA.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if not WIND.exists():
        subprocess.run([*pip, "download", "--no-deps", "--dest", str(DATA), "openoa==3.2"], check=True)
        with zipfile.ZipFile(next(DATA.glob("openoa*.whl"))) as wheel, zipfile.ZipFile(wheel.open("examples/data/la_haute_borne.zip")) as inner:
            WIND.write_bytes(inner.read(WIND.name))
    if not TEP.exists():
        venv = DATA / "venv"
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "--disable-pip-version-check", "--quiet", "install", "tep-studio==0.2.0"], check=True)
        part = TEP.with_suffix(".part")
        subprocess.run([venv / "bin" / "python", "-c", _SIMULATE, part], check=True)
        part.rename(TEP)


def _columns(tag: np.ndarray, ts_ns: np.ndarray, values: np.ndarray) -> Columns:
    """Return readings of doubles; NaN is a reading without a value."""
    absent = np.isnan(values)
    return Columns(
        (tag + limits.TAG_NUMBER_FIRST).astype(np.uint32), ts_ns.astype(np.int64),
        np.where(absent, Kind.NULL, Kind.DOUBLE).astype(np.uint8), np.where(absent, 0, values.view(np.uint64)).astype(np.uint64),
        np.where(absent, _BAD, 0).astype(np.uint32), np.zeros(len(tag), np.uint16), None, (),
    )  # fmt: skip


def wind(most: int) -> tuple[Columns, list[str]] | None:
    """Return at most `most` readings in order of time, and the tag ids; None where the data is not here."""
    if not WIND.exists():
        return None
    rows = list(csv.reader(io.StringIO(WIND.read_text())))
    names, rows = rows[0][2:], rows[1:]
    rows.sort(key=lambda row: dt.datetime.fromisoformat(row[1]).timestamp())
    turbines = sorted({row[0] for row in rows})
    rows = rows[: most // len(names)]
    values = np.array([[float(x) if x else np.nan for x in row[2:]] for row in rows])
    seconds = np.array([dt.datetime.fromisoformat(row[1]).timestamp() for row in rows])
    turbine = np.array([turbines.index(row[0]) for row in rows])
    tag = turbine[:, None] * len(names) + np.arange(len(names))
    ts = np.repeat(seconds.astype(np.int64) * 10**9, len(names))
    return _columns(tag.ravel(), ts, np.ascontiguousarray(values.ravel())), [f"{t}.{name}".lower() for t in turbines for name in names]


def tennessee_eastman(most: int, *, single: bool) -> tuple[Columns, list[str]] | None:
    """Return at most `most` readings, a scan every 1.8 s; single: values as 32-bit floats, as most controllers hold them."""
    if not TEP.exists():
        return None
    values = np.loadtxt(TEP, delimiter=",", max_rows=most // 41)
    if single:
        values = values.astype(np.float32).astype(np.float64)
    scans = len(values)
    tag = np.tile(np.arange(41), scans)
    ts = np.repeat(1_760_000_000 * 10**9 + np.arange(scans, dtype=np.int64) * 1_800_000_000, 41)
    return _columns(tag, ts, np.ascontiguousarray(values.ravel())), [f"xmeas{i + 1:02d}" for i in range(41)]


if __name__ == "__main__":
    fetch()
