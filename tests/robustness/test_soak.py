"A few hundred steps hold no more memory and no more files in the end than after the first; `python tests/robustness/soak.py` goes on for 200 epochs"
import mmap, sys
from pathlib import Path
import pytest
from mrhd_nb.learning import training
sys.path.insert(0, str(Path(__file__).parent))
import soak


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_what_is_held_is_seen(tmp_path):
    before = soak.held()
    with mmap.mmap(-1, 50<<20) as kept: # from the system: an array may come from memory that the process has freed and still holds
        kept.write(bytes(range(256))*(50<<12))
        files = [open(tmp_path/str(i), "w") for i in range(3)]
        now = soak.held()
    for file in files: file.close()
    assert now["resident_mb"]-before["resident_mb"] > 40 and now["open_files"]-before["open_files"] == 3


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_nothing_grows(tmp_path, monkeypatch):
    "Training, evaluating and saving on a store: from the second fifth of the steps on, less memory is taken than 20 batches hold"
    monkeypatch.setattr(training, "train_step", training.train_step) # which the soak replaces
    config = soak.soak_config(tmp_path, "taskweave_both", 25, {"train": 64, "val": 8, "test": 8})
    lines = soak.train(tmp_path, config, every=20)
    assert list(lines.step) == list(range(20, 201, 20)) and (lines.step_ms > 0).all()
    settled = lines[lines.step > 40]
    assert settled.open_files.nunique() == 1, lines.to_string()
    assert settled.resident_mb.max()-settled.resident_mb.iloc[0] < 24 and settled.objects.max() < 1.01*settled.objects.iloc[0], lines.to_string()
    assert soak.describe(lines).count("\n") == 11


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_run_starts_without_what_it_does_not_need(tmp_path):
    row = soak.start_on(tmp_path, 96)
    assert row.pop("needless") == []
    assert 0 < row["imports_s"] < row["first_batch_s"] < row["first_step_s"] < row["pass_s"]
    assert all(row[f"{when}_private_mb"] > 50 < row[f"{when}_file_mb"] for when in ("first_batch", "first_step", "pass"))
