"Experiment notebooks through Papermill: parameters, run folders, nothing done twice"
import json, os, shutil, subprocess, sys
from pathlib import Path
import nbformat, pytest
from mrhd_nb.core.files import InputError, read_json, write_json
from mrhd_nb.core.config import override, read_config, to_dict
from mrhd_nb.programs.notebooks import Job, NotebookError, check_run, is_finished, notebook_folder, run_jobs, run_notebook
from mrhd_nb.figures.provenance import STAMP

SMALL = ["data.train_queries=24", "data.val_queries=12", "data.test_queries=12", "model.width=16", "model.ffn=16", "training.epochs=2", "training.eval_every=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory)->Path:
    "A run trained by the notebook `train`, tiny"
    out = tmp_path_factory.mktemp("runs")/"taskweave"
    run_notebook("train", out, {"preset": "taskweave_mr2hd", "overrides": SMALL})
    return out


def test_papermill_runs_the_training_notebook_at_smoke_size(root, tmp_path):
    "papermill nbs/experiments/train.ipynb out.ipynb -p preset tr_detr -p seed 3"
    command = [sys.executable, "-m", "papermill", str(root/"nbs/experiments/train.ipynb"), "out.ipynb", "-p", "preset", "tr_detr", "-p", "seed", "3"]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    folder, = (tmp_path/"runs").iterdir()
    config = read_config(folder/"config.json")
    assert (config.preset, config.seed, config.data.name) == ("tr_detr", 3, "synthetic") and len(check_run(folder)) > 8
    executed = nbformat.read(tmp_path/"out.ipynb", 4)
    assert any("image/png" in o.get("data", {}) for c in executed.cells if c.cell_type == "code" for o in c.outputs)


def test_a_run_folder_is_whole(run):
    check_run(run)
    assert all((run/n).is_file() for n in ("train.ipynb", "train.html", "done.json")) and not list(run.glob("*.partial.ipynb"))
    assert read_json(run/"done.json")["notebooks"]["train"]["parameters"]["preset"] == "taskweave_mr2hd"


@pytest.mark.parametrize("select_on", ["val", "test"])
def test_curves_say_that_the_reported_split_picked_the_epoch(select_on, run, tmp_path):
    "The cell of the training notebook that draws them, on a run whose configuration says so"
    shutil.copy(run/"history.jsonl", tmp_path)
    config = override(read_config(run/"config.json"), {"training.select_on": select_on})
    write_json(tmp_path/"config.json", to_dict(config))
    cells = [c.source for c in nbformat.read(notebook_folder()/"train.ipynb", 4).cells if c.cell_type == "code"]
    names = {"resolved": config, "folder": tmp_path}
    for start in ("%matplotlib", "curves ="): exec(next(c for c in cells if c.startswith(start)).replace("%matplotlib inline", ""), names)
    titles = {ax.get_ylabel(): ax.get_title() for ax in names["drawn"].axes}
    assert titles[config.training.select_by] == (STAMP if select_on == "test" else "") and sum(map(bool, titles.values())) == (select_on == "test")
    assert (tmp_path/"figures"/"curves.png").is_file()


def test_nothing_is_done_twice(run):
    before = {p: p.stat().st_mtime_ns for p in run.iterdir()}
    run_notebook("train", run, {"preset": "taskweave_mr2hd", "overrides": SMALL})
    lines = []
    run_jobs([Job("again", "train", str(run), {"preset": "taskweave_mr2hd", "overrides": SMALL})], report=lines.append)
    assert before == {p: p.stat().st_mtime_ns for p in run.iterdir()} and lines == ["again: finished before"]


def test_a_worker_gives_the_same_bits_as_a_notebook_of_its_own(run, tmp_path):
    "Two other jobs run before in the same process, and one of them fails"
    same, lines = {"preset": "taskweave_mr2hd", "overrides": SMALL}, []
    jobs = [Job("other", "train", str(tmp_path/"a"), same | {"preset": "tr_detr", "seed": 5}), Job("fails", "train", str(tmp_path/"b"), same | {"data": "nowhere"}),
            Job("same", "train", str(tmp_path/"c"), same)]
    with pytest.raises(NotebookError, match="1 of 3 steps failed: fails"): run_jobs(jobs, workers=1, report=lines.append)
    assert "done" in lines[0] and "'nowhere'" in lines[1] and "done" in lines[2]
    for name in ("last.safetensors", "best.safetensors", "submission_last.jsonl", "config.json"): assert (tmp_path/"c"/name).read_bytes() == (run/name).read_bytes(), name


def test_another_run_does_not_overwrite_one(run):
    before = (run/"metrics.json").read_bytes()
    with pytest.raises(InputError, match="holds another run.*seed"): run_notebook("train", run, {"preset": "taskweave_mr2hd", "overrides": SMALL, "seed": 1})
    assert (run/"metrics.json").read_bytes() == before


@pytest.mark.parametrize("name", sorted(p.stem for p in notebook_folder().glob("*.ipynb")))
def test_a_misspelt_parameter_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="'sede'"): run_notebook(name, tmp_path/"never", {"sede": 3})
    assert not (tmp_path/"never").exists()


def test_a_killed_notebook_is_not_finished(run, tmp_path):
    "What is on disk when a kernel is killed: half a notebook, no record in done.json"
    for name in ("train.ipynb", "train.html"): (tmp_path/name).write_bytes((run/name).read_bytes())
    assert not is_finished("train", tmp_path, {"preset": "taskweave_mr2hd", "overrides": SMALL})


def test_evaluation_gives_the_run_s_own_numbers_and_a_control(run, tmp_path):
    run_notebook("evaluate", tmp_path, {"run": str(run)})
    assert read_json(tmp_path/"metrics.json") == read_json(run/"metrics.json")["last"]["metrics"]
    assert (tmp_path/"submission.jsonl").read_bytes() == (run/"submission_last.jsonl").read_bytes()
    control = [json.loads(line) for line in open(tmp_path/"submission_shuffled.jsonl")]
    assert len(control) == 12 and read_json(tmp_path/"metrics_shuffled.json") != read_json(tmp_path/"metrics.json")
