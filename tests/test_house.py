"The house rules that a program can check; CONTRIBUTING.md says them in words"
import ast, base64, importlib, inspect, json, os, re, shutil, statistics, subprocess, sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
import papermill, pytest, torch

ROOT = Path(__file__).resolve().parent.parent
NBS, PACKAGE = ROOT/"nbs", ROOT/"mrhd_nb"
CELL_MEDIAN, CELL_LINES, CLASS_LINES, MODULE_LINES, WIDTH, IMAGE_BYTES = 15, 60, 60, 500, 100, 60_000
BUDGET, CORE_BUDGET = 11_780, 2_600
CORE = ("core/spans", "model/*", "learning/matching", "learning/losses", "learning/training", "evaluation/metrics", "evaluation/moments")
EXPERIMENT_PARAMETERS = {"preset", "data", "seed", "overrides", "device", "out"}
# What only some modules may import or call
PLACES = {"matplotlib": {"figures"}, "seaborn": {"figures"}, "papermill": {"programs"}, "nbdev": set(), "fastcore": set(), "execnb": set(), "random": set()}
SEEDERS = {"core.files", "model.model", "learning.training"} # named generators; initial weights, in a fork; dropout
# Each package may import from itself and from those named here
PACKAGES = {"core": (), "data": ("core",), "model": ("core", "data"), "evaluation": ("core", "data"), "learning": ("core", "data", "model", "evaluation")}
PACKAGES |= {"inference": (*PACKAGES["learning"], "learning")}
PACKAGES |= {"figures": (*PACKAGES["inference"], "inference")}
PACKAGES |= {"programs": (*PACKAGES["figures"], "figures")}
DRAWS = {"rand", "randn", "randint", "randperm", "multinomial", "normal", "bernoulli", "rand_like", "randn_like",
         "uniform_", "normal_", "bernoulli_", "random_", "exponential_"}
TEST_CALLS = re.compile(r"assert_\w+|raises|testing\.\w+")
ABSOLUTE = re.compile(r"(?<![\w.])/(?:work|root|home|tmp|Users|opt|var|mnt)/|[A-Za-z]:\\\\")
PROGRESS = re.compile(r"\d(?:it/s|s/it)|[█▏▎▍▌▋▊▉]|Wall time|0x[0-9a-f]{8,}")


@dataclass(frozen=True)
class Cell:
    kind:str
    source:str
    outputs:tuple
    metadata:dict

    @cached_property
    def directives(self)->list[str]:
        return [line[2:].strip() for line in self.source.splitlines() if line.startswith("#|")]

    @cached_property
    def code(self)->str:
        "Without directives and shell or notebook magics"
        return "\n".join(line for line in self.source.splitlines() if not line.startswith(("#|", "%", "!"))).strip()

    @cached_property
    def tree(self)->ast.Module: return ast.parse(self.code)

    @property
    def lines(self)->int: return len(self.code.splitlines())

    @property
    def exported(self)->bool: return self.kind == "code" and any(re.match(r"exporti?s?\b", d) for d in self.directives)

    @property
    def tests(self)->bool:
        if self.kind != "code" or self.exported: return False
        return any(isinstance(n, ast.Assert) or isinstance(n, ast.Call) and TEST_CALLS.search(ast.unparse(n.func))
                   for n in ast.walk(self.tree))


def cells(path:Path)->list[Cell]:
    nb = json.loads(path.read_text(encoding="utf-8"))
    return [Cell(c["cell_type"], "".join(c["source"]), tuple(c.get("outputs", ())), c["metadata"]) for c in nb["cells"]]


def package_name(path:Path)->str: return path.parent.name.split("_", 1)[1]


def module_name(path:Path)->str: return f"{package_name(path)}.{path.stem.split('_', 1)[1]}"


def module_path(path:Path)->Path: return PACKAGE/f"{module_name(path).replace('.', '/')}.py"


def imported(tree:ast.AST)->set[str]:
    "Every top-level package that is imported anywhere in `tree`"
    found = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return found | {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}


LIBRARY = sorted(NBS.glob("[1-9]_*/[0-9][0-9]_*.ipynb"))
EXPERIMENTS = sorted((NBS/"experiments").glob("*.ipynb"))
TUTORIALS = sorted((NBS/"tutorials").glob("*.ipynb"))
ALL = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
library = pytest.mark.parametrize("path", LIBRARY, ids=module_name)
experiments = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
tutorials = pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
every = pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)


@library
def test_opens_with_title_subtitle_and_module(path):
    first, second = cells(path)[:2]
    prose = [line for line in first.source.splitlines() if line.strip()]
    assert first.kind == "markdown" and prose[0].startswith("# ") and prose[1].startswith("> ") and len(prose) > 2
    assert second.source.strip() == f"#| default_exp {module_name(path)}"


@library
def test_imports_have_cells_of_their_own(path):
    for cell in cells(path):
        if cell.kind != "code": continue
        imports = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in cell.tree.body]
        assert all(imports) or not any(imports), cell.source


def count(*patterns:str)->int:
    return sum(len(f.read_text().splitlines()) for pattern in patterns for f in PACKAGE.glob(f"{pattern}.py"))


def test_the_package_stays_within_its_budget():
    assert count("*/*", "__init__") <= BUDGET
    assert count(*CORE) <= CORE_BUDGET


@library
def test_what_is_exported_is_shown(path):
    "At least half as many visible outputs as exported cells, in lines that a page shows without scrolling"
    found = cells(path)
    assert 2*sum(bool(c.outputs) for c in found) >= sum(c.exported for c in found)-1 # imports have none
    for cell in found:
        if cell.exported: assert all(len(line) <= WIDTH for line in cell.source.splitlines()), cell.source


@library
def test_exported_cells_are_short(path):
    exported = [c for c in cells(path) if c.exported]
    assert statistics.median(c.lines for c in exported) <= CELL_MEDIAN
    assert max(c.lines for c in exported) <= CELL_LINES
    assert len(module_path(path).read_text().splitlines()) <= MODULE_LINES


def test_packages_stand_in_the_order_of_reading():
    assert [p.name.split("_", 1)[1] for p in sorted(NBS.glob("[1-9]_*"))] == list(PACKAGES)


@library
def test_exported_imports_come_from_packages_to_the_left(path):
    "Across packages in the direction of the table; within one, from notebooks that come earlier"
    earlier = {module_name(p) for p in LIBRARY if p.parent == path.parent and p < path}
    for cell in cells(path):
        if not cell.exported: continue
        for node in ast.walk(cell.tree):
            if isinstance(node, ast.Import): assert not any(a.name.split(".")[0] == "mrhd_nb" for a in node.names), cell.source
            if not isinstance(node, ast.ImportFrom): continue
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            if node.module == "mrhd_nb": assert [a.name for a in node.names] == ["__version__"], ast.unparse(node)
            if node.module.startswith("mrhd_nb."):
                name = node.module.removeprefix("mrhd_nb.")
                assert name in earlier or name.split(".")[0] in PACKAGES[package_name(path)], ast.unparse(node)


@library
def test_libraries_stay_in_their_places(path):
    for cell in cells(path):
        if not cell.exported: continue
        for name in imported(cell.tree) & PLACES.keys(): assert package_name(path) in PLACES[name], f"{name} is imported"


@library
def test_exported_code_draws_from_named_generators(path):
    "First weights and dropout are the exceptions, as in torch itself: `models` seeds the ones, `training` the other"
    for cell in cells(path):
        if not cell.exported: continue
        excepted = {n for f in ast.walk(cell.tree) if isinstance(f, ast.FunctionDef) and f.name in ("__init__", "drop") for n in ast.walk(f)}
        for node in ast.walk(cell.tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute): continue
            name, call = node.func.attr, ast.unparse(node.func)
            if re.match(r"(np|numpy)\.random\.", call): assert name in {"default_rng", "Generator", "PCG64"}, call
            if re.search(r"\bmanual_seed(_all)?$", call) and call.startswith("torch."): assert module_name(path) in SEEDERS, call
            if name in DRAWS and (call.startswith("torch.") or name.endswith("_")) and node not in excepted:
                assert "generator" in {k.arg for k in node.keywords}, f"{call} draws from the global generator"


@library
def test_every_exported_symbol_has_a_testing_cell(path):
    found = cells(path)
    symbols = [n.name for c in found if c.exported for n in c.tree.body
               if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
    tests = sum(c.tests for c in found)
    assert tests >= len(symbols), f"{tests} testing cells for {len(symbols)} symbols: {', '.join(symbols)}"


@library
def test_torch_modules_are_small_and_in_their_places(path):
    module = importlib.import_module(f"mrhd_nb.{module_name(path)}")
    for name, kind in inspect.getmembers(module, inspect.isclass):
        if kind.__module__ != module.__name__ or not issubclass(kind, torch.nn.Module): continue
        assert package_name(path) == "model" or module_name(path) == "learning.losses", name
        assert len(inspect.getsource(kind).splitlines()) <= CLASS_LINES, name


@every
def test_outputs_are_worth_keeping(path):
    for cell in cells(path):
        assert set(cell.metadata) <= {"tags"}, cell.metadata
        for output in cell.outputs:
            assert output["output_type"] != "error" and output.get("name") != "stderr", cell.source
            assert output.get("execution_count") is None
            for kind, value in (output.get("data") or {"text/plain": output.get("text", "")}).items():
                value = "".join(value) if isinstance(value, list) else str(value)
                if kind.startswith("image/") and kind != "image/svg+xml": assert len(base64.b64decode(value)) < IMAGE_BYTES, cell.source
                else: assert not ABSOLUTE.search(value) and not PROGRESS.search(value), value[:2000]


@experiments
def test_experiment_is_parameterised_and_calls_the_package(path):
    found = cells(path)
    assert found[0].kind == "markdown" and found[0].source.startswith("# ")
    assert sum("parameters" in c.metadata.get("tags", ()) for c in found) == 1
    assert set(papermill.inspect_notebook(str(path))) & EXPERIMENT_PARAMETERS >= {"out"}
    for cell in found:
        assert not cell.outputs and not cell.exported
        if cell.kind == "code": assert not any(isinstance(n, (ast.ClassDef, ast.FunctionDef, ast.While)) for n in ast.walk(cell.tree)), cell.source


@tutorials
def test_tutorial_teaches_and_exports_nothing(path):
    found = cells(path)
    first = [line for line in found[0].source.splitlines() if line.strip()]
    assert found[0].kind == "markdown" and first[0].startswith("# ") and first[1].startswith("> ") and len(first) > 2
    assert sum(c.kind == "markdown" for c in found) > 5 and any(c.tests for c in found) and any(c.outputs for c in found)
    assert not any(c.exported or "default_exp" in c.source for c in found)


def test_syntax_is_that_of_the_oldest_python():
    oldest = tuple(map(int, re.search(r"min_python = (.*)", (ROOT/"settings.ini").read_text())[1].split(".")))
    for module in PACKAGE.rglob("*.py"): ast.parse(module.read_text(), feature_version=oldest)


def test_modules_and_notebooks_are_the_same_set():
    modules = {p for p in PACKAGE.rglob("*.py") if p.stem not in ("__init__", "__main__", "_modidx")}
    assert modules == set(map(module_path, LIBRARY))


def test_notebooks_export_to_the_package_and_are_clean(tmp_path):
    "nbdev's own export and clean, run in a copy, change nothing"
    tree, skip = tmp_path/"tree", shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_modidx.py")
    for name in ("nbs", "mrhd_nb"): shutil.copytree(ROOT/name, tree/name, ignore=skip)
    for name in ("settings.ini", "pyproject.toml"): shutil.copy(ROOT/name, tree)
    code = "from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; nbdev_export(); nbdev_clean()"
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"} # set by notebook tests, stops the export
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file in [p for p in tree.rglob("*") if p.suffix in (".py", ".ipynb", ".toml") and p.name != "_modidx.py"]:
        assert file.read_text() == (ROOT/file.relative_to(tree)).read_text(), f"make prepare changes {file.relative_to(tree)}"


def test_public_names_are_unique():
    "A name that someone can import is defined in one module alone"
    places = {}
    for path in map(module_path, LIBRARY):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"): continue
            assert node.name not in places, f"{node.name}: in {places[node.name]} and {path}"
            places[node.name] = path


def test_pages_name_every_notebook():
    "The reading order of JupyterLab lists the library"
    text = "".join(c.source for c in cells(NBS/"index.ipynb"))
    for path in [*LIBRARY, *EXPERIMENTS, *TUTORIALS]: assert f"]({path.relative_to(NBS).as_posix()})" in text, path


@every
def test_links_of_notebooks_lead_somewhere(path):
    for cell in cells(path):
        if cell.kind != "markdown": continue
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"`[^`]*`", "", cell.source)):
            assert "://" in target or (path.parent/target).exists(), target


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT/"README.md").read_text()
    assert len(text.encode()) <= 6000
    for target in re.findall(r"\]\(([^)#]+)\)", text): assert "://" in target or (ROOT/target).exists(), target
