"The ledger beside the data: several processes add to one, and a folder that cannot be written costs a line, never a run"
import contextlib, json, multiprocessing, os
from dataclasses import replace
import numpy as np
import pytest
from mrhd_nb.data.annotations import Record, write_annotations
from mrhd_nb.core.config import DataConfig, RunConfig, StreamConfig, override
from mrhd_nb.core.presets import run_config
from mrhd_nb.evaluation.ledger import append_line, read_ledger
from mrhd_nb.learning.training import train

TINY = {"model.width": 16, "model.heads": 2, "model.ffn": 16, "training.batch_size": 4, "training.epochs": 1, "training.eval_every": 1}


@pytest.fixture()
def data(tmp_path, monkeypatch)->DataConfig:
    "Six videos with features, of which two are test"
    monkeypatch.delenv("MRHD_LEDGER", raising=False)
    folder, draw = tmp_path/"data", np.random.default_rng(0)
    folder.mkdir()
    records = [Record(i, "someone cooks", 20, f"v{i}", ((2*i, 2*i+6),), (i, i+1), ((3, 3, 4), (4, 4, 2))) for i in range(6)]
    for r in records: np.save(folder/f"{r.vid}.npy", draw.normal(size=(10, 4))), np.save(folder/f"q{r.qid}.npy", draw.normal(size=(3, 4)))
    write_annotations(folder/"train.jsonl", records[:4])
    write_annotations(folder/"test.jsonl", records[4:])
    return DataConfig("own", "qvhighlights", (StreamConfig("rows", ("{vid}.npy",), 4),), StreamConfig("words", ("q{qid}.npy",), 4), root=str(folder), train="train.jsonl", test="test.jsonl", holdout=0.5)


def tiny(data:DataConfig, seed:int=0)->RunConfig:
    config = run_config("tr_detr", "synthetic", seed=seed, overrides=TINY)
    return override(replace(config, data=data, model=replace(config.model, video_dim=data.video_dim, text_dim=data.text.dim)), {"training.select_on": "none"})


@contextlib.contextmanager
def unprivileged(*folders):
    "Without the rights of root, which may write anywhere; the folders are open to all"
    for folder in folders: folder.chmod(0o777)
    if os.geteuid(): yield
    else:
        os.seteuid(65534)
        try: yield
        finally: os.seteuid(0)


def test_runs_add_to_one_ledger_beside_the_annotations(data, tmp_path, capsys):
    for seed in (0, 1): train(tiny(data, seed), tmp_path/f"run{seed}", progress=False)
    lines, left = read_ledger(tmp_path/"data"/"test.ledger.jsonl"), sorted(p.name for p in (tmp_path/"data").glob("*.lock"))
    assert {str(tmp_path/f"run{seed}") for seed in (0, 1)} == {os.path.dirname(line["run"]) for line in lines} and left == []
    assert "2 different submissions so far" in capsys.readouterr().err


def test_a_data_folder_that_cannot_be_written_costs_one_line(data, tmp_path, capsys):
    (out := tmp_path/"runs").mkdir()
    for parent in [p for p in tmp_path.parents if p.stat().st_uid == os.geteuid() and len(p.parts) > 2]: parent.chmod(0o755) # pytest's, closed to others
    (tmp_path/"data").chmod(0o555)
    before = sorted(p.name for p in (tmp_path/"data").iterdir())
    with unprivileged(tmp_path, out): train(tiny(data), out/"run", progress=False)
    said = [line for line in capsys.readouterr().err.splitlines() if "test split" in line]
    assert said and all("could not be recorded" in line and "Permission denied" in line and "MRHD_LEDGER" in line for line in said)
    assert (out/"run"/"done.json").is_file() and json.loads((out/"run"/"metrics.json").read_text())["last"]["metrics"]["brief"]
    assert sorted(p.name for p in (tmp_path/"data").iterdir()) == before


def add(path, who):
    "A process that writes twenty lines"
    for i in range(20): append_line(path, dict.fromkeys(("time", "split", "digest", "metrics"), "x") | {"submission": f"{who}-{i}"})


def test_no_line_is_lost_between_processes(tmp_path):
    "The lock goes with each line; whoever waited for it sees that, and takes a new one"
    path = tmp_path/"test.ledger.jsonl"
    workers = [multiprocessing.get_context("fork").Process(target=add, args=(path, who)) for who in range(4)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    assert {line["submission"] for line in read_ledger(path)} == {f"{who}-{i}" for who in range(4) for i in range(20)}
    assert os.listdir(tmp_path) == [path.name]
