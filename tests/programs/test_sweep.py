"Grids, run and collected: what is finished is not repeated, what fails does not stop the rest"
import json
import pandas as pd, pytest
from mrhd_nb.programs.cli import main
from mrhd_nb.programs.notebooks import notebook_folder
from mrhd_nb.programs.sweep import Grid, expand, read_grids, sweep

GRIDS = sorted(p.stem for p in (notebook_folder()/"grids").glob("*.yaml"))
TINY = {"data.train_queries": 16, "data.val_queries": 8, "data.test_queries": 8, "model.width": 16, "model.ffn": 16, "training.epochs": 2, "training.eval_every": 1}


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_names_runs_that_exist(name, shared, monkeypatch):
    monkeypatch.setenv("MRHD_DATA", str(shared/"features"))
    cells = [cell for grid in read_grids(name) for cell in expand(grid)]
    assert cells and len({*cells}) == len(cells)
    if name == "tvsum": assert [sum(c.split("/")[0] == p for c in cells) for p in ("test", "leave_one_out", "val")] == [20, 100, 20]


def test_a_sweep_goes_on_where_it_was(tmp_path, capsys):
    "One run of two fails; the tables hold the other one, and the second sweep repeats only what failed"
    grid, out = tmp_path/"grid.yaml", tmp_path/"runs"
    grid.write_text(json.dumps({"presets": ["tr_detr"], "data": ["synthetic"], "overrides": TINY, "variants": {"good": {}, "bad": {"training.select_by": "nonsense"}}}))
    words = ["sweep", str(grid), "--out", str(out), "--workers", "2"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert "1 of 2 steps failed: val/tr_detr/synthetic-bad-seed0" in said.err and "'nonsense' is not measured" in said.out
    runs = pd.read_csv(out/"runs.csv")
    assert runs.system.tolist() == ["tr_detr, good"]*2 and runs.which.tolist() == ["best", "last"] and "picked on validation" in (out/"seeds.md").read_text()
    grid.write_text(json.dumps({"presets": ["tr_detr"], "data": ["synthetic"], "overrides": TINY, "variants": {"good": {}}}))
    assert main(words) == 0 and "val/tr_detr/synthetic-good-seed0: finished before" in capsys.readouterr().out


def test_a_grid_is_a_product_and_orders_its_rows(tmp_path):
    "Planted results: the rows of the tables stand as the grid says, not by the names of the folders"
    from mrhd_nb.core.config import to_dict
    from mrhd_nb.core.files import write_json, write_json_lines
    from mrhd_nb.programs.notebooks import experiment_config, step_record
    (tmp_path/"grid.yaml").write_text(json.dumps({"presets": ["tr_detr"], "data": ["synthetic"], "protocol": "last", "overrides": TINY, "grid": {"model.width": [64, 16, 32], "training.lr": ["1e-3", 0.01]}}))
    (grid,), done = read_grids(tmp_path/"grid.yaml"), []
    for name, cell in expand(grid).items():
        run, config = tmp_path/"out"/name, experiment_config(**cell["parameters"])
        write_json(run/"config.json", to_dict(config))
        write_json_lines(run/"history.jsonl", [{"metrics": None}])
        write_json(run/"metrics.json", {"last": {"epoch": 2, "metrics": {"brief": {"MR-full-mAP": config.training.lr}}}, "train_seconds": 1.})
        write_json(run/"done.json", {"notebooks": {"train": step_record("train", cell["parameters"] | {"device": "cpu"})}})
        done.append(f"tr_detr, width={config.model.width}-lr={'1e-3' if config.training.lr == 0.001 else 0.01}")
    tables = sweep([grid], tmp_path/"out", report=lambda line: None)
    assert [s.split("=")[1].split("-")[0] for s in done] == ["64", "64", "16", "16", "32", "32"]
    assert tables["runs"].system.tolist() == done == [system for _, system, _ in tables["seeds"].index] and tables["runs"]["MR-full-mAP"].tolist() == [0.001, 0.01]*3


def test_rows_are_tested_against_the_best(tmp_path):
    "Planted answers: one arm knows the truth, two guess; without the answers a note says why there is no dagger"
    from mrhd_nb.core.config import to_dict
    from mrhd_nb.core.files import write_json, write_json_lines
    from mrhd_nb.data.annotations import as_json
    from mrhd_nb.data.batches import split_records
    from mrhd_nb.evaluation.metrics import evaluate
    from mrhd_nb.evaluation.statistics import random_answers, true_answers
    from mrhd_nb.programs.notebooks import experiment_config, step_record
    grid, said = Grid(("tr_detr",), ("synthetic",), "last", (1, 2, 3), TINY | {"data.test_queries": 20}, {"knows": {}, "guesses": {"training.lr": 0.1}, "guesses again": {"training.lr": 0.2}}), []
    for name, cell in expand(grid).items():
        run, config = tmp_path/name, experiment_config(**cell["parameters"])
        truth = [as_json(r) for r in split_records(config, "test")]
        answers = true_answers(truth) if cell["variant"] == "knows" else random_answers(truth, config.seed)
        write_json(run/"config.json", to_dict(config))
        write_json_lines(run/"history.jsonl", [{"metrics": None}])
        write_json_lines(run/"submission_last.jsonl", answers)
        write_json(run/"metrics.json", {"last": {"epoch": 2, "metrics": evaluate(answers, truth)}, "train_seconds": 1.})
        write_json(run/"done.json", {"notebooks": {"train": step_record("train", cell["parameters"] | {"device": "cpu"})}})
    write_json(tmp_path/"cells.json", expand(grid))
    sweep([grid], tmp_path, report=said.append, style="markdown", columns="MR-full-R1@0.7,seeds")
    table = next(text for text in said if "† differs" in text).splitlines()
    rows = {line.split("|")[2].strip(): line.split("|")[4].strip() for line in table if "tr_detr" in line}
    assert rows["tr_detr, knows"] == "**100.00 ± 0.00**" and all(rows[f"tr_detr, guesses{more}"].endswith("†") for more in ("", "_again")) and "`MR-full-R1@0.7`" in table[0]
    assert "† differs" in (tmp_path/"seeds.md").read_text() and "†" not in (tmp_path/"seeds.csv").read_text()
    (run/"submission_last.jsonl").unlink()
    sweep([grid], tmp_path, report=said.append)
    assert "no paired tests: " in said[-2] and "submission_last.jsonl: cannot be read" in said[-2] and "†" not in said[-2]


def test_a_ray_cluster_runs_jobs(tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is the extra `cluster`")
    grid, lines = Grid(("tr_detr",), ("synthetic",), "last", overrides=TINY), []
    try:
        sweep([grid], tmp_path, engine="ray", report=lines.append)
        assert (tmp_path/[*expand(grid)][0]/"metrics.json").is_file() and "done after" in lines[0]
        lines.clear()
        sweep([grid], tmp_path, engine="ray", report=lines.append)
    finally: ray.shutdown()
    assert "finished before" in lines[0]
