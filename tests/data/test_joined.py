"Joined clips are those of the store and of its folder, bit for bit, and whatever goes wrong ends in one line and a store that is still whole"
import json, os, resource, shutil, signal
from dataclasses import asdict, replace
import pytest
import torch
from mrhd_nb.data import joined as module
from mrhd_nb.data.batches import MomentDataset, iterate
from mrhd_nb.programs.cli import main
from mrhd_nb.core.files import InputError, generator, rng, write_json
from mrhd_nb.core.presets import data_config, run_config
from mrhd_nb.data.features import FeatureFolder
from mrhd_nb.data.joined import JoinedStore, join, open_features, read_joined
from mrhd_nb.data.splits import has_split, read_split
from mrhd_nb.data.store import PackedStore, hash_json, pack, verify
from mrhd_nb.data.synthetic import make, write
from mrhd_nb.learning.training import train
from test_store import LAYOUTS, contents, copy, folder, packed, refused, same


@pytest.mark.parametrize("layout", LAYOUTS)
def test_joined_clips_are_those_of_the_folder(tmp_path, layout):
    "Each record alone and in batches, in every released layout, from stores of both number types"
    data, records = folder(tmp_path/"features", layout)
    for dtype in ("float32", "float16"):
        for change in ({}, {"max_clips": 9}, {"tef": False}, {"max_clips": None}):
            changed = replace(data, store=str(tmp_path/dtype), **change)
            pack(data, tmp_path/dtype, dtype=dtype)
            join(changed, tmp_path/dtype)
            joined, apart, files = open_features(changed), PackedStore(tmp_path/dtype, changed), FeatureFolder(changed)
            assert isinstance(joined, JoinedStore)
            for record in records:
                assert joined.video(record).tobytes() == apart.video(record).tobytes()
                assert dtype == "float16" or joined.video(record).tobytes() == files.video(record).tobytes()
            pair = [iterate(MomentDataset(records, source, changed, cache=False), 5, generator=generator(3, "order"), shuffle=True) for source in (apart, joined)]
            assert all(same(a, b) for a, b in zip(*pair, strict=True))
            (tmp_path/dtype/"joined.json").unlink()                                   # to join for the next configuration


def test_every_real_clip(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("MRHD_DATA", str(shared/"features"))
    for name in ("charades_clip", "tvsum_audio"):
        data = replace(data_config(name), store=str(tmp_path/name))
        pack(data, tmp_path/name)
        found, source, apart = join(data, tmp_path/name), open_features(data), PackedStore(tmp_path/name, data)
        assert isinstance(source, JoinedStore) and found.rows.items == len(source.streams[0].names)
        records = {r.vid: r for split in ("train", "val", "test") if has_split(data, split) for r in read_split(data, split)}.values()
        assert len(records) == found.rows.items
        for record in records: assert source.video(record).tobytes() == apart.video(record).tobytes()


def test_training_from_joined_clips_gives_the_same_bits(tmp_path):
    write(make(0, train=16, val=8), tmp_path/"features")
    data = replace(data_config("synthetic"), name="mine", root=str(tmp_path/"features"), train="highlight_train_release.jsonl", val="", test="highlight_val_release.jsonl", store=str(tmp_path/"store"))
    pack(data, tmp_path/"store")
    write_json(tmp_path/"mine.json", asdict(data))
    small = {"model.width": 16, "model.ffn": 16, "model.encoder_layers": 1, "training.epochs": 1, "training.batch_size": 8}
    for name in ("apart", "joined"):
        if name == "joined": join(data, tmp_path/"store")
        assert isinstance(open_features(data), JoinedStore) == (name == "joined")
        train(run_config("tr_detr", str(tmp_path/"mine.json"), overrides=small), tmp_path/name, progress=False)
    states = [torch.load(tmp_path/name/"resume.pt", weights_only=True) for name in ("apart", "joined")]
    assert all(torch.equal(a, b) for a, b in zip(*(s["model"].values() for s in states), strict=True))
    assert (tmp_path/"apart/submission_last.jsonl").read_bytes() == (tmp_path/"joined/submission_last.jsonl").read_bytes()


def test_killed_at_any_video_it_joins_again(copy, monkeypatch):
    "The store is readable all the time, the bytes in the end are those of an undisturbed run, and nothing else is left"
    data, records, store = copy
    data, before, videos = replace(data, store=str(store)), contents(store), module._joined_videos
    join(data, store)
    whole = contents(store)
    for name in whole.keys()-before.keys(): (store/name).unlink()

    def dying(source, count):
        keys, rows = videos(source)

        def some():
            for n, row in enumerate(rows):
                if n == count: os.kill(os.getpid(), signal.SIGKILL)
                yield row
        return keys, some()

    for count in (0, 2, 5):
        if not (child := os.fork()):
            try:
                monkeypatch.setattr(module, "_joined_videos", lambda source: dying(source, count))
                join(data, store)
            finally: os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert type(open_features(data)) is PackedStore and open_features(data).video(records[0]).any()
    join(data, store)
    assert contents(store) == whole


def test_a_full_disk(copy):
    data, _, store = copy
    before, old = contents(store), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, old[1]))
    try: said = refused(join, data, store)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "joined.rows" in said and "large" in said and contents(store) == before
    join(data, store)
    verify(store, read_joined(store).rows)


def test_a_description_that_is_broken_or_lies(copy):
    "Whatever joined.json holds, what is read is the store's clips or an error that names the store"
    data, records, store = copy
    data, path, draw = replace(data, store=str(store)), store/"joined.json", rng(0, "joined fuzz")
    join(data, store)
    expected, content, values = open_features(data).video(records[0]), path.read_bytes(), json.loads(path.read_text())
    for _ in range(200):
        wrong = bytearray(content)
        for at in draw.integers(len(content), size=draw.integers(1, 4)): wrong[at] = draw.integers(256)
        if draw.random() < .3: wrong = wrong[:draw.integers(len(wrong))]
        path.write_bytes(wrong)
        try: found = open_features(data)
        except InputError as e: assert str(path) in str(e)
        else: assert (found.video(records[0]) == expected).all()                      # white space
    del values["sha256"]
    for name, value in [("part", "slowfast"), ("part", "../joined"), ("width", 512), ("width", 1 << 40), ("dtype", "float16"), ("items", 3), ("rows", 7), ("rows", 1 << 61), ("name_bytes", 2), ("files", ["{nothing}"]), ("files", "x")]:
        lie = values | {"rows": values["rows"] | {name: value}}
        path.write_text(json.dumps(lie | {"sha256": hash_json(lie)}))
        assert str(store) in refused(open_features, data), (name, value)


def test_joined_rows_that_change_while_they_are_read(copy):
    data, records, store = copy
    join(data, store)
    source = open_features(replace(data, store=str(store)))
    expected, path = source.video(records[0]), store/"joined.rows"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    assert "joined.rows: has changed" in refused(source.video, records[0])
    path.write_bytes(content)
    assert "joined.rows: has changed" in refused(source.video, records[0])
    assert (open_features(replace(data, store=str(store))).video(records[0]) == expected).all()


def test_another_store_in_its_place(packed, tmp_path):
    "A store that was packed anew does not take the clips of the old one for its own"
    data, records, store = packed
    shutil.copytree(store, tmp_path/"store")
    join(data, tmp_path/"store")
    other = replace(data, streams=(replace(data.streams[0], normalise=False), data.streams[1]))
    pack(other, tmp_path/"other")
    for path in (tmp_path/"other").iterdir(): shutil.copy2(path, tmp_path/"store")
    other = replace(other, store=str(tmp_path/"store"))
    assert "joined.json" in refused(open_features, other) and "joined.json" in refused(join, other, tmp_path/"store")
    (tmp_path/"store/joined.json").unlink()
    join(other, tmp_path/"store")
    assert open_features(other).video(records[0]).tobytes() == FeatureFolder(other).video(records[0]).tobytes()
    for wrong in ("[]", "{}", "{", '{"schema": 1}'):
        (tmp_path/"store/manifest.json").write_text(wrong)
        assert "manifest.json" in refused(open_features, other) and "manifest.json" in refused(join, other, tmp_path/"store")


def test_the_command_joins(packed, tmp_path, capsys):
    data, records, _ = packed
    write_json(tmp_path/"mine.json", asdict(data))
    command = ["pack", str(tmp_path/"mine.json"), "--out", str(tmp_path/"store")]
    for words in (command, [*command, "--joined"], [*command, "--joined", "--verify"], ["pack", "--out", str(tmp_path/"store"), "--verify"]): assert main(words) == 0
    said = capsys.readouterr().out
    assert said.count("joined ") == 3 and f"of {data.video_dim}, float32" in said and said.count("bytes are those") == 2
    assert isinstance(open_features(replace(data, store=str(tmp_path/"store"))), JoinedStore)
    rows = bytearray((tmp_path/"store/joined.rows").read_bytes())
    rows[1000] ^= 1
    (tmp_path/"store/joined.rows").write_bytes(rows)
    assert main(["pack", "--out", str(tmp_path/"store"), "--verify"]) == 2 and "joined.rows" in capsys.readouterr().err
    assert main(["pack", "--out", str(tmp_path/"store"), "--joined"]) == 2 and "name the data set" in capsys.readouterr().err
