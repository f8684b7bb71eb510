"Intervals and tests on the released predictions: against published half-widths, and against a second, naive way"
import itertools, json, random
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from mrhd_nb.programs.cli import main
from mrhd_nb.evaluation.ledger import read_ledger
from mrhd_nb.evaluation.metrics import averages, per_query
from mrhd_nb.evaluation.statistics import (
    bootstrap, ceilings, compare, difference, estimate, intervals, permutation_p, random_answers, summed)

# 95 % half-widths of one model's numbers and of paired differences on val, in points
HALF = {"MR-full-R1@0.5": (2.4, 2.3), "MR-full-mAP": (1.8, 1.4), "HL-min-VeryGood-mAP": (1.2, 0.7), "HL-min-VeryGood-Hit1": (2.4, None)}
RUNS = ("taskweave_mr2hd", "taskweave_hd2mr")


@pytest.fixture(scope="module")
def tables(shared):
    reference = shared/"reference"
    truth = reference/"annotations/qvhighlights/highlight_val_release.jsonl"
    return {n: per_query(reference/"submissions"/f"{n}_val.jsonl", truth) for n in ("tr_detr", *RUNS)}


@pytest.mark.parametrize("method", ("percentile", "bca"))
def test_half_widths_of_the_released_submissions(tables, method):
    for name in tables:
        made = intervals(summed(tables[name]), method=method, resamples=4000)
        for metric, (alone, _) in HALF.items():
            assert (made.high-made.low)[metric]/2 == pytest.approx(alone, abs=.16), (name, metric)
    for name in RUNS:
        made = intervals(difference(summed(tables["tr_detr"]), summed(tables[name])), method=method, resamples=4000)
        for metric, (_, paired) in HALF.items():
            if paired: assert (made.high-made.low)[metric]/2 == pytest.approx(paired, abs=.16), (name, metric)


def naive_permutation_p(a:dict, b:dict, videos:dict, tosses:int)->float:
    "Exchange the two systems in random videos, one query at a time"
    toss = random.Random(1)
    by_video:dict = {}
    for qid, vid in videos.items(): by_video.setdefault(vid, []).append(a[qid]-b[qid])
    sums = [sum(d) for d in by_video.values()]
    seen = abs(sum(sums))
    as_large = 0
    for _ in range(tosses):
        total = 0.
        for d in sums:
            if toss.random() < .5: total += d
            else: total -= d
        as_large += abs(total) >= seen-1e-6
    return (as_large+1)/(tosses+1)


@pytest.mark.parametrize("run", RUNS)
def test_p_values_of_tr_detr_against_taskweave_a_second_way(tables, run):
    made, tosses = compare(difference(summed(tables["tr_detr"]), summed(tables[run]))), 1500
    a, b = (tables[n].set_index("qid") for n in ("tr_detr", run))
    for metric in ("MR-full-R1@0.5", "MR-full-mAP", "HL-min-VeryGood-mAP", "HL-min-VeryGood-Hit1", "MR-short-mAP"):
        counted = a[metric].dropna().index
        p = naive_permutation_p(a[metric][counted].to_dict(), b[metric][counted].to_dict(), a.vid[counted].to_dict(), tosses)
        expected = made.p_permutation[metric]
        assert abs(p-expected) <= 4*(expected*(1-expected)/tosses)**.5+2/tosses, (metric, p, expected)
        assert made.difference[metric] == pytest.approx((a[metric]-b[metric]).mean())
    assert made.p_permutation["MR-full-R1@0.5"] < .05 < made.p_permutation["MR-full-mAP"] # what the two can and cannot tell apart


def test_a_resample_is_a_table_of_drawn_videos(tables):
    "The same bootstrap by building each resampled table"
    table, g, metrics = tables["tr_detr"], np.random.default_rng(0), ["MR-full-mAP", "MR-short-mAP"]
    rows = list(table.groupby("vid").indices.values())
    draws = [table[metrics].iloc[np.concatenate([rows[i] for i in g.integers(0, len(rows), len(rows))])].mean() for _ in range(60)]
    ours = bootstrap(summed(table, metrics), 2000)
    assert np.mean(draws, 0) == pytest.approx(ours.mean(0), abs=4*ours.std(0).max()/60**.5)
    assert np.std(draws, 0, ddof=1) == pytest.approx(ours.std(0), rel=.4)


def test_source_videos_as_clusters_change_little(tables):
    "Segments cut from one source video are alike, but hardly more than segments of different ones"
    table = tables["tr_detr"]
    source = table.assign(source=table.vid.str.rsplit("_", n=2).str[0])
    made = {c: intervals(summed(source, list(HALF), cluster=c), resamples=2000) for c in ("qid", "vid", "source")}
    assert made["source"].clusters.iloc[0] == 474
    for c in ("qid", "source"): assert np.allclose(made[c].error, made["vid"].error, rtol=.1)


def test_ceilings_of_real_annotations(shared):
    folder = shared/"reference/annotations"
    made = {n: averages(t) for n, t in ceilings(folder/"qvhighlights/highlight_val_release.jsonl", draws=2).items()}
    people = made["perfect windows, mean human"]
    assert people["MR-short-mAP"] == pytest.approx(79.8, abs=.06) and people["MR-full-R1@0.7"] == 100
    assert people["HL-min-VeryGood-mAP"] == pytest.approx(63.6, abs=.06)
    assert people["HL-min-VeryGood-mAP"] < made["every vote known"]["HL-min-VeryGood-mAP"] < 70
    assert made["every vote known"]["HL-min-VeryGood-Hit1"] == pytest.approx(100-2.3, abs=.06) # the rest has no Very Good clip


def test_ten_videos_say_little(shared):
    "TVSum's evaluation set: the mean human's interval reaches below most published systems"
    truth = [json.loads(line) for line in (shared/"reference/annotations/tvsum/tvsum_val.jsonl").open()]
    human = ceilings(truth, "tvsum", draws=1)["perfect windows, mean human"]
    made = intervals(summed(human))
    assert made.clusters["mAP"] == 10 and (made.high-made.low)["mAP"] > .07


def test_scorings_of_the_real_test_split_are_recorded(shared, tmp_path, monkeypatch, capsys):
    "QVHighlights test, known by its queries: each scoring is a line, each other submission a look; val leaves none"
    monkeypatch.delenv("MRHD_LEDGER")
    annotations, ledger = shared/"reference/annotations/qvhighlights", tmp_path/"ledger.jsonl"
    for seed, name in ((0, "a"), (1, "b"), (0, "again")):
        lines = random_answers(annotations/"highlight_test_with_gt.jsonl", seed)
        (tmp_path/f"{name}.jsonl").write_text("".join(json.dumps(line)+"\n" for line in lines))
        assert main(["evaluate", "--submission", f"{tmp_path}/{name}.jsonl", "--annotations", str(annotations/"highlight_test_with_gt.jsonl"), "--ledger", str(ledger)]) == 0
    assert capsys.readouterr().err.splitlines()[-2].startswith("mrhd: QVHighlights test, 1542 queries: scoring 3 of this test split, 2 different submissions so far")
    first, second, third = read_ledger(ledger)
    assert [Path(line["file"]).stem for line in (first, second, third)] == ["a", "b", "again"] and first["metrics"] == third["metrics"]
    assert first["submission"] == third["submission"] != second["submission"] and first["metrics"]["MR-full-mAP"] != second["metrics"]["MR-full-mAP"]
    val = ["evaluate", "--submission", f"{shared}/reference/submissions/tr_detr_val.jsonl", "--annotations", f"{annotations}/highlight_val_release.jsonl", "--ledger", str(ledger)]
    assert main(val) == 0 and len(read_ledger(ledger)) == 3 and not list(annotations.glob("*.ledger.jsonl*"))


def test_permutation_within_domains_a_second_way():
    "A mean over two domains: each video's difference counts by the queries of its domain"
    g = np.random.default_rng(3)
    table = pd.DataFrame({"qid": range(40), "vid": g.integers(0, 9, 40), "domain": "A", "AP": g.random(40)})
    table.loc[table.vid > 4, "domain"] = "B"
    paired = difference(summed(table), summed(table.assign(AP=g.random(40)-.05)))
    parts = np.concatenate([paired.total[s,0]/paired.count[s,0].sum()/2 for s in paired.strata])
    tosses = np.array(list(itertools.product((-1, 1), repeat=len(parts))))
    assert np.isclose(parts.sum(), estimate(paired)[0])
    assert permutation_p(paired)[0] == np.mean(np.abs(tosses @ parts) >= abs(parts.sum())-1e-12)
    assert abs(permutation_p(paired, 300)[0]-permutation_p(paired)[0]) < .12 # drawn, where all are too many
