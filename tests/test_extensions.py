"CONTRIBUTING's ways to add a part work as it says, and nothing half-done passes"
import ast, json, os, re, shlex, shutil, subprocess, sys, textwrap
from dataclasses import fields
from itertools import combinations
from pathlib import Path
import pytest, torch
from mrhd_nb.core.config import LossConfig, ModelConfig, override
from mrhd_nb.core.presets import PRESETS, run_config
from mrhd_nb.core.testing import refusal
from mrhd_nb.data.batches import planted_batch
from mrhd_nb.data.synthetic import make, write
from mrhd_nb.learning.losses import compute_losses, extra_losses
from mrhd_nb.learning.training import State, learning_rate, train_step

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT/"CONTRIBUTING.md").read_text(encoding="utf-8")
PARTS = re.findall(r"```(python|yaml)\n# (\S+?)(?:, in (\w+))?\n(.*?)```", PAGE, re.S)
SMALL = {"model.video_dim": 26, "model.text_dim": 16, "model.width": 32, "model.heads": 4, "model.ffn": 64, "model.moment_queries": 5,
         "model.dropout": 0., "model.input_dropout": 0.}


def insert(text:str, place:str, code:str)->str:
    "Module text with lines added to a class, below its docstring"
    (node,) = [n for n in ast.parse(text).body if getattr(n, "name", "") == place]
    lines = text.splitlines(keepends=True)
    lines.insert(node.body[0].end_lineno, textwrap.indent(code, "    "))
    return "".join(lines)


def extend(text:str, code:str)->str:
    "Module text with new statements before the old ones of the same name, which they replace, else at its end"
    named = lambda n: n.name if hasattr(n, "name") else getattr(getattr(n, "target", None) or getattr(n, "targets", [None])[0], "id", None)
    new = {named(n) for n in ast.parse(code).body}
    old = [n for n in ast.parse(text).body if named(n) in new-{None}]
    lines = text.splitlines(keepends=True)
    for n in reversed(old): del lines[n.lineno-1:n.end_lineno]
    at = old[0].lineno-1 if old else len(lines)
    return "".join([*lines[:at], code.rstrip()+"\n\n", *lines[at:]])


@pytest.fixture(scope="module")
def extended(tmp_path_factory)->Path:
    "A copy of the package with everything that the page adds"
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT/"mrhd_nb", folder/"mrhd_nb", ignore=shutil.ignore_patterns("__pycache__"))
    assert len(PARTS) == 5
    for language, source, place, code in PARTS:
        name = source if language == "yaml" else re.sub(r"nbs/\d_(\w+)/\d\d_(\w+)\.ipynb", r"mrhd_nb/\1/\2.py", source)
        text = (folder/name).read_text(encoding="utf-8")
        (folder/name).write_text(text+"\n"+code if language == "yaml" else insert(text, place, code) if place else extend(text, code), encoding="utf-8")
    write(make(0, train=16, val=8, test=1), folder/"data"/"kitchen")
    return folder


def test_an_expert_a_loss_and_a_data_set_are_added_in_two_places_each(extended):
    "Training finds all three, and the loss counts"
    places = {}
    for _, source, place, _ in PARTS: places.setdefault(source, place)
    assert len(places) == 4 and all((ROOT/source).is_file() for source in places)
    code = f"""
import json
from mrhd_nb import run_config, train
from mrhd_nb.learning.checkpoints import load
small = {SMALL} | {{"training.epochs": 1, "training.batch_size": 8}}
del small["model.video_dim"], small["model.text_dim"]
found = {{}}
for c in (0., .5):
    run = run_config("taskweave_mr2hd", "kitchen", overrides=small | {{"model.experts.hd": "gated", "training.losses.smoothness": c}})
    train(run, f"run{{c}}", progress=False)
    found[c] = json.loads(open(f"run{{c}}/history.jsonl").readline())["terms"]
print(json.dumps([found[0.], found[.5], [n for n, _ in load("run0.5").named_parameters() if "gate" in n]]))
"""
    environment = os.environ | {"PYTHONPATH": str(extended), "MRHD_DATA": str(extended/"data")}
    done = subprocess.run([sys.executable, "-c", code], cwd=extended, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    without, with_it, gates = json.loads(done.stdout)
    assert gates and "smoothness" not in without and with_it["smoothness"] > 0 and with_it["saliency"] != without["saliency"]


def test_the_command_for_one_notebook_works():
    (command,) = re.findall(r"^\.venv/bin/(nbdev_test --path \S+)", PAGE, re.M)
    tool, *words = shlex.split(command)
    done = subprocess.run([str(Path(sys.executable).parent/tool), *words], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and "Success" in done.stdout+done.stderr, done.stdout+done.stderr


SWITCHES = {f"model.{f.name}": True for f in fields(ModelConfig) if f.type in (bool, "bool")}
CONFIGS = [run_config(name, "synthetic", overrides=SMALL | switches | {"training.losses.weighting": weighting, "training.losses.classification": kind})
           for name, switches in [*((name, {}) for name in PRESETS), ("taskweave_mr2hd", SWITCHES)] for weighting in ("fixed", "joint")
           for kind in re.search("is not one of (.*)", refusal(LossConfig, classification=""))[1].split(", ")]


def total(config)->float:
    "The weighted sum of all losses of the planted batch"
    state, batch = State(config), planted_batch()
    losses = config.training.losses
    with torch.no_grad():
        prediction = state.model.eval()(batch, feedback=True, negatives=True)
        extra = extra_losses(prediction, batch.targets, losses)
        return float(state.weighting(compute_losses(prediction, batch.targets, losses, config.model.quirks))+sum(extra.values()))


@pytest.mark.parametrize("name", [f.name for f in fields(LossConfig) if f.type in (float, "float")])
def test_every_coefficient_changes_the_total(name):
    "In at least one system; a coefficient that nothing reads fails here"
    for config in CONFIGS:
        value = getattr(config.training.losses, name)
        if any(total(override(config, {f"training.losses.{name}": other})) != total(config) for other in (100*value+1, value/100)): return
    pytest.fail(f"no total depends on '{name}'")


def kinds(config, path:str)->list[str]:
    "The values that a field of a configuration allows"
    return re.search("is not one of (.*)", refusal(override, config, {path: "?"}))[1].split(", ")


@pytest.mark.parametrize("preset, path", [
    ("taskweave_mr2hd", "model.experts.mr"), ("taskweave_mr2hd", "model.experts.hd"), ("tr_detr", "model.feedback.direction"), ("tr_detr", "model.feedback.kind"),
    ("taskweave_hd2mr", "model.feedback.site"), ("tr_detr", "model.highlight_head"), ("tr_detr", "training.losses.classification"),
    ("tr_detr", "training.losses.weighting"), ("tr_detr", "training.schedule"), ("tr_detr", "training.precision"), ("taskweave_mr2hd", "training.ema_every")])
def test_every_kind_does_something_of_its_own(preset, path):
    "No two kinds of a field train the same way; one that is in the configuration alone would be another's double, or is refused"
    config, batch = run_config(preset, "synthetic", overrides=SMALL | {"training.epochs": 9, "training.lr_drop": 2}), planted_batch()
    trained = {}
    for kind in kinds(config, path):
        state = State(changed := override(config, {path: kind}))
        for step in (3, 4):
            for group in state.optimizer.param_groups: group["lr"] = learning_rate(step, 9, changed.training)
            terms = train_step(state, batch, changed.training, feedback=True)
        trained[kind] = (terms, *(p.sum().item() for p in state.average.parameters()))
    for one, other in combinations(trained, 2): assert trained[one] != trained[other], (one, other)
