"The evaluators against the official evaluator's output for released predictions, against loops, and on edge cases"
import copy, json
import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve
from mrhd_nb.core.files import rng
from mrhd_nb.core.testing import refusal
from mrhd_nb.evaluation.metrics import BRIEF, BUCKETS, EXTRA, LEVELS, averages, evaluate, per_query, score_queries

SUBMISSIONS = ("moment_detr_sample_val", "tr_detr_val", "taskweave_mr2hd_val", "taskweave_hd2mr_val")


def parsed(path)->list[dict]: return [json.loads(line) for line in path.open()]


@pytest.fixture(scope="module")
def annotations(shared):
    return shared/"reference/annotations/qvhighlights/highlight_val_release.jsonl"


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_every_number_of_the_official_report(shared, annotations, name):
    folder = shared/"reference/submissions"
    report = evaluate(folder/f"{name}.jsonl", annotations)
    text = (folder/f"{name}.metrics.json").read_text()
    extra = report.pop("extra")                                           # beside the official report
    assert json.dumps(report) == json.dumps(json.loads(text))             # values and the order of keys
    assert list(extra) == list(EXTRA) and extra["MR-full-R1@0.3"] > report["brief"]["MR-full-R1@0.5"] < extra["MR-full-R5@0.5"]


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_means_of_the_per_query_table_are_the_official_numbers(shared, annotations, name):
    folder = shared/"reference/submissions"
    table = per_query(folder/f"{name}.jsonl", annotations)
    expected = json.loads((folder/f"{name}.metrics.json").read_text())["brief"]
    assert {k: round(float(v), 2) for k, v in averages(table).items()} == expected
    assert table.vid.nunique() == 1519 and table["MR-short-mAP"].count() < len(table) == 1550


def test_lists_and_shuffled_lines_say_the_same(shared, annotations):
    path = shared/"reference/submissions/tr_detr_val.jsonl"
    lines, report = parsed(path), evaluate(path, annotations)
    order = rng(0, "order").permutation(len(lines))
    assert evaluate([lines[i] for i in order], parsed(annotations)) == report
    table = score_queries(path, annotations)
    assert table.qid.tolist() == [v["qid"] for v in parsed(annotations)]
    assert {k: round(100*table[k].mean(), 2) for k in report["brief"]} == pytest.approx(report["brief"], abs=.0051)


def test_annotations_without_ground_truth_are_refused(shared, annotations):
    blind = [{k: v for k, v in line.items() if k in ("qid", "query", "vid", "duration")} for line in parsed(annotations)]
    said = refusal(evaluate, shared/"reference/submissions/tr_detr_val.jsonl", blind)
    assert "nothing that annotations can score" in said


# QVHighlights with loops: one query, one threshold and one annotator at a time

def naive_ranking_ap(truth, scores)->float:
    "The official recipe, with scikit-learn's curve"
    if truth.all() or not truth.any(): return float(truth.all())
    precision, recall, _ = precision_recall_curve(truth, scores)
    recall = recall.astype(np.float32)
    for i in range(1, len(precision)): precision[i] = max(precision[i-1], precision[i])
    return precision[np.where(np.diff(recall))].mean()


def naive_windows_ap(predicted, true, theta)->float:
    "Average precision of one query"
    taken, hits = set(), []
    for s, e, _ in sorted(predicted[:10], key=lambda w: -w[2]):
        iou = [max(0, min(e, b)-max(s, a))/max(max(e, b)-min(s, a), 1e-9) for a, b in true]
        order = sorted(range(len(true)), key=lambda i: (-iou[i], -i))
        best = next((i for i in order if iou[i] >= theta and i not in taken), None)
        hits.append(best is not None)
        taken.add(best)
    points = [(sum(hits[:k+1])/len(true), sum(hits[:k+1])/(k+1)) for k in range(len(hits))]
    return sum(max(p for r, p in points[k:])/len(true) for k in range(len(hits)) if hits[k])


def naive(submission, annotations)->dict:
    answers, out, rows = {s["qid"]: s for s in submission}, {}, {}
    for a in annotations:
        s, n = answers[a["qid"]], a["duration"]//2
        for bucket, (least, most) in BUCKETS.items():
            true = [w for w in a["relevant_windows"] if least < w[1]-w[0] <= most]
            if not true: continue
            first = [max((min(e, b)-max(x, y))/max(max(e, b)-min(x, y), 1e-9) for y, b in true)
                     for x, e, _ in s["pred_relevant_windows"][:1]] or [0]
            for t in range(50, 100, 5):
                rows.setdefault((bucket, "MR-R1", f"{t/100:g}"), []).append(first[0] >= t/100)
                ap = naive_windows_ap(s["pred_relevant_windows"], true, t/100)
                rows.setdefault((bucket, "MR-mAP", f"{t/100:g}"), []).append(ap)
        full = np.zeros((n, 3))
        full[a["relevant_clip_ids"]] = np.reshape(a["saliency_scores"], (-1, 3))
        given = np.array(s["pred_saliency_scores"])
        padded = np.r_[given, np.zeros(max(0, n-len(given)))][:n]
        for name, level in LEVELS.items():
            top, block = given.argmax(), f"HL-min-{name}"
            rows.setdefault((block, "HL-Hit1"), []).append(top < n and (full[top] >= level).any())
            rows.setdefault((block, "HL-mAP"), []).extend(naive_ranking_ap(full[:,i] >= level, padded) for i in range(3))
    for (block, *keys), values in rows.items():
        place = out.setdefault(block, {})
        for k in keys[:-1]: place = place.setdefault(k, {})
        place[keys[-1]] = 100*np.mean(values)
    for bucket in set(BUCKETS) & set(out): out[bucket]["MR-mAP"]["average"] = np.mean(list(out[bucket]["MR-mAP"].values()))
    return out


def random_case(g, n=40)->tuple[list[dict], list[dict]]:
    "A random submission and annotations for it: ties, queries without predictions, clips rated all high or not at all"
    submission, annotations = [], []
    for qid in range(n):
        clips = int(g.integers(2, 76))
        true = [sorted(2*g.choice(clips+1, 2, replace=False)) for _ in range(g.integers(1, 6))]
        ids = [i for i in range(clips) if any(s <= 2*i < e for s, e in true)] if qid else list(range(clips))
        rated = g.integers(0, 5, (len(ids), 3)) if qid > 1 else np.full((len(ids), 3), 4*(1-qid))
        given = [[*sorted(g.choice(clips+1, 2)*2.), round(g.random(), 1)] for _ in range(g.integers(0, 13))]
        score = (g.normal(size=max(1, clips+g.integers(-3, 4)))*4).astype(np.float16)/(1+qid%3*7)
        annotations.append(dict(qid=qid, duration=2*clips, relevant_windows=np.array(true).tolist(), relevant_clip_ids=ids,
                                saliency_scores=rated.tolist()))
        submission.append(dict(qid=qid, pred_relevant_windows=np.array(given).reshape(-1, 3).tolist(),
                               pred_saliency_scores=score.round(1).tolist()))
    return [submission[i] for i in g.permutation(n)], annotations


def agree(got, expected):
    "Equal as far as two printed decimals can show"
    assert {k for k in got if k != "brief"} >= set(expected)
    for k, v in expected.items(): agree(got[k], v) if isinstance(v, dict) else np.testing.assert_allclose(got[k], v, rtol=0, atol=.00501)


@pytest.mark.parametrize("seed", range(5))
def test_qvhighlights_against_loops(seed):
    submission, annotations = random_case(rng(seed, "metrics"))
    before = copy.deepcopy((submission, annotations))
    report = evaluate(submission, annotations)
    agree(report, naive(submission, annotations))
    assert (submission, annotations) == before and report == evaluate(submission, annotations)
    assert list(report) == ["brief", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood", "full", "long", "middle", "short", "extra"]
    assert list(report["brief"]) == list(BRIEF["qvhighlights"])


@pytest.mark.parametrize("seed", range(3))
def test_recall_of_five_and_mean_iou_against_loops(seed):
    submission, annotations = random_case(rng(seed, "extra"))
    answers, best = {s["qid"]: s["pred_relevant_windows"] for s in submission}, {1: [], 5: []}
    for a in annotations:
        iou = [max(max(0, min(e, b)-max(x, y))/max(max(e, b)-min(x, y), 1e-9) for y, b in a["relevant_windows"]) for x, e, _ in answers[a["qid"]][:5]]
        for k in best: best[k].append(max(iou[:k], default=0))
    expected = {"MR-full-R1@0.3": np.mean(np.array(best[1]) >= .3), "MR-full-mIoU": np.mean(best[1])}
    expected |= {f"MR-full-R5@{t}": np.mean(np.array(best[5]) >= t) for t in (.3, .5, .7)}
    agree({"extra": evaluate(submission, annotations)["extra"]}, {"extra": {k: 100*v for k, v in expected.items()}})


@pytest.mark.parametrize("dataset", ("qvhighlights", "charades"))
def test_queries_without_a_moment_count_in_no_score(dataset):
    "They are read like any other, on either side of the file, and change no number"
    submission, annotations = random_case(rng(8, "empty"), n=30)
    none = [dict(a, qid=f"none {i}", relevant_windows=[], relevant_clip_ids=[], saliency_scores=[]) for i, a in enumerate(annotations[:7])]
    more = [dict(s, qid=a["qid"]) for s, a in zip(submission, none)]
    expected = evaluate(submission, annotations, dataset)
    for given, truth in ((submission+more, annotations+none), (more+submission, none+annotations)): assert evaluate(given, truth, dataset) == expected
    assert set(evaluate(more, none, dataset)["brief"].values()) == {0.}    # none counts
    assert len(per_query(submission+more, annotations+none, dataset)) == 37


@pytest.fixture(scope="module")
def case(): return random_case(rng(4, "metrics"))


def test_a_file_and_a_list_say_the_same(case, tmp_path):
    paths = [tmp_path/"s.jsonl", tmp_path/"a.jsonl"]
    for path, lines in zip(paths, case): path.write_text("".join(json.dumps(v)+"\n" for v in lines))
    assert evaluate(*paths) == evaluate(*case)


def test_what_is_not_there_is_not_scored(case):
    submission, annotations = case
    only = lambda *fields: [{k: v for k, v in s.items() if k in ("qid", *fields)} for s in submission]
    assert not any("HL" in k for k in evaluate(only("pred_relevant_windows"), annotations)["brief"])
    assert list(evaluate(only("pred_saliency_scores"), annotations)) == ["brief", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood"]
    assert "'pred_relevant_windows'" in refusal(evaluate, only(), annotations)
    assert "'pred_relevant_windows': missing" in refusal(evaluate, only(), annotations, "charades")
    silent = [dict(s, pred_relevant_windows=[]) for s in submission]
    assert set(evaluate(silent, annotations)["full"]["MR-R1"].values()) == {0.}
    short = [dict(a, relevant_windows=[[0, 4]]) for a in annotations]
    assert set(evaluate(submission, short)["long"]["MR-mAP"].values()) == {0.}


def test_ties_follow_the_order_of_the_list(case):
    one = [dict(case[1][2], relevant_windows=[[0, 10]])]
    tie = lambda *w: evaluate([dict(qid=2, pred_relevant_windows=[[*x, .5] for x in w])], one)["full"]
    assert tie((0, 10), (20, 30))["MR-mAP"]["average"] == 100 and tie((20, 30), (0, 10))["MR-mAP"]["average"] == 50
    assert tie((20, 30), (0, 10))["MR-R1"]["0.5"] == 0


def test_charades_against_loops():
    truth, g = [dict(qid=i, relevant_windows=[[2.5*i, 2.5*i+6.9]]) for i in range(30)], rng(0, "charades")
    draw = lambda: [[float(s), s+float(w), .5] for s, w in zip(g.integers(0, 80, 3), g.integers(1, 9, 3))]
    guess = [dict(qid=i, pred_relevant_windows=draw()) for i in range(30)]
    guess[:5] = [dict(t, pred_relevant_windows=[[*t["relevant_windows"][0], 1.]]) for t in truth[:5]]
    first = [(t["relevant_windows"][0], p["pred_relevant_windows"][0]) for t, p in zip(truth, guess)]
    iou = np.array([max(0, min(e, b)-max(s, a))/(max(e, b)-min(s, a)) for (a, b), (s, e, _) in first])
    brief = evaluate(guess, truth, "charades")["brief"]
    assert list(brief) == list(BRIEF["charades"]) and brief["MR-full-mIoU"] == pytest.approx(100*iou.mean(), abs=.00501)
    for theta in (.3, .5, .7): assert brief[f"MR-full-R1@{theta}"] == pytest.approx(100*np.mean(iou >= theta), abs=.00501)
    assert np.allclose(score_queries(guess, truth, "charades")["MR-full-mIoU"], iou)


def naive_trapezoid(bits, total)->float:
    "One ranking"
    area, hits, recall, precision = 0, 0, 0, 1
    for j, bit in enumerate(bits, 1):
        hits += bit
        r, p = hits/max(total, 1), hits/j
        area, recall, precision = area+(r-recall)*(p+precision)/2, r, p
    return area


def test_tvsum_against_loops():
    g, expected = rng(0, "tvsum"), {"BK": [], "VT": []}
    truth = [dict(qid=f"v{i}", domain="BK" if i%2 else "VT", label=g.integers(1, 6, (g.integers(3, 30), 20)).tolist()) for i in range(10)]
    draw = lambda clips: g.integers(0, 9, clips).astype(float).tolist()
    guess = [dict(qid=t["qid"], pred_saliency_scores=draw(len(t["label"])+i%3-1)) for i, t in enumerate(truth)]
    for t, p in zip(truth, guess):
        scores = p["pred_saliency_scores"][:len(t["label"])]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[:5]
        people = [[row[a] for row in t["label"]] for a in range(20)]
        bits = [[person[i] > sorted(person)[(len(person)-1)//2] for i in order] for person in people]
        expected[t["domain"]].append(np.mean([naive_trapezoid(b, sum(b)) for b in bits]))
    report = evaluate(guess, truth, "tvsum")
    assert report["domains"] == {k: round(np.mean(v), 5) for k, v in expected.items()}
    assert report["brief"]["mAP"] == pytest.approx(np.mean([np.mean(v) for v in expected.values()]), abs=1e-5)


def test_youtube_against_loops():
    g = rng(0, "youtube")
    truth = [dict(qid=f"v{i}", domain="dog", label=[[int(v)] for v in g.random(20) < .3*(i > 0)]) for i in range(8)]
    guess = [dict(qid=t["qid"], pred_saliency_scores=g.random(20).tolist()) for t in truth]
    orders = [np.argsort(-np.array(p["pred_saliency_scores"])) for p in guess]
    expected = [naive_trapezoid([t["label"][i][0] for i in o], sum(r[0] for r in t["label"])) for t, o in zip(truth, orders)]
    assert np.allclose(score_queries(guess, truth, "youtube")["mAP"], expected) and expected[0] == 0
    assert evaluate(guess, truth, "youtube")["brief"]["mAP"] == round(np.mean(expected), 5)
    perfect = [dict(p, pred_saliency_scores=[float(r[0]) for r in t["label"]]) for t, p in zip(truth, guess)]
    assert evaluate(perfect[1:], truth[1:], "youtube")["brief"]["mAP"] == 1
    for field in ("domain", "label"): assert f"'{field}'" in refusal(evaluate, guess[:1], [truth[0] | {field: None}], "youtube")


# What is known of the real data

def test_tvsum_between_chance_and_the_mean_human(shared):
    truth = parsed(shared/"reference/annotations/tvsum/tvsum_val.jsonl")
    human = [dict(qid=t["qid"], vid=t["vid"], pred_saliency_scores=np.mean(t["label"], 1).tolist()) for t in truth]
    assert evaluate(human, truth, "tvsum")["brief"]["mAP"] == pytest.approx(.843, abs=.0005)
    g = rng(0, "tvsum chance")
    draw = lambda: [dict(qid=t["qid"], pred_saliency_scores=g.random(len(t["label"])).tolist()) for t in truth]
    assert np.mean([evaluate(draw(), truth, "tvsum")["brief"]["mAP"] for _ in range(100)]) == pytest.approx(.42, abs=.015)


@pytest.mark.parametrize("dataset, file, best", [
    ("charades", "charades/charades_sta_val_tvr_format.jsonl", {"MR-full-R1@0.7": 100, "MR-full-mIoU": 100, "MR-full-mAP": 100}),
    ("youtube", "youtube_highlights/youtube_highlight_val_release.jsonl", {})])
def test_true_answers_on_real_annotations(shared, dataset, file, best):
    truth = parsed(shared/"reference/annotations"/file)
    perfect = [dict(qid=t["qid"], pred_relevant_windows=[[*w, 1.] for w in t.get("relevant_windows") or []],
                    pred_saliency_scores=[row[0] for row in t.get("label", [[0]])]) for t in truth]
    report = evaluate(perfect, truth, dataset)
    assert report["brief"].items() >= best.items()
    if dataset == "youtube":                                              # videos without a positive clip count 0
        domains = {d: [any(map(any, t["label"])) for t in truth if t["domain"] == d] for d in report["domains"]}
        assert report["domains"] == {d: round(float(np.mean(found)), 5) for d, found in domains.items()}
