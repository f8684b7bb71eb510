"Labels against a plain reading of their rules; audio beside video, any number of streams, text in its three forms, other weights to start from"
import json, math
from dataclasses import replace
import numpy as np
import pytest, torch
from mrhd_nb.data.annotations import Record, as_json, write_annotations
from mrhd_nb.data.batches import MomentDataset, iterate, label, open_split, span_labels
from mrhd_nb.learning.checkpoints import load_model, save_model
from mrhd_nb.learning.losses import compute_losses
from mrhd_nb.learning.parallel import take_share
from mrhd_nb.core.presets import PRESETS, data_config, run_config
from mrhd_nb.core.config import DataConfig, StreamConfig, override, read_config
from mrhd_nb.core.files import InputError, generator
from mrhd_nb.data.features import FeatureFolder, MemoryFeatures, word_vectors
from mrhd_nb.inference.predictor import Predictor
from mrhd_nb.learning.answers import predict_dataset
from mrhd_nb.model.model import MomentModel
from mrhd_nb.learning.training import State, train, train_step

TINY = {"model.width": 16, "model.heads": 4, "model.ffn": 32, "model.moment_queries": 5, "training.batch_size": 4, "training.epochs": 2, "training.select_on": "none"}
TEXT = StreamConfig("clip_text", ("text/qid{qid}.npz",), 6, "last_hidden_state")
presets = pytest.mark.parametrize("preset", PRESETS)


def stream(name, dim, **options): return StreamConfig(name, (name+"/{vid}.npy",), dim, **options)


def moments(lengths, scores=True):
    "One record per video; its window covers the clips from the second to the middle"
    for i, clips in enumerate(lengths):
        inside = range(min(1, clips-1), max(clips//2, 1))
        extra = (tuple(inside), tuple((1, 2, 4-j % 3) for j in inside)) if scores else (None, None)
        yield Record(i, f"query number {i}", 2*clips, f"v{i}", ((2*inside.start, 2*inside.stop),), *extra, source=f"a.jsonl:{i+1}")


def dataset(data, lengths, tokens=None, **options):
    "Random features; `lengths` holds the rows of every stream of each video"
    draw, records = np.random.default_rng(0), list(moments([min(rows) for rows in lengths], **options))
    rows = {r.vid: [draw.standard_normal((n, s.dim)) for n, s in zip(own, data.streams, strict=True)] for r, own in zip(records, lengths)}
    texts = {r.qid: draw.standard_normal(tokens if tokens else (2+r.qid, data.text.dim)) for r in records}
    return MomentDataset(records, MemoryFeatures(rows, texts, data), data)


def one_step(config, samples):
    "The terms of a training step, feedback on, and the gradient of the first layer over the video's channels"
    state, batch = State(config), next(iterate(samples, len(samples)))
    terms = train_step(state, batch, config.training, feedback=True)
    assert all(np.isfinite(v) for v in terms.values())
    return state.model, state.model.video_projection.stages[0].linear.weight.grad.abs().sum(0)


def same(a, b):
    "Two answers, apart by rounding alone, which may turn equal scores around"
    np.testing.assert_allclose(a["pred_saliency_scores"], b["pred_saliency_scores"], atol=2e-3)
    np.testing.assert_allclose(*(sorted(line["pred_relevant_windows"]) for line in (a, b)), atol=2e-3)


# Labels

EXAMPLE = DataConfig("example", "charades", (StreamConfig("clip", ("",), 4),), TEXT)


def test_spans_stay_inside_and_windows_come_back():
    draw, g = np.random.default_rng(0), generator(0, "example")
    for _ in range(500):
        clips, step = int(draw.integers(1, 80)), float(draw.choice([2, 1, .5, 1/6]))
        windows = np.sort(draw.uniform(0, 1.3*clips*step, (int(draw.integers(1, 6)), 2)), 1)
        cw = span_labels(windows.tolist(), clips, replace(EXAMPLE, clip_length=step), g).double().numpy()
        se = np.stack([cw[:, 0]-cw[:, 1]/2, cw[:, 0]+cw[:, 1]/2], 1)
        assert (cw >= 0).all() and se.min(initial=0) > -1e-7 and se.max(initial=0) < 1+1e-7
        kept = [w.clip(max=clips*step) for w in windows if w[0] < clips*step]
        np.testing.assert_allclose(se*clips*step, kept or np.empty((0, 2)), atol=2e-5)


@pytest.mark.parametrize("floored", [False, True])
def test_labels_of_windows_are_those_of_a_plain_reading(floored):
    draw, g = np.random.default_rng(1), generator(0, "example")
    for _ in range(500):
        clips, step = int(draw.integers(1, 40)), float(draw.choice([2, 1, .5, 1/6]))
        windows = np.sort(draw.uniform(0, 1.2*clips*step, (int(draw.integers(1, 4)), 2)), 1).tolist()
        windows = [(start, start) if draw.random() < .1 else (start, end) for start, end in windows]
        data = replace(EXAMPLE, clip_length=step, floored_windows=floored)
        labels = label(Record(1, "q", 1, "v", windows, dataset="charades"), clips, data, g)
        on, touched = set(), set()
        for start, end in windows:
            last = max(0, min(int(end//step), clips)-1)
            on |= set(range(last if start//step > last else int(start//step), last+1))
            touched |= {i for i in range(clips) if math.floor(start/step) <= i < math.ceil(end/step)}
        assert set(np.flatnonzero(labels.saliency)) == (on if floored else touched) and set(np.flatnonzero(labels.relevant)) == touched
        assert len(labels.positive) == len(labels.negative) == (2 if floored or touched else 0)
        assert floored or bool(touched) == bool(len(labels.spans))


@pytest.mark.parametrize("window, length, most, ours, released", [ # on a video of 60 s, or of 300 s where `max_clips` cuts it
    ((10.2, 10.8), 2, None, [5], [4]), ((10.2, 11.9), 2, None, [5], [4]), ((10.2, 10.8), 1, None, [10], [9]), ((10.2, 10.8), .5, None, [20, 21], [20]),
    ((10, 10), 2, None, [5], [4]), ((11, 11), 2, None, [5], [4]), ((60, 60), 2, None, [29], [29]), ((0, 0), 2, None, [0], [0]), ((.5, .6), 2, None, [0], [0]),
    ((27, 28), 2, None, [13], [13]), ((26, 27), 2, None, [13], [12]), ((3., 5.), 2, None, [1, 2], [1]), ((3.9, 4.1), 2, None, [1, 2], [1]), ((4, 8), 2, None, [2, 3], [2, 3]),
    ((149, 160), 2, 75, [74], [74]), ((150, 160), 2, 75, [], [74]), ((200, 210), 2, 75, [], [74]), ((200, 210), 1, 75, [], [74]), ((58.2, 59), 2, 29, [], [28])])
def test_short_and_lost_windows(window, length, most, ours, released):
    "The clips that are touched, where the releases label the clip before, or the last"
    duration = 300 if most == 75 else 60
    clips = min(math.ceil(duration/length), most or 1000)
    record = Record(1, "q", duration, "v", (window,), dataset="charades")
    for floored, expected in ((False, ours), (True, released)):
        labels = label(record, clips, replace(EXAMPLE, clip_length=float(length), floored_windows=floored), generator(0, "edge"))
        assert labels.saliency.nonzero().flatten().tolist() == expected
        if not floored: assert labels.relevant.nonzero().flatten().tolist() == expected and len(labels.spans) == bool(expected)
        assert len(labels.positive) == len(labels.negative) == (2 if expected else 0) and set(labels.positive.tolist()) <= set(expected)


def moment_task(inside, **options):
    "40 videos of 12 clips of 2 s, one of them marked; the window of their queries is a part of that clip"
    draw, data = np.random.default_rng(0), replace(EXAMPLE, streams=(StreamConfig("clip", (), 8),), text=StreamConfig("words", (), 6), max_clips=None, round_to=None, **options)
    mark, rows, marked = 3*draw.standard_normal(8), {}, draw.integers(1, 11, 40).tolist()
    for i, clip in enumerate(marked):
        rows[f"v{i}"] = [draw.standard_normal((12, 8))]
        rows[f"v{i}"][0][clip] += mark
    windows = [tuple(2*(clip+part) for part in inside) for clip in marked]
    records = [Record(i, "q", 24, f"v{i}", (window,), dataset="charades") for i, window in enumerate(windows)]
    return MomentDataset(records, MemoryFeatures(rows, {i: draw.standard_normal((3, 6)) for i in range(40)}, data), data), marked


@pytest.mark.parametrize("inside, options, least, most", [
    ((.2, .8), {}, 38, 40), ((.5, .5), {}, 38, 40), ((0, 1), {"floored_windows": True}, 38, 40), ((.2, .8), {"floored_windows": True}, 0, 4)],
    ids=["a part of a clip", "without length", "whole, as released", "a part, as released"])
def test_moments_shorter_than_a_clip_are_learned(inside, options, least, most):
    "In how many videos the marked clip has the highest score: with the released labels it is the clip before"
    samples, marked = moment_task(inside, **options)
    quick = {"model.negative_pairs": False, "model.dropout": 0., "model.input_dropout": 0., "model.encoder_layers": 1, "model.fusion_layers": 1, "model.decoder_layers": 1, "training.lr": 5e-3, "training.clip_norm": 1.}
    config = run_config("taskweave_mr2hd", samples.data, overrides=TINY | quick)
    state = State(config)
    for epoch in range(20):
        for batch in iterate(samples, 20, shuffle=True, generator=generator(epoch, "planted")): train_step(state, batch, config.training, feedback=False)
    found = [int(np.argmax(line["pred_saliency_scores"])) for line in predict_dataset(state.model, samples)]
    assert least <= sum(map(int.__eq__, found, marked)) <= most


@pytest.mark.parametrize("windows, clips, duration, step, seconds", [
    ([(4, 10)], 6, 12, 2., [(4, 10)]),                   # as annotated
    ([(4, 12)], 5, 12, 2., [(4, 10)]),                   # features one row short
    ([(4, 12)], 7, 12, 2., [(4, 12)]),                   # features one row long
    ([(4, 18)], 6, 12, 2., [(4, 12)]),                   # window past the end
    ([(0, 12)], 6, 12, 2., [(0, 12)]),                   # the whole video
    ([(2.3, 9.62)], 10, 9.62, 1., [(2.3, 9.62)]),        # duration not whole
    ([(0, 2)], 1, 2, 2., [(0, 2)]), ([(.2, .9)], 1, .9, 1., [(.2, .9)])]) # one clip
@pytest.mark.parametrize("scores", [True, False])
def test_labels_at_the_edges_of_real_data(windows, clips, duration, step, seconds, scores):
    if scores and step != 2: return                      # three annotators rate clips of 2 s
    ids = tuple(sorted({i for s, e in windows for i in range(int(s//2), int(e//2))}))
    rated = (ids, ((1, 2, 3),)*len(ids)) if scores else (None, None)
    form = "qvhighlights" if scores else "charades"
    data = replace(EXAMPLE, dataset=form, clip_length=step)
    labels = label(Record(1, "q", duration, "v", tuple(windows), *rated, dataset=form), clips, data, generator(0, "edge"))
    assert [tuple(round(v*clips*step, 2) for v in (c-w/2, c+w/2)) for c, w in labels.spans.tolist()] == seconds
    assert len(labels.saliency) == clips and max(*labels.positive, *labels.negative) < clips


# Queries without a moment, and moments that are not read

def without(samples, qids, window=None):
    "The same data, where some queries have no moment, or only one that is not read"
    lost = {"windows": () if window is None else (window,), "clip_ids": None, "saliency": None}
    return MomentDataset([replace(r, **lost) if r.qid in qids else r for r in samples.records], samples.source, samples.data)


@presets
@pytest.mark.parametrize("window", [None, (100., 104.)], ids=["no moment", "not read"])
@pytest.mark.parametrize("scores", [True, False], ids=["scores", "windows alone"])
def test_queries_without_a_moment_are_negatives(preset, window, scores):
    "They have no pairs and no gradient of margin and rank; every moment query learns that it is background"
    samples = without(dataset(HEARD, AUDIO_ROWS, scores=scores), (1, 3), window)
    batch, config = next(iterate(samples, 5)), run_config(preset, HEARD, overrides=TINY)
    targets = batch.targets
    assert targets.paired.tolist() == [True, False, True, False, True] and targets.has_moments
    assert not targets.saliency[[1, 3]].any() and not targets.relevant[[1, 3]].any() and not len(targets.spans[1]) and not len(targets.spans[3])
    model = State(config).model
    p = model(batch, feedback=True)
    leaves = {name: getattr(p, name).detach().requires_grad_() for name in ("saliency", "logits")}
    terms = compute_losses(replace(p, **leaves), targets, config.training.losses, config.model.quirks)
    (terms.margin+terms.rank+terms.label.sum()).backward()
    assert not leaves["saliency"].grad[[1, 3]].any() and (leaves["saliency"].grad[[0, 2]].abs().sum(1) > 0).all()
    assert (leaves["logits"].grad[:, [1, 3], :, 0] > 0).all()          # every foreground score falls
    one_step(config, samples)


@presets
def test_batches_in_which_nothing_has_a_moment_have_finite_losses(preset):
    samples = without(dataset(HEARD, AUDIO_ROWS), range(5))
    assert next(iterate(samples, 5)).targets.positive.shape == (5, 0)
    config = run_config(preset, HEARD, overrides=TINY)
    state = State(config)
    terms = train_step(state, next(iterate(samples, 5)), config.training, feedback=True)
    assert terms["margin"] == terms["rank"] == terms["span"] == terms["giou"] == terms.get("video_alignment", 0) == 0 and terms["label"] > 0
    assert all(p.isfinite().all() for p in state.model.parameters())


@pytest.mark.parametrize("count", [2, 3, 7])
@presets
def test_shares_add_up_where_samples_have_no_moment(preset, count):
    samples = without(dataset(HEARD, AUDIO_ROWS), (0, 3))
    changes = {"model.negative_pairs": True, "model.dropout": 0., "model.input_dropout": 0., "training.losses.video_alignment": 0.}
    config, batch = run_config(preset, HEARD, overrides=TINY | changes), next(iterate(samples, 5))
    model = State(config).model.eval()
    terms = lambda b, *share: compute_losses(model(b, feedback=False, negatives=True), b.targets, config.training.losses, config.model.quirks, *share).asdict()
    whole, parts = terms(batch), [terms(*take_share(batch, rank, count)) for rank in range(count)]
    for name, value in whole.items(): assert math.isclose(sum(part[name] for part in parts), value, rel_tol=1e-4, abs_tol=1e-5), name


def test_training_says_once_what_is_not_read(tmp_path, capsys):
    "Two of seven moments lie in the half of the videos that `max_clips` does not read; the eighth query has none"
    write_features(tmp_path, [(2, 6)]*5+[(30, 36), (24, 28), None])
    config = run_config("taskweave_mr2hd", str(tmp_path/"data.json"), overrides=TINY)
    train(config, tmp_path/"run", progress=False)
    said = [line for line in capsys.readouterr().err.splitlines() if "no moment" in line]
    assert said == ["2 of 7 queries have no moment that is read: they teach no highlight; the features cover 50% of the duration"]
    train(run_config("taskweave_mr2hd", str(tmp_path/"data.json"), overrides=TINY | {"data.max_clips": 20}), tmp_path/"all", progress=False)
    assert "no moment" not in capsys.readouterr().err


def write_features(folder, windows):
    "A data set of one video of 40 s a query, of which 20 s are read"
    draw, lines = np.random.default_rng(0), []
    for i, window in enumerate(windows):
        np.save(folder/f"v{i}.npy", draw.standard_normal((20, 5)))
        lines.append({"qid": i, "query": f"number {i}", "duration": 40, "vid": f"v{i}", "relevant_windows": [window] if window else []})
    for split in ("train", "val"): (folder/f"{split}.jsonl").write_text("".join(json.dumps(line)+"\n" for line in lines))
    text = {"name": "words", "files": [], "dim": 6}
    (folder/"data.json").write_text(json.dumps({"name": "late", "dataset": "charades", "train": "train.jsonl", "val": "val.jsonl", "max_clips": 10, "round_to": None,
                                                "streams": [{"name": "clip", "files": ["{vid}.npy"], "dim": 5}], "text": text}))


# Audio

HEARD = DataConfig("heard", "qvhighlights", (stream("clip", 5), stream("pann", 4, audio=True)), TEXT, round_to=None)
AUDIO_ROWS = [(12, 12), (9, 7), (7, 11), (1, 3), (4, 1)] # video, audio: equal, shorter, longer, one clip, one row of audio


@presets
@pytest.mark.parametrize("fidelity", ["corrected", "released"])
def test_every_preset_trains_and_predicts_with_audio(preset, fidelity):
    config, samples = run_config(preset, HEARD, fidelity=fidelity, overrides=TINY), dataset(HEARD, AUDIO_ROWS)
    assert config.model.video_dim == 5+2+4+2
    model, reached = one_step(config, samples)
    assert reached.shape == (13,) and (reached > 0).all()              # video, audio and both pairs of endpoints are read
    for (video, audio), line in zip(AUDIO_ROWS, predict_dataset(model, samples)):
        clips = min(video, audio)
        assert len(line["pred_saliency_scores"]) == clips and len(line["pred_relevant_windows"]) == 5
        assert fidelity == "released" or all(0 <= s <= e <= 2*clips for s, e, _ in line["pred_relevant_windows"])


@presets
def test_audio_of_other_videos_changes_nothing(preset):
    config, samples = run_config(preset, HEARD, overrides=TINY), dataset(HEARD, AUDIO_ROWS)
    model = MomentModel(config.model, generator(0, "test"))
    for together, alone in zip(predict_dataset(model, samples, 5), predict_dataset(model, samples, 1)): same(together, alone)


@pytest.mark.parametrize("name, widths", [("tvsum_audio", (2048, 2048)), ("qvhighlights_audio", (2304, 512, 2048)), ("youtube_audio", (2048, 2048))])
def test_registered_audio_reads_files_shorter_and_longer(tmp_path, monkeypatch, name, widths):
    monkeypatch.setenv("MRHD_DATA", str(tmp_path))
    data, draw = data_config(name), np.random.default_rng(0)
    for vid, audio in (("short", 3), ("long", 9)):
        for s in data.streams:
            for path in s.files:
                rows, file = draw.standard_normal((audio if s.audio else 6, s.dim//len(s.files))).astype(np.float16), tmp_path/name.split("_")[0]/path.format(vid=vid)
                file.parent.mkdir(parents=True, exist_ok=True)
                np.savez(file, **{s.key: rows}) if s.key else np.save(file, rows)
    for vid, clips in (("short", 3), ("long", 6)):
        video = FeatureFolder(data).video(Record(0, "q", 12, vid, dataset=data.dataset))
        assert video.shape == (clips, data.video_dim) and data.video_dim == sum(widths)+4
        np.testing.assert_array_equal(video[:, -2:], video[:, sum(widths[:-1]):sum(widths[:-1])+2])
        np.testing.assert_allclose(video[:, -1], np.arange(1, clips+1)/clips, atol=1e-6)


# Streams

@presets
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_visual_streams_of_any_length(tmp_path, preset, count):
    data = DataConfig("streams", "charades", tuple(stream(f"s{i}", 3+i) for i in range(count)), TEXT, clip_length=1., round_to=None)
    lengths = [[9, 8, 11, 7][:count], [5, 6, 5, 9][:count], [1, 2, 1, 1][:count]]
    records = [replace(r, dataset="charades") for r in moments([min(n) for n in lengths], scores=False)]
    made = dataset(replace(data, dataset="qvhighlights"), lengths, scores=False).source
    samples = MomentDataset(records, MemoryFeatures(made.streams, made.texts, data), data)
    config = run_config(preset, data, overrides=TINY)
    model, reached = one_step(config, samples)
    assert len(reached) == data.video_dim == sum(range(3, 3+count))+2 and (reached > 0).all()
    save_model(tmp_path/"m.safetensors", model, config)
    predictor = Predictor(tmp_path/"m.safetensors")
    for record, line in zip(records, predict_dataset(predictor.model, samples, 1)):
        answer = predictor.predict(made.streams[record.vid], made.texts[record.qid], duration=record.duration)
        assert answer["windows"] == line["pred_relevant_windows"] and answer["saliency"] == line["pred_saliency_scores"]


@presets
@pytest.mark.parametrize("shape", [(6,), (1, 6), (3, 6)], ids=["pooled", "one row", "tokens"])
def test_text_may_be_tokens_or_pooled(preset, shape):
    data = replace(HEARD, streams=HEARD.streams[:1])
    samples, config = dataset(data, [(9,), (5,), (1,)], tokens=shape), run_config(preset, data, overrides=TINY)
    batch = next(iterate(samples, 3))
    assert batch.tokens.shape == (3, shape[0] if len(shape) > 1 else 1, 6) and batch.token_mask.all()
    model, _ = one_step(config, samples)
    assert all(len(line["pred_relevant_windows"]) == 5 for line in predict_dataset(model, samples))


def test_pooled_text_from_released_files(tmp_path, monkeypatch):
    "The same files give tokens or the pooled vector, whichever `text.key` names"
    monkeypatch.setenv("MRHD_DATA", str(tmp_path))
    rows, folder = np.random.default_rng(0).standard_normal((5, 512)).astype(np.float32), tmp_path/"qvhighlights"/"clip_text_features"
    folder.mkdir(parents=True)
    np.savez(folder/"qid7.npz", last_hidden_state=rows, pooler_output=rows[-1])
    record = Record(7, "a dog", 20, "v")
    for key, expected in (("last_hidden_state", rows), ("pooler_output", rows[-1:])):
        config = run_config("tr_detr", "qvhighlights", overrides=[f"data.text.key={key}"])
        np.testing.assert_allclose(FeatureFolder(config.data).tokens(record), expected/np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


# Data at the edges

@presets
@pytest.mark.parametrize("scores", [True, False], ids=["scores", "windows alone"])
def test_edges_of_real_data(preset, scores):
    "Whole-video windows leave no negatives; durations are no multiple of the clip; audio ends early; windows pass the features or lie behind them"
    cases = [(((0, 20),), 10, 20), (((0, 18),), 9, 19.3), (((4, 30),), 7, 29.7), (((24, 28),), 8, 28.), (((0, 1.2),), 1, 1.2), (((2, 4), (8, 9.5), (6, 7)), 5, 10.9)]
    records, rows = [], {}
    for i, (windows, clips, duration) in enumerate(cases):
        ids = sorted({j for s, e in windows for j in range(int(s//2), max(int(e//2), int(s//2)+1))})
        records.append(Record(i, "q", duration, f"v{i}", windows, *((tuple(ids), ((2, 3, 4),)*len(ids)) if scores else (None, None))))
        draw = np.random.default_rng(i)
        rows[f"v{i}"] = [draw.standard_normal((clips+1, 5)), draw.standard_normal((clips, 4))]
    samples = MomentDataset(records, MemoryFeatures(rows, {i: np.random.default_rng(i).standard_normal((3, 6)) for i in range(6)}, HEARD), HEARD)
    model, _ = one_step(run_config(preset, HEARD, overrides=TINY), samples)
    for record, line in zip(records, predict_dataset(model, samples)):
        assert all(0 <= s <= e <= record.duration for s, e, _ in line["pred_relevant_windows"]) and np.isfinite(line["pred_saliency_scores"]).all()


# Words without features: YouTube Highlights

def youtube(folder, domains, videos, audio=False):
    "UMT's layout: which half of the clips is the highlight depends on the domain alone"
    draw, lines = np.random.default_rng(0), {"train": [], "val": []}
    marks = draw.standard_normal((2, 1024))
    for split, count in (("train", videos), ("val", 4)):
        for d, domain in enumerate(domains):
            for i in range(count):
                vid, kind = f"{domain}{split}{i}", draw.integers(0, 2, 10)
                kind[:2] = 0, 1
                (folder/"video_features").mkdir(parents=True, exist_ok=True)
                (folder/"audio_features").mkdir(exist_ok=True)
                for part in ("rgb", "opt"): np.save(folder/"video_features"/f"{vid}_{part}.npy", marks[kind]+draw.standard_normal((10, 1024)))
                np.save(folder/"audio_features"/f"{vid}.npy", draw.standard_normal((9+i % 3, 2048)))
                lines[split].append({"qid": vid, "query": domain, "duration": 18.4, "vid": vid, "relevant_clip_ids": None, "relevant_windows": None,
                                     "label": [[int(k == d)] for k in kind], "domain": domain, "fps": 27.2})
        (folder/f"youtube_highlight_{split}_release.jsonl").write_text("".join(json.dumps(line)+"\n" for line in lines[split]))


def test_words_tell_the_domains_of_youtube_highlights_apart(tmp_path, monkeypatch):
    "Two domains want opposite clips of the same kind of video; only the vector of the domain's name says which"
    monkeypatch.setenv("MRHD_DATA", str(tmp_path))
    youtube(tmp_path/"youtube", ("dog", "surfing"), 12)
    small = {"model.dropout": 0., "model.input_dropout": 0.1, "model.encoder_layers": 1, "model.fusion_layers": 1}
    quick = {"training.epochs": 8, "training.batch_size": 8, "training.lr": 5e-3, "training.clip_norm": 1.}
    config = run_config("tr_detr", "youtube", overrides=TINY | small | quick)
    results = train(config, tmp_path/"run", progress=False)
    assert results["last"]["metrics"]["domains"].keys() == {"dog", "surfing"} and results["last"]["metrics"]["brief"]["mAP"] > 0.8 # about 0.55 by chance
    predictor = Predictor(tmp_path/"run"/"last.safetensors")
    files = [tmp_path/"youtube"/"video_features"/f"dogval0_{part}.npy" for part in ("rgb", "opt")]
    dog, surfing = (np.array(predictor.predict(files, query=word)["saliency"]) for word in ("dog", "surfing"))
    assert np.corrcoef(dog, surfing)[0, 1] < 0                         # the other word, the other clips


@pytest.mark.parametrize("name", ["youtube/dog", "youtube_audio/dog"])
def test_one_domain_of_youtube_highlights(tmp_path, monkeypatch, name):
    monkeypatch.setenv("MRHD_DATA", str(tmp_path))
    youtube(tmp_path/"youtube", ("dog", "surfing"), 3)
    results = train(run_config("taskweave_mr2hd", name, overrides=TINY), tmp_path/"run", progress=False)
    assert results["last"]["metrics"]["domains"].keys() == {"dog"} and 0 < results["last"]["metrics"]["brief"]["mAP"] <= 1


def test_youtube_highlights_takes_text_features_where_there_are_some(tmp_path, monkeypatch):
    monkeypatch.setenv("MRHD_DATA", str(tmp_path))
    (tmp_path/"youtube"/"query_features").mkdir(parents=True)
    np.savez(tmp_path/"youtube"/"query_features"/"dog.npz", token=np.eye(2, 512))
    record = Record("x", "dog", 18.4, "x", domain="dog", dataset="youtube")
    own = run_config("tr_detr", "youtube", overrides=['data.text.files=["query_features/{domain}.npz"]', "data.text.key=token"]).data
    assert FeatureFolder(own).tokens(record).shape == (2, 512)
    words = FeatureFolder(data_config("youtube")).tokens(record)
    assert words.shape == (1, 512) and np.corrcoef(words[0], word_vectors("dog", 512)[0])[0, 1] > 0.999


# Pre-training on subtitles, then fine-tuning

def subtitles_and_queries(folder):
    "QVHighlights' layout at its own widths: subtitles with windows alone and clip ids, queries with scores"
    draw = np.random.default_rng(0)
    for name, dim in (("slowfast", 2304), ("clip", 512)):
        (folder/f"{name}_features").mkdir(parents=True)
        for i in range(6): np.savez(folder/f"{name}_features"/f"v{i}.npz", features=draw.standard_normal((8+i, dim)))
    for name, qids in (("clip_sub", range(6)), ("clip_text", range(100, 106))):
        (folder/f"{name}_features").mkdir()
        for i in qids: np.savez(folder/f"{name}_features"/f"qid{i}.npz", last_hidden_state=draw.standard_normal((4, 512)))
    queries = [replace(r, qid=100+r.qid) for r in moments(range(8, 14))]
    write_annotations(folder/"highlight_train_release.jsonl", queries[:4])
    for part, some in (("val_release", queries[4:5]), ("test_with_gt", queries[5:])): write_annotations(folder/f"highlight_{part}.jsonl", some)
    lines = [as_json(r) | {"qid": i} for i, r in enumerate(moments(range(8, 14)))]
    (folder/"subs_train.jsonl").write_text("".join(json.dumps({k: v for k, v in line.items() if k != "saliency_scores"})+"\n" for line in lines))


def test_pretrains_on_subtitles_and_fine_tunes(tmp_path, monkeypatch):
    monkeypatch.setenv("MRHD_DATA", str(tmp_path))
    subtitles_and_queries(tmp_path/"qvhighlights")
    asr = run_config("taskweave_mr2hd", "qvhighlights_asr", overrides=TINY | {"training.select_on": "val", "training.eval_every": 1})
    assert (asr.training.batch_size, run_config("taskweave_mr2hd", "qvhighlights_asr").training.batch_size) == (4, 256)
    subtitles, queries, _ = (open_split(asr, split) for split in ("train", "val", "test"))
    assert all(r.saliency is None and r.clip_ids for r in subtitles.records) and all(r.saliency for r in queries.records)
    targets = next(iterate(subtitles, 6)).targets
    assert targets.saliency.unique().tolist() == [0, 1] and targets.positive.shape == (6, 2)
    first = train(asr, tmp_path/"asr", progress=False)
    assert "HL-min-VeryGood-mAP" in first["last"]["metrics"]["brief"]

    tuned = run_config("taskweave_mr2hd", "qvhighlights", seed=4, overrides=TINY | {"training.init": str(tmp_path/"asr"), "training.ema_decay": 0.5})
    still = override(tuned, {"training.lr": 0., "training.epochs": 1})
    train(still, tmp_path/"still", progress=False)                     # no step changes anything: the weights are those of the pre-training
    (before, _), (after, config) = (load_model(tmp_path/name/"last.safetensors") for name in ("asr", "still"))
    assert all(torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values())) and config.seed == 4
    results, other = (train(override(tuned, {"training.init": init}), tmp_path/name, progress=False) for name, init in (("tuned", str(tmp_path/"asr")), ("fresh", "")))
    assert results["last"] != other["last"]
    written = read_config(tmp_path/"tuned"/"config.json")
    assert len(written.training.init_sha256) == 64 and train(written, tmp_path/"again", progress=False)["last"] == results["last"]
    assert train(tuned, tmp_path/"tuned", progress=False) == results   # finished: the same folder is accepted again

    train(override(asr, {"seed": 1}), tmp_path/"other", progress=False)
    (tmp_path/"asr"/"last.safetensors").write_bytes((tmp_path/"other"/"last.safetensors").read_bytes())
    with pytest.raises(InputError, match="last.safetensors: is not the file that this run starts from"): train(written, tmp_path/"third", progress=False)


def test_other_weights_must_fit(tmp_path):
    "Another width, another system and another order of streams are refused in one line before anything is written"
    data = DataConfig("x", "qvhighlights", (stream("a", 3), stream("b", 4)), TEXT)
    config = run_config("taskweave_mr2hd", data, overrides=TINY)
    save_model(tmp_path/"m.safetensors", MomentModel(config.model, generator(0, "test")), config)
    start = TINY | {"training.init": str(tmp_path/"m.safetensors")}
    turned = replace(data, streams=data.streams[::-1], root=str(tmp_path), train="a.jsonl", val="a.jsonl")
    write_annotations(tmp_path/"a.jsonl", moments([4]))
    for preset, own, changes, said in [("taskweave_mr2hd", turned, {}, r"does not fit: streams is \[\(3, False\), \(4, False\)\] there"),
                                       ("tr_detr", replace(turned, streams=data.streams), {}, "model.decoupled is True there and False here"),
                                       ("taskweave_mr2hd", replace(turned, streams=data.streams), {"model.width": 32}, "model.width is 16 there and 32 here")]:
        with pytest.raises(InputError, match=said) as error: train(run_config(preset, own, overrides=start | changes), tmp_path/"run", progress=False)
        assert "\n" not in str(error.value) and not (tmp_path/"run"/"history.jsonl").exists()
    fitting = run_config("taskweave_mr2hd", replace(turned, streams=data.streams), overrides=start)
    with pytest.raises(InputError, match="a/v0.npy: cannot be read"): train(fitting, tmp_path/"run", progress=False) # the same folder: on to what is missing next
