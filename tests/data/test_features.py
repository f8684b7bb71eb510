"Feature files that are damaged, larger than they seem, or something else; each is one line with the file's name"
import io, os, pickle, struct, subprocess, sys, zipfile
from dataclasses import replace
import numpy as np
import pytest
from mrhd_nb.core.config import DataConfig, StreamConfig
from mrhd_nb.data.annotations import Record
from mrhd_nb.data.features import UNPACKED_BYTES, FeatureFolder, MemoryFeatures, load_array, read_array
from mrhd_nb.core.testing import refusal

TABLE = np.arange(12, dtype=np.float16).reshape(3, 4)


def npy(array, **options)->bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def header(shape:str, dtype:str="<f4", version:bytes=b"\x01\x00")->bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()+b"\n"
    return b"\x93NUMPY"+version+struct.pack("<H" if version[0] == 1 else "<I", len(text))+text


FILES = { # what the file holds, a word of the message
    "empty": (b"", ""), "text": (b"hello", "magic"), "pickle": (pickle.dumps({"a": 1}), "magic"), "objects": (npy(np.array([{}], object), allow_pickle=True), "allow_pickle"),
    "cut": (npy(TABLE)[:-3], "promises 24 bytes where 21"), "headless": (npy(TABLE)[:40], ""), "vast": (header("(2, 2999999999)"), "promises 23999999992 bytes where 0"),
    "beyond integers": (header(f"({10**30}, 4)"), "promises"), "negative": (header("(-1, 4)")+bytes(64), "promises -16"), "not a shape": (header("'x'"), ""),
    "unknown version": (header("(1, 1)", version=b"\x09\x00")+bytes(4), "not npy 1.0"), "long header": (header("(1, 1)", version=b"\x02\x00")[:8]+b"\xff"*4, "not npy 1.0"), "code": (header("__import__('os')"), ""), "text cells": (npy(np.array([["a"]])), "not numbers"),
    "complex": (npy(np.ones((2, 2), complex)), "not numbers"), "structured": (npy(np.zeros(2, [("a", "<f4")])), "not numbers"), "scalar": (npy(np.float32(1)), "shape ()"),
    "no rows": (npy(np.ones((0, 4))), "shape (0, 4)"), "three axes": (npy(np.ones((2, 2, 2))), "shape (2, 2, 2)"), "too large": (npy(np.array([[1, 1e300]])), "row 0 is not finite"),
    "not finite": (npy(np.where(np.eye(3) == 1, np.nan, 0)), "row 0 is not finite"), "infinite": (npy(np.array([[0, 0], [0, np.inf]], np.float16)), "row 1 is not finite")}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_table_is_refused(tmp_path, name):
    data, word = FILES[name]
    (tmp_path/"a.npy").write_bytes(data)
    message = refusal(read_array, tmp_path/"a.npy")
    assert message.startswith(f"{tmp_path/'a.npy'}: ") and word in message
    with zipfile.ZipFile(tmp_path/"a.npz", "w") as archive: archive.writestr("features.npy", data)
    assert word in refusal(read_array, tmp_path/"a.npz", "features")


def test_tables_as_they_were_stored(tmp_path):
    for array in (TABLE, np.asfortranarray(TABLE), TABLE.astype(">f8"), TABLE.astype(np.int64)):
        np.save(tmp_path/"a.npy", array)
        np.savez(tmp_path/"a.npz", features=array)
        np.savez_compressed(tmp_path/"b.npz", features=array)
        for name, key in (("a.npy", ""), ("a.npz", "features"), ("b.npz", "features")):
            found = load_array(tmp_path/name, key)
            assert found.dtype == array.dtype and np.array_equal(found, array) and read_array(tmp_path/name, key, 4).dtype == np.float32
    assert "has 4 channels where 512 are expected" in refusal(read_array, tmp_path/"a.npy", "", 512)


def test_keys_and_pooled_text(tmp_path):
    np.savez(tmp_path/"a.npz", features=TABLE, pooler_output=TABLE[0])
    np.save(tmp_path/"a.npy", TABLE)
    for name, key, said in (("a.npz", "token", "field 'token': missing; it holds features, pooler_output"), ("a.npz", "", "field 'key': name one of features, pooler_output"), ("a.npy", "features", "without a name"),
                            ("a.npz", "pooler_output", "shape (4,)"), ("none.npz", "x", "cannot be read"), ("", "x", "cannot be read")): assert said in refusal(read_array, tmp_path/name, key)
    assert np.array_equal(read_array(tmp_path/"a.npz", "pooler_output", text=True), TABLE[:1])


def test_damaged_archives(tmp_path):
    np.savez_compressed(tmp_path/"whole.npz", features=np.random.default_rng(0).standard_normal((50, 8)))
    whole = (tmp_path/"whole.npz").read_bytes()
    for data in (whole[:-30], whole[:60], whole[:200]+bytes(50)+whole[250:], b"PK"+whole[2:60]):
        (tmp_path/"a.npz").write_bytes(data)
        assert str(tmp_path/"a.npz") in refusal(load_array, tmp_path/"a.npz", "features")
    np.savez_compressed(tmp_path/"bomb.npz", features=np.zeros((UNPACKED_BYTES//4+1, 1), np.float32))
    assert "would unpack from" in refusal(load_array, tmp_path/"bomb.npz", "features")


def test_a_promise_takes_no_memory(tmp_path):
    "A header that announces 6 GB, read by a process that may have 3 GB"
    (tmp_path/"a.npy").write_bytes(header("(3, 500000000)")+bytes(100))
    code = ("import resource, sys; from mrhd_nb.data.features import load_array\n"
            "resource.setrlimit(resource.RLIMIT_AS, (3<<30, 3<<30))\n"
            "try: load_array(sys.argv[1])\nexcept ValueError as e: print(e)")
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path/"a.npy")], capture_output=True, text=True, check=True).stdout
    assert "promises 6000000000 bytes where 100 are left" in said


SLOW, CLIP = StreamConfig("slowfast", ("slow/{vid}.npz",), 5, "features"), StreamConfig("clip", ("clip/{vid}.npz",), 3, "features")
DATA = DataConfig("x", "qvhighlights", (SLOW, CLIP), StreamConfig("words", ("text/qid{qid}.npz",), 6), max_clips=8, max_tokens=4)


def test_the_released_numbers_of_channels():
    def channels(*dims, audio=0):
        streams = [StreamConfig(str(d), ("x",), d, audio=d == audio) for d in dims]
        data = replace(DATA, streams=tuple(streams), max_clips=75)
        arrays = {"v": [np.ones((80, s.dim)) for s in streams]}
        return MemoryFeatures(arrays, {}, data).video(Record(0, "", 1, "v")).shape
    assert channels(2304, 512) == (75, 2818) and channels(2304, 512, 2049, audio=2049) == (75, 4869) and channels(2048) == (75, 2050)


def test_errors_of_a_folder_name_the_record(tmp_path):
    record = Record(7, "a dog", 14, "park_0", source="a.jsonl:1")
    for stream in (SLOW, CLIP):
        (tmp_path/stream.files[0]).parent.mkdir()
        np.savez(tmp_path/stream.files[0].format(vid="park_0"), features=np.ones((6, stream.dim)))
    source = FeatureFolder(DATA, tmp_path)
    assert source.video(record).shape == (6, 10)
    for change, said in [({"vid": "park_1"}, "slow/park_1.npz: cannot be read"), ({"qid": 8}, "")]:
        assert (said or "text/qid8.npz: cannot be read") in refusal(source.video if said else source.tokens, replace(record, **change))
    for streams, said in [((replace(SLOW, files=()),), "'files': empty"), ((replace(SLOW, dim=6), CLIP), "has 5 channels where 6"), ((replace(SLOW, files=("{video}.npz",)),), "may hold {vid}")]:
        assert said in refusal(FeatureFolder(replace(DATA, streams=streams), tmp_path).video, record)
    os.utime(tmp_path/"clip"/"park_0.npz", ns=(0, 0))
    assert refusal(source.video, record).endswith("park_0.npz: has changed while it was in use (for a.jsonl:1)")
