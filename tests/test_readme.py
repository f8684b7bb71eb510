"The commands that the README shows work as they are shown"
import os, re, shlex, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT/"README.md").read_text()
BLOCKS = [[shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]
          for block in re.findall(r"```sh\n(.*?)```", README, re.S)]
# What a training command is run with besides what the README shows
SMOKE = {"training.epochs": 2, "training.eval_every": 1, "data.train_queries": 48, "data.val_queries": 24, "data.test_queries": 24, "model.width": 32, "model.ffn": 64}
TARGETS = re.findall(r"^([a-z]+):", (ROOT/"Makefile").read_text(), re.M)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b[0][0] != "make"], ids=lambda b: b[0][0])
def test_commands_run(block, tmp_path):
    "One after another in one folder, as a reader types them; notebooks are small by default, other trainings are made small"
    (tmp_path/"nbs").symlink_to(ROOT/"nbs")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in block:
        if command[:2] == ["mrhd", "train"]: command = [*command, *(w for name, v in SMOKE.items() for w in ("--set", f"{name}={v}"))]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"


def test_python_runs(tmp_path):
    "The five lines of Python, as they stand"
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code.splitlines()) == 5
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "MR-full-mAP" in done.stdout, done.stderr


def test_make_targets_exist():
    for target in re.findall(r"`?make ([a-z]+)", README): assert target in TARGETS, target
