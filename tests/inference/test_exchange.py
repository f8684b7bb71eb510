"Released checkpoints, built in every format from the golden weights, give the golden numbers once they are imported"
import argparse, dataclasses, json, subprocess, sys, types
from pathlib import Path
import numpy as np
import pytest, torch, yaml
from mrhd_nb.core.config import DataConfig, StreamConfig
from mrhd_nb.core.files import generator
from mrhd_nb.core.presets import run_config
from mrhd_nb.core.testing import refusal
from mrhd_nb.learning.checkpoints import load, load_model, save_model
from mrhd_nb.inference.exchange import export_model, import_released, stream_blocks
from mrhd_nb.model.model import MomentModel
from mrhd_nb.model.released import export_released, fill_released, read_released, reorder_streams
from mrhd_nb.programs.cli import main
from mrhd_nb.programs.parity import read_golden

GOLDEN = sorted((Path(__file__).parents[1]/"golden").glob("*.npz"))
DIMS = {"slowfast": 14, "clip": 10}


def data_file(folder:Path)->Path:
    "The streams of the golden files, and one annotated video"
    streams = tuple(StreamConfig(n, (f"{n}/{{vid}}.npz",), d, "features") for n, d in DIMS.items())
    text = StreamConfig("clip_text", ("text/{qid}.npz",), 16, "last_hidden_state")
    data = DataConfig("golden", "qvhighlights", streams, text, train="all.jsonl", val="all.jsonl", test="all.jsonl")
    values = {k: v for k, v in dataclasses.asdict(data).items() if v is not None}
    record = {"qid": 1, "query": "a dog runs", "vid": "v", "duration": 20, "relevant_windows": [[4, 10]], "relevant_clip_ids": [2, 3, 4],
              "saliency_scores": [[1, 2, 4], [4, 4, 4], [0, 1, 0]]}
    draw = np.random.default_rng(0)
    for name, dim in DIMS.items():
        (folder/name).mkdir()
        np.savez(folder/name/"v.npz", features=draw.normal(size=(10, dim)).astype(np.float32))
    (folder/"text").mkdir()
    np.savez(folder/"text"/"1.npz", last_hidden_state=draw.normal(size=(3, 16)).astype(np.float32))
    (folder/"all.jsonl").write_text(json.dumps(record)+"\n")
    (folder/"golden.json").write_text(json.dumps(values))
    return folder/"golden.json"


def class_of(module:str, name:str, base:type, monkeypatch)->type:
    "A class that a pickle names, in a module that only the writer has"
    kind = type(name, (base,), {"__module__": module})
    made = types.ModuleType(module)
    setattr(made, name, kind)
    monkeypatch.setitem(sys.modules, module, made)
    return kind


def other_order(golden)->dict[str, torch.Tensor]:
    "The golden weights for CLIP before SlowFast"
    model, state = fill_released(MomentModel(golden.config), golden.tensors("param/")), golden.tensors("param/")
    reorder_streams(model, DIMS | {"endpoints": 2}, ["clip", "slowfast", "endpoints"])
    return state | {k: v for k, v in export_released(model).items() if k.startswith("input_vid_proj")}


def write(path:Path, golden, form:str, monkeypatch)->list[str]:
    "A checkpoint in one of the formats; the options of `mrhd import` that it needs"
    state, cfg = golden.tensors("param/"), golden.meta["cfg"]
    noise = {k: v+1 for k, v in state.items()}
    hd2mr = golden.meta["feedback"] == "hd2mr"
    options = dict(cfg, dset_name="hl", clip_length=2, max_v_l=75, max_q_l=32, ctx_mode="video_tef", a_feat_dim=None, device=0, dset_domain=None,
                   v_feat_dirs=["/data/features/slowfast_features", "/data/features/clip_features/"])
    rest = {"optimizer": {"state": {0: {"step": torch.tensor(3.)}}, "param_groups": [{"lr": 1e-4}]}, "lr_scheduler": {"last_epoch": 3}, "epoch": 130}
    asked = ["--feedback", "hd2mr"]*hd2mr
    if form == "averaged": content = {"model": noise, "state_dict_ema": {f"module.{k}": v for k, v in state.items()}}
    elif form == "raw": content, asked = {"model": state, "state_dict_ema": noise}, [*asked, "--raw"]
    else: content = {"model": state}
    if form == "bare": return torch.save(state, path) or asked
    if form in ("lighthouse", "omegaconf"):
        content = {"model": other_order(golden)}
        options |= {"dset_name": "qvhighlight", "v_feat_dirs": ["features/qvhighlight/clip", "features/qvhighlight/slowfast"], "mr2hd": not hd2mr}
        asked = []
    opt = argparse.Namespace(**options)
    if form == "lighthouse":
        opt = class_of("easydict", "EasyDict", dict, monkeypatch)(options)
        opt.__dict__.update(options)                                   # it keeps everything twice
    if form == "omegaconf":
        config, node = (class_of(f"omegaconf_{n}", n, object, monkeypatch) for n in ("DictConfig", "AnyNode"))
        def wrap(value, kind, **state):
            made = kind()
            made.__dict__.update(state, _parent=None)
            return made
        leaves = {k: wrap(v, node, _val=v) if not isinstance(v, list) else wrap(v, config, _content=[wrap(x, node, _val=x) for x in v])
                  for k, v in options.items()}
        opt = wrap(options, config, _content=leaves)
    torch.save(content | rest | {"opt": opt}, path)
    for module in ("easydict", "omegaconf_DictConfig", "omegaconf_AnyNode"): monkeypatch.delitem(sys.modules, module, raising=False)
    return asked


def outputs(model, golden)->dict[str, torch.Tensor]:
    meta = golden.meta
    with torch.no_grad(): p = model(golden.batch, feedback=meta["epoch_i"] is None or meta["epoch_i"] >= 100, negatives=False)
    return {"pred_logits": p.final_logits, "pred_spans": p.final_spans, "saliency_scores": p.saliency}


def reproduced(path:Path, form:str, folder:Path, monkeypatch):
    "Import one golden file in one format, compare its numbers, and write it back"
    golden, data = read_golden(path), data_file(folder)
    asked = write(folder/"model.ckpt", golden, form, monkeypatch)
    if form == "bare" and golden.meta["cfg"]["nheads"] != 8: pytest.skip("nothing says how many heads there are")
    assert main(["import", str(folder/"model.ckpt"), "--out", str(folder/"run"), "--data", str(data), *asked]) == 0
    for key, found in outputs(load(folder/"run"), golden).items():
        np.testing.assert_allclose(found, golden.numbers[f"out/{key}"], atol=1e-5, rtol=0)
    assert main(["export", str(folder/"run"), "--out", str(folder/"back.ckpt")]) == 0
    back, state = read_released(folder/"back.ckpt"), golden.tensors("param/")
    assert back.keys() == state.keys() and all(torch.equal(back[k], v) for k, v in state.items())
    note = json.loads((folder/"run"/"import.json").read_text())
    assert note["streams"] == ["slowfast", "clip"] and note["tensors"] == len(state)
    assert note["streams_of_source"] == (["clip", "slowfast"] if form in ("lighthouse", "omegaconf") else ["slowfast", "clip"])
    return note


@pytest.mark.parametrize("form", ["averaged", "raw", "plain", "bare", "lighthouse", "omegaconf"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_every_format_gives_the_golden_numbers(path, form, tmp_path, monkeypatch):
    note = reproduced(path, form, tmp_path, monkeypatch)
    assert note["averaged"] == (form == "averaged") and "every quirk of the released code is on" in note["assumed"]
    taskweave = path.stem.startswith("taskweave") and form not in ("lighthouse", "omegaconf") and "hd2mr" not in path.stem
    assert any("feedback" in said for said in note["assumed"]) == taskweave and any("streams" in said for said in note["assumed"]) == (form == "bare")


def test_every_shared_golden_file(shared, tmp_path, monkeypatch):
    paths = [p for p in sorted((shared/"golden").glob("*.npz")) if not read_golden(p).meta["mask_fix"]]
    for i, path in enumerate(paths):
        (tmp_path/path.stem).mkdir()
        reproduced(path, ("averaged", "lighthouse")[i % 2], tmp_path/path.stem, monkeypatch)
    assert len(paths) > 10


def test_predict_and_evaluate_accept_an_import_and_name_it(tmp_path, monkeypatch, capsys):
    golden, data, said = read_golden(GOLDEN[0]), data_file(tmp_path), []
    words = ["--features", str(tmp_path/"slowfast"/"v.npz"), "--features", str(tmp_path/"clip"/"v.npz"), "--query-features", str(tmp_path/"text"/"1.npz")]
    for form in ("averaged", "lighthouse"):
        asked = write(tmp_path/f"{form}.ckpt", golden, form, monkeypatch)
        assert main(["predict", "--checkpoint", str(tmp_path/f"{form}.ckpt"), *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"mrhd import {tmp_path/form}.ckpt --out DIR" in error
        assert main(["import", str(tmp_path/f"{form}.ckpt"), "--out", str(tmp_path/form), "--data", str(data), *asked]) == 0
        capsys.readouterr()
        assert main(["predict", "--checkpoint", str(tmp_path/form), *words, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert main(["evaluate", str(tmp_path/form)]) == 0
        said.append((answer, json.loads(capsys.readouterr().out)))
    (one, scored), (two, again) = said
    np.testing.assert_allclose(one["saliency"], two["saliency"], atol=2e-3) # half precision
    assert len(one["windows"]) == len(two["windows"]) == 10 and scored == again and "MR-full-mAP" in scored


def test_published_sizes_need_no_data_file(shared, tmp_path):
    "A Lighthouse checkpoint at full width reads the released features in the order of this package"
    config = run_config("taskweave_hd2mr", "qvhighlights", fidelity="released").model
    model = MomentModel(config, generator(0, "published")).eval()
    ours = {"slowfast": 2304, "clip": 512, "endpoints": 2}
    reorder_streams(model, ours, ["clip", "slowfast", "endpoints"])
    options = {"dset_name": "qvhighlight", "mr2hd": False, "nheads": 8, "v_feat_dirs": ["features/qvhighlight/clip", "features/qvhighlight/slowfast"]}
    torch.save({"model": export_released(model), "opt": options}, tmp_path/"best.ckpt")
    note = import_released(tmp_path/"best.ckpt", tmp_path/"run")
    found, of = load_model(tmp_path/"run"/"model.safetensors")
    assert note["assumed"] == ["every quirk of the released code is on"] and note["parameters"] == 7_784_488
    assert of.data.name == "qvhighlights" and stream_blocks(of.data) == ours and found.config == config
    sample, words = shared/"features"/"qvhighlights_sample", []
    for name in ours.keys()-{"endpoints"}: assert np.load(next((sample/f"{name}_features").iterdir()))["features"].shape == (75, ours[name])
    for name in ("slowfast", "clip"): words += ["--features", str(next((sample/f"{name}_features").iterdir()))]
    assert main(["predict", "--checkpoint", str(tmp_path/"run"), *words, "--query-features", str(next((sample/"clip_text_features").iterdir()))]) == 0


def test_bad_checkpoints_are_refused_in_one_line_and_leave_nothing(tmp_path, capsys):
    golden, data = read_golden(GOLDEN[0]), str(data_file(tmp_path))
    state, opt = golden.tensors("param/"), {"nheads": 8}
    torn = {k: v for k, v in state.items() if k != "class_embed.bias"}
    cases = {"torn": ({"model": torn, "opt": opt}, "missing: class_embed.bias"), "more": ({"model": state | {"a": torch.zeros(1)}, "opt": opt}, "unknown: a"),
             "shape": ({"model": state | {"class_embed.bias": torch.zeros(3)}, "opt": opt}, "other shape: class_embed.bias"),
             "foreign": ({"model": {"a": torch.zeros(1)}}, "neither TaskWeave's"), "empty": ({"model": {}}, "holds no weights"),
             "folders": ({"model": state, "opt": {"v_feat_dirs": 3}}, "opt"), "names": ({"model": state, "opt": {"v_feat_dirs": ["resnet"]}}, "'resnet'"),
             "heads": ({"model": state, "opt": {"nheads": 5}}, "heads"), "kind": ({"model": state, "opt": opt | {"max_windows": "many"}}, "max_windows"),
             "list": ([1], "not a dictionary")}
    for name, (content, said) in cases.items():
        torch.save(content, tmp_path/f"{name}.ckpt")
        assert main(["import", str(tmp_path/f"{name}.ckpt"), "--out", str(tmp_path/"run"), "--data", data]) == 2, name
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error, (name, error)
    (tmp_path/"cut.ckpt").write_bytes((tmp_path/"torn.ckpt").read_bytes()[:5000])
    assert "cut.ckpt: " in refusal(import_released, tmp_path/"cut.ckpt", tmp_path/"run")
    assert not (tmp_path/"run").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert "neither a run folder" in refusal(export_model, tmp_path/"run", tmp_path/"out.ckpt") and not (tmp_path/"out.ckpt").exists()


def test_graph_and_hub_folder_give_the_golden_numbers(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `dev` is not installed")
    golden, data = read_golden(next(p for p in GOLDEN if p.stem == "trdetr_pad")), data_file(tmp_path)
    asked = write(tmp_path/"model.ckpt", golden, "plain", monkeypatch)
    assert main(["import", str(tmp_path/"model.ckpt"), "--out", str(tmp_path/"run"), "--data", str(data), *asked]) == 0
    for out in ("deep/model.onnx", "hub"): # in a process of its own, since torch's exporter keeps state of earlier tests
        assert subprocess.run([sys.executable, "-m", "mrhd_nb", "export", str(tmp_path/"run"), "--out", str(tmp_path/out)]).returncode == 0
    session, batch = onnxruntime.InferenceSession(tmp_path/"deep"/"model.onnx"), golden.batch
    named = {"video": batch.video, "clip_mask": batch.clip_mask, "tokens": batch.tokens, "token_mask": batch.token_mask}
    score, span, saliency = session.run(None, {k: v.numpy() for k, v in named.items()})
    np.testing.assert_allclose(score, torch.tensor(golden.numbers["out/pred_logits"]).softmax(-1)[..., 0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(span, golden.numbers["out/pred_spans"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(saliency, golden.numbers["out/saliency_scores"], atol=1e-5, rtol=0)
    kept = json.loads(session.get_modelmeta().custom_metadata_map["config"])
    assert kept == json.loads((tmp_path/"hub"/"config.json").read_text()) and kept["preset"] == "tr_detr"
    for key, found in outputs(load(tmp_path/"hub"), golden).items(): np.testing.assert_allclose(found, golden.numbers[f"out/{key}"], atol=1e-5, rtol=0)
    header, text = (tmp_path/"hub"/"README.md").read_text().split("---\n", 2)[1:]
    assert yaml.safe_load(header)["library_name"] == "mrhd_nb" and "slowfast (14), clip (10), endpoints (2)" in text and "{" not in text


def test_a_card_states_the_numbers_of_its_run_and_no_others(tmp_path):
    config = run_config("tr_detr", "synthetic", overrides={"model.width": 32, "model.ffn": 64})
    save_model(tmp_path/"run"/"last.safetensors", MomentModel(config, generator(0, "card")), config)
    export_model(tmp_path/"run", tmp_path/"without")
    (tmp_path/"run"/"metrics.json").write_text(json.dumps({"last": {"metrics": {"brief": {"MR-full-mAP": 12.34}}}}))
    export_model(tmp_path/"run", tmp_path/"with")
    cards = [(tmp_path/name/"README.md").read_text() for name in ("without", "with")]
    assert "mAP" not in cards[0] and "| MR-full-mAP | 12.34 |" in cards[1] and "| weights | last epoch, select_on=val |" in cards[1] and "Assumed" not in cards[1]
    assert refusal(export_model, tmp_path/"run", tmp_path/"with").endswith("is already there; remove it, or name another folder")
