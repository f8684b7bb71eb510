"Reading what was handed in: a line that cannot be scored is refused with its place, in one sentence"
import json
import numpy as np
import pytest
from mrhd_nb.core.testing import refusal
from mrhd_nb.evaluation.metrics import evaluate
from mrhd_nb.evaluation.submissions import flatten, labels, load_lines, pair, ratings

RATED = dict(qid=0, duration=8, relevant_clip_ids=[1, 2], saliency_scores=[[4, 0, 2], [3, 3, 3]])


@pytest.mark.parametrize("text, words", [
    ('{"qid": 1}\n{"qid": ', [":2:", "not JSON"]), ("[1]\n", [":1:", "object"]), ('{"vid": "x"}\n', [":1:", "'qid'"]),
    ('{"qid": 1}\n\n{"qid": 1}\n', [":3:", "stands already at", ":1"]), ("", ["empty"]), ("\n \n", ["empty"])])
def test_a_file_that_is_not_json_lines(tmp_path, text, words):
    path = tmp_path/"s.jsonl"
    path.write_text(text)
    said = refusal(load_lines, path, "")
    assert said.startswith(str(path)) and all(word in said for word in words)


def test_a_file_that_cannot_be_read(tmp_path):
    assert "cannot be read" in refusal(load_lines, tmp_path/"none.jsonl", "")
    (tmp_path/"s.jsonl").write_bytes(b'{"qid": "\xff"}\n')
    assert "s.jsonl:1: not UTF-8 text" in refusal(load_lines, tmp_path/"s.jsonl", "")


def test_every_query_is_answered_once():
    two = [dict(qid=1), dict(qid=2)]
    for given, words in ((two[:1], ["submission:", "'qid'", "2", "annotations[1]"]), ([*two, dict(qid=3)], ["submission[2]", "3"]),
                         ([*two, dict(qid=2)], ["submission[2]", "submission[1]", "2"])):
        said = refusal(pair, given, two)
        assert all(word in said for word in words)
    assert "and 1 more" in refusal(pair, [dict(qid=1)], [*two, dict(qid=3)])


@pytest.mark.parametrize("wrong, word", [
    (None, "missing"), ("ab", "not a list"), ([[1]], "entry 0"), ([[1, 2], [1, float("nan")]], "entry 1"), ([[1, "2"]], "entry 0"),
    ([3], "entry 0"), ([[True, 1]], "entry 0"), ([[10**400, 1]], "entry 0"), ({}, "not a list")])
def test_rows_that_are_not_numbers(wrong, word):
    lines = load_lines([dict(qid=0, w=[[1, 2]]), dict(qid=1, w=wrong)], "submission")
    said = refusal(flatten, lines, "w", 2)
    assert said.startswith("submission[1]: field 'w'") and word in said


def test_numbers_of_numpy_are_numbers():
    lines = load_lines([dict(qid=0, s=(np.float32(.5), np.int64(2)))], "submission")
    assert flatten(lines, "s")[0].tolist() == [.5, 2]


@pytest.mark.parametrize("change, field", [
    (dict(duration=None), "duration"), (dict(duration=0), "duration"), (dict(duration=True), "duration"),
    (dict(saliency_scores=[[1, 2, 3]]), "saliency_scores"), (dict(saliency_scores=[[1, 2, 3], [1]]), "saliency_scores"),
    (dict(saliency_scores=[[1, 2, 3], [1, 5, 2]]), "saliency_scores"), (dict(saliency_scores={"a": 1}), "saliency_scores"),
    (dict(relevant_clip_ids=[-1, 1]), "relevant_clip_ids"), (dict(relevant_clip_ids=[1, 4]), "relevant_clip_ids"),
    (dict(relevant_clip_ids=[1, 1.5]), "relevant_clip_ids"), (dict(relevant_clip_ids=None), "relevant_clip_ids"),
    (dict(relevant_clip_ids=[1, 1]), "relevant_clip_ids")])
def test_ratings_that_cannot_be(change, field):
    said = refusal(ratings, load_lines([RATED, RATED | {"qid": 1} | change], "annotations"))
    assert said.startswith(f"annotations[1]: field '{field}'")


@pytest.mark.parametrize("wrong", (None, [], [[1], [1, 2]], [1], {"a": 1}))
def test_labels_that_cannot_be(wrong):
    assert refusal(labels, load_lines([dict(qid=0, label=wrong)], "annotations")).startswith("annotations[0]: field 'label'")


@pytest.mark.parametrize("edit, words", [
    (lambda s: s[:100]+s[101:], ["s.jsonl", "'qid'", "no line for"]),
    (lambda s: s+s[:1], ["s.jsonl:1551", "s.jsonl:1", "'qid'"]),
    (lambda s: [dict(s[0], qid=-1)]+s[1:], ["s.jsonl:1", "-1", "is not in"]),
    (lambda s: s[:7]+[dict(s[7], pred_relevant_windows=[[0, 2]])]+s[8:], ["s.jsonl:8", "'pred_relevant_windows'", "3 finite numbers"]),
    (lambda s: s[:7]+[dict(s[7], pred_saliency_scores=[float("nan")])]+s[8:], ["s.jsonl:8", "'pred_saliency_scores'", "nan"]),
    (lambda s: s[:7]+[{k: v for k, v in s[7].items() if k != "pred_saliency_scores"}]+s[8:],
     ["s.jsonl:8", "'pred_saliency_scores'", "missing"])])
def test_a_wrong_line_of_a_real_submission_is_named(shared, tmp_path, edit, words):
    path, released = tmp_path/"s.jsonl", shared/"reference/submissions/tr_detr_val.jsonl"
    lines = edit([json.loads(line) for line in released.open()])
    path.write_text("".join(json.dumps(v)+"\n" for v in lines))
    said = refusal(evaluate, path, shared/"reference/annotations/qvhighlights/highlight_val_release.jsonl")
    assert all(word in said for word in words), said
