"Every kind of fault, planted in a small sound data set, is found where it is and nothing else is; real data have the known warnings only"
import json, shutil
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
import numpy as np
import pytest
from mrhd_nb.programs.cli import main
from mrhd_nb.core.config import DataConfig, StreamConfig
from mrhd_nb.core.presets import data_config
from mrhd_nb.core.files import rng
from mrhd_nb.data.checks import FAULTS, diagnose, diagnosis_text, find_data
from mrhd_nb.data.store import pack
from mrhd_nb.data.synthetic import make, write


class Folder:
    "A data set on disk that can be damaged"
    def __init__(self, root:Path, data:DataConfig): self.root, self.data = root, data

    def path(self, split): return self.root/getattr(self.data, split)

    def lines(self, split="train"): return [json.loads(line) for line in self.path(split).read_text().splitlines()]

    def save(self, lines, split="train"): self.path(split).write_text("".join(json.dumps(line)+"\n" for line in lines))

    def line(self, number, split="train"): return self.lines(split)[number-1]

    def edit(self, number, split="train", **changes):
        lines = self.lines(split)
        lines[number-1] |= changes
        self.save(lines, split)

    def edit_all(self, change, splits=("train", "val")):
        for split in splits: self.save([line | change(line) for line in self.lines(split)], split)

    def append(self, number, split="train", to=None, **changes):
        "One more line like another, with tokens of its own if it has a new qid"
        new = self.line(number, split) | changes
        self.save([*self.lines(to or split), new], to or split)
        words = self.file("words", new)
        if not words.exists(): self.put("words", new, self.rows("words", self.line(number, split))+.01)
        return len(self.lines(to or split))

    def stream(self, name): return next(s for s in (*self.data.streams, self.data.text) if s.name == name)

    def file(self, name, line, part=0):
        if isinstance(line, int): line = self.line(line)
        return self.root/self.stream(name).files[part].format(vid=line["vid"], qid=line["qid"])

    def rows(self, name, line, part=0):
        stored = np.load(self.file(name, line, part))
        return stored[self.stream(name).key] if self.stream(name).key else stored

    def put(self, name, line, rows, part=0):
        path, key = self.file(name, line, part), self.stream(name).key
        if key: np.savez(path, **{key: rows})
        else: np.save(path, rows)

    def change(self, name, line, change): self.put(name, line, change(self.rows(name, line)))

    def configure(self, **changes):
        self.data = replace(self.data, **changes)
        (self.root/"data.json").write_text(json.dumps(asdict(self.data)))


def moments(root:Path)->Folder:
    "QVHighlights' form: the embedded benchmark with a second, rectified stream"
    made = make(5, train=12, val=6)
    write(made, root)
    (root/"slowfast_features").mkdir()
    for vid, (rows,) in made.streams.items():
        draw = rng(0, "slowfast", vid)
        np.savez(root/"slowfast_features"/f"{vid}.npz", features=3*np.abs(draw.standard_normal((len(rows), 32))).astype(np.float16))
    streams = (StreamConfig("slowfast", ("slowfast_features/{vid}.npz",), 32, "features"), StreamConfig("clip", ("clip_features/{vid}.npz",), 64, "features"))
    folder = Folder(root, DataConfig("mine", "qvhighlights", streams, StreamConfig("words", ("clip_text_features/qid{qid}.npz",), 64, "last_hidden_state"),
                                     train="highlight_train_release.jsonl", val="highlight_val_release.jsonl", round_to=None))
    folder.configure()
    return folder


def clips(root:Path, dataset:str)->Folder:
    "TVSum's or YouTube Highlights' form, with features in two files"
    root.mkdir()
    streams = (StreamConfig("i3d", ("{vid}_rgb.npy", "{vid}_opt.npy"), 32), StreamConfig("pann", ("{vid}_audio.npy",), 32, audio=True))
    text = StreamConfig("words", ("{qid}_text.npz",), 16, "token")
    folder = Folder(root, DataConfig(f"my_{dataset}", dataset, streams, text, train="train.jsonl", val="val.jsonl", max_clips=None))
    draw = rng(0, dataset)
    for split, count in (("train", 8), ("val", 4)):
        lines = []
        for i in range(count):
            n = int(draw.integers(20, 60))
            label = draw.integers(1, 6, (n, 20)).tolist() if dataset == "tvsum" else (np.arange(n)[:, None] % 3 == 0).astype(int).tolist()
            line = {"qid": f"{split}{i}", "query": f"a parade of {i} elephants", "vid": f"{split}{i}", "label": label, "domain": "PR" if i % 2 else "BK"}
            line |= {"duration": n} if dataset == "tvsum" else {"duration": n*1.7, "clip": [[50*j, 50*j+50] for j in range(n)]}
            for part in (0, 1): folder.put("i3d", line, np.abs(draw.standard_normal((n, 16))), part)
            folder.put("pann", line, np.abs(draw.standard_normal((n, 32))))
            folder.put("words", line, draw.standard_normal((5+i % 3, 16)))
            lines.append(line)
        folder.save(lines, split)
    folder.configure()
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    "One sound folder of each form; nobody changes these"
    root = tmp_path_factory.mktemp("sound")
    return {"qvhighlights": moments(root/"qvhighlights")} | {dataset: clips(root/dataset, dataset) for dataset in ("tvsum", "youtube")}


PLANTED = {} # name -> form, and what does the damage and returns what is to be found: (kind, field, place);
# a place is a line of the training split, ("val", line), a file, or None where it is not looked at

def fault(form="qvhighlights"):
    def keep(damage):
        PLANTED[damage.__name__] = (form, damage)
        return damage
    return keep


# Lines and fields

@fault()
def no_json(d):
    d.path("train").write_text(d.path("train").read_text()+"{'qid': 3}\n")
    return [("line", "", 13)]

@fault()
def two_faulty_fields(d):
    d.edit(3, query="  ", duration="150")
    return [("line", "query", 3), ("line", "duration", 3)]

@fault()
def window_backwards(d):
    d.edit(3, relevant_windows=[[20, 10]])
    return [("line", "relevant_windows", 3)]

@fault()
def saliency_too_short(d):
    d.edit(3, saliency_scores=d.line(3)["saliency_scores"][:-1])
    return [("line", "saliency_scores", 3)]

@fault()
def two_annotators(d):
    d.edit(3, saliency_scores=[row[:2] for row in d.line(3)["saliency_scores"]])
    return [("line", "saliency_scores", 3)]

@fault()
def annotations_of_another_data_set(d):
    d.configure(dataset="tvsum")
    return [("line", "domain", 1), ("line", "relevant_windows", 1)]

@fault()
def annotations_missing(d):
    d.configure(val="validation.jsonl")
    return [("annotation_file", "val", d.root/"validation.jsonl")]

@fault()
def annotations_empty(d):
    d.save([], "val")
    return [("annotation_file", "val", d.path("val"))]


# Windows, clips and labels

@fault()
def window_ends_behind_the_video(d):
    d.edit(3, relevant_windows=[[0, 400]])
    return [("window_outside", "relevant_windows", 3)]

@fault()
def window_begins_behind_the_video(d):
    d.edit(3, relevant_windows=[[150, 152]])
    return [("window_outside", "relevant_windows", 3)]

@fault()
def window_without_length(d):
    d.edit(3, relevant_windows=[[10, 10]])
    return [("empty_window", "relevant_windows", 3)]

@fault()
def windows_in_clips(d):
    d.edit_all(lambda line: {"relevant_windows": [[s//2, e//2] for s, e in line["relevant_windows"]]})
    return [("clip_ids", "relevant_clip_ids", 1)]

@fault()
def windows_as_fractions(d):
    d.edit_all(lambda line: {"relevant_windows": [[.1, .5], [.6, 1]], "relevant_clip_ids": None, "saliency_scores": None}, ["train"])
    return [("window_units", "relevant_windows", 1)]

@fault()
def windows_of_many_videos_in_clips(d):
    lines = [d.line(1+i % 12) | {"qid": 100+i, "query": f"event {i}", "relevant_windows": [[i, i+48]], "relevant_clip_ids": None, "saliency_scores": None} for i in range(24)]
    d.save(lines)
    for line in lines: d.put("words", line, rng(line["qid"], "words").standard_normal((3, 64)))
    return [("clip_units", "relevant_windows", 1)]

@fault()
def window_not_on_the_grid(d):
    d.configure(round_to=2.)
    start, end = d.line(3)["relevant_windows"][0]
    d.edit(3, relevant_windows=[[start+.5, end], *d.line(3)["relevant_windows"][1:]])
    return [("rounding", "relevant_windows", 3)]

@fault()
def clip_forgotten(d):
    line = d.line(3)
    d.edit(3, relevant_clip_ids=line["relevant_clip_ids"][1:], saliency_scores=line["saliency_scores"][1:])
    return [("clip_ids", "relevant_clip_ids", 3)]

@fault()
def clip_behind_the_video(d):
    line = d.line(3)
    d.edit(3, relevant_clip_ids=line["relevant_clip_ids"][:-1]+[75])
    return [("clip_outside", "relevant_clip_ids", 3)]

@fault()
def labels_withheld(d):
    d.edit_all(lambda line: dict.fromkeys(("relevant_windows", "relevant_clip_ids", "saliency_scores")))
    return [("unlabelled", "saliency_scores", 1)]

@fault("tvsum")
def labels_fewer_than_clips(d):
    d.edit(3, label=d.line(3)["label"][:-5])
    return [("row_count", "duration", 3)]

@fault("tvsum")
def domain_in_one_split_only(d):
    d.edit_all(lambda line: {"domain": "VT"}, ["train"])
    d.configure(domain="VT")
    return [("annotation_file", "val", d.path("val"))]


# Names

@fault()
def qid_twice(d):
    number = d.append(3, qid=d.line(5)["qid"], query="a second thought")
    return [("duplicate_qid", "qid", number)]

@fault()
def qid_twice_as_number_and_text(d):
    number = d.append(3, qid=str(d.line(5)["qid"]), query="a second thought")
    return [("duplicate_qid", "qid", number)]

@fault()
def video_in_capitals(d):
    number = d.append(3, qid=100, query="a second thought", vid=d.line(3)["vid"].upper())
    return [("missing_file", name, number) for name in ("slowfast", "clip")]

@fault()
def video_in_both_splits(d):
    number = d.append(3, qid=100, query="a second thought", to="val")
    return [("shared_video", "vid", ("val", number))]

@fault()
def video_in_val_and_test(d):
    d.save([line | {"qid": line["qid"]+100} for line in d.lines("val")[:1]], "val")
    (d.root/"other.jsonl").write_text(json.dumps(d.line(1, "val") | {"qid": 200, "query": "a second thought"})+"\n")
    d.configure(test="other.jsonl")
    for qid in (d.line(1, "val")["qid"], 200): d.put("words", {"qid": qid, "vid": ""}, rng(qid, "words").standard_normal((3, 64)))
    return [("reported_video", "vid", ("val", 1))] # the first line of a file that is not train's

@fault()
def sentences_of_one_word(d):
    d.configure(text=StreamConfig("words", (), 64))
    d.edit(3, query="a_man_cuts_an_onion")
    return [("one_token", "query", 3)]

@fault()
def more_words_than_are_read(d):
    d.configure(text=StreamConfig("words", (), 64))
    d.edit(3, query="一"*33) # a script without spaces: 33 words
    return [("cut", "query", 3)]

@fault()
def qid_in_both_splits(d):
    number = d.append(2, "val", qid=d.line(3)["qid"], query="a second thought")
    return [("duplicate_qid", "qid", ("val", number))]

@fault()
def split_is_copied(d):
    d.save(d.lines(), "val")
    return [("shared_video", "vid", ("val", 1)), ("duplicate_qid", "qid", ("val", 1))]


# Files

@fault()
def features_missing(d):
    d.file("clip", 3).unlink()
    return [("missing_file", "clip", 3)]

@fault()
def tokens_missing(d):
    d.file("words", 3).unlink()
    return [("missing_file", "words", 3)]

@fault()
def folder_missing(d):
    shutil.rmtree(d.root/"slowfast_features")
    return [("missing_file", "slowfast", 1)]

@fault()
def features_in_another_spelling(d):
    path = d.file("clip", 3)
    path.rename(path.with_name(path.name.upper().replace("NPZ", "npz")))
    return [("missing_file", "clip", 3)]

@fault()
def file_cut_off(d):
    path = d.file("clip", 3)
    path.write_bytes(path.read_bytes()[:-40])
    return [("unreadable_file", "clip", path)]

@fault()
def array_under_another_name(d):
    np.savez(d.file("words", 3), pooler_output=d.rows("words", 3))
    return [("unreadable_file", "words", d.file("words", 3))]

@fault()
def pickled(d):
    np.savez(d.file("clip", 3), features=np.array([{"rows": 3}], object))
    return [("unreadable_file", "clip", d.file("clip", 3))]

@fault()
def store_missing(d):
    d.configure(store="store")
    return [("store", "store", d.root/"store")]


# Rows

def set_row(row, value):
    def change(rows):
        rows[row] = value
        return rows
    return change

@fault()
def row_not_a_number(d):
    d.change("slowfast", 3, set_row((4, 7), np.nan))
    return [("unreadable_file", "slowfast", d.file("slowfast", 3))]

@fault()
def half_precision_overflows(d):
    with np.errstate(over="ignore"): d.change("slowfast", 3, lambda rows: (rows.astype(np.float32)*30_000).astype(np.float16))
    return [("unreadable_file", "slowfast", d.file("slowfast", 3))]

@fault()
def rows_of_zeros(d):
    d.change("clip", 3, set_row(slice(70, None), 0))
    return [("zero_rows", "clip", d.file("clip", 3))]

@fault()
def two_videos_with_the_same_rows(d):
    d.put("clip", 4, d.rows("clip", 3))
    return [("same_rows", "clip", d.file("clip", 4))]

@fault()
def two_queries_with_the_same_tokens(d):
    d.put("words", 4, d.rows("words", 3))
    return [("same_rows", "words", d.file("words", 4))]

@fault()
def another_width(d):
    d.change("clip", 3, lambda rows: rows[:, :48])
    return [("unreadable_file", "clip", d.file("clip", 3))]

@fault("tvsum")
def half_of_the_channels(d):
    d.configure(streams=(replace(d.data.streams[0], files=("{vid}_rgb.npy",)), d.data.streams[1]))
    return [("unreadable_file", "i3d", d.file("i3d", 1))]


# Streams

@fault()
def folders_exchanged(d):
    slow, clip = d.root/"slowfast_features", d.root/"clip_features"
    slow.rename(d.root/"x"); clip.rename(slow); (d.root/"x").rename(clip)
    return [("unreadable_file", name, d.file(name, 1)) for name in ("slowfast", "clip")]

@fault("tvsum")
def parts_of_different_length(d):
    d.put("i3d", 3, d.rows("i3d", 3, part=1)[:-1], part=1)
    return [("rows_differ", "i3d", 3)]


# Rows and durations

@fault()
def duration_in_frames(d):
    d.edit(3, duration=4500)
    return [("row_count", "duration", 3)]

@fault()
def duration_contradicts_another_line(d):
    number = d.append(3, qid=100, query="a second thought", duration=d.line(3)["duration"]+20)
    return [("duration_differs", "duration", number)]

@fault()
def all_durations_in_frames(d):
    d.edit_all(lambda line: {"duration": 30*line["duration"]})
    return [("clip_length", "slowfast", 1), ("clip_length", "clip", 1)]

@fault()
def clips_of_one_second_configured(d):
    d.configure(clip_length=1.)
    return [("clip_length", s, 1) for s in ("slowfast", "clip")]+[("window_lost", "relevant_windows", None)]

@fault()
def features_one_row_short(d):
    for name in ("slowfast", "clip"): d.change(name, 3, lambda rows: rows[:-1])
    return [("rows_differ", "duration", 3)]

@fault()
def one_stream_one_row_long(d):
    d.change("clip", 3, lambda rows: np.concatenate([rows, rows[:1]]))
    return [("rows_differ", "clip", 3), ("cut", "clip", d.file("clip", 3))] # of 75

@fault()
def extractor_stopped_early(d):
    d.change("clip", 3, lambda rows: rows[:60])
    return [("row_count", "clip", 3)]

@fault("tvsum")
def audio_longer_than_the_video(d):
    d.change("pann", 3, lambda rows: np.concatenate([rows, rows[:9]]))
    return [("row_count", "pann", 3)]

@fault("tvsum")
def audio_shorter_than_the_video(d):
    d.change("pann", 3, lambda rows: rows[:-9])
    return [("row_count", "pann", 3)]

@fault()
def videos_longer_than_max_clips(d):
    d.configure(max_clips=20)
    return [("cut", name, d.file(name, 1)) for name in ("slowfast", "clip")]+[("window_lost", "relevant_windows", None)]


# Tokens

@fault()
def too_many_tokens(d):
    d.change("words", 3, lambda rows: np.concatenate([rows]*5))
    return [("cut", "words", d.file("words", 3))]



@pytest.fixture(scope="module")
def examine(sound, tmp_path_factory):
    "Plants a fault, once; gives what is expected, the report, and the folder"
    @lru_cache(maxsize=None)
    def run(name):
        form, damage = PLANTED[name]
        root = tmp_path_factory.mktemp(name)/"data"
        shutil.copytree(sound[form].root, root)
        d = Folder(root, sound[form].data)
        expected = damage(d)
        return expected, asdict(diagnose(find_data(str(root)))), d
    return run


def placed(finding, d):
    "The first place of a finding in the form of an expectation"
    place = finding["places"][0]
    if place["line"] is None: return Path(place["file"])
    return place["line"] if place["file"] == str(d.path("train")) else ("val", place["line"])


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_is_found_where_it_is_and_nothing_else(name, examine):
    expected, report, d = examine(name)
    found = {(f["kind"], f["field"]): placed(f, d) for f in report["findings"]}
    assert found.keys() == {(kind, field) for kind, field, _ in expected}
    for kind, field, place in expected: assert place in (None, found[kind, field]), (kind, field)
    errors = sum(FAULTS[kind][0] == "error" for kind, *_ in expected)
    assert report["errors"] == errors and report["warnings"] == len(expected)-errors


def test_every_kind_of_fault_is_planted(examine):
    assert {kind for name in PLANTED for kind, *_ in examine(name)[0]} == FAULTS.keys()


def test_exit_status_and_text(sound, examine, capsys):
    "Sound data and warnings pass, errors do not"
    for data in sound.values():
        assert main(["doctor", str(data.root)]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"{data.data.name}: 0 errors, 0 warnings"
    _, report, d = examine("features_one_row_short")
    assert main(["doctor", str(d.root/"data.json"), "--json"]) == 0 and json.loads(capsys.readouterr().out) == report
    _, _, d = examine("features_missing")
    assert main(["doctor", str(d.root)]) == 1
    said = capsys.readouterr()
    assert "highlight_train_release.jsonl:3: no file clip_features/" in said.out and str(d.root) not in said.out and said.out.endswith("mine: 1 error, 0 warnings\n")
    assert main(["doctor", str(d.root), "--annotations-only"]) == 0


def test_the_embedded_benchmark_written_out(tmp_path):
    "What `write` puts on disk is sound"
    write(make(0, train=20, val=8), tmp_path)
    names = {"train": "highlight_train_release.jsonl", "val": "highlight_val_release.jsonl", "test": ""}
    found = diagnose(replace(data_config("synthetic"), root=str(tmp_path), **names))
    assert [split["records"] for split in found.splits] == [20, 8] and [stream["stream"] for stream in found.streams] == ["clip", "words"]
    assert found.errors == 0


def test_a_crowd_of_equal_faults_is_one_line(sound, tmp_path):
    shutil.copytree(sound["tvsum"].root, tmp_path/"data")
    d = Folder(tmp_path/"data", sound["tvsum"].data)
    d.save([{"qid": f"q{i}", "query": "", "duration": -1, "vid": f"v{i}", "label": [[9]], "domain": "PR"} for i in range(2000)])
    report = asdict(diagnose(find_data(str(d.root))))
    crowd = {f["field"]: f for f in report["findings"] if f["kind"] == "line"}
    assert crowd.keys() == {"query", "duration", "label"} and all(f["count"] == 2000 and [p["line"] for p in f["places"]] == [1, 2, 3] for f in crowd.values())
    missing = {f["field"]: f["count"] for f in report["findings"] if f["kind"] == "missing_file"}
    assert missing == {"i3d": 4000, "pann": 2000, "words": 2000} # files, not lines


def test_a_packed_store_stands_for_the_files(sound, tmp_path):
    shutil.copytree(sound["qvhighlights"].root, tmp_path/"data")
    d = Folder(tmp_path/"data", sound["qvhighlights"].data)
    d.change("clip", 5, set_row(slice(70, None), 0))
    pack(find_data(str(d.root)), d.root/"store")
    d.configure(store="store")
    for name in ("slowfast_features", "clip_features", "clip_text_features"): shutil.rmtree(d.root/name)

    def look():
        findings = asdict(diagnose(find_data(str(d.root))))["findings"]
        return {(f["kind"], f["field"]): (placed(f, d), f["places"][0]["what"]) for f in findings}

    zeros = ("zero_rows", "clip"), Path(f"{d.root}/store[clip_features/{d.line(5)['vid']}.npz]")
    assert [(what, where) for what, (where, _) in look().items()] == [zeros]
    d.edit(3, duration=4500)
    d.edit(4, vid=d.line(4)["vid"]+"x")
    found = look()
    assert found.pop(zeros[0])[0] == zeros[1] and found.pop(("row_count", "duration"))[0] == 3
    assert found.keys() == {("store", name) for name in ("slowfast", "clip")} and d.line(4)["vid"] in found["store", "clip"][1]
    (d.root/"store"/"manifest.json").write_text("{}")
    assert look()["store", "store"][0] == d.root/"store"


ODD = (None, "", -1, 1e308, float("nan"), 10**30, "x"*5000, "\ud800", "a\nb", "\0", "*?[a]", [], {}, [[]], [[0, 1e9]], [[1, "a"]], [True], True)
TABLES = (np.zeros((0, 3)), np.ones(3), np.array("x"), np.ones((2, 3, 4)), np.full((5, 64), np.nan), np.ones((4, 64), complex), np.full((4, 64), 1e300))

@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_damaged_there_is_a_report(seed, sound, tmp_path):
    form, draw = ("qvhighlights", "tvsum", "youtube")[seed % 3], rng(seed, "damage")
    shutil.copytree(sound[form].root, tmp_path/"data")
    d = Folder(tmp_path/"data", sound[form].data)
    for number in draw.choice(len(d.lines()), 4, replace=False)+1:
        d.edit(number, **{str(draw.choice([*d.line(number), "new"])): ODD[draw.integers(len(ODD))]})
    files = sorted(d.root.rglob("*.np?"))
    for path in draw.choice(files, 4, replace=False):
        damaged = bytearray(path.read_bytes())
        for i in draw.integers(len(damaged), size=9): damaged[i] = draw.integers(256)
        path.write_bytes(damaged)
    for path in draw.choice(files, 4, replace=False):
        table = TABLES[draw.integers(len(TABLES))]
        if path.suffix == ".npy": np.save(path, table)
        else: np.savez(path, features=table, last_hidden_state=table, token=table)
    diagnosis = diagnose(find_data(str(d.root)))
    assert diagnosis.errors and diagnosis_text(diagnosis).encode() and json.dumps(asdict(diagnosis), allow_nan=False)


def test_bad_usage(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MRHD_DATA", raising=False)
    (tmp_path/"wrong.json").write_text('{"name": "mine", "clips": 3}')
    for words, said in ((["no_such_data"], "no_such_data"), ([str(tmp_path)], "clips"), (["charades_clip"], "MRHD_DATA"), (["synthetic"], "made in memory")):
        assert main(["doctor", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


# Real data: the warnings that are known, and no error

KNOWN = {
    "charades_clip": {("rows_differ", "clip")},                     # floor(duration)+1 or +2 rows
    "tvsum": set(),
    "tvsum/BK": set(),
    "tvsum_audio": {("rows_differ", "pann")},                        # one video has one audio row more
}
ANNOTATED = { # without features
    "qvhighlights": set(),
    "charades": {("window_lost", "relevant_windows")},               # videos up to 194 s
    "youtube": set(),
    "tvsum": set(),
}


def kinds(diagnosis): return {(f.kind, f.field) for f in diagnosis.findings}


@pytest.mark.parametrize("name", KNOWN)
def test_real_features_have_the_known_warnings_only(name, shared, monkeypatch):
    monkeypatch.setenv("MRHD_DATA", str(shared/"features"))
    diagnosis = diagnose(data_config(name))
    assert kinds(diagnosis) == KNOWN[name] and diagnosis.errors == 0


@pytest.mark.parametrize("name", ANNOTATED)
def test_real_annotations_have_the_known_warnings_only(name, shared, monkeypatch):
    monkeypatch.setenv("MRHD_DATA", str(shared/"features"))
    diagnosis = diagnose(data_config(name), features=False)
    assert kinds(diagnosis) == ANNOTATED[name] and diagnosis.errors == 0


def test_the_qvhighlights_sample(shared):
    root = shared/"features"/"qvhighlights_sample"
    sample = replace(data_config("qvhighlights"), root=str(root), train="annotations.jsonl", val="", test="")
    assert not diagnose(sample).findings
