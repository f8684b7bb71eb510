"A run that was killed ends as one that was not; a folder belongs to one run at a time, and to one configuration"
import os, re, subprocess, sys, time
from pathlib import Path
import pytest
from mrhd_nb.core.files import InputError
from mrhd_nb.core.presets import run_config
from mrhd_nb.learning.runs import hold_folder
from mrhd_nb.learning.training import train

SMALL = {"data.train_queries": 16, "data.val_queries": 8, "data.test_queries": 4, "model.width": 16, "model.ffn": 16, "training.epochs": 1}
MOMENTS = os.environ.get("MRHD_MOMENTS", "20")


def test_killed_at_moments_drawn_by_the_clock(tmp_path):
    "In an epoch, in an evaluation, while a file is written, two of each at least: the same bits in every file"
    seed = os.environ.get("MRHD_SEED", str(time.time_ns()))
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("killed.py")), str(tmp_path), MOMENTS, seed], capture_output=True, text=True)
    print(done.stdout) # the seed: MRHD_SEED draws the same delays again
    assert done.returncode == 0, done.stdout+done.stderr
    assert "all ended with the same bits" in done.stdout and not list(tmp_path.glob("*/.*.tmp"))


def test_two_runs_in_one_folder_refuse_each_other(tmp_path):
    "The second says who holds the folder; a finished run can be read by anyone"
    code = f"from mrhd_nb.core.presets import run_config; from mrhd_nb.learning.training import train; train(run_config('tr_detr', 'synthetic', overrides={SMALL | {'training.epochs': 99}}), {str(tmp_path)!r})"
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic()+120
        while not (tmp_path/"history.jsonl").exists() and time.monotonic() < deadline: time.sleep(0.05)
        with pytest.raises(InputError, match=re.escape(f"{tmp_path}: another run is at work in this folder (process {first.pid} on ")):
            train(run_config("tr_detr", "synthetic", overrides=SMALL), tmp_path, progress=False)
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    with hold_folder(tmp_path): pass # the dead one's hold ended with it


def test_a_folder_of_another_configuration_is_refused_and_left_as_it_was(tmp_path):
    config = run_config("tr_detr", "synthetic", overrides=SMALL)
    results = train(config, tmp_path, progress=False)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match="training.lr is .* there and 0.5 here"):
        train(run_config("tr_detr", "synthetic", overrides=SMALL | {"training.lr": 0.5}), tmp_path, progress=False)
    with hold_folder(tmp_path): assert train(config, tmp_path, progress=False) == results
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()}.items() >= {n: b for n, b in before.items() if n != ".lock"}.items()
