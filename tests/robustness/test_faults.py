"What goes wrong around a run: each fault ends in one clear line, nothing valid is lost, no `done.json` lies, and the run goes on when the fault is gone"
import os, pickle, subprocess, sys, tempfile
from pathlib import Path
import nbformat, numpy as np, pytest, torch
from mrhd_nb.data import batches
from mrhd_nb.learning import training
from mrhd_nb.programs.cli import answer
from mrhd_nb.learning.checkpoints import load_model
from mrhd_nb.programs.parity import read_golden
from mrhd_nb.model.released import read_released
from mrhd_nb.core.files import InputError
from mrhd_nb.core.config import override
from mrhd_nb.core.presets import run_config
from mrhd_nb.programs.notebooks import Job, NotebookError, run_jobs, run_notebook
from mrhd_nb.data.features import load_array
from mrhd_nb.data.batches import open_split
from mrhd_nb.data.synthetic import make, write
from mrhd_nb.learning.training import State, train

SMALL = {"data.train_queries": 16, "data.val_queries": 8, "data.test_queries": 4, "model.width": 16, "model.ffn": 16, "model.moment_queries": 4,
         "training.epochs": 2, "training.batch_size": 8, "training.eval_every": 1, "training.save_every": 2}
CONFIG = run_config("taskweave_mr2hd", "synthetic", overrides=SMALL)


def valid(folder:Path):
    "Nothing in the folder is half a file, and it does not claim to be finished"
    assert not (folder/"done.json").exists() and not list(folder.glob(".*.tmp"))
    if (folder/"resume.pt").exists(): State(CONFIG).load(folder/"resume.pt")
    for path in folder.glob("*.safetensors"): load_model(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory)->Path:
    "A run that nothing happened to"
    out = tmp_path_factory.mktemp("whole")
    train(CONFIG, out, progress=False)
    return out


def same(folder:Path, whole:Path)->bool:
    "Did the run end as the undisturbed one?"
    return all((folder/n).read_bytes() == (whole/n).read_bytes() for n in ("best.safetensors", "last.safetensors", "submission_best.jsonl", "submission_last.jsonl"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", ["resume.pt", "best.safetensors", "history.jsonl", "submission_last.jsonl", "metrics.json", "done.json"])
def test_full_disk(name, whole, tmp_path, monkeypatch):
    "The kernel answers a write to /dev/full as it answers one to a full disk; here the temporary file leads there, from the first evaluation on"
    score, temporary = training.score, tmp_path/f".{name}.{os.getpid()}.tmp"
    def fill(*arguments, **options):
        if not temporary.is_symlink(): temporary.symlink_to("/dev/full")
        return score(*arguments, **options)
    monkeypatch.setattr(training, "score", fill)
    with pytest.raises(OSError, match="No space left on device") as caught: train(CONFIG, tmp_path, progress=False)
    assert caught.value.filename == str(tmp_path/name)
    valid(tmp_path)
    monkeypatch.undo()
    train(CONFIG, tmp_path, progress=False)
    assert same(tmp_path, whole)


def test_read_only_folder(capsys):
    "As another user where this one may write everywhere"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        root = os.geteuid() == 0
        if root: os.seteuid(65534)
        try: status = answer(lambda: train(CONFIG, f"{folder}/run", progress=False))
        finally:
            if root: os.seteuid(0)
        assert status == 2 and capsys.readouterr().err == f"mrhd: {folder}/run: Permission denied\n" and not os.listdir(folder)


@pytest.fixture
def files(tmp_path)->Path:
    "The embedded benchmark as feature files"
    return write(make(0, train=16, val=8, test=4), tmp_path/"data")


def of_files(folder:Path):
    "A run on them"
    data = override(run_config("taskweave_mr2hd", "synthetic", overrides=SMALL).data, {"name": "files", "root": str(folder),
        "train": "highlight_train_release.jsonl", "val": "highlight_val_release.jsonl", "test": "highlight_val_release.jsonl"})
    return run_config("taskweave_mr2hd", data, overrides={n: v for n, v in SMALL.items() if not n.startswith("data.")})


def clip_file(config, split:str, i:int)->Path:
    return Path(config.data.root)/"clip_features"/f"{open_split(config, split).records[i].vid}.npz"


def missing(path:Path): path.unlink()
def damaged(path:Path): path.write_bytes(path.read_bytes()[:-40])
def undefined(path:Path):
    rows = np.load(path)["features"]
    rows[5, 3] = np.nan
    np.savez(path, features=rows)


@pytest.mark.parametrize("hurt, said", [(missing, "cannot be read: No such file"), (damaged, "not a feature file"), (undefined, "row 5 is not finite")])
def test_feature_file(hurt, said, files, tmp_path):
    "The line names the file and the record; with the file as it was, the run ends as it would have"
    config, out = of_files(files), tmp_path/"run"
    path = clip_file(config, "val", -1) # met before the first step, when what will be scored is read
    kept = path.read_bytes()
    hurt(path)
    with pytest.raises(InputError) as caught: train(config, out, progress=False)
    assert str(path) in str(caught.value) and said in str(caught.value) and "highlight_val_release.jsonl:8" in str(caught.value)
    assert not (out/"resume.pt").exists() and not (out/"done.json").exists()
    path.write_bytes(kept)
    train(config, out, progress=False)
    train(config, tmp_path/"whole", progress=False)
    assert same(out, tmp_path/"whole")


def test_feature_file_that_changes_during_the_run(files, tmp_path, monkeypatch):
    config, out = of_files(files), tmp_path/"run"
    path = clip_file(config, "train", 0)
    monkeypatch.setattr(batches, "CACHE_BYTES", 0) # as with data larger than the memory kept for them
    keep = training.keep
    def touch(*arguments):
        os.utime(path, (1, 1))
        return keep(*arguments)
    monkeypatch.setattr(training, "keep", touch)
    with pytest.raises(InputError, match="has changed while it was in use"): train(config, out, progress=False)
    assert not (out/"done.json").exists()


def test_annotations_that_changed_before_the_run_went_on(files, tmp_path):
    config, out = of_files(files), tmp_path/"run"
    class Stop(Exception): pass
    def stop(*_, **options): raise Stop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "score", stop)
        with pytest.raises(Stop): train(config, out, progress=False)
    text = (files/"highlight_train_release.jsonl").read_text().splitlines(keepends=True)
    (files/"highlight_train_release.jsonl").write_text("".join(text[:-1]))
    with pytest.raises(InputError, match="data have changed since this run began.*train.records"): train(config, out, progress=False)


@pytest.mark.parametrize("name", ["resume.pt", "config.json"])
def test_damaged_run_folder(name, whole, tmp_path):
    for file in ("resume.pt", "config.json", "environment.json"): (tmp_path/file).write_bytes((whole/file).read_bytes())
    data = (whole/name).read_bytes()
    (tmp_path/name).write_bytes(data[:len(data)//2])
    with pytest.raises(InputError, match=f"{name}.*(damaged, or not a state of this run.*; remove it|not JSON)"): train(CONFIG, tmp_path, progress=False)
    assert (tmp_path/name).read_bytes() == data[:len(data)//2]


def test_memory_limit(tmp_path):
    "A batch that does not fit: one exception that says so, and a folder that is still good"
    code = f"""
import resource, torch
from mrhd_nb.core.presets import run_config
from mrhd_nb.learning.training import train
import mrhd_nb.learning.training as training
config = run_config("tr_detr", "synthetic", overrides={SMALL | {"model.ffn": 100_000, "training.batch_size": 16}})
run = training.train_step
def limited(*arguments, **options):
    used = int(open("/proc/self/statm").read().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used+(1<<27), resource.RLIM_INFINITY))
    return run(*arguments, **options)
training.train_step = limited
try: train(config, {str(tmp_path)!r}, progress=False)
except (MemoryError, RuntimeError) as e: print("stopped:", str(e).splitlines()[0])
"""
    if not sys.platform.startswith("linux"): pytest.skip("memory limits of Linux")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "allocate" in done.stdout, done.stdout+done.stderr
    assert not (tmp_path/"done.json").exists() and not list(tmp_path.glob(".*.tmp"))


def notebook(path:Path, code:str)->Path:
    "A notebook with one parameter and one cell"
    made, first = nbformat.v4.new_notebook(), nbformat.v4.new_code_cell("out: str = ''")
    first.metadata["tags"] = ["parameters"]
    made.cells, made.metadata = [first, nbformat.v4.new_code_cell(code)], {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    nbformat.write(made, path)
    return path


def test_kernel_that_dies(tmp_path):
    path = notebook(tmp_path/"dies.ipynb", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookError, match="^dies.ipynb: its process died, killed or out of memory; .*run it again") as caught: run_notebook(path, tmp_path/"out")
    assert "\n" not in str(caught.value) and not (tmp_path/"out"/"done.json").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_under_a_notebook(tmp_path, capsys):
    "The line names the file; with room again the notebook runs"
    path, partial = notebook(tmp_path/"a.ipynb", "1+1"), tmp_path/"out"/"a.partial.ipynb"
    partial.parent.mkdir()
    partial.symlink_to("/dev/full")
    assert answer(lambda: run_notebook(path, partial.parent)) == 2
    assert capsys.readouterr().err == f"mrhd: {partial}: No space left on device\n" and not (partial.parent/"done.json").exists()
    partial.unlink()
    run_notebook(path, partial.parent)
    assert (partial.parent/"done.json").exists()


def test_worker_that_is_killed(tmp_path):
    "The others finish, and the line names the signal"
    dies = notebook(tmp_path/"dies.ipynb", "import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    lives = notebook(tmp_path/"lives.ipynb", "1+1")
    lines = []
    jobs = [Job("dies", str(dies), str(tmp_path/"a")), Job("lives", str(lives), str(tmp_path/"b"))]
    with pytest.raises(NotebookError, match="1 of 2 steps failed: dies"): run_jobs(jobs, workers=1, report=lines.append)
    assert "killed by SIGKILL" in lines[0] and lines[1].startswith("lives: done") and (tmp_path/"b"/"done.json").exists()
    assert not (tmp_path/"a"/"done.json").exists()


class Payload:
    "Runs a command when it is unpickled"
    def __init__(self, path:Path): self.path = path
    def __reduce__(self): return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("reader", [read_released, load_array, read_golden, lambda p: State(CONFIG).load(p)], ids=["weights", "features", "golden", "state"])
def test_no_reader_runs_code_from_a_file(reader, tmp_path):
    ran = tmp_path/"ran"
    pickle.loads(pickle.dumps(Payload(ran)))
    assert ran.exists() # the payload works
    ran.unlink()
    made = {"torch.pt": lambda p: torch.save({"model": Payload(ran)}, p), "plain.pt": lambda p: p.write_bytes(pickle.dumps(Payload(ran))),
            "a.npy": lambda p: np.save(p, np.array([Payload(ran)], object), allow_pickle=True)}
    for name, make_file in made.items():
        make_file(tmp_path/name)
        with pytest.raises(InputError): reader(tmp_path/name)
        assert not ran.exists(), name
