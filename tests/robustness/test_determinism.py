"The same seed gives the same bits, and what only watches a run changes none; every random draw is named"
import ast, json, os, re, subprocess, sys
from pathlib import Path
import pytest
from mrhd_nb.core.config import override
from mrhd_nb.core.presets import run_config
from mrhd_nb.programs.notebooks import run_notebook
from mrhd_nb.learning.training import train

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"data.train_queries": 24, "data.val_queries": 12, "data.test_queries": 6, "model.width": 16, "model.ffn": 32, "model.dropout": 0.1,
         "training.epochs": 2, "training.batch_size": 8, "training.eval_every": 1, "training.ema_decay": 0.9}
FILES = ("best.safetensors", "last.safetensors", "submission_best.jsonl", "submission_last.jsonl", "history.jsonl")


def config(**changes): return override(run_config("taskweave_both", "synthetic", overrides=SMALL), changes)


def content(folder:Path)->dict[str, bytes]:
    "What a run made, without the seconds that it took"
    found = {n: (folder/n).read_bytes() for n in FILES}
    return found | {"history.jsonl": re.sub(rb'"seconds": [\d.e-]+', b'"seconds": 0', found["history.jsonl"])}


def in_process(folder:Path, **environment)->dict[str, bytes]:
    code = f"from mrhd_nb.core.presets import run_config; from mrhd_nb.learning.training import train; train(run_config('taskweave_both', 'synthetic', overrides={SMALL}), {str(folder)!r}, progress=False)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | environment)
    return content(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory)->dict[str, bytes]:
    out = tmp_path_factory.mktemp("run")
    train(config(), out, progress=True)
    return content(out)


def test_two_processes_give_the_same_bits(run, tmp_path):
    "Whatever the order in which Python hashes text"
    assert in_process(tmp_path/"a", PYTHONHASHSEED="1") == run == in_process(tmp_path/"b", PYTHONHASHSEED="2")


def test_another_seed_gives_others(run, tmp_path):
    train(config(seed=1), tmp_path, progress=False)
    assert all(a != b for a, b in zip(content(tmp_path).values(), run.values()))


@pytest.mark.parametrize("name, value", [("save_every", 1), ("deterministic", True), ("resident", True)])
def test_what_only_watches_changes_no_bit(name, value, run, tmp_path):
    "How often the state is saved, whether torch is held to operations that repeat, where the features lie"
    train(config(**{f"training.{name}": value}), tmp_path, progress=False)
    same = [n for n in FILES if n.endswith("l")] # the files of weights hold the configuration too
    assert [content(tmp_path)[n] for n in same] == [run[n] for n in same]


def test_evaluating_less_often_changes_no_weight(run, tmp_path):
    train(config(**{"training.eval_every": 2}), tmp_path, progress=False)
    assert (tmp_path/"submission_last.jsonl").read_bytes() == run["submission_last.jsonl"]
    strip = lambda text: [{k: v for k, v in json.loads(line).items() if k != "metrics"} for line in text.splitlines()]
    assert strip(content(tmp_path)["history.jsonl"]) == strip(run["history.jsonl"])


def test_the_notebook_gives_the_bits_of_the_function(run, tmp_path):
    "Tables, curves, a kernel and a progress bar around it"
    run_notebook("train", tmp_path, {"preset": "taskweave_both", "overrides": SMALL})
    assert content(tmp_path) == run


NAMED = {"generator", "named_generator", "rng", "named_rng", "derive_seed"}


def draws()->set[tuple[str, str]]: # module, names
    "Every call that makes a generator or a seed, anywhere in the package"
    found = set()
    for path in sorted((ROOT/"mrhd_nb").glob("*/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or path.stem == "files": continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in NAMED and len(node.args) > 1: found.add((path.stem, ", ".join(ast.unparse(a).replace("'", '"') for a in node.args[1:])))
    return found


def table()->set[tuple[str, str]]:
    cells = json.loads((ROOT/"nbs"/"1_core"/"01_files.ipynb").read_text())["cells"]
    text = next("".join(c["source"]) for c in cells if "".join(c["source"]).startswith("### Every random draw"))
    return set(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, re.M))


def test_the_table_names_every_draw():
    "A new draw gets a row in 01_files, a draw that went loses it"
    assert draws() == table(), f"not in the table: {sorted(draws()-table())}; no longer drawn: {sorted(table()-draws())}"


def test_generators_are_made_nowhere_else():
    "Only `files` makes generators; `model` and `training` seed torch's own, inside a fork, for what can draw from no other"
    for path in (ROOT/"mrhd_nb").glob("*/*.py"):
        calls = {ast.unparse(n.func).split(".")[-1] for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        made = calls & {"Generator", "default_rng", "RandomState", "manual_seed", "seed"}
        assert made <= {"files": {"Generator", "default_rng", "manual_seed"}, "model": {"manual_seed"}, "training": {"manual_seed"}}.get(path.stem, set()), path
