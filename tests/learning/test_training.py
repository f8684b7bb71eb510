"A run ends with the same bits however it came to its end; checkpoints that do not fit are refused"
import json
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from mrhd_nb.core.config import StreamConfig, override
from mrhd_nb.core.presets import run_config
from mrhd_nb.core.testing import refusal
from mrhd_nb.data.annotations import Record
from mrhd_nb.data.batches import MomentDataset, open_split
from mrhd_nb.learning import training
from mrhd_nb.learning.checkpoints import load_model, read_tensors
from mrhd_nb.learning.runs import read_history
from mrhd_nb.learning.training import Run, State, pin_init, score, start_from, train

TINY = {"data.train_queries": 48, "data.val_queries": 24, "data.test_queries": 12, "model.width": 16, "model.ffn": 32, "model.moment_queries": 5,
        "training.epochs": 2, "training.eval_every": 1, "training.batch_size": 16, "training.save_every": 2}
CONFIG = run_config("taskweave_mr2hd", "synthetic", overrides=TINY)


def weights(folder:Path)->dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in read_tensors(folder/"last.safetensors")[0].items()}


def stop(config, out:Path, step:int)->None:
    "Train, and interrupt one step"
    whole, left = training.train_step, [step]
    def breaks(*arguments, **options):
        left[0] -= 1
        if not left[0]: raise KeyboardInterrupt
        return whole(*arguments, **options)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "train_step", breaks)
        train(config, out, progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory)->Path:
    train(CONFIG, out := tmp_path_factory.mktemp("whole"), progress=False)
    return out


@pytest.mark.parametrize("step", [1, 3, 4, 5, 6])
def test_interrupted_at_any_step(step, whole, tmp_path):
    "Before anything was saved, at the last step of an epoch, at the first of the next one, in its middle, at the very last"
    stop(CONFIG, tmp_path, step)
    train(CONFIG, tmp_path, progress=False)
    assert weights(tmp_path) == weights(whole)
    one, other = (read_history(folder/"history.jsonl") for folder in (whole, tmp_path))
    assert [r | {"seconds": 0} for r in one] == [r | {"seconds": 0} for r in other]


def test_interrupted_with_every_part(tmp_path):
    "Proposals, overlap, existence and random changes to the samples"
    changes = TINY | {"training.augment.crop": .5, "training.augment.surroundings": .5, "training.augment.words": .15}
    config = run_config("mrhd", "synthetic", overrides=changes)
    train(config, tmp_path/"whole", progress=False)
    stop(config, tmp_path/"stopped", 4)
    train(config, tmp_path/"stopped", progress=False)
    assert weights(tmp_path/"stopped") == weights(tmp_path/"whole")
    terms = read_history(tmp_path/"whole"/"history.jsonl")[-1]["terms"]
    assert terms["existence"] > 0 and terms["proposal"] > 0 and terms["moments"] > terms["proposal"]
    lines = [json.loads(line) for line in (tmp_path/"whole"/"submission_last.jsonl").read_text().splitlines()]
    assert all(0 < line["pred_exist_score"] < 1 for line in lines)


def test_interrupted_while_the_end_is_reported(whole, tmp_path, monkeypatch):
    "All epochs are done: nothing is trained again, and the feedback is on as it was"
    write = training.write_json_lines
    def stops(path, lines): # at the first submission
        if path.name != "history.jsonl": raise KeyboardInterrupt
        write(path, lines)
    def breaks(*arguments): raise KeyboardInterrupt
    monkeypatch.setattr(training, "write_json_lines", stops)
    with pytest.raises(KeyboardInterrupt): train(CONFIG, tmp_path, progress=False)
    monkeypatch.setattr(training, "write_json_lines", write)
    monkeypatch.setattr(training, "train_step", breaks)
    train(CONFIG, tmp_path, progress=False)
    for name in ("last.safetensors", "best.safetensors", "submission_last.jsonl"): assert (tmp_path/name).read_bytes() == (whole/name).read_bytes()


def test_bfloat16_repeats_and_resumes(whole, tmp_path):
    "The checkpoint knows its precision, and answers in it"
    half = override(CONFIG, {"training.precision": "bfloat16"})
    metrics = train(half, tmp_path/"whole", progress=False)["last"]["metrics"]
    stop(half, tmp_path/"stopped", 5)
    train(half, tmp_path/"stopped", progress=False)
    assert weights(tmp_path/"stopped") == weights(tmp_path/"whole") != weights(whole)
    model, _ = load_model(tmp_path/"stopped"/"last.safetensors")
    dataset = open_split(half, "test")
    assert model.precision == "bfloat16" and score(model, dataset, half)[0] == {k: v for k, v in metrics.items() if k != "signature"}
    model.precision = "float32"
    said = [json.loads(line)["pred_saliency_scores"] for line in (tmp_path/"whole"/"submission_last.jsonl").read_text().splitlines()]
    assert [line["pred_saliency_scores"] for line in score(model, dataset, half)[1]] != said


@pytest.mark.parametrize("preset", ["tr_detr", "taskweave_mr2hd", "taskweave_hd2mr", "taskweave_both"])
def test_every_preset_learns(preset, tmp_path):
    longer = TINY | {"training.epochs": 4, "training.eval_every": 4}
    train(run_config(preset, "synthetic", overrides=longer), tmp_path, progress=False)
    curve = [row["terms"]["moments"] for row in read_history(tmp_path/"history.jsonl")]
    assert curve[-1] < curve[0]


def test_a_training_record_needs_labels(tmp_path, monkeypatch):
    blank, dataset = Record(1, "a dog", 20, "v", source="a.jsonl:7"), open_split(CONFIG, "train")
    for form, name in (("qvhighlights", "relevant_windows"), ("tvsum", "label")):
        part = MomentDataset([replace(blank, dataset=form)], dataset.source, replace(dataset.data, dataset=form))
        monkeypatch.setattr(training, "open_split", lambda config, split: part)
        assert refusal(Run, CONFIG, tmp_path) == f"a.jsonl:7: field '{name}': missing; training needs labels"


def test_a_checkpoint_that_does_not_fit_is_refused(whole, tmp_path):
    "Another size, another architecture, other streams, another file, no file"
    tuned = pin_init(override(CONFIG, {"training.init": str(whole), "seed": 9}))
    assert tuned == pin_init(override(CONFIG, {"training.init": str(whole), "seed": 9, "training.init_sha256": tuned.training.init_sha256}))
    heard = replace(CONFIG.data, streams=(CONFIG.data.streams[0], StreamConfig("pann", (), 8, audio=True)))
    for changes, said in (({"model.width": 32}, "model.width is 16 there and 32 here"), ({"model.decoupled": False, "model.highlight_head": "sum"}, "model.decoupled is True there and False here"),
                          ({"data": heard}, "streams is [(64, False)] there and [(64, False), (8, True)] here"), ({"training.init_sha256": "0"*64}, "is not the file that this run starts from"),
                          ({"training.init": str(tmp_path/"x")}, "neither a run folder")):
        other = override(tuned, changes)
        assert said in refusal(start_from, State(other), other), changes


def test_a_run_starts_from_shipped_weights():
    "By their name, if the model is of their sizes"
    config = pin_init(run_config("taskweave_mr2hd", "synthetic", overrides={"training.init": "taskweave_mr2hd"}))
    model, of_weights = load_model(training.weights_path("taskweave_mr2hd"))
    state = State(config := override(config, {"model": of_weights.model}))
    start_from(state, config)
    assert all(map(torch.equal, state.model.state_dict().values(), model.state_dict().values()))


def test_the_metric_that_selects_must_be_measured(tmp_path):
    said = refusal(train, override(CONFIG, {"training.select_by": "R1"}), tmp_path, progress=False)
    assert said.startswith("field 'training.select_by': 'R1' is not measured; one of MR-full-R1@0.5")
