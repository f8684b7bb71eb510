"The protocols of TVSum on its real annotations: splits, baselines, what luck alone reaches"
import numpy as np, pytest
from mrhd_nb.data.annotations import carve, read_annotations
from mrhd_nb.evaluation.baselines import mean_human, random_domains, selection_null
from mrhd_nb.core.config import override
from mrhd_nb.core.presets import run_config
from mrhd_nb.data.batches import split_records


@pytest.fixture(scope="module")
def held(shared):
    "TVSum's ten held-out videos"
    return read_annotations(shared/"reference/annotations/tvsum/tvsum_val.jsonl", "tvsum")


@pytest.fixture(scope="module")
def luck(held): return random_domains(held, draws=20_000)


def test_random_scores_get_what_is_known(luck):
    assert luck.shape == (20_000, 10) and luck.mean().mean() == pytest.approx(.425, abs=.003)


def test_the_best_of_400_random_scorers_reaches_people(luck, held):
    "Published systems sit at 0.83 to 0.88 and pick the best of some 400 evaluations"
    null = selection_null(luck, 400).mean(axis=1)
    assert .84 < null.mean() < .86 and null.quantile(.6) > np.mean([mean_human(r) for r in held])


def test_the_mean_human(held):
    assert np.mean([mean_human(r) for r in held]) == pytest.approx(.843, abs=.0005)
    assert .5 < np.mean([mean_human(r, leave_out=True) for r in held]) < .843


def test_one_of_four_training_videos_picks_the_epoch(shared, monkeypatch):
    monkeypatch.setenv("MRHD_DATA", str(shared/"features"))
    config = run_config("tr_detr", "tvsum/BK")
    names = {s: {r.vid for r in split_records(config, s)} for s in ("train", "val", "test")}
    assert [len(names[s]) for s in ("train", "val", "test")] == [3, 1, 1]
    official = override(config, {"training.select_on": "test"})
    assert {r.vid for r in split_records(official, "train")} == names["train"]|names["val"]
    left = override(official, {"data.leave_out": min(names["train"])})
    assert len(split_records(left, "train")) == 4 and [r.vid for r in split_records(left, "test")] == [min(names["train"])]


@pytest.mark.parametrize("path, dataset, videos", [("tvsum/tvsum_train.jsonl", "tvsum", 10), ("youtube_highlights/youtube_highlight_train_release.jsonl", "youtube", 23),
                                                   ("charades/charades_sta_train_tvr_format.jsonl", "charades", 534)])
def test_a_tenth_of_the_training_videos_of_each_domain_is_carved(shared, path, dataset, videos):
    rest, part = carve(read_annotations(shared/"reference/annotations"/path, dataset), .1, 0)
    assert len({r.vid for r in part}) == videos and not {r.vid for r in rest} & {r.vid for r in part}
    assert {r.domain for r in part} == {r.domain for r in rest}
