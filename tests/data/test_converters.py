"Data of one's own: twenty records written by hand in a table, converted, described, trained on, scored and asked about"
import json
from pathlib import Path
import numpy as np
import pytest
from mrhd_nb.data.annotations import read_annotations
from mrhd_nb.data.batches import iterate, open_split
from mrhd_nb.programs.cli import main
from mrhd_nb.core.files import InputError, write_json
from mrhd_nb.core.config import override, read_config
from mrhd_nb.core.presets import data_config, run_config
from mrhd_nb.core.testing import refusal
from mrhd_nb.data.converters import ConversionError, check_moments, convert, source_moments
from mrhd_nb.learning.training import train

TABLE = """video,query,start,end,duration,split
kitchen1,a woman cuts an onion,0:04,0:11,0:36,train
kitchen1,a woman cuts an onion,0:22,0:26,,train
kitchen1,water boils in a pot,0:12,0:21,,train
kitchen2,a man fries an egg,3,12.5,31,train
kitchen2,"salt, then pepper, is added",13,17,,train
kitchen2,a man puts the egg on a plate,18,29.5,,train
garden1,a girl waters the flowers,0:02,0:13,40,train
garden1,a cat runs across the grass,0:15,0:19,,train
garden1,the girl picks a tomato,0:24,0:38,,train
garden2,two people plant a tree,0,27.4,27.4,train
garden2,they pour water on the roots,20,26,,train
street1,a cyclist stops at a light,5,9.5,33.3,train
street1,a bus passes,12,20,,train
street1,a bus passes,24,31,,train
street1,a dog waits at the door,8,15,,train
street2,children cross the street,0:10,0:22,0:30,train
kitchen3,a man cuts an onion,0:06,0:15,0:34,val
kitchen3,a pot boils,0:18,0:30,,val
garden3,a dog runs across the grass,1,8,28.6,val
garden3,a boy waters the tree,10,24,,val
street3,a bus stops at a light,0:07,0:16,0:29,val
street3,people cross the street,0:18,0:27,,val
"""
TINY = {"model.width": 32, "model.heads": 4, "model.ffn": 32, "training.batch_size": 8, "training.epochs": 3, "training.eval_every": 1, "training.lr": 1e-3}


@pytest.fixture()
def folder(tmp_path)->Path:
    "A table, features of two streams and audio, and the file that describes them"
    (tmp_path/"mine.csv").write_text(TABLE)
    draw = np.random.default_rng(0)
    for name in ("appearance", "motion", "sound"): (tmp_path/name).mkdir()
    for line in TABLE.splitlines()[1:]:
        vid = line.split(",")[0]
        clips = 14+len(vid)                                            # of 2 s: the rows, not the table, say how many clips there are
        np.savez(tmp_path/"appearance"/f"{vid}.npz", features=draw.standard_normal((clips, 12)))
        np.save(tmp_path/"motion"/f"{vid}.npy", draw.standard_normal((clips+2, 6)))
        np.save(tmp_path/"sound"/f"{vid}.npy", draw.standard_normal((clips-1, 4)))
    write_json(tmp_path/"data.json", {
        "name": "mine", "dataset": "charades", "train": "train.jsonl", "val": "val.jsonl", "round_to": None,
        "streams": [{"name": "appearance", "files": ["appearance/{vid}.npz"], "dim": 12, "key": "features"},
                    {"name": "motion", "files": ["motion/{vid}.npy"], "dim": 6},
                    {"name": "sound", "files": ["sound/{vid}.npy"], "dim": 4, "audio": True}],
        "text": {"name": "words", "files": [], "dim": 16}})
    return tmp_path


def describe(folder, **changes):
    "Change the data file"
    write_json(folder/"data.json", json.loads((folder/"data.json").read_text()) | changes)
    return str(folder/"data.json")


def test_twenty_records_from_table_to_answer(folder, capsys):
    assert main(["convert", str(folder/"mine.csv"), "--out", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{folder}/train.jsonl: 14 queries, 16 windows, 6 videos of 27.4 to 40 s", f"{folder}/val.jsonl: 6 queries, 6 windows, 3 videos of 28.6 to 34 s"]
    records = [r for part in ("train", "val") for r in read_annotations(folder/f"{part}.jsonl", "charades")]
    assert len(records) == 20 and len({r.qid for r in records}) == 20
    assert records[0].windows == ((4, 11), (22, 26)) and records[3].query == "salt, then pepper, is added" and records[5].qid == "train_garden1_0"

    config = run_config("taskweave_mr2hd", str(folder/"data.json"), overrides=TINY)
    assert config.data.root == str(folder) and config.model.video_dim == 12+6+2+4+2 and config.model.text_dim == 16
    batch = next(iterate(open_split(override(config, {"training.select_on": "none"}), "train"), 14))
    assert batch.clip_mask.sum(1).tolist() == [13+len(r.vid) for r in records[:14]]
    assert batch.targets.saliency[0].nonzero().flatten().tolist() == [2, 3, 4, 5, 11, 12]  # both windows, in clips of 2 s

    learns, picks, reports = (open_split(config, split) for split in ("train", "val", "test"))
    assert [r.source for r in reports.records] == [r.source for r in records[14:]] and len(learns)+len(picks) == 14
    assert not {r.vid for r in learns.records} & {r.vid for r in picks.records} # the epoch is picked on videos held out of the training
    results = train(config, folder/"run", progress=False)
    brief = results["last"]["metrics"]["brief"]
    assert {"MR-full-R1@0.5", "MR-full-mAP", "MR-full-mIoU"} <= brief.keys() and all(0 <= v <= 100 for v in brief.values()) and not any(k.startswith("HL") for k in brief)
    losses = [json.loads(line)["terms"]["moments"] for line in (folder/"run"/"history.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]

    ask = ["predict", "--checkpoint", str(folder/"run"/"last.safetensors"), "--query", "a dog cuts an onion", "--json"]
    for name, end in (("appearance", "npz"), ("motion", "npy"), ("sound", "npy")): ask += ["--features", str(folder/name/f"garden3.{end}")]
    assert main(ask) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["saliency"]) == 13+len("garden3") and all(0 <= s <= e <= answer["duration"] == 40 for s, e, _ in answer["windows"])

    moved = folder/"moved{1}"/"lr=1"                                   # the data lie elsewhere now; the run is told where
    moved.mkdir(parents=True)
    for name in ("train.jsonl", "val.jsonl", "appearance", "motion", "sound"): (folder/name).rename(moved/name)
    assert main(["evaluate", str(folder/"run")]) == 2 and "val.jsonl: cannot be read" in capsys.readouterr().err
    assert main(["evaluate", str(folder/"run"), "--set", f"data.root={moved}"]) == 0 and json.loads(capsys.readouterr().out) == brief
    again = override(config, {"data.root": str(moved)})
    assert train(again, folder/"run", progress=False) == results and read_config(folder/"run"/"config.json") == again
    with pytest.raises(InputError, match="holds another run: data.clip_length"): train(override(again, {"data.clip_length": 1.}), folder/"run", progress=False)


@pytest.mark.parametrize("preset", ["tr_detr", "taskweave_both"])
def test_scores_are_optional_line_by_line(folder, preset):
    "QVHighlights' form: some training records have scores, some windows alone; what validation holds decides what is measured"
    assert main(["convert", str(folder/"mine.csv"), "--out", str(folder)]) == 0
    lines = {part: [json.loads(line) for line in (folder/f"{part}.jsonl").read_text().splitlines()] for part in ("train", "val")}

    def rated(line):
        ids = sorted({i for s, e in line["relevant_windows"] for i in range(int(s//2), int(-(-e//2)))})
        return line | {"relevant_clip_ids": ids, "saliency_scores": [[1+i % 4, 2, 3] for i in ids]}

    def write(part, values): (folder/f"{part}.jsonl").write_text("".join(json.dumps(v)+"\n" for v in values))
    write("train", [rated(line) if i % 2 else line for i, line in enumerate(lines["train"])])
    config = run_config(preset, describe(folder, dataset="qvhighlights"), overrides=TINY | {"training.epochs": 1, "training.select_on": "none"})
    y = next(iterate(open_split(config, "train"), 14)).targets.saliency.amax(1)
    assert (y[::2] == 1).all() and (y[1::2] > 5).all()                 # 1 in a window, or the sum of three scores
    measured = train(config, folder/"windows", progress=False)["last"]["metrics"]["brief"]
    assert "MR-full-mAP" in measured and not any(k.startswith("HL") for k in measured)
    write("val", map(rated, lines["val"]))
    assert "HL-min-VeryGood-Hit1" in train(config, folder/"scores", progress=False)["last"]["metrics"]["brief"]


def test_text_features_of_ones_own(folder):
    "Text pooled by any encoder: one vector for each query, named after the qid"
    assert main(["convert", str(folder/"mine.csv"), "--out", str(folder)]) == 0
    (folder/"text").mkdir()
    for record in (r for part in ("train", "val") for r in read_annotations(folder/f"{part}.jsonl", "charades")):
        np.save(folder/"text"/f"{record.qid}.npy", np.random.default_rng(len(record.query)).standard_normal(24))
    data = describe(folder, text={"name": "encoder", "files": ["text/{qid}.npy"], "dim": 24})
    config = run_config("tr_detr", data, overrides=TINY | {"training.epochs": 1})
    assert next(iterate(open_split(config, "test"), 6)).tokens.shape == (6, 1, 24)
    assert train(config, folder/"run", progress=False)["last"]["epoch"] == 1


def test_what_is_wrong_is_said_with_file_line_and_field(folder, capsys):
    "Nothing is written and nothing trained"
    table = folder/"mine.csv"
    for old, new, said in [("0:12,0:21", "0:21,0:12", "mine.csv:4: field 'end': 12 s, but the moment starts at 21 s"), ("3,12.5,31", "3,12.5,", "mine.csv:5: field 'duration'"),
                           ("5,9.5,33.3", "5s,9.5,33.3", "mine.csv:13: field 'start': '5s'"), ("video,query", "vid,query", "mine.csv:1: field 'video'")]:
        table.write_text(TABLE.replace(old, new))
        assert main(["convert", str(table), "--out", str(folder/"out")]) == 2 and not (folder/"out").exists()
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    table.write_text(TABLE.replace(",0:36,", ",,"))                    # one video without a duration: its features are counted
    assert main(["convert", str(table), "--data", str(folder/"data.json"), "--out", str(folder)]) == 0
    first = read_annotations(folder/"train.jsonl", "charades")[0]
    assert first.vid == "kitchen1" and first.duration == 2*(13+len("kitchen1"))
    good = json.loads((folder/"data.json").read_text())
    for change, said in [({"dataset": "mine"}, "wrong.json: field 'dataset': 'mine' is not one of qvhighlights, charades"), ({"streems": []}, "field 'streems': unknown"),
                         ({"streams": []}, "field 'streams': empty"), ({"clip_length": "2"}, "clip_length: '2' is not of type float"), ({"train": "nowhere.jsonl"}, "nowhere.jsonl: cannot be read")]:
        write_json(folder/"wrong.json", good | change)
        with pytest.raises(InputError) as error: train(run_config("tr_detr", str(folder/"wrong.json"), overrides=TINY), folder/"run", progress=False)
        assert said in str(error.value) and "\n" not in str(error.value)
    lines = (folder/"train.jsonl").read_text().splitlines()
    (folder/"train.jsonl").write_text("\n".join([*lines[:2], json.dumps({k: v for k, v in json.loads(lines[2]).items() if k != "relevant_windows"}), *lines[3:]]))
    with pytest.raises(InputError, match=r"train.jsonl:3: field 'relevant_windows': missing; .*needs labels"):
        train(run_config("tr_detr", str(folder/"data.json"), overrides=TINY), folder/"unlabelled", progress=False)


HEAD = "video,query,start,end,duration,split\n"
UNPRINTABLE, UNKNOWN = "is empty, or no text that can be printed", "is not train, val or test; nothing would read it"


@pytest.mark.parametrize("text, said", [
    ("", ".csv:1: field 'video': 0 columns"), ("video,query,start\n", ".csv:1: field 'end': 0 columns"), ("video,query,start,end,Start\n", ".csv:1: field 'start': 2 columns"),
    ("vid,sentence,duration\n", ".csv:1: field 'video': 0 columns"), (HEAD, ".csv: no moments"), ("video,query,start,end\na,b,1\n", ".csv:2: 3 cells where the first line has 4"),
    (HEAD+'a,"b,1,2\n', ".csv:2: not a table"), ((HEAD+"a,b\xfcrste,1,2,9,train\n").encode("latin-1"), ".csv: not UTF-8 text"), (HEAD+"a,b,1,2,9,", ".csv:2: field 'split': '' "+UNKNOWN),
    (HEAD+"a,,1,2,9,train", ".csv:2: field 'query': '' "+UNPRINTABLE), (HEAD+"a,b,2,1,9,train", ".csv:2: field 'end': 1 s, but the moment starts at 2 s"),
    (HEAD+"a,b,2,2,9,train", ".csv:2: field 'end': 2 s"), (HEAD+"a,b,10,10.5,9,train", ".csv:2: field 'end': 10.5 s, but the video has 9 s"),
    (HEAD+"a,b,1,12,9,train", ".csv:2: field 'end': 12 s, but the video has 9 s"), (HEAD+"a,b,1s,2,9,train", ".csv:2: field 'start': '1s' is not a time"),
    (HEAD+"a,b,1,2m,9,train", ".csv:2: field 'end': '2m' is not a time"), (HEAD+"a,b,1,2,9:99,train", "field 'duration': '9:99'"), (HEAD+"a,b,1,2,9,../train2/val", "'../train2/val' "+UNKNOWN),
    (HEAD+"a,b,1,2,9,.", "'.' "+UNKNOWN), (HEAD+"a,b,1,2,9,trian", "'trian' "+UNKNOWN), (HEAD+'a,"b\0c",1,2,9,train', ".csv:2: field 'query': 'b"),
    (HEAD+"a,b,1,2,,train", ".csv:2: field 'duration': nowhere for video 'a' (1 moments)"), (HEAD+"a,b,1,2,9,train\n\na,c,1,2,8,train", ".csv:4: field 'duration': 8 s, but 9 s")])
def test_a_wrong_table_is_named(tmp_path, text, said):
    path = tmp_path/"mine.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(convert, path, tmp_path/"out")
    assert message.startswith(str(path)) and said in message and not (tmp_path/"out").exists(), message


def test_tables_of_other_programs(tmp_path):
    "Byte-order marks, semicolons or tabs, Windows line ends, blank rows, other columns, another order and case"
    path = tmp_path/"mine.csv"
    for text, encoding in (('Query; VIDEO;start;end;duration;note\r\n"one; two";a;0:01;2;9;"x\ny"\r\n;;;;;\r\n', "utf-8-sig"), ("end\tstart\tquery\tvideo\tduration\n2\t1\tone; two\ta\t9\n", "utf-16")):
        path.write_bytes(text.encode(encoding))
        (record,), = convert(path, tmp_path/"out")[0].values()
        assert (record.qid, record.query, record.vid, record.windows, record.duration) == ("mine_a_0", "one; two", "a", ((1, 2),), 9)
    path.write_text("video,query,start,end\na,b,1,9.5\n")             # counted in whole clips: the moment may end a little later
    assert check_moments(source_moments(path), {"a": 8.}.get)[0][0].end == 9.5


ENTRY = {"duration": 82.73, "timestamps": [[0.83, 19.86], [17.37, 84]], "sentences": ["A man talks.", " He paints a wall. "]}
FILES = { # form -> file, and the same moment of video "a" in it: "b c", 5 to 10 s of 30
    "table": "video,query,start,end,duration\na,b c,0:05,10,0:30\n", "lines": "a 5.0 10##b c\n", "captions": {"a": {"duration": "30", "timestamps": [[5, 10.]], "sentences": ["b c "]}},
    "frames": {"a": {"timestamps": [[125, 250]], "sentences": ["b c"], "fps": 25.0, "num_frames": 750}},
    "segments": {"database": {"a": {"duration": 30, "subset": "validation", "annotations": [{"segment": [5, 10], "id": 0, "sentence": "b c"}]}}},
    "classes": {"version": "1", "database": {"x": {"duration": 9, "subset": "testing", "annotations": []}, "a": {"duration": 30, "subset": "validation", "annotations": [{"segment": [5, 10], "label": "b c"}]}}},
    "nlq": {"version": "v1", "videos": [{"video_uid": "x", "clips": []}, {"video_uid": "v", "clips": [{"clip_uid": "a", "video_start_sec": 30.0, "video_end_sec": 60.0, "annotations": [
        {"language_queries": []}, {"language_queries": [{"clip_start_sec": 5., "clip_end_sec": 10., "query": "b\nc"}]}]}]}]},
    "pieces": [{"video": "a", "description": "b c", "times": [[0, 0], [1, 1], [1, 1], [2, 3]], "num_segments": 6}],
    "movies": {"0": {"movie": "a", "sentence": "b c", "timestamps": [5.0, 10], "movie_duration": 30.0}}}


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_form_says_the_same(tmp_path, form, encoding):
    source, sources = tmp_path/"my_val.dat", [tmp_path/"my_val.dat"]     # known by its contents
    source.write_text(FILES[form] if isinstance(FILES[form], str) else json.dumps(FILES[form]), encoding=encoding)
    if form == "lines":
        (tmp_path/"lengths.csv").write_text("id,length\nother,9\na,30\n")
        sources.append(tmp_path/"lengths.csv")
    (path, (record,)), = convert(sources, tmp_path/"out")[0].items()
    assert path.stem == ("val" if form in ("segments", "classes") else "my_val") and record.qid == f"{path.stem}_a_0"
    assert (record.vid, record.query, record.windows, record.duration) == ("a", "b c", ((5, 10),), 30)
    assert data_config(tmp_path/"out"/"data.json").val == path.name and main(["doctor", str(tmp_path/"out"), "--annotations-only"]) == 0


@pytest.mark.parametrize("values, said", [
    ([], "none of the forms"), ({"v_a": 3}, "none of the forms"), ({}, "none of the forms"), ({"v": {"duration": 34, "location": {"1": [[1, 5]]}, "fps": 30}}, "none of the forms"),
    ({"v_a": ENTRY | {"duration": "82 s"}}, "v_a[1]: field 'duration': '82 s'"), ({"v_a": ENTRY | {"sentences": ["one"]}}, "v_a: has not the form"), ({"v_a": ENTRY | {"timestamps": [[1], [2, 3]]}}, "v_a: has not the form"),
    ({"v_a": ENTRY | {"timestamps": [["0", "1"], [2, None]]}}, "v_a[1]: field 'end': None"), ({"v_a": ENTRY | {"sentences": ["", "b"]}}, "v_a[0]: field 'query': ''"), ({"v_a": ENTRY | {"sentences": [3, "b"]}}, "v_a[0]: field 'query': 3"),
    ({"v_a": ENTRY | {"timestamps": [[5, 5], [-1, 3]]}}, "v_a[0]: field 'end': 5 s, but"), ({"v_a": ENTRY | {"timestamps": [[5, 5], [-1, 3]]}}, "v_a[1]: field 'start': -1 is not a time"),
    ({"v_a": ENTRY | {"timestamps": [[5, 90], [1, 3]]}}, "v_a[0]: field 'end': 90 s, but the video has 82.73 s"), ({"v_a": ENTRY | {"fps": 0, "num_frames": 9}}, "v_a: has not the form of the file: ZeroDivisionError"),
    ({"database": {"a": {"duration": 9, "subset": "holdout", "annotations": [{"segment": [1, 2], "sentence": "b"}]}}}, "a[0]: field 'split': 'holdout'"),
    ([{"video": "a", "description": "b", "times": [], "num_segments": 6}], "0: has not the form")])
def test_wrong_files_are_named(tmp_path, values, said):
    (tmp_path/"a.json").write_text(json.dumps(values))
    message = refusal(convert, tmp_path/"a.json", tmp_path/"out")
    assert str(tmp_path/"a.json") in message and said in message and not (tmp_path/"out").exists(), message


def test_all_faults_in_one_run_under_the_same_rules(tmp_path, capsys):
    "A table and a JSON file with the same four faults in one call; with --skip the sound moment of each is left"
    rows = [("a", "b", 5, 4), ("a", " ", "x", 7), ("a", "c", 0, 12), ("a", "d", 1, 2)]
    (tmp_path/"train.csv").write_text("\n".join(["video,query,start,end,duration", *(",".join(map(str, row))+",9" for row in rows), "e,f,1"]))
    (tmp_path/"val.json").write_text(json.dumps({"a": {"duration": 9, "sentences": [r[1] for r in rows], "timestamps": [r[2:] for r in rows]}, "z": 3}))
    ask = ["convert", str(tmp_path/"train.csv"), str(tmp_path/"val.json"), "--out", str(tmp_path/"out")]
    assert main(ask) == 2 and not (tmp_path/"out").exists()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 11 and said[-1] == "mrhd: 10 faults; --skip leaves such moments out"
    for what in ("'end': 4 s, but the moment starts at 5 s", "'start': 'x' is not a time", "'end': 12 s, but the video has 9 s", "'query': "):
        assert len([line for line in said if what in line and ".csv:" in line]) == len([line for line in said if what in line and ".json: a[" in line]) == 1
    assert main([*ask, "--skip"]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]) == 10
    for split in ("train", "val"): assert [r.query for r in read_annotations(tmp_path/"out"/f"{split}.jsonl", "charades")] == ["d"]
    (tmp_path/"train.csv").write_text("video,query,start,end,duration\na,b,2,1,9\n")
    assert main(ask[:2]+ask[3:]) == 2 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ConversionError): convert(tmp_path/"train.csv", tmp_path/"out", skip=True) # nothing is left


def test_a_sentence_may_hold_what_ends_the_times(tmp_path):
    (tmp_path/"my_test.txt").write_text("a b 5 10##c 1 2##d\n")
    (tmp_path/"lengths.csv").write_text("id,length\na b,30\n")
    (_, (record,)), = convert([tmp_path/"my_test.txt", tmp_path/"lengths.csv"], tmp_path/"out")[0].items()
    assert (record.vid, record.query, record.windows) == ("a b", "c 1 2##d", ((5, 10),))


def test_annotations_of_ones_own_are_not_overwritten(tmp_path):
    (tmp_path/"train.csv").write_text("video,query,start,end,duration\na,b,1,2,9\n")
    (tmp_path/"train.jsonl").write_text("mine\n")
    assert "train.jsonl: is there" in refusal(convert, tmp_path/"train.csv", tmp_path) and (tmp_path/"train.jsonl").read_text() == "mine\n"
    (tmp_path/"train.jsonl").unlink()
    for _ in range(2): assert convert(tmp_path/"train.csv", tmp_path)    # its own are


def test_two_files_of_one_video(tmp_path, capsys):
    "As ActivityNet Captions has val_1 and val_2: qids differ, the doctor agrees, and data.json learns of the second; what is there stays"
    for name, sentence in (("train", "A dog runs."), ("val_1", "A man stands."), ("val_2", "Somebody talks.")):
        (tmp_path/f"{name}.json").write_text(json.dumps({"v_t" if name == "train" else "v_a": {"duration": 50, "timestamps": [[1, 4]], "sentences": [sentence]}}))
        assert main(["convert", str(tmp_path/f"{name}.json"), "--out", str(tmp_path/"charades")]) == 0
    path = tmp_path/"charades"/"data.json"
    data = data_config(path)
    assert (data.name, data.train, data.val, data.test) == ("my_charades", "train.jsonl", "val_1.jsonl", "val_2.jsonl")
    write_json(path, json.loads(path.read_text()) | {"text": {"name": "w", "files": ["t/{qid}.npy"], "dim": 4}, "clip_length": 1})
    capsys.readouterr()
    assert main(["doctor", str(path), "--annotations-only"]) == 0 and "reported_video" in (said := capsys.readouterr().out) and "duplicate_qid" not in said
    (tmp_path/"dev.csv").write_text("video,query,start,end,duration\nx,y,1,2,9\nx,y,1,2,9\n")
    assert main(["convert", str(tmp_path/"dev.csv"), "--out", str(path.parent)]) == 0
    said = capsys.readouterr().out
    assert f"has val_1.jsonl for 'val', so nothing reads {path.parent}/dev.jsonl" in said and "dev.csv:3 is there twice and counts once" in said
    assert data_config(path).clip_length == 1 and data_config(path).val == "val_1.jsonl"
    path.write_text("{}")
    assert "data.json: field 'name': missing" in refusal(convert, tmp_path/"dev.csv", path.parent)


def test_qids_stay_when_videos_are_added(tmp_path):
    rows = ["b,one,1,2,9", "b,two,1,2,9"]
    qids = []
    for more in ([], ["a,new,1,2,9"]):
        (tmp_path/"train.csv").write_text("\n".join(["video,query,start,end,duration", *more, *rows]))
        qids.append({r.query: r.qid for r in read_annotations(*convert(tmp_path/"train.csv", tmp_path/"out")[0], "charades")})
    assert qids[0].items() <= qids[1].items() and qids[0] == {"one": "train_b_0", "two": "train_b_1"}
