"Each format is read back by a program that is not ours"
import csv, io, json
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path
import numpy as np
import opentimelineio as otio
import pycmx, pytest, webvtt
from mrhd_nb.core.testing import refusal
from mrhd_nb.inference.export import FORMATS, LABELS, Moments, cut_moments, describe_video, timecode_rate

av, pymediainfo = pytest.importorskip("av"), pytest.importorskip("pymediainfo")
NTSC = Fraction(30000, 1001)
QUERY = 'a "dog" <runs> & jumps --> away,\nthen sits'
DOG = Moments("clips/a long dog video.mp4", [(60.06, 70.5, .91), (0., .01, .5), (3599., 3605.2, .25)], QUERY, NTSC, 4000., "01:00:00;00")
CAT = Moments("clips/a long cat video.mov", [(2., 4., .7)], "eine Katze, 猫", Fraction(25), 30., "10:00:00:00")
ODD = Moments("odd.mp4", [(1., 2., .6)], "", Fraction(15000, 1001), 10.)


def test_tables():
    expected = [(m.video, m.query, *w) for m in (DOG, CAT) for w in m.windows]
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"]([DOG, CAT]))))
    assert [(r["video"], r["query"], *(float(r[k]) for k in ("start", "end", "score"))) for r in rows] == expected
    assert [tuple(r.values()) for r in json.loads(FORMATS["json"]([DOG, CAT]))] == expected
    assert json.loads(FORMATS["json"]([])) == []


def test_subtitles_are_read_by_webvtt():
    cues = list(webvtt.from_string(FORMATS["vtt"]([DOG])))
    assert [c.start_in_seconds for c in cues] == [0, 60, 3599] and cues[0].end == "00:00:00.010" and cues[2].end == "01:00:05.200"
    assert all('a "dog" &lt;runs&gt; &amp; jumps --&gt; away, then sits (0' in c.raw_text for c in cues)
    assert list(webvtt.from_string(FORMATS["vtt"]([Moments("v", [])]))) == []


@pytest.mark.parametrize("answers,rate", [([DOG], NTSC), ([CAT], 25), ([ODD], NTSC), ([DOG, CAT, ODD], NTSC)])
def test_edit_lists_are_read_by_pycmx_and_by_opentimelineio(answers, rate):
    text = FORMATS["edl"](answers)
    events = list(pycmx.parse_cmx3600(io.StringIO(text)).events)
    back = list(otio.adapters.read_from_string(text, "cmx_3600", rate=float(rate)).find_clips())
    expected = [(m, *w) for m in answers for w in m.windows]
    assert len(events) == len(back) == len(expected)
    reels, record = {}, 0
    for event, clip, (m, start, end, _) in zip(events, back, expected):
        edit, = event.edits
        zero = otio.opentime.from_timecode(m.start, timecode_rate(m.rate)).to_seconds()
        frame = [round(x*m.rate) for x in (start, end)]
        seconds = zero+frame[0]/m.rate, zero+max(frame[1], frame[0]+1)/m.rate
        for code, exact in zip((edit.source_in, edit.source_out), seconds):
            found = otio.opentime.from_timecode(code, float(rate)).to_seconds()
            assert found == pytest.approx(exact, abs=.5/float(rate)+1e-6)
        assert clip.source_range.start_time.to_seconds() == pytest.approx(seconds[0], abs=.5/float(rate)+1e-6)
        assert otio.opentime.from_timecode(edit.record_in, float(rate)).to_frames() == record
        record = otio.opentime.from_timecode(edit.record_out, float(rate)).to_frames()
        assert edit.clip_name == m.title and m.video in text
        assert reels.setdefault(m.video, edit.source) == edit.source
    assert len(set(reels.values())) == len(answers)


@pytest.mark.parametrize("kind,adapter", [("otio", "otio_json"), ("xml", "fcp_xml")])
def test_timelines_are_read_by_opentimelineio(kind, adapter):
    text, answers = FORMATS[kind]([DOG, CAT, ODD]), (DOG, CAT, ODD)
    clips = list(otio.adapters.read_from_string(text, adapter).find_clips())
    assert [c.name for c in clips] == [m.title for m in answers for _ in m.windows]
    assert [c.media_reference.target_url for c in clips] == [m.video for m in answers for _ in m.windows]
    for clip, (m, first, last) in zip(clips, [(m, *f) for m in answers for f in m.frames]):
        zero = otio.opentime.from_timecode(m.start, timecode_rate(m.rate)).to_seconds()
        assert clip.source_range.start_time.to_seconds() == pytest.approx(float(zero+first/m.rate), abs=.005)
        assert clip.source_range.duration.to_seconds() == pytest.approx(float((last-first)/m.rate), abs=.005)
    if kind == "otio": assert [c.metadata["mrhd_nb"]["score"] for c in clips] == [w[2] for m in answers for w in m.windows]
    else: assert [r.text for r in ET.fromstring(text).iter("timebase")].count("25") > 0 and ET.fromstring(text).tag == "xmeml"


def test_tasks_fit_their_labelling_interface():
    tasks = json.loads(FORMATS["labelstudio"]([DOG, CAT]))
    control = ET.fromstring(LABELS).find("TimelineLabels")
    for task, m in zip(tasks, (DOG, CAT)):
        found = task["predictions"][0]["result"]
        assert task["data"] == {"video": m.video, "query": m.query} and ET.fromstring(LABELS).find("Video").get("value") == "$video"
        assert {(r["from_name"], r["to_name"]) for r in found} == {(control.get("name"), control.get("toName"))}
        assert [(r["value"]["ranges"][0]["start"]-1, r["value"]["ranges"][0]["end"]) for r in found] == m.frames
        assert {label for r in found for label in r["value"]["timelinelabels"]} == {control.find("Label").get("value")}


def test_tasks_are_accepted_by_label_studio():
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed").LabelInterface(LABELS)
    for task in json.loads(FORMATS["labelstudio"]([DOG, CAT, ODD])):
        predictions = task.pop("predictions")
        assert interface.validate_task(task) and all(interface.validate_prediction(p) for p in predictions)
        predictions[0]["result"][0]["value"]["timelinelabels"] = ["other"]
        assert not interface.validate_prediction(predictions[0])


def test_a_timeline_of_nothing_and_of_strange_timecode_is_refused():
    for kind in ("edl", "otio", "xml"):
        assert "no moment" in refusal(FORMATS[kind], []) and "no moment" in refusal(FORMATS[kind], [Moments("v.mp4", [])])
        assert "v.mp4: start 'noon'" in refusal(FORMATS[kind], [Moments("v.mp4", [(0, 1, 1)], start="noon")])
    assert set(FORMATS) == {"json", "csv", "vtt", "edl", "otio", "xml", "labelstudio"}


def frames(path:Path)->tuple[list[float], list[np.ndarray]]:
    with av.open(str(path)) as file: shown = list(file.decode(video=0))
    return [f.time for f in shown], [f.to_ndarray(format="gray") for f in shown]


def test_a_real_video_is_cut_without_encoding(shared, tmp_path):
    source = shared/"features"/"charades_video"/"Y1HGC.mp4"
    facts = describe_video(source)
    assert facts["rate"] == Fraction(15000, 1001) and facts["duration"] == pytest.approx(30.74, abs=.05) and facts["start"] == "00:00:00:00"
    paths = cut_moments(Moments(str(source), [(5., 9.5, .9), (20., 30., .5)], **facts), tmp_path/"cuts")
    assert [p.name for p in paths] == ["Y1HGC_5-9.5.mp4", "Y1HGC_20-30.mp4"]
    assert {*paths} == {*(tmp_path/"cuts").iterdir()}
    times, pictures = frames(source)
    for path, start, end in zip(paths, (5., 20.), (9.5, 30.)):
        tracks = {t.track_type: t for t in pymediainfo.MediaInfo.parse(str(path)).tracks}
        assert tracks["Video"].format == "AVC" and float(tracks["Video"].frame_rate) == pytest.approx(14.985, abs=.01)
        assert end-start-.1 < tracks["Video"].duration/1000 < end-start+.35 and "Audio" in tracks
        _, found = frames(path)
        first = next(i for i, t in enumerate(times) if t >= start-.001)
        inside = sum(start-.001 <= t < end for t in times)
        assert all(np.array_equal(a, b) for a, b in zip(found[:inside-5], pictures[first:])) and len(found) >= inside-1


def test_an_empty_moment_has_a_frame(shared, tmp_path):
    path, = cut_moments(Moments(str(shared/"features"/"charades_video"/"Y1HGC.mp4"), [(0., 0., .9)]), tmp_path)
    assert len(frames(path)[0]) >= 1


@pytest.mark.parametrize("name", ["text.mp4", "none.mp4", "cut.mp4"])
def test_what_is_no_video_is_refused(name, shared, tmp_path):
    (tmp_path/"text.mp4").write_text("no video")
    (tmp_path/"cut.mp4").write_bytes((shared/"features"/"charades_video"/"Y1HGC.mp4").read_bytes()[:2000])
    assert name in refusal(describe_video, tmp_path/name)
    assert name in refusal(cut_moments, Moments(str(tmp_path/name), [(0., 1., 1.)]), tmp_path/"cuts")
    assert not list((tmp_path/"cuts").glob("*"))
