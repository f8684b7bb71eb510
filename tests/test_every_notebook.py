"Every library notebook and every tutorial runs from top to bottom"
import os
from pathlib import Path
import pytest
from nbdev.test import test_nb as run_notebook

NBS = Path(__file__).resolve().parent.parent/"nbs"
# Flags of cells that this machine skips, unless MRHD_TEST_FLAGS names them
FLAGS = ("slow", "gpu")


@pytest.mark.parametrize("path", [NBS/"index.ipynb", *sorted(NBS.glob("[1-9]_*/*.ipynb")), *sorted((NBS/"tutorials").glob("*.ipynb"))], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_runs(path, capfd):
    passed, _ = run_notebook(path, skip_flags=FLAGS, force_flags=os.environ.get("MRHD_TEST_FLAGS", "").split(), basepath=NBS.parent)
    assert passed, capfd.readouterr().err
