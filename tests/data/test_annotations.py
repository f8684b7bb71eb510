"Every released annotation and feature file here becomes the records and batches that the specification describes"
import json, math
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
import numpy as np
import pytest
import torch
from mrhd_nb.data.annotations import as_json, parse_record, read_annotations, select_domain, write_annotations
from mrhd_nb.data.batches import MomentDataset, iterate, label
from mrhd_nb.core.files import InputError, generator
from mrhd_nb.core.config import StreamConfig
from mrhd_nb.core.presets import data_config
from mrhd_nb.core.testing import refusal
from mrhd_nb.data.features import FeatureFolder, MemoryFeatures

ANNOTATIONS = { # file below shared/, data set, records, videos
    "reference/annotations/qvhighlights/highlight_train_release.jsonl": ("qvhighlights", 7218, None),
    "reference/annotations/qvhighlights/highlight_val_release.jsonl": ("qvhighlights", 1550, None),
    "reference/annotations/qvhighlights/highlight_test_with_gt.jsonl": ("qvhighlights", 1542, None),
    "reference/annotations/charades/charades_sta_train_tvr_format.jsonl": ("charades", 12404, 5336),
    "reference/annotations/charades/charades_sta_val_tvr_format.jsonl": ("charades", 3720, 1334),
    "reference/annotations/tvsum/tvsum_train.jsonl": ("tvsum", 40, 40),
    "reference/annotations/tvsum/tvsum_val.jsonl": ("tvsum", 10, 10),
    "reference/annotations/youtube_highlights/youtube_highlight_train_release.jsonl": ("youtube", 233, 233),
    "reference/annotations/youtube_highlights/youtube_highlight_val_release.jsonl": ("youtube", 152, 152),
    "features/charades/charades_clip_train.jsonl": ("charades", 2733, 981),
    "features/charades/charades_clip_val.jsonl": ("charades", 987, 353),
    "features/charades_video/annotations.jsonl": ("charades", 2, 1),
    "features/qvhighlights_sample/annotations.jsonl": ("qvhighlights", 1, 1),
}
OTHER_DATA_SETS = {"reference/annotations/soccer_gmr/soccer_gmr_test.jsonl"} # in the form of QVHighlights, with other fields in between
TVSUM_DOMAINS = {"VT", "VU", "GA", "MS", "PK", "PR", "FM", "BK", "BT", "DS"}


@lru_cache
def read(path, dataset): return read_annotations(path, dataset)


def split(shared, dataset, part):
    name, = [f for f, (d, *_) in ANNOTATIONS.items() if d == dataset and f.startswith("reference") and part in f]
    return read(shared/name, dataset)


def unit(rows):
    "Rows of length one, in double precision"
    rows = rows.astype(np.float64)
    return rows/(np.sqrt((rows*rows).sum(1, keepdims=True))+1e-5)


def ends(n): return np.array([[i/n, (i+1)/n] for i in range(n)])


def samples(batch):
    "What each sample of a batch holds where it is real, after checking the padding"
    videos = batch.per_sample(batch.video)
    for b, record in enumerate(batch.records):
        clips, tokens = int(batch.clip_mask[b].sum()), int(batch.token_mask[b].sum())
        assert batch.clip_mask[b, :clips].all() and batch.token_mask[b, :tokens].all()
        assert not videos[b, clips:].any() and not batch.tokens[b, tokens:].any()
        assert not batch.targets.saliency[b, clips:].any() and not batch.targets.relevant[b, clips:].any()
        yield b, record, videos[b, :clips].numpy(), batch.tokens[b, :tokens].numpy()


# Annotations

def test_every_annotation_file_here_is_listed(shared):
    found = {str(p.relative_to(shared)) for folder in ("reference/annotations", "features") for p in (shared/folder).rglob("*.jsonl") if not p.name.endswith(".ledger.jsonl")}
    assert found-OTHER_DATA_SETS == set(ANNOTATIONS)


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations_are_read_and_written_back_unchanged(shared, tmp_path, name):
    dataset, count, videos = ANNOTATIONS[name]
    records = read(shared/name, dataset)
    assert len(records) == count and (videos is None or len({r.vid for r in records}) == videos)
    write_annotations(tmp_path/"again.jsonl", records)
    original, again = (list(map(json.loads, p.read_text().splitlines())) for p in (shared/name, tmp_path/"again.jsonl"))
    assert original == again and [list(o) for o in original] == [list(o) for o in again]


GOOD = {"qid": 7, "query": "a dog catches a red disc", "duration": 24, "vid": "park_0", "relevant_clip_ids": [2, 3, 4, 8, 9],
        "saliency_scores": [[1, 2, 1], [3, 4, 3], [4, 4, 4], [2, 2, 3], [2, 1, 2]], "relevant_windows": [[4, 10], [16, 20]]}


@pytest.mark.parametrize("change, said", [
    ({"qid": None}, "'qid': missing"), ({"qid": 1.5}, "'qid': 1.5"), ({"query": " "}, "'query': ' '"), ({"vid": 3}, "'vid': 3"), ({"duration": 0}, "'duration': 0"),
    ({"duration": "24"}, "'duration': '24'"), ({"duration": True}, "'duration': True"), ({"duration": float("nan")}, "'duration': nan"), ({"duration": 10**400}, "'duration': 1000"),
    ({"relevant_windows": []}, "'relevant_windows': empty"), ({"relevant_windows": 3}, "'relevant_windows': 3"), ({"relevant_windows": [[10, 4]]}, "[0]': ends at 4 s, before it starts at 10 s"),
    ({"relevant_windows": [[4]]}, "[0]': 1 entries where 2"), ({"relevant_windows": [[-1, 2]]}, "[0]': -1"), ({"relevant_windows": [[0, "2"]]}, "[0]': '2'"),
    ({"relevant_windows": None}, "'relevant_windows': missing"), ({"relevant_clip_ids": None}, "'relevant_clip_ids': missing"),
    ({"relevant_clip_ids": [2, 3, 4, 8, 8]}, "twice"), ({"relevant_clip_ids": [2, 3, 4, 8, 9.0]}, "[4]': 9.0"), ({"relevant_clip_ids": [2]}, "'saliency_scores': 5 entries where 1"), ({"relevant_clip_ids": [], "saliency_scores": []}, "'relevant_clip_ids': empty"),
    ({"saliency_scores": [[1, 2]]*5}, "[0]': 2 entries where 3"), ({"saliency_scores": [[1, 2, 3]]*4+[[1, 2, 5]]}, "[4]': 5"), ({"saliency_scores": [[1, 2, True]]*5}, "[0]': True"),
    ({"label": [[1]]}, "'label': qvhighlights has none")])
def test_a_wrong_field_is_named(tmp_path, change, said):
    (tmp_path/"a.jsonl").write_text("\n"+json.dumps(GOOD | change))
    message = refusal(read_annotations, tmp_path/"a.jsonl")
    assert message.startswith(f"{tmp_path/'a.jsonl'}:2: field '") and said in message


@pytest.mark.parametrize("dataset, change, said", [
    ("tvsum", {"label": [[1, 2], [3]]}, "'label[1]': 1 entries where 2"), ("tvsum", {"label": [[1, 0]]}, "'label[0]': 0"), ("tvsum", {"domain": None}, "'domain': missing"),
    ("tvsum", {"relevant_windows": [[0, 2]]}, "'relevant_windows': tvsum has none"), ("youtube", {"label": [[3]]}, "'label[0]': 3"), ("youtube", {"label": [[0.5]]}, "'label[0]': 0.5"),
    ("youtube", {"label": [[0, 1]]}, "2 entries where 1"), ("youtube", {"label": [0]}, "'label[0]': 0 is not a list")])
def test_a_wrong_label_is_named(dataset, change, said):
    line = {"qid": "x", "query": "dog", "duration": 5.5, "vid": "x", "label": [[1]], "domain": "dog"}
    assert parse_record(line, dataset).labels.shape == (1, 1) and said in refusal(parse_record, line | change, dataset)


@pytest.mark.parametrize("data, said", [
    (b"\xff\xffa", "a.jsonl:1: not UTF-8 text"), (b"\xff\xfea", "a.jsonl: not UTF-8 text"), (json.dumps(GOOD).encode()+b"\n{'qid': 1}", "a.jsonl:2: not JSON"), (json.dumps(GOOD)[:-20].encode(), "a.jsonl:1: not JSON"),
    (b"["*100_000, "a.jsonl:1: not JSON: nested too deeply"), (b"[1]", "a.jsonl:1: [1] is not a JSON object"), (b"\n \n", "a.jsonl: holds no records"),
    (json.dumps(GOOD).encode()+b"\n"+json.dumps(GOOD | {"qid": "7"}).encode(), "a.jsonl:2: field 'qid': '7' is already on")])
def test_a_wrong_file_is_named(tmp_path, data, said):
    (tmp_path/"a.jsonl").write_bytes(data)
    assert said in refusal(read_annotations, tmp_path/"a.jsonl")
    assert "cannot be read" in refusal(read_annotations, tmp_path/"missing.jsonl") and "one of qvhighlights" in refusal(read_annotations, tmp_path/"a.jsonl", "tacos")


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations_of_another_data_set_are_refused(shared, name):
    own = ANNOTATIONS[name][0]
    for dataset in {"qvhighlights", "charades", "tvsum", "youtube"} - {own}:
        if {own, dataset} == {"qvhighlights", "charades"}: continue # windows alone are valid in both
        with pytest.raises(InputError, match=r"^[^\n]*:1: field '[^\n]*$"): read_annotations(shared/name, dataset)


def test_a_damaged_real_file_is_refused_with_its_line(shared, tmp_path):
    lines = (shared/"reference/annotations/qvhighlights/highlight_val_release.jsonl").read_text().splitlines()
    for at, old, new, says in ((17, '"qid"', '"id"', "field 'qid'"), (1550, "[[", "[[-", "field 'saliency_scores"), (3, "}", "", "not JSON")):
        damaged = list(lines)
        damaged[at-1] = damaged[at-1].replace(old, new)
        (tmp_path/"a.jsonl").write_text("\n".join(damaged))
        with pytest.raises(InputError) as error: read_annotations(tmp_path/"a.jsonl")
        assert str(error.value).startswith(f"{tmp_path/'a.jsonl'}:{at}: ") and says in str(error.value) and "\n" not in str(error.value)


def test_qvhighlights_facts(shared):
    train = split(shared, "qvhighlights", "train")
    counts = Counter(min(len(r.windows), 6) for r in train)
    assert [counts[n] for n in range(1, 7)] == [4855, 1230, 466, 266, 140, 261] and max(len(r.windows) for r in train) == 24
    widths = [e-s for r in train for s, e in r.windows]
    assert len(widths) == 12803
    assert [sum(low < w <= high for w in widths) for low, high in ((0, 10), (10, 30), (30, 150))] == [4774, 4997, 3032]
    assert min(len(r.clip_ids) for r in train) == 7 and sum(len(r.clip_ids) == r.duration//2 for r in train) == 302
    for part, short in (("train", 213), ("val", 39), ("test", 47)):
        records = split(shared, "qvhighlights", part)
        assert sum(r.duration < 150 for r in records) == short
        for r in records:
            assert type(r.qid) is int and r.duration % 2 == 0 and all(s % 2 == e % 2 == 0 and e <= r.duration for s, e in r.windows)
            assert list(r.clip_ids) == sorted({i for s, e in r.windows for i in range(s//2, e//2)})


def test_queries_without_a_moment_are_read_like_any_other(shared, tmp_path):
    records = read(shared/"reference/annotations/soccer_gmr/soccer_gmr_test.jsonl", "qvhighlights")
    assert (len(records), sum(r.windows == () for r in records)) == (1036, 492)
    write_annotations(tmp_path/"again.jsonl", records)
    assert [r.windows for r in read_annotations(tmp_path/"again.jsonl")] == [r.windows for r in records]
    data = replace(data_config("qvhighlights"), max_clips=None)
    for r in records:
        l = label(r, math.ceil(r.duration/2), data, generator(0, "test"))
        assert len(l.spans) == min(5, len(r.windows)) and l.relevant.any() == bool(r.windows) == bool(len(l.positive)) and torch.equal(l.saliency > 0, l.relevant)


def test_charades_facts(shared):
    for part, shortest, longest in (("train", 5.5, 194.33), ("val", 7.04, 72.04)):
        records = split(shared, "charades", part)
        assert all(len(r.windows) == 1 and r.saliency is None and r.clip_ids is None for r in records)
        durations = [r.duration for r in records]
        assert (min(durations), max(durations)) == (shortest, longest)


def test_tvsum_and_youtube_facts(shared):
    for part, each in (("train", 4), ("val", 1)):
        records = split(shared, "tvsum", part)
        assert Counter(r.domain for r in records) == dict.fromkeys(TVSUM_DOMAINS, each)
        for r in records: assert r.qid == r.vid and r.labels.shape == (r.duration, 20) and set(np.unique(r.labels)) <= {1, 2, 3, 4, 5}
        assert len(select_domain(records, "VT")) == each
        records = split(shared, "youtube", part)
        assert len({r.domain for r in records}) == 6 and all(r.query == r.domain for r in records)
        for r in records: assert r.labels.shape == (len(r.extra["clip"]), 1) and set(np.unique(r.labels)) <= {0, 1} and r.labels.any()


# Labels

@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_labels_of_every_qvhighlights_query(shared, part):
    data, draw = data_config("qvhighlights"), generator(0, "test")
    for r in split(shared, "qvhighlights", part):
        clips = r.duration//2 - r.qid % 3 # some features one or two rows short
        l, y = label(r, clips, data, draw), [0]*clips
        for i, scores in zip(r.clip_ids, r.saliency):
            if i < clips: y[i] = sum(scores)
        relevant = [i for i in r.clip_ids if i < clips]
        assert l.saliency.tolist() == y and l.relevant.nonzero().flatten().tolist() == relevant
        (hard, easy), (low, out) = l.positive.tolist(), l.negative.tolist()
        assert y[hard] == max(y[i] for i in relevant) and y[low] == min(y[i] for i in relevant) and {hard, low, easy} <= set(relevant)
        if len(relevant) == clips: assert (easy, out) == (hard, low)
        else: assert out not in relevant
        spans = {(round((c-w/2)*clips*2, 3), round((c+w/2)*clips*2, 3)) for c, w in l.spans.tolist()}
        windows = {(s, min(e, clips*2)) for s, e in r.windows if s < clips*2}
        assert spans <= windows and len(l.spans) == min(5, len(windows)) and l.has_moments


def test_labels_of_every_youtube_video(shared):
    "There are no features of these videos here: one row more or less than there are labels stands for them"
    data = replace(data_config("youtube"), max_clips=None)
    for part in ("train", "val"):
        records = split(shared, "youtube", part)
        draw = np.random.default_rng(0)
        streams = {r.vid: [draw.standard_normal((len(r.labels)+i%3-1, 2048), np.float32)] for i, r in enumerate(records)}
        source = MemoryFeatures(streams, {r.qid: draw.standard_normal((3, 512)) for r in records}, data)
        for batch in iterate(MomentDataset(records, source, data), 64):
            assert not batch.targets.has_moments and not any(map(len, batch.targets.spans))
            for b, r, video, _ in samples(batch):
                y = [float(v) for v, in r.labels.tolist()][:len(video)]
                y += [0.]*(len(video)-len(y))
                assert batch.targets.saliency[b, :len(y)].tolist() == y == batch.targets.relevant[b, :len(y)].tolist()
                assert y[batch.targets.positive[b, 0]] == max(y) and y[batch.targets.negative[b, 0]] == min(y[:len(r.labels)])


# Features

def test_qvhighlights_sample(shared):
    folder = shared/"features/qvhighlights_sample"
    data = data_config("qvhighlights")
    records = read(folder/"annotations.jsonl", "qvhighlights")
    batch, = iterate(MomentDataset(records, FeatureFolder(data, folder), data), 4)
    slowfast, clip = (np.load(folder/name/f"{records[0].vid}.npz")["features"] for name in ("slowfast_features", "clip_features"))
    text = np.load(folder/"clip_text_features/qid5263.npz")["last_hidden_state"]
    assert batch.video.shape == (1, 75, 2818) and batch.tokens.shape == (1, 13, 512) and data.video_dim == 2818
    np.testing.assert_allclose(batch.video[0], np.hstack([unit(slowfast), unit(clip), ends(75)]), atol=1e-6)
    np.testing.assert_allclose(batch.tokens[0], unit(text), atol=1e-6)
    np.testing.assert_allclose(batch.targets.spans[0], [[15/150, 30/150], [94/150, 32/150]], atol=1e-7)
    # with audio, which this sample lacks: 60 rows for 75 clips, each part with its own endpoints
    heard = data_config("qvhighlights_audio")
    audio = np.random.default_rng(0).standard_normal((60, 2048))
    video = MemoryFeatures({records[0].vid: [slowfast, clip, audio]}, {}, heard).video(records[0])
    assert video.shape == (60, heard.video_dim) == (60, 4868)
    np.testing.assert_allclose(video, np.hstack([unit(slowfast[:60]), unit(clip[:60]), ends(60), unit(audio), ends(60)]), atol=1e-6)


@pytest.mark.parametrize("audio", [False, True])
def test_every_tvsum_video(shared, monkeypatch, audio):
    monkeypatch.setenv("MRHD_DATA", str(shared/"features"))
    folder, data = shared/"features/tvsum", data_config("tvsum_audio" if audio else "tvsum")
    records = split(shared, "tvsum", "train") + split(shared, "tvsum", "val")
    seen = 0
    for batch in iterate(MomentDataset(records, FeatureFolder(data), data), 10):
        assert batch.video.shape[2] == data.video_dim == (4100 if audio else 2050) and batch.tokens.shape[2] == 512
        assert not batch.targets.has_moments and batch.targets.positive.shape == batch.targets.negative.shape == (10, 1)
        for b, r, video, tokens in samples(batch):
            rgb, flow = (np.load(folder/f"video_features/{r.vid}_{kind}.npy") for kind in ("rgb", "opt"))
            sound = np.load(folder/f"audio_features/{r.vid}.npy")
            n = min(len(rgb), len(sound)) if audio else len(rgb)
            expected = [unit(np.hstack([rgb, flow])[:n]), ends(n)] + ([unit(sound[:n]), ends(n)] if audio else [])
            np.testing.assert_allclose(video, np.hstack(expected), atol=1e-6)
            np.testing.assert_array_equal(tokens, np.load(folder/f"query_features/{r.qid}.npz")["token"].astype(np.float32)) # raw, whole
            totals = [sum(v-1 for v in row) for row in r.labels.tolist()]
            assert n == len(totals) == r.duration
            np.testing.assert_allclose(batch.targets.saliency[b, :n], [12*t/80 for t in totals], rtol=1e-6)
            assert totals[batch.targets.positive[b, 0]] == max(totals) and totals[batch.targets.negative[b, 0]] == min(totals)
            relevant = batch.targets.relevant[b, :n].numpy()
            assert relevant.sum() == n-n//2 and np.array(totals)[relevant].min() >= np.array(totals)[~relevant].max()
            seen += 1
    assert seen == 50


def test_every_charades_query(shared, monkeypatch):
    monkeypatch.setenv("MRHD_DATA", str(shared/"features"))
    folder, data = shared/"features/charades", data_config("charades_clip")
    records = [r for part in (data.train, data.val) for r in read(folder/part, "charades")]
    clips = {vid: np.load(folder/f"clip/{vid}.npz")["features"] for vid in {r.vid for r in records}}
    assert len(records) == 3720 and len(clips) == 1334
    expected = {vid: np.hstack([unit(rows), ends(len(rows))]) for vid, rows in clips.items()}
    seen = 0
    for batch in iterate(MomentDataset(records, FeatureFolder(data), data), 100, generator=generator(0, "test"), shuffle=True):
        assert batch.video.shape[2] == data.video_dim == 514 and batch.tokens.shape[2] == 384 and batch.targets.has_moments
        for b, r, video, tokens in samples(batch):
            n, ((start, end),), targets = len(video), r.windows, batch.targets
            assert n-math.floor(r.duration) in (1, 2)
            np.testing.assert_allclose(video, expected[r.vid], atol=1e-6)
            np.testing.assert_allclose(np.linalg.norm(tokens, axis=1), 1, atol=1e-4)
            (c, w), = targets.spans[b].tolist()
            np.testing.assert_allclose([(c-w/2)*n, (c+w/2)*n], [start, end], atol=1e-4)
            on = range(math.floor(start), math.ceil(end))
            assert targets.saliency[b, :n].nonzero().flatten().tolist() == list(on) and targets.saliency[b].sum() == len(on)
            assert targets.relevant[b].nonzero().flatten().tolist() == list(on)
            positive, negative = targets.positive[b].tolist(), targets.negative[b].tolist()
            assert set(positive) <= set(on) and len(set(positive)) == min(2, len(on))
            if n-len(on) > 1: assert not set(negative) & set(on) and len(set(negative)) == 2 and max(negative) < n
            else: assert negative == positive
            seen += 1
    assert seen == 3720


def test_charades_video_whose_features_end_before_it_does(shared):
    "15 rows of 2 s for 30.62 s"
    folder = shared/"features/charades_video"
    data = replace(data_config("charades_clip"), clip_length=2., streams=(StreamConfig("clip", ("clip_2s.npz",), 512, "features"),))
    records = read(folder/"annotations.jsonl", "charades")
    assert FeatureFolder(data, folder).video(records[0]).shape == (15, 514)
    draw = generator(0, "test")
    for r in records:
        (start, end), = r.windows
        (c, w), = label(r, 15, data, draw).spans.tolist()
        np.testing.assert_allclose([(c-w/2)*30, (c+w/2)*30], [start, end], atol=1e-4)
        late = label(replace(r, windows=((20., 30.62),)), 15, data, draw)
        np.testing.assert_allclose(late.spans, [[25/30, 10/30]], atol=1e-6)
        assert late.saliency.nonzero().flatten().tolist() == [10, 11, 12, 13, 14]


def test_feature_errors_name_the_file(shared, tmp_path):
    "One line with the file and what is wrong; the record that needed the file is named too"
    folder, data = shared/"features/charades", data_config("charades_clip")
    record = read(folder/data.val, "charades")[0]
    wrong = {"no such file": replace(data.streams[0], files=("clip/{qid}.npz",)), "no such array": replace(data.streams[0], key="token"),
             "other width": replace(data.streams[0], dim=768)}
    for what, stream in wrong.items():
        with pytest.raises(InputError) as error: FeatureFolder(replace(data, streams=(stream,)), folder).video(record)
        message = str(error.value)
        assert str(folder/"clip") in message and "\n" not in message, what
