// Draws what was asked, found and true on one timeline: the page of `mrhd report` and the explorer of notebooks.
// `model` has the interface of a widget's model (get, set, save_changes, on) and holds
//   records  [{qid, label, group, note}]  what can be chosen; with `views` they are drawn as cards, otherwise as a list
//   chosen   qid;  views {qid: view}, or shown: the view of what was chosen
//   videos   {vid: {type, data}}          data in base64 or as bytes
//   runs, picked, sentence, said          of the explorer: systems, which of them are shown, what was typed, an error
// A view is {qid, vid, query, duration, clip, true, people, answers: [{run, clip, moments, curve, attention, masks}]}; `clip` is in seconds.
const RUNS = ["#0072B2", "#D55E00"], TRUE = "#009E73", BEFORE = "#7A7A7A";
const KEYS = "← → moments · n p records · k play · a attention · m masks";

function make(tag, attributes, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") el.addEventListener(name, value);
    else if (value !== undefined && value !== false) el.setAttribute(name, value);
  }
  el.append(...children.filter(child => child !== undefined));
  return el;
}

function shape(tag, attributes, ...children) { // of a drawing
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) el.setAttribute(name, value);
  el.append(...children);
  return el;
}

const seconds = t => `${Number(t.toFixed(1))}\u00a0s`;
const percent = (t, whole) => `${(100 * t / whole).toFixed(3)}%`;
const bytes = data => typeof data === "string" ? Uint8Array.from(atob(data), c => c.charCodeAt(0)) : data;

// A curve as wide as its clips are long: values in [0, 1], one per clip
function steps(values, clip) {
  const points = values.map((v, i) => `H${i * clip}V${(1 - v).toFixed(3)}H${(i + 1) * clip}`);
  return `M0,${(1 - values[0]).toFixed(3)}` + points.join("");
}

// `curves`: [{values, clip, colour, filled, dashed}]; the true moments are shaded
function drawing(view, curves) {
  const width = view.duration, svg = shape("svg", {viewBox: `0 -.04 ${width} 1.08`, preserveAspectRatio: "none", "aria-hidden": true});
  for (const [start, end] of view.true) svg.append(shape("rect", {x: start, width: end - start, y: -.04, height: 1.08, fill: TRUE, opacity: .15}));
  for (const {values, clip, colour, filled, dashed} of curves) {
    const line = steps(values, clip);
    if (filled) svg.append(shape("path", {d: `${line}V1H0Z`, fill: colour, opacity: .25}));
    svg.append(shape("path", {d: line, fill: "none", stroke: colour, "stroke-width": 1.4, "stroke-dasharray": dashed ? "4 2" : "none",
                              "vector-effect": "non-scaling-stroke"}));
  }
  return svg;
}

function scaled(rows) { // values of several rows on one scale from 0 to 1, and its ends
  const all = rows.flatMap(row => row.values), low = Math.min(...all), high = Math.max(...all);
  return {low, high, rows: rows.map(row => row.values.map(v => (v - low) / (high - low || 1)))};
}

// White to blue up to the 98 % quantile; or orange, white, purple between -3 and 3 standard deviations
function heat(view, clip, {name, rows}) {
  const diverging = name === "activations"; // has both signs
  const clips = rows[0].values.length, wide = `width:${percent(clips * clip, view.duration)}`;
  const canvas = make("canvas", {width: clips, height: rows.length, style: wide, "aria-hidden": true});
  const sorted = rows.flatMap(row => row.values).sort((a, b) => a - b);
  const top = diverging ? 3 : sorted[Math.floor(.98 * (sorted.length - 1))] || 1;
  const image = new ImageData(clips, rows.length);
  rows.forEach(({values}, y) => values.forEach((value, x) => {
    const v = Math.max(-1, Math.min(1, value / top)), end = v < 0 ? [84, 39, 136] : diverging ? [179, 88, 6] : [8, 48, 107];
    image.data.set([...end.map(c => 255 + Math.abs(v) * (c - 255)), 255], 4 * (y * clips + x));
  }));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// A row of the timeline: its name, and what is drawn over the length of the video
const row = (name, kind, ...drawn) => make("div", {class: `row ${kind}`}, make("div", {class: "name"}, name), make("div", {class: "plot"}, ...drawn));

function axis(view) {
  const wide = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600].find(s => view.duration / s <= 8) ?? view.duration, marks = [];
  for (let t = 0; t <= view.duration; t += wide) {
    if (t < .97 * view.duration) marks.push(make("span", {style: `left:${percent(t, view.duration)}`}, String(t))); // room before the edge
  }
  return row("time (s)", "axis", ...marks);
}

function timeline(view, seek) { // rows of moments and of the highlight curve
  const bar = (what, colour, [start, end, score]) => make("button", {
    type: "button", class: "moment", title: `${what}: ${seconds(start)} to ${seconds(end)}`, click: () => seek(start),
    "aria-label": `${what}, ${seconds(start)} to ${seconds(end)}` + (score === undefined ? "" : `, score ${score.toFixed(2)}`), "data-start": start,
    style: `left:${percent(start, view.duration)};width:${percent(end - start, view.duration)};--colour:${colour};--strength:${(.3 + .7 * (score ?? 1)).toFixed(2)}`});
  const rows = [];
  if (view.true.length) rows.push(row("true", "bars", ...view.true.map(window => bar("true moment", TRUE, window))));
  view.answers.forEach(({run, moments}, at) => moments.forEach((moment, i) => {
    const full = moment[1] > .94 * view.duration; // no room at the right
    const label = make("span", {class: full ? "score full" : "score", style: full ? "" : `left:${percent(moment[1], view.duration)}`}, moment[2].toFixed(2));
    const name = i ? "" : view.answers.length > 1 ? run : "predicted";
    rows.push(row(make("span", {title: name}, name), "bars", bar(`${run}, moment ${i + 1}`, RUNS[at], moment), label));
  }));
  const people = view.people && {values: scaled([{values: [0, ...view.people]}]).rows[0].slice(1), clip: view.clip, colour: TRUE, filled: true};
  const curves = view.answers.map(({curve, clip}, at) => ({values: curve, clip, colour: RUNS[at]}));
  if (people) rows.push(row("annotators", "curve low", drawing(view, [people])));
  rows.push(row("highlights", "curve", drawing(view, curves)), axis(view));
  return rows;
}

function inside(view, part) { // rows of attention or of masks
  const titles = {words: "attention to each word", activations: "activations of the encoders, in standard deviations",
                  decoder: "attention of each moment query, by score", "HD→MR": "what highlights tell moments (HD→MR)",
                  "MR→HD": "what moments tell highlights (MR→HD)", saliency: "saliency"};
  return view.answers.flatMap(({run, clip, [part]: tracks}, at) => !tracks ? [make("p", {class: "none"}, `${run}: has no ${part} to show`)] :
    tracks.flatMap(track => {
      const title = titles[track.name] ?? track.name, head = make("h4", {}, view.answers.length > 1 ? `${run}: ${title}` : title);
      if (part === "attention") {
        const names = make("div", {class: "names"}, ...track.rows.map(({label}) => make("span", {title: label}, label)));
        return [head, make("div", {class: "row heat", style: `--rows:${track.rows.length}`}, names, make("div", {class: "plot"}, heat(view, clip, track)))];
      }
      const {low, high, rows} = scaled(track.rows), colour = label => label === "before" ? BEFORE : RUNS[at];
      const curves = track.rows.map(({label, fed}, i) => ({values: rows[i], clip, colour: colour(label), filled: fed, dashed: label === "before"}));
      return [head, row(`${high.toPrecision(2)}\n${low.toPrecision(2)}`, "curve low ends", drawing(view, curves))];
    }));
}

function card(view, {group, note}, chosen, choose) { // of the gallery
  const bars = [...view.true.map(w => [...w, TRUE]), ...view.answers[0].moments.slice(0, 1).map(([s, e]) => [s, e, RUNS[0]])];
  return make("button", {type: "button", class: "card", "aria-pressed": String(chosen), click: choose, "data-qid": view.qid},
    make("span", {class: "words"}, view.query),
    make("span", {class: "mini", "aria-hidden": true}, ...bars.map(([start, end, colour]) => make("i", {
      class: colour === TRUE ? "true" : "found", style: `left:${percent(start, view.duration)};width:${percent(end - start, view.duration)};background:${colour}`}))),
    make("span", {class: "note"}, note ?? ""));
}

function render({model, el}) {
  const views = model.get("views"), open = new Set(), whole = views !== undefined;
  const place = () => make("div", {}), [gallery, bar, said, film, lines, deep] = Array.from({length: 6}, place);
  const root = make("div", {class: "mrhd", tabindex: whole ? undefined : 0, role: "group", "aria-label": "records and answers",
                            "data-lm-suppress-shortcuts": "true"}, gallery, bar, said, film, lines, deep);
  said.setAttribute("role", "status");
  said.className = "said";
  let view, video, link, time = 0, made, playing; // `playing`: vid whose film stands there

  const set = (name, value) => { model.set(name, value); model.save_changes(); };
  const choose = qid => { set("chosen", qid); if (whole) draw(); };
  const mark = () => {
    for (const line of root.querySelectorAll(".playhead")) line.style.left = percent(time, view.duration);
    const clock = root.querySelector(".clock");
    if (clock) clock.textContent = `${seconds(time)} of ${seconds(view.duration)}`;
    const slider = root.querySelector(".time");
    if (slider) slider.value = time;
  };
  const seek = t => { time = Math.max(0, Math.min(view.duration, t)); if (video) video.currentTime = time; mark(); };
  const step = by => {
    const all = [...lines.querySelectorAll(".moment")], at = all.indexOf(root.ownerDocument.activeElement);
    const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : (at + by + all.length) % all.length];
    if (next) { next.focus({preventScroll: true}); seek(Number(next.dataset.start)); }
  };
  const turn = by => {
    const all = model.get("records") ?? [], at = all.findIndex(({qid}) => qid === model.get("chosen"));
    if (all.length) choose(all[(at + by + all.length) % all.length].qid);
  };
  const toggle = part => { if (!open.delete(part)) open.add(part); drawInside(); };
  const press = event => {
    const typing = /^(INPUT|SELECT|TEXTAREA|VIDEO)$/.test(event.target.tagName);
    const act = {ArrowRight: () => step(1), ArrowLeft: () => step(-1), n: () => turn(1), p: () => turn(-1), a: () => toggle("attention"),
                 m: () => toggle("masks"), k: () => video && (video.paused ? video.play() : video.pause())}[event.key];
    if (!act || typing || !view || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  };

  function tracks(rows) { // with the line of the present time over them; a click anywhere goes there
    const plot = make("div", {class: "over"}, make("div", {class: "playhead"}));
    return make("div", {class: "tracks", click: event => {
      const box = plot.getBoundingClientRect(), at = (event.clientX - box.left) / box.width;
      if (at >= 0 && !event.target.closest(".moment")) seek(at * view.duration);
    }}, ...rows, plot);
  }
  function drawFilm() {
    const source = (model.get("videos") ?? {})[view.vid];
    if (source && view.vid === playing) return;
    if (link) URL.revokeObjectURL(link);
    link = video = playing = undefined;
    film.replaceChildren();
    if (!source) return;
    link = URL.createObjectURL(new Blob([bytes(source.data)], {type: source.type}));
    video = make("video", {src: link, controls: true, preload: "auto", "aria-label": `video ${view.vid}`,
                           timeupdate: event => { if (event.target === video && !video.seeking) { time = video.currentTime; mark(); } },
                           error: () => { said.textContent = `video ${view.vid}: this browser cannot play it`; }});
    film.replaceChildren(video);
    playing = view.vid;
  }
  function drawInside() {
    for (const button of lines.querySelectorAll("[data-part]")) button.setAttribute("aria-expanded", String(open.has(button.dataset.part)));
    const rows = [...open].flatMap(part => inside(view, part));
    if (open.has("masks")) rows.push(make("p", {class: "none"}, "dashed: before feedback; solid: after; filled: what is fed to the other task"));
    deep.replaceChildren(...rows.length ? [tracks([...rows, axis(view)])] : []);
    mark();
  }
  function draw() {
    const all = model.get("records") ?? [], chosen = model.get("chosen"), held = root.contains(root.ownerDocument.activeElement);
    view = whole ? views[chosen] : model.get("shown");
    if (whole) {
      const groups = [...new Set(all.map(({group}) => group))];
      gallery.replaceChildren(...groups.map(group => make("section", {class: "cards", "aria-label": group}, make("h3", {}, group),
        ...all.filter(one => one.group === group).map(one => card(views[one.qid], one, one.qid === chosen, () => choose(one.qid))))));
    }
    if (!view?.duration) return;
    time = 0;
    drawFilm();
    if (video) video.currentTime = 0;
    const part = name => make("button", {type: "button", "data-part": name, click: () => toggle(name)}, name);
    const slider = make("input", {type: "range", class: "time", min: 0, max: view.duration, step: "any", "aria-label": "time in seconds",
                                  input: event => seek(Number(event.target.value))});
    const legend = [...view.true.length ? [["true", TRUE]] : [], ...view.answers.map(({run}, at) => [run, RUNS[at]])];
    lines.replaceChildren(
      make("h3", {class: "query"}, `“${view.query}”`), make("p", {class: "of"}, [view.vid && `video ${view.vid}`, view.qid && `query ${view.qid}`, seconds(view.duration)].filter(Boolean).join(" · ")),
      make("p", {class: "legend"}, ...legend.map(([name, colour]) => make("span", {style: `--colour:${colour}`}, name))),
      tracks(timeline(view, seek)), row(make("span", {class: "clock"}), "slide", slider),
      make("p", {class: "parts"}, part("attention"), part("masks"), make("span", {class: "keys"}, KEYS)));
    drawInside();
    if (held && root.ownerDocument.activeElement === root.ownerDocument.body) (whole ? gallery.querySelector("[aria-pressed=true]") : root)?.focus({preventScroll: true});
  }
  function drawBar() { // what the explorer is asked with
    if (whole) return;
    const runs = model.get("runs") ?? [], picked = model.get("picked") ?? [], all = model.get("records") ?? [];
    const list = (label, options, value, change) => make("label", {}, label, make("select", {"aria-label": label, change: event => change(event.target.value)},
      ...options.map(([name, text]) => make("option", {value: name, selected: name === value}, text))));
    const pick = (at, name) => set("picked", (at ? [picked[0], name] : [name, picked[1]]).filter((one, i, both) => one && both.indexOf(one) === i));
    const names = runs.map(name => [name, name]), ask = () => set("sentence", typed.value.trim());
    const typed = make("input", {type: "text", "aria-label": "sentence", placeholder: "another sentence", keydown: event => event.key === "Enter" && ask()});
    typed.value = model.get("sentence") ?? "";
    bar.replaceChildren(make("div", {class: "bar"}, // no form: in JupyterLab its submit event does not arrive
      runs.length > 1 ? list("run", names, picked[0], name => pick(0, name)) : undefined,
      runs.length > 1 ? list("beside", [["", "—"], ...names], picked[1] ?? "", name => pick(1, name)) : undefined,
      all.length ? list("record", all.map(({qid, label}) => [qid, label]), model.get("chosen"), choose) : undefined,
      make("label", {class: "wide"}, "sentence", typed), make("button", {type: "button", click: ask}, "Ask")));
  }
  (whole ? root.ownerDocument : root).addEventListener("keydown", press);
  for (const name of ["shown", "videos"]) model.on(`change:${name}`, draw);
  for (const name of ["chosen", "picked", "records", "sentence"]) model.on(`change:${name}`, drawBar);
  model.on("change:said", () => { said.textContent = model.get("said"); });
  el.replaceChildren(root);
  drawBar();
  draw();
  return () => { if (link) URL.revokeObjectURL(link); };
}

// In a page: the data of an element with JSON, drawn into another
function drawPage(data, id) {
  const values = JSON.parse(document.getElementById(data).textContent);
  render({el: document.getElementById(id), model: {get: name => values[name], set: (name, value) => { values[name] = value; }, save_changes() {}, on() {}}});
}

export default {render};
