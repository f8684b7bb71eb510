"What a user who is no developer gets: the wheel, without nbdev and fastcore"
import configparser, email, json, os, re, subprocess, sys, zipfile
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p.name for p in (ROOT/"nbs"/"experiments").glob("*.ipynb"))
TUTORIALS = sorted(p.name for p in (ROOT/"nbs"/"tutorials").glob("*.ipynb"))
MODULES = sorted(f"{p.parent.name}.{p.stem}" for p in (ROOT/"mrhd_nb").glob("*/*.py") if p.stem != "__init__")
DEVELOPMENT = ("nbdev", "fastcore", "execnb", "ghapi", "fastgit", "jupyterlab", "pytest", "hypothesis", "build",
               "onnx", "onnxscript", "onnxruntime", "opentimelineio", "av", "mypy")
# Stands in for a machine that has only what a user installs
BLOCK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {DEVELOPMENT!r}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory)->dict:
    "The environment of a user's Python: the unpacked wheel first on the path, the development tools absent"
    place = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as z: z.extractall(place)
    (place/"sitecustomize.py").write_text(BLOCK)
    return os.environ | {"PYTHONPATH": str(place)}


def python(code:str, environment:dict, cwd:Path)->str:
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout+done.stderr
    return done.stdout


def test_wheel_holds_modules_notebooks_weights_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {n.removeprefix("mrhd_nb/") for n in names if n.startswith("mrhd_nb/")}
    notebooks = {n.removeprefix("notebooks/") for n in inside if n.startswith("notebooks/")}
    assert {f"{m.replace('.', '/')}.py" for m in MODULES} <= inside and {"py.typed", "datasets.yaml", "recipes.yaml", "registry.yaml", "published.yaml", "released.yaml", "parameter_names.yaml", "model_card.yaml", "view.js", "view.css"} <= inside
    assert sorted(n for n in notebooks if "/" not in n and n.endswith(".ipynb")) == NOTEBOOKS
    assert sorted(n for n in notebooks if n.startswith("tutorials/")) == [f"tutorials/{n}" for n in TUTORIALS]
    assert any(n.startswith("weights/") and n.endswith(".safetensors") for n in inside)
    assert all(n.startswith(("mrhd_nb/", "mrhd_nb-")) for n in names)
    assert not [n for n in names if re.search(r"\.ipynb_checkpoints|__pycache__|tests/|\.partial\.", n)]


def test_metadata_says_what_settings_say(wheel):
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT/"settings.ini")
    z = zipfile.ZipFile(wheel)
    read = lambda end: z.read(next(n for n in z.namelist() if n.endswith(end))).decode()
    meta = email.message_from_string(read(".dist-info/METADATA"))
    assert meta["Name"] == settings["DEFAULT"]["lib_name"] and meta["Version"] == settings["DEFAULT"]["version"]
    assert meta["License-Expression"] == "Apache-2.0" and meta["Requires-Python"] == ">="+settings["DEFAULT"]["min_python"]
    needed = [r for r in meta.get_all("Requires-Dist") if "extra ==" not in r]
    assert sorted(needed) == sorted(settings["DEFAULT"]["requirements"].split())
    assert not [r for r in needed if re.match(r"[\w-]+", r)[0] in DEVELOPMENT]
    assert "mrhd = mrhd_nb.programs.cli:main" in read("entry_points.txt")
    targets = re.findall(r"\]\(([^)]+)\)", meta.get_payload())
    assert len(targets) > 10 and all(re.match(r"https://|#", t) for t in targets) # a package index has no files beside the page
    assert [t for t in targets if t.endswith(".png")] == ["https://raw.githubusercontent.com/mrhd-nb/mrhd_nb/main/figures/fig_attention.png"]


def test_versions_agree():
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT/"settings.ini")
    version = settings["DEFAULT"]["version"]
    assert f'__version__ = "{version}"' in (ROOT/"mrhd_nb"/"__init__.py").read_text()
    assert f"## {version} (" in (ROOT/"CHANGELOG.md").read_text() and f"version: {version}" in (ROOT/"CITATION.cff").read_text()


def test_every_pin_is_a_pin():
    "constraints.txt pins versions, torch first, and all that settings.ini asks for"
    lines = (ROOT/"constraints.txt").read_text().splitlines()
    assert lines[0].startswith("torch==") and all(re.match(r"[\w.-]+==[\w.]+( ;.*)?$", line) for line in lines)
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT/"settings.ini")
    asked = settings["DEFAULT"]["requirements"].split()+settings["DEFAULT"]["dev_requirements"].split()+settings["DEFAULT"]["cluster_requirements"].split()
    assert {re.match(r"[\w-]+", r)[0] for r in asked} <= {line.split("==")[0] for line in lines}


def test_every_module_imports_without_the_development_tools(installed, tmp_path):
    absent = "import importlib.util as u\ntry: u.find_spec('nbdev'); raise SystemExit('nbdev is there')\nexcept ModuleNotFoundError: pass\n"
    code = absent+f"import importlib; [importlib.import_module('mrhd_nb.'+m) for m in {MODULES!r}]; import mrhd_nb; print(mrhd_nb.__file__)"
    assert Path(python(code, installed, tmp_path).strip()).parent.parent == Path(installed["PYTHONPATH"])


@pytest.mark.parametrize("arguments, expected", [(["--help"], ["train", "evaluate", "predict", "parity", "notebooks"]),
                                                 (["notebooks"], [Path(n).stem for n in NOTEBOOKS+TUTORIALS])])
def test_command_answers_without_the_development_tools(installed, tmp_path, arguments, expected):
    code = f"import sys; sys.argv = ['mrhd', *{arguments!r}]; from mrhd_nb.programs.cli import main; sys.exit(main())"
    said = python(code, installed, tmp_path)
    for word in expected: assert word in said


def test_the_top_of_the_package_imports_nothing_until_it_is_used():
    code = "import sys, mrhd_nb; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(mrhd_nb.__all__, mrhd_nb.preset('tr_detr').preset)"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    took = next(line for line in done.stderr.splitlines() if line.endswith("| mrhd_nb"))
    assert int(took.split("|")[1]) < 100_000 # microseconds, with all that it imports
    for name in ("preset", "run_config", "MomentModel", "train", "evaluate", "Predictor", "load"): assert f"'{name}'" in done.stdout
