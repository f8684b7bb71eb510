"Every figure in figures/ follows from the files named beside it; the notebooks that draw run at their smoke size"
import json
from pathlib import Path
import pytest
from mrhd_nb.config import read_json
from mrhd_nb.experiments import run_notebook
import mrhd_nb.protocol_figures # makes its kind of figure known
from mrhd_nb.provenance import check_figure, deviation, publish, read_source

FIGURES = Path(__file__).resolve().parent.parent/"figures"
KEPT = sorted(FIGURES.glob("*.json"))
TOLERANCE = 1e-3 # arithmetic differs between machines
SOURCE_BYTES = 3_000_000


@pytest.mark.parametrize("path", KEPT, ids=lambda p: p.stem)
def test_kept_figure_is_whole_and_follows_from_its_files(path):
    check_figure(path.with_suffix(""))
    assert deviation(path) < TOLERANCE
    for file in read_source(path).paths():
        assert file.resolve().is_relative_to(FIGURES.parent) and file.stat().st_size < SOURCE_BYTES, file
    assert not any(part.startswith("/") for part in read_json(path)["command"].split())


def test_every_picture_in_figures_has_its_data_beside_it():
    pictures = {p.stem for p in FIGURES.iterdir() if p.suffix in (".png", ".pdf")}
    assert pictures == {p.stem for p in KEPT}


@pytest.mark.parametrize("kind", ("attention", "masks", "weights"))
def test_figure_notebook_runs_at_smoke_size(kind, tmp_path):
    executed = run_notebook(f"fig_{kind}", tmp_path/"out")
    stem = tmp_path/"out"/f"fig_{kind}"
    assert check_figure(stem).min() > 0
    outputs = [o for c in json.loads(executed.read_text())["cells"] for o in c.get("outputs", ())]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 1
    moved = publish(f"{stem}.json", tmp_path/"figures")
    assert deviation(moved) < TOLERANCE and f"fig_{kind}.ipynb" in read_json(moved)["command"]
