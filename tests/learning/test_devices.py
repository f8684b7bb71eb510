"Where the features lie changes no bit of a training; a step reads tensors of one device only and asks it nothing; compiled, it is the same step"
import contextlib
from functools import partial
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from mrhd_nb.learning import losses
from mrhd_nb.learning import training
from mrhd_nb.data.annotations import Record, write_annotations
from mrhd_nb.data.batches import planted_batch
from mrhd_nb.learning.checkpoints import load_model
from mrhd_nb.learning.checkpoints import read_tensors
from mrhd_nb.core.config import DataConfig, StreamConfig, override
from mrhd_nb.core.files import InputError, rng, write_json
from mrhd_nb.core.presets import run_config
from mrhd_nb.learning.parallel import compile_model
from mrhd_nb.learning.runs import hold_folder, prepare_folder
from mrhd_nb.data.store import pack
from mrhd_nb.learning.training import Run, State, run_epochs, train, train_step, update_average

SMALL = {"model.width": 16, "model.ffn": 16, "model.heads": 2, "model.encoder_layers": 1, "training.epochs": 2, "training.batch_size": 5,
         "training.eval_every": 1, "training.eval_batch_size": 4, "training.bucket": 2}


def bits(folder:Path)->dict[str, bytes]:
    "What a training ends with"
    found = {n: t.numpy().tobytes() for n, t in read_tensors(folder/"last.safetensors")[0].items()}
    return found | {n: (folder/n).read_bytes() for n in ("submission_best.jsonl", "submission_last.jsonl")}


@pytest.fixture(scope="module")
def features(tmp_path_factory)->Path:
    "Four videos of one to thirty clips, three queries of one to twelve tokens for each; a data file for the folder and one for its store"
    root, draw, lengths = tmp_path_factory.mktemp("features"), rng(0, "devices"), (30, 7, 1, 12)
    data = DataConfig("mine", "qvhighlights", (StreamConfig("clips", ("clips/{vid}.npy",), 6),), StreamConfig("words", ("words/{qid}.npy",), 5),
                      root=str(root), train="train.jsonl", val="train.jsonl", test="train.jsonl", max_clips=20, max_tokens=9)
    records = [Record(q, "words", 2*lengths[q%4], f"v{q%4}", ((0, 2),), (0,), ((1, 2, q%4),)) for q in range(12)]
    write_annotations(root/"train.jsonl", records)
    for folder, tables in {"clips": {f"v{i}": (n, 6) for i, n in enumerate(lengths)}, "words": {r.qid: (1+r.qid, 5) for r in records}}.items():
        (root/folder).mkdir()
        for name, shape in tables.items(): np.save(root/folder/f"{name}.npy", draw.standard_normal(shape).astype(np.float32))
    pack(data, root/"store")
    for name, store in (("folder", ""), ("store", "store")): write_json(root/f"{name}.json", asdict(replace(data, store=store)))
    return root


@pytest.mark.parametrize("source", ["folder", "store", "memory"])
def test_resident_features_train_the_same_bits(source, features, tmp_path):
    small = SMALL | ({"data.train_queries": 17, "data.val_queries": 9, "data.test_queries": 5} if source == "memory" else {})
    config = run_config("taskweave_both", "synthetic" if source == "memory" else str(features/f"{source}.json"), overrides=small)
    for name in ("plain", "resident"): train(override(config, {"training.resident": name == "resident"}), tmp_path/name, progress=False)
    assert bits(tmp_path/"plain") == bits(tmp_path/"resident")


def test_a_device_that_is_not_here_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="^device 'cuda:99': is not here; torch .* finds cpu"):
        train(run_config("tr_detr", "synthetic"), tmp_path/"run", device="cuda:99", progress=False)
    assert not (tmp_path/"run").exists()


class OneDevice(TorchDispatchMode):
    "Every operation reads tensors of one device; numbers may come from anywhere, and a copy may cross"
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim()}
        assert len(found) < 2 or function in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default), f"{function} reads tensors of {found}"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere(monkeypatch):
    """Work on the meta device, which is no CPU, goes the way of a GPU and holds no values: a question to it is an error.
    It has no autocast, and the matching, which is made of values, is given."""
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *a: False)
    monkeypatch.setattr(losses, "match", lambda logits, spans, targets, config: [(torch.arange(len(s), device=logits.device),)*2 for s in targets.spans])


@pytest.mark.parametrize("preset", ["taskweave_both", "tr_detr"])
def test_a_step_stays_on_its_device(preset, elsewhere):
    "Forward with and without feedback and figures, every loss, backward, clipping, averaging"
    small = {"model.width": 16, "model.ffn": 16, "model.heads": 2, "model.video_dim": 26, "model.text_dim": 16, "training.ema_decay": 0.9}
    config = run_config(preset, "synthetic", overrides=small)
    state, batch = State(config, "meta"), planted_batch().to("meta")
    parameters = [*state.model.parameters(), *state.weighting.parameters()]
    with OneDevice():
        for on in (True, False):
            terms = losses.compute_losses(state.model(batch, feedback=on, maps=on), batch.targets, config.training.losses, state.model.config.quirks)
            state.weighting(terms).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.1)
            update_average(state.average, state.model, 0.9)
    assert sum(p.grad is not None and p.grad.is_meta for p in parameters) == len(parameters)


def test_the_watch_sees_what_is_mixed_or_asked():
    with OneDevice(), pytest.raises(AssertionError, match="mul.Tensor reads tensors of"): torch.zeros(2, device="meta")*torch.zeros(2)
    with OneDevice(), pytest.raises(RuntimeError): bool(torch.zeros((), device="meta"))


LITTLE = {"model.width": 16, "model.ffn": 16, "model.heads": 2, "model.encoder_layers": 1, "model.fusion_layers": 1, "model.dropout": 0., "model.input_dropout": 0.}


@pytest.mark.parametrize("preset", ["taskweave_mr2hd", "tr_detr"])
def test_compiled_steps_are_the_plain_ones(preset):
    "Losses, weights and answers, for batches of other lengths and sizes, of which none is compiled anew; the graphs are run as they were traced, since to generate code takes minutes"
    config, counter = run_config(preset, "synthetic", overrides=LITTLE | {"model.video_dim": 26, "model.text_dim": 16}), CompileCounterWithBackend("eager")
    plain, compiled = State(config), State(config)
    compile_model(compiled.model, "cpu", counter)
    seen = []
    for batch in (planted_batch(0), planted_batch(1, (20, 9), (5, 3)), planted_batch(2, (30, 3, 2, 5, 8), (9, 4, 2, 2, 3))):
        one, other = (train_step(s, batch, config.training, feedback=True) for s in (plain, compiled))
        np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=1e-5, atol=1e-5)
        seen.append(counter.frame_count)
    assert seen[0] == seen[1] == seen[2] > 0
    for (name, a), b in zip(plain.model.state_dict().items(), compiled.model.state_dict().values(), strict=True): torch.testing.assert_close(b, a, rtol=0, atol=1e-5, msg=name)
    with torch.no_grad(): one, other = (s.model.eval()(batch, negatives=False) for s in (plain, compiled))
    for name in ("logits", "spans", "saliency"): torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=0, atol=1e-5)


def test_a_compiled_run_is_averaged_saved_and_resumed(tmp_path, monkeypatch):
    "Stopped after an epoch it ends with the same bits; its checkpoint is like any other"
    monkeypatch.setattr(training, "compile_model", partial(compile_model, backend="eager"))
    small = LITTLE | {"data.train_queries": 16, "data.val_queries": 6, "data.test_queries": 5, "training.epochs": 2, "training.batch_size": 8, "training.eval_every": 1,
                      "training.save_every": 3, "training.ema_decay": 0.9, "model.input_dropout": 0.1}
    config = run_config("taskweave_mr2hd", "synthetic", overrides=small | {"training.compile": True})
    train(config, tmp_path/"whole", progress=False)
    out, step, steps = tmp_path/"stopped", training.train_step, iter(range(3))
    def breaks(*arguments, **options):
        next(steps)
        return step(*arguments, **options)
    monkeypatch.setattr(training, "train_step", breaks)
    with hold_folder(out), pytest.raises(StopIteration): run_epochs(run := Run(config, prepare_folder(out, config)), progress=False)
    monkeypatch.setattr(training, "train_step", step)
    train(config, out, progress=False)
    assert bits(out) == bits(tmp_path/"whole")
    assert load_model(out/"last.safetensors")[0].state_dict().keys() == run.state.average.state_dict().keys() == State(config).model.state_dict().keys()
