"`mrhd bench`: what B.json holds, with the parts made small"
import json
from dataclasses import replace
import pytest
from mrhd_nb.core.config import override
from mrhd_nb.programs import bench
from mrhd_nb.programs.cli import main

LITTLE = {"model.width": 16, "model.ffn": 16, "model.heads": 2, "model.video_dim": 26, "model.text_dim": 16}
ROW = {"preset", "phase", "kind", "batch", "dtype", "seconds", "units", "gflop_needed", "gflop_done"}


@pytest.fixture
def small(monkeypatch):
    "A folder, a submission and models that take no time"
    works = [replace(w, config=override(w.config, LITTLE), batch=2, clips=12, tokens=6) for w in bench.paper_work()]
    for name, value in {"VIDEOS": 6, "BATCH": 4, "QUERIES": 8, "paper_work": lambda: works}.items(): monkeypatch.setattr(bench, name, value)
    time_task = bench.time_task
    monkeypatch.setattr(bench, "time_task", lambda task, least, device="cpu": time_task(task, 0.001, device))
    return works


def test_all_parts_are_measured_and_written(small, tmp_path, capsys):
    assert main(["bench", "--out", str(tmp_path/"B.json")]) == 0
    result, said = json.loads((tmp_path/"B.json").read_text()), capsys.readouterr().out
    assert set(result) == {"unit_s", "hardware", "rows", "loader", "evaluator", "predict"} and result["unit_s"] > 0
    assert [(r["preset"], r["phase"], r["kind"], r["dtype"]) for r in result["rows"]] == [(w.config.preset, w.phase, w.kind, w.dtype) for w in small]
    for row in result["rows"]:
        assert ROW <= set(row) and abs(row["units"]*result["unit_s"]/row["seconds"]-1) < 1e-4
        assert 0 < row["gflop_done"] <= 1.2*row["gflop_needed"]
    readers = [row["reader"] for row in result["loader"]]
    assert readers == ["files, compressed", "store, float32", "store, float16"]
    assert [row["sentences"] for row in result["predict"]] == [1, 10, 100]
    assert result["evaluator"][0]["times"] > 1 and all(name in said for name in ("taskweave_hd2mr", "store, float16", "json_seconds", "unit: "))


@pytest.mark.parametrize("only", ["model", "loader", "evaluator", "predict"])
def test_one_part_leaves_the_others_empty(only, small, tmp_path):
    assert main(["bench", "--only", only, "--out", str(tmp_path/"B.json")]) == 0
    result = json.loads((tmp_path/"B.json").read_text())
    assert [name for name in ("rows", "loader", "evaluator", "predict") if result[name]] == ["rows" if only == "model" else only]


def test_full_size_is_that_of_the_papers():
    "Batches of 32 in training and of 100 in inference, 75 clips, 32 tokens, width 256"
    works = [w for w in bench.paper_work() if w.dtype == "float32" and w.config.preset == "tr_detr"]
    assert {(w.kind, w.batch, w.clips, w.tokens, w.config.model.width) for w in works} == {("train", 32, 75, 32, 256), ("inference", 100, 75, 32, 256)}
