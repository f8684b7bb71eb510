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


@pytest.fixture(scope="module") # not longer: it keeps an event loop, which other tests cannot have beside their own
def browser():
    "Chromium as Debian packages it, driven by playwright, which downloads nothing; a test that needs it is skipped without it"
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None: pytest.skip("no chromium on the path (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def film(tmp_path_factory)->Path:
    "A film of 150 s, grey that gets lighter"
    av, np = pytest.importorskip("av", reason="no av to make a film with"), pytest.importorskip("numpy")
    path = tmp_path_factory.mktemp("film")/"grey.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=2)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 36, "yuv420p", 10
        for i in range(300):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((36, 64, 3), i*255//300, np.uint8))))
        container.mux(stream.encode())
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
