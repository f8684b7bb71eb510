"Every figure in figures/ follows from the files named beside it; the notebooks that draw run at their smoke size"
import json, re
from pathlib import Path
import pandas as pd
import pytest
from mrhd_nb.figures.charts import draw_standings, standings_table
from mrhd_nb.programs.bench import bench_table
from mrhd_nb.programs.cli import main
from mrhd_nb.core.files import InputError, read_json
from mrhd_nb.programs.demo import example_submissions
from mrhd_nb.programs.notebooks import run_notebook
from mrhd_nb.evaluation.leaderboard import HEADLINES, LENGTHS, pairings, published_rows, reproduced, resolution, score_systems, standings
from mrhd_nb.evaluation.ledger import read_ledger
from mrhd_nb.evaluation.statistics import ceilings, random_answers, true_answers
from mrhd_nb.figures.provenance import check_figure, publish, read_source

FIGURES = Path(__file__).resolve().parents[2]/"figures"
KEPT = sorted(FIGURES.glob("*.json"))
RELEASED = sorted(p for p in (FIGURES/"released").glob("*.json")) # drawn from files that are not passed on
TOLERANCE = 1e-3 # arithmetic differs between machines
SOURCE_BYTES = 3_000_000


@pytest.mark.parametrize("path", KEPT, ids=lambda p: p.stem)
def test_kept_figure_is_whole_and_follows_from_its_files(path):
    check_figure(path.with_suffix(""))
    for file in read_source(path).paths():
        assert file.resolve().is_relative_to(FIGURES.parent) and file.stat().st_size < SOURCE_BYTES, file
    assert not any(part.startswith("/") for part in read_json(path)["command"].split())


@pytest.fixture
def elsewhere(shared, monkeypatch):
    "Sources of kept figures may lie below the folder of reference files"
    monkeypatch.setenv("MRHD_SHARED", str(shared))


@pytest.mark.parametrize("path", RELEASED, ids=lambda p: p.stem)
def test_figure_of_released_predictions_follows_from_them(path, elsewhere, monkeypatch):
    check_figure(path.with_suffix(""))
    kept = read_json(path)
    assert all(f.startswith("$MRHD_SHARED/") for f in kept["files"]) and not any(part.startswith("/") for part in kept["command"].split())
    monkeypatch.delenv("MRHD_SHARED")
    with pytest.raises(InputError, match="MRHD_SHARED is not set"): read_source(path)


def test_tables_of_released_predictions_follow_from_them(elsewhere):
    "The same table as the notebook's, and what it says: the published rows, and what the systems differ in"
    folder, source = FIGURES/"released", read_source(FIGURES/"released"/"tab_leaderboard.json")
    truth, *files = map(str, source.paths())
    systems = {name: [file] for name, file in zip(source.record.partition(":")[2].split(","), files)}
    scored, names = score_systems(systems, truth), HEADLINES["qvhighlights"]
    rows, pairs = standings(scored | {n: [t] for n, t in ceilings(truth).items()}), pairings(scored, list((names | LENGTHS).values()))
    split, published = published_rows(truth)
    printed = reproduced(rows, published, names)
    for name, table in {"standings": rows, "pairs": pairs, "resolution": resolution(pairs).reset_index(), "published": printed}.items():
        pd.testing.assert_frame_equal(pd.read_csv(folder/f"{name}.csv"), table, rtol=TOLERANCE, atol=TOLERANCE, check_dtype=False)
    given = printed[printed.apart == 0].groupby("row").task.agg("".join)
    assert split == "QVHighlights val" and given.to_dict() == {"Moment-DETR, sample (released)": "MRHD", "TR-DETR (paper)": "MRHD", "TaskWeave (paper)": "MR",
                                                               "TaskWeave mr2hd (log)": "MRHD", "TaskWeave hd2mr (log)": "MR"}
    found = pairs[(pairs.p_holm < .05) & ~pairs[["a", "b"]].eq("Moment-DETR").any(axis=1)]
    assert set(found.metric) == {"HL-min-VeryGood-mAP", "MR-short-mAP"} and (found.a == "TR-DETR").all() and len(found) == 4


def test_every_picture_in_figures_has_its_data_beside_it():
    pictures = {p.stem for p in FIGURES.iterdir() if p.suffix in (".png", ".pdf")}
    assert pictures == {p.stem for p in KEPT}
    assert {p.stem for p in FIGURES.rglob("*.p[nd][gf]")} == {p.stem for p in [*KEPT, *RELEASED]}


@pytest.mark.parametrize("kind", ("attention", "masks", "weights"))
def test_figure_notebook_runs_at_smoke_size(kind, tmp_path):
    executed = run_notebook(f"fig_{kind}", tmp_path/"out")
    stem = tmp_path/"out"/f"fig_{kind}"
    assert check_figure(stem).min() > 0
    outputs = [o for c in json.loads(executed.read_text())["cells"] for o in c.get("outputs", ())]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 1
    moved = publish(f"{stem}.json", tmp_path/"figures")
    assert check_figure(moved.with_suffix("")).min() > 0 and f"redraw('figures/fig_{kind}.json')" in read_json(moved)["command"]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    "A test split and three submissions for it, two of them runs of one system"
    folder = tmp_path_factory.mktemp("made")
    truth, systems = example_submissions("taskweave_mr2hd", folder, 150)
    truth = truth.rename(folder/"made_test.jsonl")
    return truth, systems


def shown(executed:Path)->str:
    "All that an executed notebook printed or displayed as text"
    outputs = [o for c in json.loads(executed.read_text())["cells"] for o in c.get("outputs", ())]
    return "\n".join("".join(o.get("text", ())) or "".join(o.get("data", {}).get("text/plain", ())) for o in outputs)


def test_leaderboard_compares_submissions_and_leaves_lines_in_the_ledger(examples, tmp_path, monkeypatch):
    truth, systems = examples
    monkeypatch.setenv("MRHD_LEDGER", str(tmp_path/"ledger.jsonl"))
    given = ",".join(f"{name}={file}" for name, (file,) in systems.items())
    executed = run_notebook("tab_leaderboard", tmp_path/"out", {"annotations": str(truth), "submissions": given, "resamples": 500})
    tables = {n: pd.read_csv(tmp_path/"out"/f"{n}.csv") for n in ("standings", "pairs", "resolution", "published")}
    assert set(tables["standings"].system) == {*systems, "perfect windows, mean human", "every vote known", "random"} and len(tables["pairs"]) == 3*10
    value = tables["standings"].set_index(["system", "metric"]).value
    for name, (file,) in systems.items():
        assert main(["evaluate", "--submission", file, "--annotations", str(truth), "--out", str(tmp_path/"m.json")]) == 0
        for metric, number in read_json(tmp_path/"m.json")["brief"].items(): assert value[name, metric] == pytest.approx(number, abs=.006)
    assert [line["run"] for line in read_ledger(tmp_path/"ledger.jsonl")[:3]] == list(systems) and tables["published"].empty
    assert "3 different submissions so far" in shown(executed)
    better = tables["pairs"].query("a == 'trained' and p_holm < .05 and difference > 0").groupby("b").metric.agg(set)
    for rival in ("constant", "chance"): assert "MR-full-R1@0.5" in better[rival]
    assert "HL-min-VeryGood-mAP" in better["constant"] and re.search(r"\+\d+\.\d\*", shown(executed)) # a star for each


def test_leaderboard_says_what_is_wrong(examples, tmp_path):
    truth, systems = examples
    broken = tmp_path/"broken.jsonl"
    broken.write_text(Path(systems["trained"][0]).read_text().replace('"qid": ', '"qid": "x', 1).replace(",", '",', 1))
    with pytest.raises(InputError, match=r"broken\.jsonl:1: ") as said:
        run_notebook("tab_leaderboard", tmp_path/"out", {"annotations": str(truth), "submissions": f"a={broken}"})
    assert "\n" not in str(said.value) and not list((tmp_path/"out").glob("*.csv"))


def test_leaderboard_of_one_system_on_data_without_windows(shared, tmp_path):
    "Ceilings and chance by the rules of TVSum; a single system is compared with them"
    truth = shared/"reference/annotations/tvsum/tvsum_val.jsonl"
    lines = [{k: v for k, v in line.items() if v} for line in true_answers(truth)]
    (tmp_path/"people.jsonl").write_text("".join(json.dumps(line)+"\n" for line in lines))
    executed = run_notebook("tab_leaderboard", tmp_path/"out", {"dataset": "tvsum", "annotations": str(truth), "submissions": f"{tmp_path}/people.jsonl", "resamples": 2000})
    rows, pairs = (pd.read_csv(tmp_path/"out"/f"{n}.csv") for n in ("standings", "pairs"))
    value = rows.set_index("system").value
    assert value["people"] == pytest.approx(value["perfect windows, mean human"]) == pytest.approx(.843, abs=5e-4) and value["random"] == pytest.approx(.43, abs=.03)
    assert list(zip(pairs.a, pairs.b)) == [("people", "perfect windows, mean human"), ("people", "random"), ("perfect windows, mean human", "random")]
    assert "'tvsum' has no buckets of length" in shown(executed) and check_figure(tmp_path/"out"/"tab_leaderboard").min() > 0
    youtube = shared/"reference/annotations/youtube_highlights/youtube_highlight_val_release.jsonl"
    clips = standings_table({"luck": [random_answers(youtube, 5)]}, youtube, "youtube")
    value = clips.set_index("system").value
    assert abs(value["luck"]-value["random"]) < .1 < value["perfect windows, mean human"]-value["random"] and len(draw_standings(clips).axes) == 1


def test_errors_notebook_at_smoke_size(tmp_path):
    executed = run_notebook("fig_errors", tmp_path/"out", {"queries": 60})
    outputs = [o for c in json.loads(executed.read_text())["cells"] for o in c.get("outputs", ())]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2+6
    moved = publish(tmp_path/"out"/"fig_errors.json", tmp_path/"figures")
    assert check_figure(moved.with_suffix("")).min() > 0 and sorted(p.name for p in (tmp_path/"figures"/"submissions").iterdir()) == ["annotations.jsonl", "chance.jsonl", "constant.jsonl", "trained.jsonl"]


def test_bench_notebook_runs_at_smoke_size(tmp_path):
    "It measures, and writes what it measured and the table"
    run_notebook("bench", tmp_path/"out")
    measured, table = read_json(tmp_path/"out/measured.json"), pd.read_csv(tmp_path/"out/bench.csv")
    assert {row["kind"] for row in measured["rows"]} == {"train", "inference"} and len(table) == len(measured["rows"]) == 20
    pd.testing.assert_frame_equal(table, bench_table(measured), check_dtype=False)
