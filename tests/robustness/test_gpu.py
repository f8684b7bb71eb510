"What a GPU computes: the released numbers, the losses of a CPU, weights and answers, the same bits twice; all of it is skipped where torch finds none"
import os, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
from mrhd_nb.programs import parity
from mrhd_nb.learning import training
from mrhd_nb.data.annotations import Record
from mrhd_nb.data.batches import MomentDataset, iterate, planted_batch
from mrhd_nb.programs.bench import hardware, paper_work, time_work
from mrhd_nb.core.config import DataConfig, StreamConfig, override
from mrhd_nb.core.files import InputError, generator, rng
from mrhd_nb.core.presets import run_config
from mrhd_nb.learning.parallel import compile_model, make_resident, send_ahead
from mrhd_nb.data.features import MemoryFeatures
from mrhd_nb.learning.answers import predict_dataset
from mrhd_nb.learning.losses import compute_losses
from mrhd_nb.learning.training import State, train, train_step
sys.path.insert(0, str(Path(__file__).parents[1]/"learning"))
from test_devices import bits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
GOLDEN = sorted((Path(__file__).parents[1]/"golden").glob("*.npz"))
LITTLE = {"model.width": 32, "model.ffn": 64, "model.heads": 4, "model.encoder_layers": 1, "model.fusion_layers": 1}
PLAIN = LITTLE | {"model.dropout": 0., "model.input_dropout": 0.}
PRESETS = ["taskweave_mr2hd", "taskweave_hd2mr", "taskweave_both", "tr_detr", "mrhd"]
RUN = LITTLE | {"data.train_queries": 40, "data.val_queries": 12, "data.test_queries": 9, "training.epochs": 3, "training.batch_size": 8, "training.eval_every": 1,
                "training.ema_decay": 0.9, "training.deterministic": True}
AT_SIZES = {"model.video_dim": 26, "model.text_dim": 16} # those of the planted batches
BATCHES = [planted_batch(0), planted_batch(1, (20, 9), (5, 3)), planted_batch(2, (30, 3, 2, 5, 8), (9, 4, 2, 2, 3))]


def apart(a:dict[str, float], b:dict[str, float])->float:
    "The largest difference of two sets of terms, relative above one"
    assert a.keys() == b.keys()
    return max(abs(a[n]-b[n])/max(1, abs(a[n])) for n in a)


def same_gradients(one:torch.nn.Module, other:torch.nn.Module)->bool:
    "Up to rounding of the whole gradient. Weights are not compared: AdamW makes a step of full length of what is nothing but rounding"
    pairs = [(a.grad.cpu(), b.grad.cpu()) for a, b in zip(one.parameters(), other.parameters(), strict=True) if a.grad is not None]
    total = torch.stack([a.norm() for a, _ in pairs]).norm()
    return len(pairs) > 50 and total > 0 and all((a-b).norm() < 1e-4*total for a, b in pairs)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_released_numbers(path, monkeypatch):
    "All of them, within ten times what a CPU is allowed: products are summed in another order"
    class There(parity.Replica):
        def __init__(self, golden):
            super().__init__(golden)
            self.model.to("cuda"), self.weighting.to("cuda")
            self.batch = self.batch.to("cuda")
    monkeypatch.setattr(parity, "Replica", There)
    golden, errors = parity.read_golden(path), {}
    ours = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in parity.replicate(golden).items()}
    for key in golden.numbers:
        part = parity.PARTS.get(key.split("/")[0])
        if part: errors[part] = max(errors.get(part, 0.), parity.number_error(golden, key, ours))
    print(path.stem, {part: f"{e:.1e}" for part, e in errors.items()})
    assert len(errors) >= 4 and all(e <= 10*parity.LIMITS[part] for part, e in errors.items()), errors


@pytest.mark.parametrize("preset", PRESETS)
def test_steps_are_those_of_a_cpu(preset):
    "Losses of three steps on batches of other lengths, and the gradients of the first"
    config = run_config(preset, "synthetic", overrides=PLAIN | AT_SIZES)
    here, there = State(config), State(config, "cuda")
    for i, batch in enumerate(BATCHES):
        one, other = (train_step(s, b, config.training, feedback=True) for s, b in ((here, batch), (there, batch.to("cuda"))))
        assert apart(one, other) < 1e-4 and (i or same_gradients(here.model, there.model)), (one, other)


@pytest.fixture(scope="module")
def many()->MomentDataset:
    "200 queries on 50 videos of 1 to 40 clips"
    data = DataConfig("many", "qvhighlights", (StreamConfig("clips", (), 500), StreamConfig("more", (), 30, normalise=False)), StreamConfig("words", (), 40))
    draw = rng(0, "many")
    clips = {f"v{i}": int(draw.integers(1, 41)) for i in range(50)}
    videos = {vid: [draw.standard_normal((n, 500)).astype(np.float32), draw.standard_normal((n, 30)).astype(np.float32)] for vid, n in clips.items()}
    texts = {q: draw.standard_normal((int(draw.integers(1, 20)), 40)).astype(np.float32) for q in range(200)}
    records = [Record(q, "words", 2*clips[vid := f"v{q%50}"], vid, ((0, 2),), (0,), ((1, 2, q%4),)) for q in texts]
    return MomentDataset(records, MemoryFeatures(videos, texts, data), data)


def tensors(batch)->list[torch.Tensor]:
    t = batch.targets
    found = [batch.video, batch.clip_mask, batch.tokens, batch.token_mask, t.saliency, t.positive, t.negative, t.relevant, *t.spans]
    return found if batch.video_index is None else [*found, batch.video_index]


@pytest.mark.parametrize("resident", [False, True])
def test_batches_that_are_sent_ahead_arrive_whole(resident, many):
    "Every bit of every batch, while the GPU is kept so busy that the next batch is there before the present one is read"
    order = lambda source: iterate(source, 16, generator=generator(0, "order"), shuffle=True)
    source = make_resident(many, "cuda") if resident else many
    for _ in range(3):
        found = []
        for batch, _ in send_ahead(((b, None) for b in order(source)), "cuda"):
            torch.cuda._sleep(20_000_000) # about 10 ms
            found.append([t.clone() for t in tensors(batch)])
            del batch
        expected = [tensors(b) for b in order(many)]
        assert len(found) == len(expected) == 13
        for a, b in zip(found, expected): assert all(torch.equal(x.cpu(), y) for x, y in zip(a, b, strict=True)) and all(x.is_cuda for x in a)


@pytest.mark.parametrize("preset", ["taskweave_both", "tr_detr"])
def test_deterministic_runs_give_the_same_bits(preset, tmp_path):
    "Twice, and with resident features"
    config = run_config(preset, "synthetic", overrides=RUN)
    for name in ("one", "two"): train(config, tmp_path/name, device="cuda", progress=False)
    train(override(config, {"training.resident": True}), tmp_path/"resident", device="cuda", progress=False)
    one = bits(tmp_path/"one")
    for name in ("two", "resident"): assert bits(tmp_path/name) == one, name


def test_a_run_is_resumed_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    "Stopped by an error at its eighth step, of five an epoch, with a state saved at the sixth"
    config = run_config("taskweave_both", "synthetic", overrides=RUN | {"training.save_every": 3})
    train(config, tmp_path/"whole", device="cuda", progress=False)
    step, calls = training.train_step, []
    def breaks(*arguments, **options):
        calls.append(1)
        if len(calls) == 8: raise KeyboardInterrupt
        return step(*arguments, **options)
    monkeypatch.setattr(training, "train_step", breaks)
    with pytest.raises(KeyboardInterrupt): train(config, tmp_path/"stopped", device="cuda", progress=False)
    monkeypatch.undo()
    train(config, tmp_path/"stopped", device="cuda", progress=False)
    assert bits(tmp_path/"stopped") == bits(tmp_path/"whole")


def test_answers_are_those_of_a_cpu(many):
    "Saliency and the windows' scores; windows are rounded to clips, and rounding may turn over"
    config = run_config("taskweave_both", "synthetic", overrides=LITTLE | {"model.video_dim": many.data.video_dim, "model.text_dim": 40})
    state = State(config)
    here = predict_dataset(state.model, many, 32)
    there = predict_dataset(state.model.to("cuda"), many, 32, device="cuda")
    for a, b in zip(here, there, strict=True):
        assert a["qid"] == b["qid"]
        np.testing.assert_allclose(b["pred_saliency_scores"], a["pred_saliency_scores"], atol=5e-3) # they are rounded to half precision
        for x, y in zip(a["pred_relevant_windows"], b["pred_relevant_windows"], strict=True): assert abs(x[2]-y[2]) < 2e-4


@pytest.mark.parametrize("preset", PRESETS)
def test_bfloat16(preset):
    "Losses and answers near those of float32; gradients and weights stay float32"
    config = run_config(preset, "synthetic", overrides=PLAIN | AT_SIZES)
    batch, found = planted_batch(0).to("cuda"), {}
    for precision in ("float32", "bfloat16"):
        state = State(override(config, {"training.precision": precision}), "cuda")
        with torch.no_grad(): prediction = state.model.eval()(batch, feedback=True)
        state.model.train()
        terms = train_step(state, batch, config.training, feedback=True)
        assert all(p.dtype == torch.float32 and (p.grad is None or p.grad.dtype == torch.float32) and p.isfinite().all() for p in state.model.parameters())
        found[precision] = prediction, terms
    (a, x), (b, y) = found["float32"], found["bfloat16"]
    assert apart(x, y) < 0.1, (x, y)
    for name in ("logits", "spans"): torch.testing.assert_close(getattr(b, name), getattr(a, name), rtol=0, atol=0.1)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_asks_the_gpu_as_little_as_it_can(preset):
    "The forward and the backward pass wait for nothing; a step waits for the costs of each decoder layer's matching, for the loss and for the terms, and sends what was matched"
    config = run_config(preset, "synthetic", overrides=LITTLE | AT_SIZES)
    state, batch = State(config, "cuda"), planted_batch(0).to("cuda")
    step = lambda: train_step(state, batch, config.training, feedback=True)
    for _ in range(3): step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try: prediction = state.model(batch, feedback=True)
    finally: torch.cuda.set_sync_debug_mode("default")
    loss = state.weighting(compute_losses(prediction, batch.targets, config.training.losses, state.model.config.quirks))
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in state.model.parameters() if p.grad is not None], 0.1)
        state.optimizer.step()
    finally: torch.cuda.set_sync_debug_mode("default")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning) as said: step()
    finally: torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in said if "synchroniz" in str(w.message)]
    print(preset, len(waits), sorted({f"{Path(w.filename).name}:{w.lineno}" for w in waits}))
    assert len(waits) <= config.model.decoder_layers*3+2 # a layer: its costs, its pairs, and where the foreground is


def test_memory_that_is_too_small_is_said_in_one_line(many):
    taken = torch.empty(max(0, torch.cuda.mem_get_info()[0]-(64<<20)), dtype=torch.uint8, device="cuda") # 64 MB stay free
    draw = rng(0, "large")
    data = DataConfig("large", "qvhighlights", (StreamConfig("clips", (), 20_000),), StreamConfig("words", (), 4))
    videos = {f"v{i}": [draw.standard_normal((100, 20_000), np.float32)] for i in range(12)} # 8 MB each
    records = [Record(i, "words", 200, f"v{i}", ((0, 2),), (0,), ((1, 2, 3),)) for i in range(12)]
    large = MomentDataset(records, MemoryFeatures(videos, {i: np.ones((2, 4), np.float32) for i in range(12)}, data), data)
    with pytest.raises(InputError, match="^field 'training.resident': the features do not fit into the memory of cuda"): make_resident(large, "cuda")
    del taken
    torch.cuda.empty_cache()


TOGETHER = """
import torch, torch.distributed as dist
from mrhd_nb.data.batches import planted_batch
from mrhd_nb.core.presets import run_config
from mrhd_nb.learning.parallel import join, take_share
from mrhd_nb.learning.training import State, train_step
config = run_config("tr_detr", "synthetic", overrides=%r)
found = []
with join("cuda") as (world, device):
    assert (world.rank, world.size, device, dist.get_backend()) == (0, 1, "cuda:0", "nccl")
    world.wait(), dist.barrier()
    for whole in (True, False):
        state, batch = State(config, device), planted_batch(0)
        own, share = (batch, None) if whole else take_share(batch, 0, 1)
        found.append([train_step(state, own.to(device), config.training, feedback=True, share=share) for _ in range(3)])
    objects = [None]
    dist.all_gather_object(objects, {"rank": 0})
for one, other in zip(*found): assert all(abs(one[n]-other[n]) < 1e-4*max(1, abs(one[n])) for n in one), (one, other)
print("same", objects)
"""


def test_nccl_sums_what_processes_share(tmp_path):
    "All collectives of a step, through NCCL, of one process: a second needs a GPU of its own"
    (tmp_path/"together.py").write_text(TOGETHER % (PLAIN | AT_SIZES))
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", str(tmp_path/"together.py")], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])})
    assert done.returncode == 0 and "same [{'rank': 0}]" in done.stdout, done.stdout+done.stderr


def test_the_bench_measures_a_gpu():
    works = [replace(w, config=override(w.config, LITTLE), batch=2, clips=12, tokens=6) for w in paper_work() if (w.config.preset, w.dtype) == ("tr_detr", "float32")]
    timed = time_work(works, turns=2, least=.1, device="cuda")
    assert all(r["seconds"] > 0 and r["gflop_done"] > 0 for r in timed["rows"]) and timed["unit_s"] > 0
    assert hardware("cuda")["gpu"] == torch.cuda.get_device_name() and "gpu" not in hardware()


@pytest.mark.parametrize("preset", ["taskweave_mr2hd", "tr_detr"])
def test_compiled_steps_are_the_plain_ones(preset):
    "Generated kernels and recorded graphs: losses, weights and answers, for batches of other lengths and sizes; nothing is compiled when they come again"
    config = run_config(preset, "synthetic", overrides=PLAIN | AT_SIZES)
    plain, compiled = State(config, "cuda"), State(config, "cuda")
    compile_model(compiled.model, "cuda")
    graphs = []
    for batch in 2*BATCHES:
        one, other = (train_step(s, batch.to("cuda"), config.training, feedback=True) for s in (plain, compiled))
        assert apart(one, other) < 1e-4, (one, other)
        assert graphs or same_gradients(plain.model, compiled.model)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and len(set(graphs[2:])) == 1, graphs
    compiled.model.load_state_dict(plain.model.state_dict())
    with torch.no_grad(): one, other = (s.model.eval()(batch.to("cuda"), negatives=False) for s in (plain, compiled))
    for name in ("logits", "spans", "saliency"): torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=0, atol=1e-4)


def test_a_compiled_run_is_trained_averaged_and_scored(tmp_path):
    config = run_config("taskweave_mr2hd", "synthetic", overrides=RUN | {"training.compile": True, "training.deterministic": False, "training.epochs": 2})
    found = train(config, tmp_path, device="cuda", progress=False)
    assert np.isfinite(found["last"]["metrics"]["brief"]["MR-full-mAP"]) and len(bits(tmp_path)) > 10
