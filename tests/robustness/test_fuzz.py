"""Bad input: never an uncaught exception, a hang, or more memory than the file justifies

Random edits of valid files by Hypothesis; then, where atheris is installed, a search guided by coverage for a fixed time.
`python tests/robustness/fuzz/search.py TARGET SECONDS` searches longer."""
import contextlib, importlib.util, json, os, signal, subprocess, sys, tracemalloc
from pathlib import Path
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
sys.path.insert(0, str(Path(__file__).parent/"fuzz"))
import targets
from targets import SEEDS, TARGETS

BYTES = 32<<20 # a reader may take so much for itself, whatever the file
EXAMPLES = int(os.environ.get("MRHD_FUZZ_EXAMPLES", 60))
SECONDS = int(os.environ.get("MRHD_FUZZ_SECONDS", 15)) # of the coverage-guided search
WORDS = [b"null", b"NaN", b"1e999", b"-1", b"0", b"true", b'""', b"[]", b"{}", b"[[]]", b"[1e308, -1e308]", b"9"*400, b"\xff\xfe", b"\x00", b"\n", b"\r", b"\\ud800", b'"qid"',
         b"PK\x03\x04", b"\x80\x04", b"\x93NUMPY", b"(9999999999, 9999999999)", b"-5", b"|O", b"<f8", b"[" * 3000, b"=", b",", b"."]


def edited(seed:bytes, edits)->bytes:
    "A file with some places overwritten, inserted, removed or repeated"
    data = bytearray(seed)
    for kind, start, length, word in edits:
        i = int(start*len(data))
        if kind == "put": data[i:i+len(word)] = word
        elif kind == "insert": data[i:i] = word
        elif kind == "swap": data[i:i+length] = word
        elif kind == "cut": del data[i:i+length]
        elif kind == "end": del data[i:]
        else: data[i:i] = data[i:i+length]*3
    return bytes(data)


edits = st.lists(st.tuples(st.sampled_from(("put", "insert", "swap", "cut", "end", "repeat")), st.floats(0, 1), st.integers(0, 40),
                           st.one_of(st.sampled_from(WORDS), st.binary(max_size=8))), min_size=1, max_size=4)


@contextlib.contextmanager
def bounded(size:int):
    "Fail on a hang of twenty seconds, or on memory that a file of this size does not justify"
    def late(*_): raise TimeoutError("the reader hangs")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < BYTES+100*size, f"{peak} bytes for a file of {size}"
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", [n for n in TARGETS if n not in ("manifest", "overrides")]) # a store needs its rows too; lists and texts differ
def test_seeds_are_read(name, monkeypatch):
    "A search that begins with files that are refused at once finds nothing"
    def unexpected(error, path): raise AssertionError(error)
    monkeypatch.setattr(targets, "refused", unexpected)
    for seed in SEEDS[name]: TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_edited_files(name):
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(SEEDS[name]), edits)
    def check(seed, changes):
        data = edited(seed, changes)
        with bounded(len(data)): TARGETS[name](data)
    check()


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=6)


@pytest.mark.parametrize("name", [n for n in TARGETS if n.startswith(("annotations", "submission", "config", "manifest"))])
def test_fields_of_any_value(name):
    "Valid JSON with one field, at any depth, replaced"
    def places(value, here=()):
        yield here
        for key in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()): yield from places(value[key], (*here, key))
    def put(value, place, new):
        if not place: return new
        copy = value.copy()
        copy[place[0]] = put(value[place[0]], place[1:], new)
        return copy
    valid = json.loads(SEEDS[name][0])
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(list(places(valid))), json_values)
    def check(place, new):
        data = (json.dumps(put(valid, place, new))+"\n").encode()
        with bounded(len(data)): TARGETS[name](data)
    check()


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="the coverage-guided search needs atheris (pip install atheris)")
def test_guided_search(tmp_path):
    command = [sys.executable, str(Path(__file__).parent/"fuzz"/"search.py"), "all", str(SECONDS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]+done.stderr[-4000:]
