"A packed store gives what its folder gives, bit for bit, and whatever goes wrong ends in one line and nothing half-written"
import json, os, resource, shutil, signal, threading
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
import pytest
import torch
from mrhd_nb.data import store as module
from mrhd_nb.data.annotations import Record, write_annotations
from mrhd_nb.data.batches import MomentDataset, iterate
from mrhd_nb.programs.cli import main
from mrhd_nb.core.files import InputError, generator, rng, write_json
from mrhd_nb.core.config import StreamConfig
from mrhd_nb.core.presets import data_config, run_config
from mrhd_nb.data.features import FeatureFolder, read_stream
from mrhd_nb.data.joined import open_features
from mrhd_nb.data.splits import has_split, open_split, read_split
from mrhd_nb.data.store import PackedStore, pack, read_manifest, verify, write_signed
from mrhd_nb.data.synthetic import make, write
from mrhd_nb.learning.training import shuffle_queries, train

VIDEOS, KINDS = 6, ("rows", "names", "starts")
LAYOUTS = ("qvhighlights", "qvhighlights_audio", "charades", "tvsum", "tvsum_audio", "youtube", "words by domain")


def save(path:Path, rows, key:str):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy": np.save(path, rows)
    else: np.savez_compressed(path, **{key: rows, "pooler_output": rows[0]})


def labelled(dataset:str, i:int, clips:int)->Record:
    "A record in a data set's own form; i odd: a second query of the video before"
    labels = {"tvsum": lambda: rng(i, "label").integers(1, 6, (clips, 20)), "youtube": lambda: rng(i, "label").integers(0, 2, (clips, 1)) | (np.arange(clips) < 1)[:, None]}
    fields = {"labels": labels[dataset]()} if dataset in labels else {"windows": ((0, 4), (6, 9))[:1+(dataset == "qvhighlights")]}
    if dataset == "qvhighlights": fields = {"windows": ((0, 4), (6, 10)), "clip_ids": (0, 1, 3, 4), "saliency": ((1, 2, 3), (4, 4, 4), (0, 1, 0), (2, 2, 2))}
    name = f"v{i//2*2}_{i//2*30}.0_x"
    return Record(name if dataset in labels else i, "a dog runs", clips*2, name, domain=("dog", "surfing")[i//2 % 2] if dataset in labels else None, dataset=dataset, **fields)


def folder(root:Path, layout:str):
    "A small folder in a released layout, rows of odd types and orders among them; its configuration and records"
    data = replace(data_config(layout if layout in LAYOUTS[:-1] else "youtube"), root=str(root), annotations=(), train="train.jsonl", val="val.jsonl", test="")
    if layout == "words by domain": data = replace(data, text=StreamConfig("words", ("words/{domain}.npz",), 8, "token"))
    draw = rng(0, layout)
    records = [labelled(data.dataset, i, 8+3*(i//2*2)) for i in range(0, 2*VIDEOS, 1 if data.dataset in ("qvhighlights", "charades") else 2)]
    for n, record in enumerate(records):
        for s, stream in enumerate(data.streams):
            for f, file in enumerate(stream.files):
                rows = 5*draw.standard_normal((int(record.duration)//2-(s+f+n)%2, stream.dim//len(stream.files)))
                rows = (rows.astype(np.float16), rows, np.asfortranarray(rows.astype(np.float32)), rows.round().astype(np.int8))[n//2 % 4]
                save(root/file.format(vid=record.vid, qid=record.qid), rows, stream.key)
        for file in data.text.files:
            save(root/file.format(qid=record.qid, domain=record.domain), 3*draw.standard_normal((3+7*n % 40, data.text.dim)).astype(np.float16), data.text.key)
    write_annotations(root/"train.jsonl", records[:-2]); write_annotations(root/"val.jsonl", records[-2:])
    return data, records


def same(a, b):
    "Two batches are the same bits"
    tensors = lambda x: [x.video, x.clip_mask, x.tokens, x.token_mask, *x.targets.spans, x.targets.saliency, x.targets.positive, x.targets.negative, x.targets.relevant]
    return [r.qid for r in a.records] == [r.qid for r in b.records] and all(p.shape == q.shape and p.numpy().tobytes() == q.numpy().tobytes() for p, q in zip(tensors(a), tensors(b), strict=True))


def compare(data, records, exact:PackedStore, half:PackedStore, batch_size:int=5):
    "Every record alone and in batches; half precision within its stated error"
    files = FeatureFolder(data)
    for record in records:
        for kind in ("video", "tokens"):
            expected, rounded = getattr(files, kind)(record), getattr(half, kind)(record)
            assert getattr(exact, kind)(record).tobytes() == expected.tobytes(), (kind, record.qid)
            assert (np.abs(rounded.astype(float)-expected) <= np.maximum(2.**-11*np.abs(expected), 2.**-25)).all(), (kind, record.qid)
    order = {"generator": generator(3, "order"), "shuffle": True, "bucket": 2}
    for cache in (True, False):
        pairs = [list(iterate(MomentDataset(records, source, data, cache=cache), batch_size, **order | {"generator": generator(3, "order")})) for source in (files, exact)]
        assert all(map(same, *pairs)) and len(pairs[0]) == len(pairs[1]) == -(-len(records)//batch_size)


def refused(function, *arguments, **options)->str:
    with pytest.raises(InputError) as error: function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(path:Path)->dict: return {p.name: p.read_bytes() for p in sorted(path.iterdir())}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    "A folder, its configuration and records, its store"
    root = tmp_path_factory.mktemp("packed")
    data, records = folder(root/"features", "qvhighlights")
    pack(data, root/"store")
    return data, records, root/"store"


@pytest.fixture
def copy(packed, tmp_path):
    "The same with a copy of the store, to be damaged"
    shutil.copytree(packed[2], tmp_path/"store")
    return *packed[:2], tmp_path/"store"


# The same tensors

@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_store_gives_what_its_folder_gives(tmp_path, layout):
    data, records = folder(tmp_path/"features", layout)
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path/"features").rglob("*"))
    manifest = pack(data, tmp_path/"exact")
    pack(data, tmp_path/"half", dtype="float16")
    assert sorted((p, p.stat().st_mtime_ns) for p in (tmp_path/"features").rglob("*")) == before
    assert {p.name for p in tmp_path.iterdir()} == {"features", "exact", "half"}
    assert [s.extractor for s in manifest.streams] == [s.name for s in data.streams]+[data.text.name]*bool(data.text.files)
    shutil.move(tmp_path/"features", tmp_path/"moved")                                # nothing is read from the folder any more
    for changed in (data, replace(data, max_clips=9, max_tokens=4), replace(data, tef=False), replace(data, max_clips=None)):
        stores = [PackedStore(tmp_path/name, changed) for name in ("exact", "half")]
        compare(replace(changed, root=str(tmp_path/"moved")), records, *stores)


def test_every_real_feature(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("MRHD_DATA", str(shared/"features"))
    sample, video = shared/"features/qvhighlights_sample", shared/"features/charades_video"
    clip = data_config("charades_clip")
    cases = {name: data_config(name) for name in ("charades_clip", "tvsum_audio", "tvsum/BK")} | {
        "sample": replace(data_config("qvhighlights"), root=str(sample), train="annotations.jsonl", val="", test=""),
        "one video": replace(clip, root=str(video), train="annotations.jsonl", val="", test="", clip_length=2., streams=(StreamConfig("clip", ("clip_2s.npz",), 512, "features"),), text=StreamConfig("words", (), 16))}
    for name, data in cases.items():
        records = [r for split in ("train", "val", "test") if has_split(data, split) for r in read_split(data, split)]
        stores = [PackedStore(tmp_path/dtype/name, data) for dtype in ("float32", "float16")[:1+(len(records) < 100)] if pack(data, tmp_path/dtype/name, dtype=dtype)]
        assert sum(s.items for s in stores[0].manifest.streams) == {"charades_clip": 1334+3720, "tvsum_audio": 150, "tvsum/BK": 10, "sample": 3, "one video": 1}[name]
        verify(tmp_path/"float32"/name)
        if len(stores) == 2: compare(data, records, *stores)
        files, seen = FeatureFolder(data), set()
        for record in records:
            assert stores[0].tokens(record).tobytes() == files.tokens(record).tobytes()
            if record.vid in seen: continue
            assert stores[0].video(record).tobytes() == files.video(record).tobytes()
            seen.add(record.vid)


def test_training_from_a_store_gives_the_bits_of_the_folder(tmp_path):
    write(make(0, train=16, val=8), tmp_path/"features")
    data = replace(data_config("synthetic"), name="mine", root=str(tmp_path/"features"), train="highlight_train_release.jsonl", val="", test="highlight_val_release.jsonl")
    pack(data, tmp_path/"store")
    write_json(tmp_path/"mine.json", asdict(replace(data, store=str(tmp_path/"store"))))
    small = {"model.width": 16, "model.ffn": 16, "model.encoder_layers": 1, "training.epochs": 1, "training.batch_size": 8}
    for name, source in (("files", data), ("store", str(tmp_path/"mine.json"))): train(run_config("tr_detr", source, overrides=small), tmp_path/name, progress=False)
    states = [torch.load(tmp_path/name/"resume.pt", weights_only=True) for name in ("files", "store")]
    assert all(torch.equal(a, b) for a, b in zip(*(s["model"].values() for s in states), strict=True))
    assert (tmp_path/"files/submission_last.jsonl").read_bytes() == (tmp_path/"store/submission_last.jsonl").read_bytes()
    hashes = [json.loads((tmp_path/name/"environment.json").read_text())["data"] for name in ("files", "store")]
    assert hashes[0] == hashes[1]


def test_queries_can_be_shuffled(packed):
    data, records, path = packed
    pair = [shuffle_queries(MomentDataset(records, source, data), 5) for source in (FeatureFolder(data), PackedStore(path, data))]
    assert all(same(a, b) for a, b in zip(*(iterate(dataset, 4) for dataset in pair), strict=True))


def test_validation_text_of_its_own(tmp_path):
    "Pre-training on subtitles: the same qid names a subtitle and a query"
    data, records = folder(tmp_path/"features", "qvhighlights")
    for record in records[:-2]: save(tmp_path/f"features/subs/qid{record.qid}.npz", np.full((2, 512), record.qid+1.), "last_hidden_state")
    queries, data = data.text, replace(data, text=replace(data.text, files=("subs/qid{qid}.npz",)), val_text=data.text.files)
    assert [s.part for s in pack(data, tmp_path/"store").streams] == ["slowfast", "clip", "clip_text", "clip_text.val"]
    data = replace(data, store=str(tmp_path/"store"))
    for split, text in (("train", data.text), ("val", queries)):
        dataset, files = open_split(run_config("tr_detr", data, overrides={"training.select_on": "test"}), "train" if split == "train" else "test"), FeatureFolder(replace(data, text=text))
        for record in dataset.records: assert dataset.source.tokens(record).tobytes() == files.tokens(record).tobytes()
    (tmp_path/"features/subs/qid0.npz").unlink()
    assert "subs/qid0.npz" in refused(pack, data, tmp_path/"again") and "train.jsonl:1" in refused(pack, data, tmp_path/"again")


# Whole or not at all

def test_a_killed_pack_goes_on(packed, tmp_path, monkeypatch):
    "Killed after any file, with rows behind the last line of the journal; the bytes are those of an undisturbed pack"
    data, _, whole = packed
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 1 << 17)
    counts = []
    for files in (3, 4, 9, 100):
        left = iter(range(files))

        def read(*arguments, **options):
            if next(left, None) is None: os.kill(os.getpid(), signal.SIGKILL)
            return read_stream(*arguments, **options)

        monkeypatch.setattr(module, "read_stream", read)
        if not (child := os.fork()):
            try: pack(data, tmp_path/"store")
            finally: os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == (0 if files == 100 else -signal.SIGKILL) and (tmp_path/"store").exists() == (files == 100)
        counts.append(sum(p.stat().st_size for p in tmp_path.glob("store*/*.rows")))
    assert 0 < counts[0] < counts[1] < counts[2] < counts[3] and contents(tmp_path/"store") == contents(whole)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_two_packs_at_once(packed, tmp_path, monkeypatch):
    data, _, whole = packed
    inside, go_on = threading.Event(), threading.Event()

    def slow(*arguments, **options):
        inside.set()
        assert go_on.wait(60)
        return read_stream(*arguments, **options)

    monkeypatch.setattr(module, "read_stream", slow)
    first = threading.Thread(target=pack, args=(data, tmp_path/"store"))
    first.start()
    assert inside.wait(60)
    try: assert "another process" in refused(pack, data, tmp_path/"store")
    finally: go_on.set(); first.join()
    assert contents(tmp_path/"store") == contents(whole) and pack(data, tmp_path/"store") == read_manifest(whole)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("room", [1000, 300_000, 3_000_000])
def test_a_full_disk(packed, tmp_path, room):
    "A limit on the size of a file makes the system refuse to write more, in the middle of a file"
    data, _, whole = packed
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try: said = refused(pack, data, tmp_path/"store") if room < max(p.stat().st_size for p in whole.iterdir()) else pack(data, tmp_path/"store") and "large"
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "large" in said and (tmp_path/"store").exists() == (room == 3_000_000)
    pack(data, tmp_path/"store")
    assert contents(tmp_path/"store") == contents(whole) and [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_source_that_is_missing_damaged_or_changes(tmp_path, monkeypatch, capsys):
    data, _ = folder(tmp_path/"features", "tvsum")
    write_json(tmp_path/"mine.json", asdict(data))
    victim = next((tmp_path/"features/video_features").glob("*_opt.npy"))
    content = victim.read_bytes()
    for damaged, says in ((None, "cannot be read"), (content[:-7], "not a feature file"), (content[:-2]+b"\xff\x7f", "not finite"), (b"", "not a feature file")):
        victim.unlink() if damaged is None else victim.write_bytes(damaged)
        assert main(["pack", str(tmp_path/"mine.json"), "--out", str(tmp_path/"store")]) == 2
        said = capsys.readouterr().err
        assert victim.name in said and says in said and said.count("\n") == 1 and not (tmp_path/"store").exists()
    victim.write_bytes(content)

    def touch(stream, paths, **options):
        rows = read_stream(stream, paths, **options)
        if stream.name == "clip_text": os.utime(victim, ns=(0, 7))
        return rows

    monkeypatch.setattr(module, "read_stream", touch)
    assert "has changed while it was packed" in refused(pack, data, tmp_path/"store") and not (tmp_path/"store").exists()
    assert pack(data, tmp_path/"store").streams and verify(tmp_path/"store")


def test_another_plan_does_not_go_on_with_the_rows_of_the_last(packed, tmp_path, monkeypatch):
    data, records, whole = packed

    def stop(stream, *arguments, **options):
        if stream.name == "clip_text": raise KeyboardInterrupt
        return read_stream(stream, *arguments, **options)

    monkeypatch.setattr(module, "read_stream", stop)
    with pytest.raises(KeyboardInterrupt): pack(data, tmp_path/"store", dtype="float16")
    monkeypatch.undo()
    pack(data, tmp_path/"store")
    assert contents(tmp_path/"store") == contents(whole)


# Damage

@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_byte_is_found_and_named(copy, kind, capsys):
    data, _, store = copy
    verify(store)
    for part in ("slowfast", "clip_text"):
        path = store/f"{part}.{kind}"
        content = path.read_bytes()
        for at in (0, len(content)//2, len(content)-1):
            path.write_bytes(content[:at]+bytes([content[at] ^ 4])+content[at+1:])
            assert path.name in refused(verify, store)
            if kind != "rows": assert path.name in refused(PackedStore, store, data)  # names and starts are checked at every opening
        assert main(["pack", "--verify", "--out", str(store)]) == 2 and path.name in capsys.readouterr().err
        for wrong in (content[:-1], content+b"\0", b""):
            path.write_bytes(wrong)
            assert path.name in refused(PackedStore, store, data) and path.name in refused(verify, store)
        path.unlink()
        assert path.name in refused(PackedStore, store, data)
        path.write_bytes(content)
    verify(store)


def test_a_broken_manifest_never_raises_anything_else(copy):
    data, records, store = copy
    path, draw = store/"manifest.json", rng(0, "fuzz")
    content, whole = path.read_bytes(), read_manifest(store)
    for _ in range(400):
        wrong = bytearray(content)
        for at in draw.integers(len(content), size=draw.integers(1, 4)): wrong[at] = draw.integers(256)
        if draw.random() < .3: wrong = wrong[:draw.integers(len(wrong))]
        path.write_bytes(wrong)
        try: found = PackedStore(store, data).manifest
        except InputError as e: assert str(path) in str(e)
        else: assert found == whole                                                   # white space
    path.write_bytes(b"\xff\xfe")
    assert "manifest.json" in refused(PackedStore, store, data)


def test_a_manifest_that_lies_is_refused(copy):
    "Values that were changed on purpose, with a hash that fits them"
    data, records, store = copy
    whole = read_manifest(store)
    odd = [0, -1, 1, 7, 1 << 61, 1 << 80, 1.5, "", "clip", "../clip", "/etc/passwd", "\n", None, True, [], {}, float("nan"), ["{vid}"], "float16"]
    for number, stream in enumerate(whole.streams):
        for name in asdict(stream):
            for value in odd:
                values = asdict(whole)
                values["streams"] = [asdict(s) for s in whole.streams]
                if values["streams"][number][name] == value: continue
                values["streams"][number][name] = value
                write_json_loosely(store/"manifest.json", values)
                said = refused(lambda: [PackedStore(store, data), verify(store)])
                assert str(store) in said, (name, value)
    for schema in (0, 2, "1", None):
        write_signed(store/"manifest.json", replace(whole, schema=schema))
        assert "schema" in refused(PackedStore, store, data) and "pack the features again" in refused(read_manifest, store)


def write_json_loosely(path:Path, values:dict)->None: path.write_text(json.dumps(values | {"sha256": module.hash_json(values)}))


def test_a_store_that_changes_while_it_is_read(copy):
    "In place of a bus error, which is what a shorter file does to a mapping"
    data, records, store = copy
    source = PackedStore(store, data)
    expected = source.video(records[0])
    path = store/"slowfast.rows"
    content = path.read_bytes()
    os.truncate(path, 4096)
    assert "slowfast.rows: has changed while it was open" in refused(source.gather_videos, records)
    source.streams[0]._state = module.file_state([path])                               # as if it had happened a moment later
    assert "slowfast.rows: has changed while it was open" in refused(source.gather_videos, records)
    path.unlink()
    assert "slowfast.rows: cannot be read" in refused(source.gather_videos, records)
    path.write_bytes(content)
    assert "has changed" in refused(source.gather_videos, records) and (PackedStore(store, data).video(records[0]) == expected).all()


def test_a_batch_may_be_changed_and_the_store_may_not(copy):
    data, records, store = copy
    source = PackedStore(store, data)
    before = contents(store)
    source.video(records[0])[:] = 7
    with pytest.raises(ValueError): source.streams[0].rows[0] = 7
    assert contents(store) == before


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_store(tmp_path):
    "The bytes of a store that a process holds after every row of it was read: what finds names and starts, no rows"
    def held(path:Path)->int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        starts = [i for i, line in enumerate(lines) if line.endswith(str(path))]
        return sum(1024*int(next(line for line in lines[i:] if line.startswith("Rss:")).split()[1]) for i in starts)

    for videos in (60, 240, 960):
        draw, root = rng(videos, "memory"), tmp_path/str(videos)
        (root/"clip").mkdir(parents=True)
        for i in range(videos): np.save(root/f"clip/{i}.npy", draw.standard_normal((20, 128), np.float32))
        data = replace(data_config("charades_clip"), root=str(root), streams=(StreamConfig("clip", ("clip/{vid}.npy",), 128),), text=StreamConfig("words", (), 4), train="", val="", test="")
        pack(data, root/"store")
        source = open_features(replace(data, store="store"))
        for i in range(0, videos, 10): source.gather_videos([Record(j, "a dog", 20, str(j)) for j in range(i, i+10)])
        assert (root/"store/clip.rows").stat().st_size == videos*20*128*4 and held(root/"store/clip.rows") < 1 << 17 and held(root/"store/clip.names") > 0


def test_the_command_packs_checks_and_trains(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MRHD_DATA", str(shared/"features"))
    out = str(tmp_path/"BK")
    for words in (["pack", "tvsum/BK", "--out", out], ["pack", "tvsum/BK", "--out", out, "--verify"], ["pack", "--out", out, "--verify"]): assert main(words) == 0
    said = capsys.readouterr().out
    assert "i3d" in said and "5 items" in said and "bytes are those that were packed" in said and f"data.store={out}" in said
    assert main(["pack", "tvsum/BK", "--out", out, "--dtype", "float16"]) == 2 and "a store is written once" in capsys.readouterr().err
    assert main(["pack", "tvsum/XX", "--out", str(tmp_path/"XX")]) == 2 and "XX" in capsys.readouterr().err and not (tmp_path/"XX").exists()
    datasets = [open_split(run_config("tr_detr", "tvsum/BK", overrides={"data.store": store}), "test") for store in ("", out)]
    assert same(*(next(iterate(dataset, 9)) for dataset in datasets)) and isinstance(datasets[1].source, PackedStore)


def test_pack_names_a_split_that_is_not_there_and_writes_nowhere_else(tmp_path, capsys):
    data, _ = folder(tmp_path/"data", "charades")
    given = json.loads(json.dumps(asdict(data)))
    def packs(**changes): # status, what was said
        (tmp_path/"data.json").write_text(json.dumps(given | changes))
        status = main(["pack", str(tmp_path/"data.json"), "--out", str(tmp_path/"store")])
        return status, "".join(capsys.readouterr())
    status, said = packs(streams=[given["streams"][0] | {"name": "../outside"}, *given["streams"][1:]])
    assert status == 2 and "data.json.streams[0]: field 'name': '../outside' cannot name a file" in said and len(said.splitlines()) == 1
    for field in ("dim", "files"):
        status, said = packs(text={k: v for k, v in given["text"].items() if k != field})
        assert status == 2 and f"data.json.text: field '{field}': missing" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "data.json"]
    status, said = packs(train="trian.jsonl")
    assert status == 0 and f"train is left out: no file {tmp_path}/data/trian.jsonl" in said and "val is left out" not in said
