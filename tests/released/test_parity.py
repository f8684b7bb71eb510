"The numbers of the released implementations, all of them; a planted error in any of them is found"
import json
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest, torch
from mrhd_nb.programs.parity import LIMITS, Golden, number_error, parity, read_golden, replicate
from mrhd_nb.model.released import export_released, fill_released, infer_config, released_names
from mrhd_nb.core.presets import preset
from mrhd_nb.model.model import MomentModel

GOLDEN = Path(__file__).parents[1]/"golden"
NAMES = sorted(p.stem for p in GOLDEN.glob("*.npz"))
PARTS = {"out/": "outputs", "loss/": "losses", "match/": "matches", "grad": "gradients", "traj/": "trajectory"}


@pytest.fixture(scope="module")
def found()->dict[str, tuple[Golden, dict]]:
    "Each golden file of the repository, and its numbers as computed here"
    goldens = {n: read_golden(GOLDEN/f"{n}.npz") for n in NAMES}
    return {n: (g, replicate(g)) for n, g in goldens.items()}


def passes(folder:Path)->bool:
    lines = list(parity(folder))
    print(*(line for line, _ in lines), sep="\n")
    return lines[-1][1]


def write(folder:Path, golden:Golden, drop:tuple=(), **changes)->Path:
    "A copy of a golden file with some entries changed or left out"
    numbers = {k: v for k, v in {**golden.numbers, **changes}.items() if not k.startswith(drop)}
    folder.mkdir(exist_ok=True)
    np.savez(folder/"copy.npz", **numbers)
    return folder


def test_kept_files_pass():
    assert len(NAMES) == 4 and passes(GOLDEN)


def test_shared_files_pass(shared):
    assert passes(shared/"golden")


def bumped(golden:Golden, key:str, at:int)->np.ndarray:
    "The entry with one number moved by three times what its part allows"
    x = golden.numbers[key].astype(np.float64)
    flat, total = x.reshape(-1), float(golden.numbers["grad_norm_total"])
    size, norm = np.abs(x).max(), np.linalg.norm(x)
    gradient = 1e-6*total if norm < 1e-6*total else max(1e-4*norm, 1e-7*total)
    step = {"outputs": 1e-5, "losses": 1e-5*size+1e-6, "matches": 1/3, "trajectory": 1e-4*max(size, 1e-2), "gradients": gradient}
    flat[at] += 3*step[next(part for start, part in PARTS.items() if key.startswith(start))]
    return x.astype(golden.numbers[key].dtype)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_counts(found, name):
    "One number of each entry, drawn by its place, is moved; nothing else would notice"
    golden, ours = found[name]
    keys = [k for k in golden.numbers if k.startswith(tuple(PARTS)) and golden.numbers[k].dtype.kind in "fi"]
    assert len(keys) > 220
    for i, key in enumerate(keys):
        part = next(part for start, part in PARTS.items() if key.startswith(start))
        wrong = bumped(golden, key, i % golden.numbers[key].size)
        assert number_error(golden, key, ours) <= LIMITS[part], key
        assert not number_error(Golden(golden.meta, {**golden.numbers, key: wrong}), key, ours) <= LIMITS[part], key


@pytest.mark.parametrize("key", ["out/aux_0/pred_spans", "out/saliency_scores_neg", "loss/loss_saliency_part_rank_contrastive", "loss/total_train_py",
    "match/aux_0/1/gt", "grad/hd_log_var", "grad_norm_total", "traj/loss", "traj/final_pred_logits"])
def test_planted_number_fails_the_folder(found, tmp_path, key):
    golden, _ = found["taskweave_mr2hd_after_pad"]
    assert not passes(write(tmp_path, golden, **{key: bumped(golden, key, 0)}))


@pytest.mark.parametrize("change", [{"out/pred_spans": np.full((3, 10, 2), np.nan, np.float32)}, {"grad_none": np.array("[]")}, {"out/new": np.zeros(2)},
    {"weight_dict": np.array('{"loss_span": 9}')}, {"match/last/0/pred": np.zeros(0, np.int64)}, {"param/query_embed.weight": np.zeros((10, 2), np.float32)},
    {"loss/CTC": np.float32(.93)}, {"traj/final_new": np.zeros(1)}, {"traj/loss": np.full(5, np.nan)}, {"traj/loss": np.zeros(5)},
    {"grad/class_embed.bias": np.full(2, np.nan, np.float32)}, {"loss/VTC": np.float32(np.nan)}, {"grad_norm_total": np.float32(np.inf)}, {"meta": np.array("{}")}])
def test_planted_nonsense_fails_the_folder(found, tmp_path, change):
    golden, _ = found["trdetr_pad"]
    if "grad_none" in change: change = {"grad_none": np.array(json.dumps(["class_embed.bias"]))}
    assert not passes(write(tmp_path, golden, **change))


def test_nothing_to_compare_fails(tmp_path):
    assert not passes(tmp_path) and list(parity(tmp_path/"nowhere")) == [("0 files, 0 failed", False)]
    (tmp_path/"torn.npz").write_bytes((GOLDEN/f"{NAMES[0]}.npz").read_bytes()[:100_000])
    (tmp_path/"empty.npz").write_bytes(b"")
    lines = list(parity(tmp_path))
    assert lines[-1] == ("2 files, 2 failed", False) and all("FAIL" in line and "\n" not in line for line, _ in lines[:2])


@pytest.mark.parametrize("drop", [("traj/",), ("traj/", "grad"), ("traj/", "grad", "loss/", "match/", "weight_dict", "tgt/", "inter/")])
def test_files_that_hold_less_are_read(found, tmp_path, drop):
    golden, _ = found["trdetr_pad"]
    assert passes(write(tmp_path, golden, drop))


def test_files_with_other_coefficients_are_read(found, tmp_path):
    "Coefficients come from the file: with others, the total is another, and the file's own no longer fits"
    golden, ours = found["trdetr_pad"]
    for changes in ({"VTC_loss_coef": 0.}, {"CTC_loss_coef": 2.}, {"span_loss_coef": 5}, {"aux_loss": False}):
        other = Golden(golden.meta | {"cfg": golden.meta["cfg"] | changes}, golden.numbers)
        again = replicate(other)
        assert "loss/VTC" in again and float(again["loss/total_train_py"]) != float(ours["loss/total_train_py"])


@pytest.mark.parametrize("name", NAMES)
def test_released_weights_in_and_out(found, name):
    golden, _ = found[name]
    state = golden.tensors("param/")
    config = infer_config(state, golden.meta["feedback"] or "mr2hd", golden.meta["cfg"]["nheads"])
    model = fill_released(MomentModel(config), state).eval()
    assert replace(model.config, dropout=0., input_dropout=0.) == golden.config
    with torch.no_grad(): prediction = model(golden.batch, negatives=False)
    for ours, key in ((prediction.final_logits, "pred_logits"), (prediction.final_spans, "pred_spans"), (prediction.saliency, "saliency_scores")):
        np.testing.assert_allclose(ours, golden.numbers[f"out/{key}"], atol=1e-5, rtol=0)
    back = export_released(model)
    assert set(back) == set(state) and all(torch.equal(back[k], state[k]) for k in released_names(config).values())


@pytest.mark.parametrize("name,count,tensors", [("taskweave_mr2hd", 7_784_488, 189), ("tr_detr", 8_308_773, 186)])
def test_exported_size_is_the_released_one(name, count, tensors):
    state = export_released(MomentModel(preset(name)))
    assert sum(t.numel() for t in state.values()) == count and len(state) == tensors
