"The evaluators against the official evaluator's output for released predictions, and against what is known of the real data"
import json
import numpy as np
import pytest
from mrhd_nb.core.files import InputError, rng
from mrhd_nb.evaluation.metrics import evaluate, evaluate_qvhighlights, evaluate_tvsum, per_query_qvhighlights
from mrhd_nb.evaluation.per_query import averages, per_query

SUBMISSIONS = ("moment_detr_sample_val", "tr_detr_val", "taskweave_mr2hd_val", "taskweave_hd2mr_val")


def parsed(path)->list[dict]: return [json.loads(line) for line in path.open()]


@pytest.fixture(scope="module")
def annotations(shared):
    return shared/"reference/annotations/qvhighlights/highlight_val_release.jsonl"


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_every_number_of_the_official_report(shared, annotations, name):
    folder = shared/"reference/submissions"
    report = evaluate_qvhighlights(folder/f"{name}.jsonl", annotations)
    text = (folder/f"{name}.metrics.json").read_text()
    assert json.dumps(report) == json.dumps(json.loads(text))             # values and the order of keys


def test_lists_and_shuffled_lines_say_the_same(shared, annotations):
    path = shared/"reference/submissions/tr_detr_val.jsonl"
    lines, report = parsed(path), evaluate_qvhighlights(path, annotations)
    order = rng(0, "order").permutation(len(lines))
    assert evaluate_qvhighlights([lines[i] for i in order], parsed(annotations)) == report
    table = per_query_qvhighlights(path, annotations)
    assert table.index.tolist() == [v["qid"] for v in parsed(annotations)]
    assert {k: round(100*table[k].mean(), 2) for k in report["brief"]} == pytest.approx(report["brief"], abs=.0051)


@pytest.mark.parametrize("edit, words", [
    (lambda s: s[:100]+s[101:], ["s.jsonl", "'qid'", "no line for"]),
    (lambda s: s+s[:1], ["s.jsonl:1551", "s.jsonl:1", "'qid'"]),
    (lambda s: [dict(s[0], qid=-1)]+s[1:], ["s.jsonl:1", "-1", "is not in"]),
    (lambda s: s[:7]+[dict(s[7], pred_relevant_windows=[[0, 2]])]+s[8:], ["s.jsonl:8", "'pred_relevant_windows'", "3 finite numbers"]),
    (lambda s: s[:7]+[dict(s[7], pred_saliency_scores=[float("nan")])]+s[8:], ["s.jsonl:8", "'pred_saliency_scores'", "nan"]),
    (lambda s: s[:7]+[{k: v for k, v in s[7].items() if k != "pred_saliency_scores"}]+s[8:], ["s.jsonl:8", "'pred_saliency_scores'", "missing"]),
])
def test_a_wrong_line_is_named(shared, annotations, tmp_path, edit, words):
    path = tmp_path/"s.jsonl"
    path.write_text("".join(json.dumps(v)+"\n" for v in edit(parsed(shared/"reference/submissions/tr_detr_val.jsonl"))))
    with pytest.raises(InputError) as error: evaluate_qvhighlights(path, annotations)
    assert "\n" not in str(error.value) and all(w in str(error.value) for w in words), error.value


def test_annotations_without_ground_truth_are_refused(shared, annotations):
    blind = [{k: v for k, v in line.items() if k in ("qid", "query", "vid", "duration")} for line in parsed(annotations)]
    with pytest.raises(InputError, match="nothing that annotations can score"):
        evaluate_qvhighlights(shared/"reference/submissions/tr_detr_val.jsonl", blind)


def test_tvsum_between_chance_and_the_mean_human(shared):
    truth = parsed(shared/"reference/annotations/tvsum/tvsum_val.jsonl")
    human = [dict(qid=t["qid"], vid=t["vid"], pred_saliency_scores=np.mean(t["label"], 1).tolist()) for t in truth]
    assert evaluate_tvsum(human, truth)["brief"]["mAP"] == pytest.approx(.843, abs=.0005)
    g = rng(0, "tvsum chance")
    draw = lambda: [dict(qid=t["qid"], pred_saliency_scores=g.random(len(t["label"])).tolist()) for t in truth]
    assert np.mean([evaluate_tvsum(draw(), truth)["brief"]["mAP"] for _ in range(100)]) == pytest.approx(.42, abs=.015)


@pytest.mark.parametrize("dataset, file, best", [
    ("charades", "charades/charades_sta_val_tvr_format.jsonl", {"MR-full-R1@0.7": 100, "MR-full-mIoU": 100, "MR-full-mAP": 100}),
    ("youtube", "youtube_highlights/youtube_highlight_val_release.jsonl", {})])
def test_true_answers_on_real_annotations(shared, dataset, file, best):
    truth = parsed(shared/"reference/annotations"/file)
    perfect = [dict(qid=t["qid"], pred_relevant_windows=[[*w, 1.] for w in t.get("relevant_windows") or []],
                    pred_saliency_scores=[row[0] for row in t.get("label", [[0]])]) for t in truth]
    report = evaluate(dataset, perfect, truth)
    assert report["brief"].items() >= best.items()
    if dataset == "youtube":                                              # videos without a positive clip count 0
        domains = {d: [any(map(any, t["label"])) for t in truth if t["domain"] == d] for d in report["domains"]}
        assert report["domains"] == {d: round(float(np.mean(found)), 5) for d, found in domains.items()}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_means_of_the_per_query_table_are_the_official_numbers(shared, annotations, name):
    folder = shared/"reference/submissions"
    table = per_query("qvhighlights", folder/f"{name}.jsonl", annotations)
    expected = json.loads((folder/f"{name}.metrics.json").read_text())["brief"]
    assert {k: round(float(v), 2) for k, v in averages(table).items()} == expected
    assert table.vid.nunique() == 1519 and table["MR-short-mAP"].count() < len(table) == 1550
