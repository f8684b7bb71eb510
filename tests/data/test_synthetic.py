"The embedded benchmark on seeds that its notebook does not use, and simulated features for real annotations"
import hashlib, json
import numpy as np
import pytest, torch
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from mrhd_nb.data.annotations import as_json, read_annotations
from mrhd_nb.core.presets import data_config
from mrhd_nb.core.spans import span_iou
from mrhd_nb.data.features import FeatureFolder, MemoryFeatures, normalise_rows
from mrhd_nb.data.synthetic import best_constant, content_words, random_records, make, simulate_features, write

SIZES = ((7, 600, 200), (8, 1200, 300), (9, 300, 150)) # seed, train, val


@pytest.fixture(scope="module", params=SIZES, ids=lambda s: f"seed{s[0]}")
def benchmark(request):
    seed, train, val = request.param
    return make(seed, train=train, val=val)


def inside(record, clips:int)->np.ndarray: return np.isin(np.arange(clips), record.clip_ids)


def held_out_auc(benchmark, table):
    "A ridge regression from what `table` makes of (clips, query) to the relevant clips, fitted on train, scored on val"
    def rows(records):
        parts = [(normalise_rows(benchmark.streams[r.vid][0]), normalise_rows(benchmark.tokens[r.qid].mean(0)), r) for r in records]
        return np.concatenate([table(c, q) for c, q, _ in parts]), np.concatenate([inside(r, len(c)) for c, _, r in parts])
    tried, relevant = rows(benchmark.val)
    return roc_auc_score(relevant, Ridge(3.).fit(*rows(benchmark.train)).predict(tried))


def test_a_linear_probe_is_as_good_as_clip_on_real_video(benchmark):
    assert .75 <= held_out_auc(benchmark, lambda clips, query: np.c_[clips*query, clips @ query]) <= .85


def test_within_a_video_too(benchmark):
    "Cosines of different videos need not be comparable"
    values = []
    for record in benchmark.val:
        clips, query = normalise_rows(benchmark.streams[record.vid][0]), normalise_rows(benchmark.tokens[record.qid]).mean(0)
        relevant = inside(record, len(clips))
        if not relevant.all(): values.append(roc_auc_score(relevant, clips @ query))
    assert .7 < np.mean(values) < .85


def test_video_alone_does_not_tell(benchmark):
    assert .45 < held_out_auc(benchmark, lambda clips, _: np.c_[clips, clips*clips]) < .6


def ceiling(records, timelines):
    "R1@0.5 of an answer read off the timeline"
    hits = []
    for record in records:
        timeline, asked = timelines[record.vid], set(content_words(record.query))
        shows = timeline.share[[set(event) == asked for event in timeline.events]].sum(0) >= .5
        runs = 2.*torch.from_numpy(np.flatnonzero(np.diff(np.r_[0, shows, 0])).reshape(-1, 2))
        best = span_iou(runs[:, None], torch.tensor(record.windows, dtype=torch.float64)).amax(1)
        hits.append((best >= .5).double().mean().item() if len(runs) else 0.)
    return np.mean(hits)


def test_constant_answers_are_poor_and_perfect_ones_impossible(benchmark):
    _, fitted, held = best_constant(benchmark.train, benchmark.val)
    assert .1 < fitted < .25 and .08 < held < .3
    assert .75 < ceiling(benchmark.val, benchmark.timelines) < .94


def test_grades_can_be_read_from_clips(benchmark):
    "Inside the moment, a clip's likeness to the query grows with its grade"
    likeness, grade = [], []
    for record in benchmark.train:
        clips, query = normalise_rows(benchmark.streams[record.vid][0])[list(record.clip_ids)], normalise_rows(benchmark.tokens[record.qid].mean(0))
        mean = np.mean(record.saliency, 1)
        likeness.extend(clips @ query-(clips @ query).mean()); grade.extend(mean-mean.mean())
    assert np.corrcoef(likeness, grade)[0,1] > .1


def test_numbers_of_version_0_5():
    "The same seed gives the same annotations, timelines and features as ever"
    made = make(5, train=40, val=20, test=10)
    text = json.dumps([as_json(record) for record in made.train+made.val+made.test]+[made.timelines[vid].events for vid in made.streams])
    assert hashlib.sha256(text.encode()).hexdigest().startswith("bd47f742b5fbf1ad")
    clips, tokens = (np.concatenate(parts).astype(float) for parts in ([rows for rows, in made.streams.values()], [*made.tokens.values()]))
    weigh = lambda table: np.sin(np.arange(len(table))) @ table @ np.arange(table.shape[1])
    np.testing.assert_allclose([weigh(clips), weigh(tokens)], [-1870.3027, -959.4141], rtol=1e-4)
    np.testing.assert_allclose(sum(np.arange(len(t.share)) @ t.share @ np.arange(t.share.shape[1]) for t in made.timelines.values()), 505714.2173)


def test_bytes_and_files(tmp_path):
    first, second = (make(5, train=20, val=10) for _ in range(2))
    for name, made in (("a", first), ("b", second)): write(made, tmp_path/name)
    files = sorted(p.relative_to(tmp_path/"a") for p in (tmp_path/"a").rglob("*") if p.is_file())
    assert len(files) == len(first.streams)+30+2
    assert all((tmp_path/"a"/file).read_bytes() == (tmp_path/"b"/file).read_bytes() for file in files)
    data = data_config("synthetic")
    read = read_annotations(tmp_path/"a"/"highlight_train_release.jsonl")
    assert list(map(as_json, read)) == list(map(as_json, first.train))
    folder, memory = FeatureFolder(data, tmp_path/"a"), MemoryFeatures(first.streams, first.tokens, data)
    for record in read: assert np.array_equal(folder.video(record), memory.video(record))


def test_windows_follow_the_real_ones(shared):
    real, made = (read_annotations(shared/"reference/annotations/qvhighlights/highlight_train_release.jsonl"), random_records(11, "train", 3000))
    def shares(records):
        count = np.minimum([len(r.windows) for r in records], 6)
        length = np.array([e-s for r in records for s, e in r.windows])
        place = np.zeros(75)
        for r in records:
            if r.duration == 150: place[list(r.clip_ids)] += 1/len(records)
        return np.r_[np.bincount(count, minlength=7)[1:]/len(count), np.histogram(length, (0, 11, 31, 151))[0]/len(length)], place
    (a, a_place), (b, b_place) = shares(real), shares(made)
    assert abs(a-b).max() < .05 and abs(a_place[5:70]-b_place[5:70]).max() < .08 and {r.duration % 2 for r in made} == {0}


@pytest.mark.parametrize("name, dataset, clip_length", [
    ("qvhighlights/highlight_val_release.jsonl", "qvhighlights", 2),
    ("charades/charades_sta_val_tvr_format.jsonl", "charades", 1)])
def test_features_for_real_annotations(shared, name, dataset, clip_length):
    records = read_annotations(shared/"reference/annotations"/name, dataset)[:400]
    made = simulate_features(records, 0, clip_length=clip_length)
    assert set(made.streams) == {r.vid for r in records} and set(made.tokens) == {r.qid for r in records}
    values = []
    for record in records:
        clips = normalise_rows(made.streams[record.vid][0])
        assert np.isfinite(clips).all() and 0 <= len(clips)*clip_length-record.duration < clip_length+5
        middle = (np.arange(len(clips))+.5)*clip_length
        relevant = np.any([(s <= middle) & (middle < e) for s, e in record.windows], 0)
        if 0 < relevant.mean() < 1: values.append(roc_auc_score(relevant, clips @ normalise_rows(made.tokens[record.qid][1:-1]).mean(0)))
    assert .65 < np.mean(values) < .9
