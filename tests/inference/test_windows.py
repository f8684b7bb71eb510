"An hour, stitched from videos whose moments are known"
import numpy as np
import pytest
from mrhd_nb.data.synthetic import make
from mrhd_nb.inference.predictor import Predictor
from mrhd_nb.inference.predictor import cut_parts


def iou(a, b): return max(0, min(a[1], b[1])-max(a[0], b[0]))/max(max(a[1], b[1])-min(a[0], b[0]), 1e-9)


def stitch(predictor, videos, tokens, records, length):
    "For each record: IoU of the best moment in its video within the hour, of that of the video alone, and whether a part ends inside it"
    step, clips = predictor.data.clip_length, {vid: len(rows) for vid, rows in videos.items()}
    starts = dict(zip(videos, (np.cumsum([0, *clips.values()])*step).tolist()))
    whole = np.concatenate(list(videos.values()))
    ends = [step*end for part in cut_parts(len(whole), length) for end in part]
    found = []
    for r, answer in zip(records, predictor.predict_many(whole, [tokens[r.qid] for r in records])):
        first, last = starts[r.vid], starts[r.vid]+clips[r.vid]*step
        best = next(m for m in answer.moments if first <= (m.start+m.end)/2 < last)
        alone = predictor.predict(videos[r.vid], tokens[r.qid]).moments[0]
        score = lambda m, at: max(iou((m.start-at, m.end-at), w) for w in r.windows)
        cut = any(first+s < end < first+e for end in ends for s, e in r.windows)
        found.append((score(best, first), score(alone, 0), cut))
    return found


@pytest.fixture(scope="module")
def hours()->np.ndarray: # (300, 3)
    "The 300 validation queries of the embedded benchmark, 24 videos an hour"
    predictor, found = Predictor.load(), []
    made = make(predictor.data.seed, train=1, val=300)
    vids = list(dict.fromkeys(r.vid for r in made.val))
    for i in range(0, len(vids), 24):
        videos = {vid: made.streams[vid][0] for vid in vids[i:i+24]}
        found += stitch(predictor, videos, made.tokens, [r for r in made.val if r.vid in videos], 75)
    return np.array(found)


def test_an_hour_is_answered_as_accurately_as_its_videos(hours):
    "R1@0.5 and R1@0.7 within 3 points of the short videos'"
    joined, alone, _ = hours.T
    for least in (.5, .7): assert 100*(joined >= least).mean() > 100*(alone >= least).mean()-3


def test_no_moment_is_lost_at_a_seam(hours):
    "Moments inside which a part ends are found as often as in the short videos"
    joined, alone, cut = hours.T
    cut = cut.astype(bool)
    assert cut.sum() > 50 and 100*(joined[cut] >= .5).mean() > 100*(alone[cut] >= .5).mean()-3
