"Shared by every test: one thread (set before torch is imported), the folder of reference files, the wheel"
import os
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MRHD_LEDGER", "off") # tests leave no line in a ledger beside real annotations

import shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    config.addinivalue_line("markers", "xdist_group(name): tests that stay in one process (pytest-xdist)")


@pytest.hookimpl(tryfirst=True) # before pytest-xdist 3.8 reads the marks (which it cannot with pytest 9.2)
def pytest_collection_modifyitems(items):
    "Spread over processes, a file stays in one of them, so that its fixtures are made once; notebooks go one by one"
    for item in items:
        if item.path.stem != "test_every_notebook": item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def root()->Path:
    "The repository"
    return ROOT


@pytest.fixture(scope="session")
def shared()->Path:
    "Released predictions, annotations, features and golden tensors; a test that needs them is skipped without them"
    path = Path(os.environ.get("MRHD_SHARED", ROOT.parent/"shared")).resolve()
    if not path.is_dir(): pytest.skip(f"no reference files: {path} is not a folder (MRHD_SHARED names it)")
    return path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory)->Path:
    "A wheel built from a copy of the tree, so that nothing is left in it"
    tree = tmp_path_factory.mktemp("tree")
    for name in ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"): shutil.copy(ROOT/name, tree)
    for name in ("mrhd_nb", "nbs"): shutil.copytree(ROOT/name, tree/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(build, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout+done.stderr
    return next((tree/"dist").glob("*.whl"))
