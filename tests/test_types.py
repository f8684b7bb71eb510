"What a type checker tells someone who uses the public API: nothing where the use is right, and the line where it is wrong"
import os, subprocess, sys
import pytest
import mrhd_nb

USE = """from pathlib import Path
import torch
from mrhd_nb import MomentModel, Predictor, evaluate, load, preset, run_config, train
run = run_config("tr_detr", "synthetic", seed=1, overrides={"training.epochs": 2})
results: dict = train(run, Path("runs/a"), progress=False)
model: MomentModel = load("runs/a")
width: int = model.config.width + preset("tr_detr").model.width
scores: dict = evaluate("s.jsonl", "a.jsonl", dataset="qvhighlights")
answer = Predictor("runs/a", device=torch.device("cpu")).predict(["clip.npz"], query="a dog", nms=.7)
best: float = answer.moments[0][2]
"""
WRONG = """from mrhd_nb import load, preset, run_config
run_config(3)
run_config("tr_detr", sed=1)
load("runs/a").config.widht
preset("tr_detr").training.epochs + "a"
"""


def check(code:str, folder)->list[str]:
    (folder/"use.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent", f"--cache-dir={folder}", "use.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"MYPYPATH": os.path.dirname(os.path.dirname(mrhd_nb.__file__))})
    assert done.returncode in (0, 1), done.stdout+done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


def test_a_type_checker_knows_the_public_api(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    assert check(USE, tmp_path) == []
    assert [line.split(":")[1] for line in check(WRONG, tmp_path)] == ["2", "3", "4", "5"]


def test_checkers_are_told_of_every_public_name():
    "The imports for type checkers and the table of lazy names say the same"
    text = open(mrhd_nb.__file__).read()
    for name, place in mrhd_nb._PLACES.items(): assert any(line.strip().startswith(f"from .{place} import ") and name in line for line in text.splitlines()), name
