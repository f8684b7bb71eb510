"Both protocols against the golden files, against loops over single queries, and on edge cases"
import json
import numpy as np
import pytest
from mrhd_nb.core.files import rng
from mrhd_nb.core.testing import refusal
from mrhd_nb.evaluation.metrics import averages, evaluate, per_query, score_columns
from mrhd_nb.evaluation.protocols import GMR, MULTI
from mrhd_nb.evaluation.statistics import bootstrap, compare, difference, intervals, summed

SUBMISSIONS = ("moment_detr_sample_val", "tr_detr_val", "taskweave_mr2hd_val", "taskweave_hd2mr_val")
THETAS, WIDE = np.arange(50, 100, 5)/100, np.arange(30, 100, 5)/100
COUNTS = ("G-mIoU_gate/", "GMR-CLS/score_sources/", "stats/k_list", "stats/cls_thresholds", "stats/gmiou_cls_threshold", "mR+_detail/num_",
          *(f"GMR-CLS/per_threshold/{t}/{kind}" for t in (.4, .6) for kind in ("TP", "TN", "FP", "FN"))) # of the golden file: settings and counts


def parsed(path)->list[dict]: return [json.loads(line) for line in path.open()]


def apart(expected:dict, got:dict, at:str="")->set[str]:
    "The places at which a report does not hold what is expected"
    found = set()
    for key, value in expected.items():
        if isinstance(value, dict): found |= apart(value, got.get(key, {}), f"{at}{key}/")
        elif got.get(key) != value: found.add(at+key)
    return found


@pytest.fixture(scope="module")
def soccer(shared): return shared/"reference/submissions/moment_detr_gmr_test.jsonl", shared/"reference/annotations/soccer_gmr/soccer_gmr_test.jsonl"


@pytest.fixture(scope="module")
def val(shared): return shared/"reference/annotations/qvhighlights/highlight_val_release.jsonl"


def test_every_figure_of_gmr(shared, soccer):
    expected = json.loads((shared/"reference/submissions/moment_detr_gmr_test.gmr.json").read_text())
    report = evaluate(*soccer, protocol="gmr")
    assert all(place.startswith(COUNTS) for place in apart(expected, report)) and report["brief"] == expected["brief"] and list(report["brief"]) == list(GMR)


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_every_figure_of_multi(shared, val, name):
    expected = json.loads((shared/"reference/submissions"/f"{name}.multi.json").read_text())
    report = evaluate(shared/"reference/submissions"/f"{name}.jsonl", val, protocol="multi")
    assert apart(expected, report) == set() and list(report["MR-mAP"]) == list(expected["MR-mAP"])
    assert set(report)-set(expected) == {"brief", "counted"} and report["counted"]["MR-R1"] == 1550 and report["counted"][">=3_tgt_mAP"] == 252


# One query after the other

def naive_iou(p, t)->float:
    inner = max(0, min(p[1], t[1])-max(p[0], t[0]))
    union = (p[1]-p[0])+(t[1]-t[0])-inner                                 # in this order: real IoUs lie on thresholds
    return inner/union if union > 0 else 0


def naive_matches(predicted, true, theta)->list[float]:
    "IoU of the pairs, in the order of the predictions"
    free, pairs = list(true), []
    for p in predicted:
        if not free: break
        best = max(free, key=lambda t: naive_iou(p, t)) # the first of equals
        if naive_iou(p, best) >= theta: pairs.append(naive_iou(p, best)), free.remove(best)
    return pairs


def naive_ap(predicted, true, theta)->float:
    "Average precision of one query: by falling score, of equal windows the last"
    taken, hits = set(), []
    for p in sorted(predicted[:10], key=lambda w: -w[2]):
        order = sorted(range(len(true)), key=lambda i: (-naive_iou(p, true[i]), -i))
        best = next((i for i in order if naive_iou(p, true[i]) >= theta and i not in taken), None)
        hits.append(best is not None), taken.add(best)
    points = [sum(hits[:k+1])/(k+1) for k in range(len(hits))]
    return sum(max(points[k:])/len(true) for k in range(len(hits)) if hits[k])


def naive_gmr(submission, annotations)->dict:
    answers, truth, score = {s["qid"]: s for s in submission}, {}, {}
    for a in annotations:
        if a["qid"] not in answers: continue
        cut = {(min(max(s, 0), a["duration"]), min(max(e, 0), a["duration"])) for s, e in a["relevant_windows"]}
        truth[a["qid"]], given = sorted(w for w in cut if w[1] > w[0]), answers[a["qid"]]
        said = given.get("pred_exist_score")
        score[a["qid"]] = said if said is not None else max((w[2] for w in given["pred_relevant_windows"]), default=0)
    out, some, several = {}, [q for q in truth if truth[q]], [q for q in truth if len(truth[q]) > 1]
    none, windows = [q for q in truth if not truth[q]], {q: answers[q]["pred_relevant_windows"] for q in truth}
    mean = lambda values: 100*np.mean(values) if len(values) else None
    wins = [(score[p] > score[n])+(score[p] == score[n])/2 for p in some for n in none]
    out["AUROC"] = mean(wins)
    for t in (.4, .6):
        rejected = [q for q in truth if not score[q] > t]
        right = len({*rejected} & {*none})
        p, r = right/max(len(rejected), 1), right/max(len(none), 1)
        out |= {f"Rej-F1@{t}": 200*p*r/(p+r) if right else 0., f"Acc@{t}": mean([(score[q] > t) == bool(truth[q]) for q in truth])}
    for k in (1, 3, 5):
        values = []
        for q in truth:
            read = [w for w in windows[q][:10] if w[1] > w[0]][:k] if score[q] > .4 else []
            pairs = naive_matches(read, truth[q], 0)
            values.append(float(not read and not truth[q]) if not read or not truth[q] else sum(pairs)/(len(read)+len(truth[q])-len(pairs)))
        out[f"G-mIoU@{k}"] = mean(values)
    out["mAP"] = mean([naive_ap(windows[q], truth[q], t) for q in some for t in THETAS])
    for k in (1, 3, 5):
        hits = {(q, t): len(naive_matches(windows[q][:k], truth[q], t)) for q in some for t in THETAS}
        pairs = {q: sorted(naive_matches(windows[q][:k], truth[q], 0)) for q in some}
        out[f"mR@{k}"] = mean([hits[q, t]/len(truth[q]) for q in some for t in THETAS])
        out[f"mR+@{k}"] = mean([max(hits[q, t]-1, 0)/(len(truth[q])-1) for q in several for t in THETAS])
        out[f"mIoU@{k}"] = mean([np.mean(pairs[q]) if pairs[q] else 0 for q in some])
        out[f"mIoU+@{k}"] = mean([np.mean(pairs[q][:-1]) if len(pairs[q]) > 1 else 0 for q in several])
    return {name: out[name] for name in GMR}


def naive_multi(submission, annotations)->dict:
    answers, truth = ({line["qid"]: line[field] for line in lines} for lines, field in ((submission, "pred_relevant_windows"), (annotations, "relevant_windows")))
    ap = {q: np.mean([naive_ap(answers[q], truth[q], t) for t in THETAS]) for q in truth if truth[q]}
    groups = {k: [ap[q] for q in ap if len(truth[q]) == k] for k in dict.fromkeys(len(truth[q]) for q in ap)}
    mean = lambda values: 100*np.mean(values) if len(values) else None
    out = {f"MR-mAP/{k}_tgt_mAP": mean(v) for k, v in groups.items()}
    out["MR-mAP/Generalized_mAP"] = 100*sum(len(v)*np.mean(v) for v in groups.values())/len(ap)
    out["MR-mAP/>=3_tgt_mAP"] = mean([np.mean(v) for k, v in groups.items() if k >= 3])
    for k in (1, 2, 3):
        fits = [q for q in ap if len(truth[q]) >= k and len(answers[q]) >= k]
        found = [sum(len(naive_matches(answers[q][:k], truth[q], t)) for q in fits)/max(k*len(fits), 1) for t in WIDE]
        out |= {f"MR-R{k}/{t:.2f}": 100*f if fits else None for t, f in zip(WIDE, found)} | {f"MR-mR{k}": mean(found) if fits else None}
        out[f"MR-mIoU@{k}"] = mean([iou for q in fits for iou in naive_matches(answers[q][:k], truth[q], 0)])
    return out


def random_case(g, n=60, most=6)->tuple[list[dict], list[dict]]:
    "Ties, points, equal windows, windows outside of the video, none at all on either side, and lines without an existence score"
    def draw(count, *score):
        ends = np.sort(2*g.integers(0, 14, (count, 2)), 1) if g.random() < .9 else np.full((count, 2), 8)
        return [[*map(float, w), *(round(float(g.random()), 1) for _ in score)] for w in ends]
    truth = [dict(qid=q, vid=f"v{q//2}", duration=20, relevant_windows=draw(g.integers(0, most))) for q in range(n)]
    guess = [dict(qid=q, pred_relevant_windows=draw(g.integers(0, 13), 1)) for q in range(n)]
    for line in guess[::3]: line["pred_exist_score"] = round(float(g.random()), 1)
    return [guess[i] for i in g.permutation(n)], truth


def agree(got:dict, expected:dict):
    "Equal as far as two printed decimals can show; null where nothing counts"
    for name, value in expected.items():
        *blocks, last = name.split("/")
        block = got
        for part in blocks: block = block[part]
        assert (block[last] is None) == (value is None), name
        if value is not None: assert block[last] == pytest.approx(value, abs=.00501), name


@pytest.mark.parametrize("seed", range(6))
def test_gmr_against_loops(seed):
    guess, truth = random_case(rng(seed, "gmr"), most=6 if seed else 2)
    agree(evaluate(guess, truth, protocol="gmr")["brief"], naive_gmr(guess, truth))
    part = guess[10:]+[dict(qid="nowhere", pred_relevant_windows=[])]     # scored are the queries that both have
    agree(evaluate(part, truth, protocol="gmr")["brief"], naive_gmr(part, truth))


@pytest.mark.parametrize("seed", range(6))
def test_multi_against_loops(seed):
    guess, truth = random_case(rng(seed, "multi"), most=6 if seed else 3)
    agree(evaluate(guess, truth, protocol="multi"), naive_multi(guess, truth))
    assert "no line for" in refusal(evaluate, guess[1:], truth, protocol="multi")


def test_the_released_submission_against_loops(soccer):
    lines, truth = map(parsed, soccer)
    agree(evaluate(lines, truth, protocol="gmr")["brief"], naive_gmr(lines, truth))
    plain = [{k: v for k, v in line.items() if k != "pred_exist_score"} for line in lines] # the best window stands in
    agree(evaluate(plain, truth, protocol="gmr")["brief"], naive_gmr(plain, truth))


def test_what_cannot_be_scored_is_null_or_refused():
    windows = lambda *w: dict(qid=0, duration=10, relevant_windows=[*w])
    silent = [dict(qid=0, pred_relevant_windows=[])]
    brief = evaluate(silent, [windows()], protocol="gmr")["brief"]
    assert brief["G-mIoU@1"] == brief["Acc@0.4"] == brief["Rej-F1@0.6"] == 100 and brief["AUROC"] is brief["mR@1"] is brief["mIoU+@5"] is None
    brief = evaluate(silent, [windows([0, 4])], protocol="gmr")["brief"]
    assert brief["mAP"] == brief["G-mIoU@5"] == brief["Rej-F1@0.4"] == 0 and brief["mR+@3"] is None
    brief = evaluate(silent, [windows([0, 4])], protocol="multi")["brief"]
    assert brief["Generalized_mAP"] == 0 and brief["MR-mR1"] is brief[">=3_tgt_mAP"] is None
    for wrong in (-.1, 1.1, "x", True, [1]):
        assert "submission[0]: field 'pred_exist_score'" in refusal(evaluate, [dict(silent[0], pred_exist_score=wrong)], [windows()], protocol="gmr")
    assert "'duration'" in refusal(evaluate, silent, [dict(qid=0, relevant_windows=[])], protocol="gmr")
    assert "'relevant_windows': missing" in refusal(evaluate, silent, [dict(qid=0, duration=4)], protocol="gmr")
    assert "no line for 0" in refusal(evaluate, [dict(silent[0], qid=5)], [windows()], protocol="gmr")
    assert "one of official, gmr, multi" in refusal(evaluate, silent, [windows()], protocol="gnr")


def test_a_point_covers_nothing_and_a_tie_takes_the_first_window():
    truth = [dict(qid=0, duration=20, relevant_windows=[[0, 4], [4, 8]]), dict(qid=1, duration=20, relevant_windows=[])]
    guess = [dict(qid=0, pred_relevant_windows=[[5, 5, .9], [2, 6, .8], [0, 4, .7]]), dict(qid=1, pred_relevant_windows=[])]
    brief = evaluate(guess, truth, protocol="gmr")["brief"]
    # the point takes the first window with IoU 0, the second prediction the other one with 1/3; nothing is left
    assert brief["mIoU@3"] == 16.67 and brief["mIoU@1"] == 0 and brief["G-mIoU@1"] == pytest.approx(100*(1/3/2+1)/2, abs=.005)


# Statistics

def test_tables_of_both_protocols_have_the_means_of_the_report(shared, soccer, val):
    for sides, protocol, names in ((soccer, "gmr", GMR), ((shared/"reference/submissions/tr_detr_val.jsonl", val), "multi", MULTI)):
        table = per_query(*sides, protocol=protocol)
        assert score_columns(table) == list(names)
        assert {k: round(float(v), 2) for k, v in averages(table).items()} == evaluate(*sides, protocol=protocol)["brief"]


@pytest.mark.parametrize("protocol", ("gmr", "multi"))
def test_intervals_are_those_of_scoring_resamples(protocol):
    "Figures that are no means: their spread over resampled queries, once by scoring each resample and once from the table"
    guess, truth = random_case(rng(9, "resamples"), n=240)
    truth = [dict(t, vid=str(t["qid"])) for t in truth]
    answers, g, drawn = {a["qid"]: a for a in guess}, rng(1, "resamples"), []
    for _ in range(150):
        qids = g.integers(0, len(truth), len(truth))
        again = [dict(truth[q], qid=i) for i, q in enumerate(qids)], [dict(answers[q], qid=i) for i, q in enumerate(qids)]
        drawn.append(evaluate(*again[::-1], protocol=protocol)["brief"])
    table = per_query(guess, truth, protocol=protocol)
    made = bootstrap(summed(table), 2000).std(0)
    for name, spread in zip(score_columns(table), made):
        expected = np.std([d[name] for d in drawn], ddof=1)
        if name == ">=3_tgt_mAP": continue                                # groups come and go
        assert spread == pytest.approx(expected, rel=.25), name


@pytest.mark.parametrize("protocol, differs", (("gmr", "mAP"), ("multi", "MR-mR2")))
def test_paired_tests_and_intervals(protocol, differs):
    truth = [dict(t, relevant_windows=t["relevant_windows"] or [[2, 8]]) if t["qid"]%3 else t for t in random_case(rng(4, "pairs"), n=160)[1]]
    good = [dict(qid=t["qid"], pred_relevant_windows=[[*w, .9-.01*i] for i, w in enumerate(t["relevant_windows"])]) for t in truth]
    poor = [dict(a, pred_relevant_windows=[[s, e+7*(a["qid"]%2), p] for s, e, p in a["pred_relevant_windows"]]) for a in good]
    a, b = (summed(per_query(lines, truth, protocol=protocol)) for lines in (good, poor))
    table, both = intervals(b, resamples=500), compare(difference(a, b), resamples=500)
    assert both.p_holm[differs] < .05 and both.low[differs] > 0 and table.low[differs] < table.value[differs] < table.high[differs]
    if protocol == "gmr": assert both.difference["AUROC"] == 0            # the scores of the windows are the same


# What the protocols do not say of themselves, on the released submissions: docs/results/released.md

SYSTEMS = {"TR-DETR": "tr_detr_val", "TaskWeave mr2hd": "taskweave_mr2hd_val", "TaskWeave hd2mr": "taskweave_hd2mr_val", "Moment-DETR": "moment_detr_sample_val"}


@pytest.fixture(scope="module")
def multi(shared, val): return {name: evaluate(shared/"reference/submissions"/f"{name}.jsonl", val, protocol="multi") for name in SUBMISSIONS}


def test_the_page_holds_the_figures(shared, val, multi, root):
    "Every number of its two tables"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (root/"docs/results/released.md").read_text().splitlines() if line.startswith("|")]
    heads = [i for i, row in enumerate(rows) if not row[0]]
    assert len(rows) == 2*6 and len(heads) == 2
    for start in heads:
        for system, *numbers in rows[start+2:start+6]:
            report = evaluate(shared/"reference/submissions"/f"{SYSTEMS[system]}.jsonl", val)
            known = multi[SYSTEMS[system]]["brief"] | {k.removeprefix("MR-full-"): v for k, v in report["extra"].items()}
            assert [known[name] for name in rows[start][1:]] == [float(n) for n in numbers], system


def test_generalized_map_is_the_old_one_and_groups_weigh_the_same(shared, val, multi):
    for name, report in multi.items():
        assert report["brief"]["Generalized_mAP"] == evaluate(shared/"reference/submissions"/f"{name}.jsonl", val)["brief"]["MR-full-mAP"]
    sizes = [v for k, v in multi["tr_detr_val"]["counted"].items() if k[0].isdigit() and int(k.split("_")[0]) >= 3]
    assert sum(sizes) == 252 and len(sizes) == 17 and sizes.count(1) == 6
    first = lambda metric: sorted(multi, key=lambda n: -multi[n]["brief"][metric])
    assert first(">=3_tgt_mAP") == first(">=3_tgt_mAP_by_query") != first("Generalized_mAP")


def test_who_answers_less_scores_more(shared, val, multi):
    lines = parsed(shared/"reference/submissions/tr_detr_val.jsonl")
    sure = [dict(v, pred_relevant_windows=[w for i, w in enumerate(v["pred_relevant_windows"]) if not i or w[2] >= .5]) for v in lines]
    less, before = evaluate(sure, val, protocol="multi"), multi["tr_detr_val"]["brief"]
    assert (before["MR-mR2"], less["brief"]["MR-mR2"], before["MR-mR3"], less["brief"]["MR-mR3"]) == (36.67, 51.06, 32., 46.99)
    assert (less["counted"]["MR-R2"], less["counted"]["MR-R3"], less["brief"]["Generalized_mAP"]) == (205, 83, 41.6)


def test_pairs_without_overlap_are_matched(soccer):
    "The same gate and greedy matching, with pairs that must overlap"
    given, truth = ({line["qid"]: line for line in parsed(path)} for path in soccer)
    scores, pairs = {"kept": [], "overlapping": []}, []
    for q, t in truth.items():
        true = sorted({(max(s, 0), min(e, t["duration"])) for s, e in t["relevant_windows"]})
        read = [w for w in given[q]["pred_relevant_windows"][:10] if w[1] > w[0]][:3] if given[q]["pred_exist_score"] > .4 else []
        found = naive_matches(read, true, 0)
        pairs += found
        for name, hits in (("kept", found), ("overlapping", [iou for iou in found if iou > 0])):
            scores[name].append(float(not read and not true) if not read or not true else sum(hits)/(len(read)+len(true)-len(hits)))
    assert {name: round(100*float(np.mean(s)), 2) for name, s in scores.items()} == {"kept": 32.89, "overlapping": 32.79}
    assert len(pairs) == 446 and sum(iou == 0 for iou in pairs) == 299
