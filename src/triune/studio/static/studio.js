// The page of triune studio. What a model says is only ever put in as text.

const $ = (id) => document.getElementById(id);
const SIDE = 320, HIGH = SIDE * Math.sqrt(3) / 2;
const PAUSE = 200; // ms of rest before a moved point is merged

/** An element with properties, attributes (those with a dash or in SVG) and children. */
function make(tag, given = {}, ...children) {
  const el = document.createElement(tag);
  for (const [key, value] of Object.entries(given)) key in el ? el[key] = value : el.setAttribute(key, value);
  el.append(...children);
  return el;
}

function draw(tag, attributes = {}, text = "") {
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) el.setAttribute(key, value);
  el.textContent = text;
  return el;
}

function say(id, sentence = "") {
  $(id).textContent = sentence;
  if ($(id).classList.contains("error")) $(id).hidden = !sentence;
}

const number = (x) => Number(x.toPrecision(4)).toString();
const percent = (x) => `${Math.round(100 * x)} %`;
const coloured = (el, colour) => { el.style.setProperty("--colour", colour); return el; };

// ---- the server

/** What the server refused: the sentence, whether it is about the point, and the parameter of the form that it is about. */
class Refused extends Error {
  constructor({error, point, parameter}) { super(error); Object.assign(this, {point, parameter}); }
}

/** What the server answers; where it is gone, the banner says so, and no sentence is left for elsewhere. */
async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    say("lost", "The studio has stopped. Start `triune studio` again and reload this page.");
    throw new Error("");
  }
}

async function post(path, body, signal) {
  const answer = await reached(fetch(path, {
    method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body), signal,
  }));
  say("lost");
  if (!answer.ok) throw new Refused(await answer.json().catch(() => ({error: `The server said ${answer.status}.`})));
  return answer;
}

/** Post, and hand each event of the answer to the function of its name. */
async function listen(path, body, signal, on) {
  const reader = (await post(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reached(reader.read());
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const [, name, data] = event.match(/^event: (\w+)\ndata: (.*)$/s);
      const told = JSON.parse(data);
      if (name === "failed") throw new Refused(told);
      on[name]?.(told);
    }
  }
}

/** Long work of which only the latest counts: a new one stops the one before. */
class Latest {
  #controller;
  async run(work, shown, failed) {
    this.stop();
    const mine = this.#controller = new AbortController();
    shown(true);
    try {
      await work(mine.signal);
      return true;
    } catch (error) {
      if (error.name !== "AbortError" && mine === this.#controller) failed(error);
      return false;
    } finally {
      if (mine === this.#controller) shown(false);
    }
  }
  stop() { this.#controller?.abort(); }
}

function bar(id, told) {
  const el = $(id);
  if (told.total) { el.max = told.total; el.value = told.done; } else el.removeAttribute("value");
  el.title = told.phase;
}

// ---- state

let session, method, shares, asked = "", timer;
const values = {}; // method -> parameter -> what the user set
const strengths = {};
const moving = new Latest(), scoring = new Latest(), writing = new Latest();

const spec = () => session.methods.find((m) => m.name === method);
const setting = (name) => values[method][name] ?? spec().parameters.find((p) => p.name === name)?.default;
const hasStrength = () => spec().strength !== null && setting("normalize") !== true;

function point() {
  const found = {method, shares, parameters: values[method]};
  if (hasStrength()) found.strength = strengths[method];
  return found;
}

// ---- the triangle, or the line

const corner = () => session.experts.length === 3
  ? [[SIDE / 2, 0], [0, HIGH], [SIDE, HIGH]] : [[0, HIGH / 2], [SIDE, HIGH / 2]];

const place = () => corner().reduce(([x, y], [a, b], i) => [x + shares[i] * a, y + shares[i] * b], [0, 0]);

/** The shares at a place; outside the triangle those of a place on its edge. */
function sharesAt(x, y) {
  if (session.experts.length === 2) { const t = Math.min(1, Math.max(0, x / SIDE)); return [1 - t, t]; }
  const up = 1 - y / HIGH, right = x / SIDE - up / 2;
  return whole([up, 1 - up - right, right].map((s) => Math.max(0, s)));
}

function whole(found) {
  const total = found.reduce((a, b) => a + b, 0);
  return total > 0 ? found.map((s) => s / total) : found.map(() => 1 / found.length);
}

function drawMap() {
  const n = session.experts.length;
  if (n > 3) return;
  $("map").removeAttribute("hidden");
  const corners = corner(), colours = session.experts.map((e) => session.colours[e]);
  if (n === 3) {
    const outline = {points: corners.map((c) => c.join()).join(" ")};
    $("area").append(draw("polygon", {...outline, class: "edge"}));
    corners.forEach(([x, y], i) => {
      const id = `shade-${i}`;
      const shade = draw("radialGradient", {id, gradientUnits: "userSpaceOnUse", cx: x, cy: y, r: SIDE * .92});
      shade.append(draw("stop", {offset: 0, "stop-color": colours[i], "stop-opacity": .62}),
                   draw("stop", {offset: 1, "stop-color": colours[i], "stop-opacity": 0}));
      $("shades").append(shade);
      $("area").append(draw("polygon", {...outline, fill: `url(#${id})`}));
    });
  } else {
    $("map").setAttribute("viewBox", "-60 90 440 104");
    $("area").append(draw("line", {x1: 0, x2: SIDE, y1: HIGH / 2, y2: HIGH / 2, class: "edge"}));
  }
  corners.forEach(([x, y], i) => {
    $("rays").append(draw("line", {x1: x, y1: y, stroke: colours[i]}));
    $("corners").append(draw("circle", {cx: x, cy: y, r: 7, fill: colours[i]}));
    const name = session.experts[i];
    const label = draw("text", {x: n === 3 && i ? x + (i === 1 ? 8 : -8) : x, y: y + (n === 3 && !i ? -30 : 42)},
                       name.length > 18 ? `${name.slice(0, 17)}…` : name);
    label.append(draw("title", {}, name));
    $("corners").append(label);
  });
  const at = (event) => {
    const inverse = $("map").getScreenCTM().inverse();
    const {x, y} = new DOMPoint(event.clientX, event.clientY).matrixTransform(inverse);
    move(sharesAt(x, y));
  };
  $("map").addEventListener("pointerdown", (event) => {
    if (event.button || !spec().weighted) return;
    event.preventDefault();
    $("map").setPointerCapture(event.pointerId);
    $("handle").focus({preventScroll: true});
    at(event);
  });
  $("map").addEventListener("pointermove", (event) => $("map").hasPointerCapture(event.pointerId) && at(event));
  $("map").addEventListener("pointerup", () => spec().weighted && soon(0));
  $("map").addEventListener("dblclick", centre);
  $("handle").addEventListener("keydown", (event) => {
    const step = event.shiftKey ? SIDE / 5 : SIDE / 50;
    const by = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!by && event.key !== "Home") return;
    event.preventDefault();
    if (!by) return centre();
    const [x, y] = place();
    move(sharesAt(x + by[0] * step, y + by[1] * step));
  });
}

function drawShares() {
  session.experts.forEach((name, i) => {
    const field = make("input", {type: "number", min: 0, max: 100, step: 1, id: `share-${i}`, ariaLabel: `${name}, percent`});
    field.addEventListener("change", () => share(i, field.value / 100));
    const label = make("label", {className: "name", htmlFor: field.id, title: name},
                       coloured(make("span", {className: "dot"}), session.colours[name]), name);
    const line = make("div", {className: "share"}, label);
    if (session.experts.length > 3) {
      const slide = make("input", {type: "range", min: 0, max: 100, step: 1, id: `slide-${i}`, ariaLabel: `${name}, percent`});
      slide.addEventListener("input", () => share(i, slide.value / 100));
      line.classList.add("long");
      line.append(slide);
    }
    line.append(field, "%");
    $("shares").append(line);
  });
}

/** One expert's share; the others keep their proportions. */
function share(i, wanted) {
  const mine = Math.min(1, Math.max(0, wanted || 0)), rest = whole(shares.map((s, j) => j === i ? 0 : s));
  move(shares.map((_, j) => j === i ? mine : (1 - mine) * (rest[j] || (shares[i] === 1 ? 1 / (shares.length - 1) : 0))));
}

const centre = () => move(session.experts.map(() => 1 / session.experts.length));

function move(to) {
  if (!spec().weighted) return;
  shares = whole(to);
  show();
  soon();
}

function show() {
  const text = session.experts.map((e, i) => `${e} ${percent(shares[i])}`).join(", ");
  if (session.experts.length <= 3) {
    const [x, y] = place();
    $("handle").setAttribute("transform", `translate(${x} ${y})`);
    $("handle").setAttribute("aria-valuetext", text);
    $("handle").setAttribute("aria-valuenow", Math.round(100 * shares[0]));
    [...$("rays").children].forEach((ray, i) => {
      ray.setAttribute("x2", x);
      ray.setAttribute("y2", y);
      ray.setAttribute("stroke-opacity", .15 + .85 * shares[i]);
    });
  }
  shares.forEach((s, i) => {
    $(`share-${i}`).value = Math.round(1000 * s) / 10;
    if ($(`slide-${i}`)) $(`slide-${i}`).value = 100 * s;
  });
}

// ---- merging, and answering again

function soon(wait = PAUSE) {
  clearTimeout(timer);
  if (asked) document.body.dataset.answering = true;
  timer = setTimeout(asked ? answer : merge, wait);
}

const merged = (told) => {
  $("merging").hidden = true;
  const how = told.dense ? `${told.dense + told.factors} tensors` : `${told.factors} tensors, as factors`;
  const weights = spec().weighted ? told.weights.map(number).join(", ") : "none";
  say("state", `merged in ${told.seconds.toFixed(2)} s: ${how}; weights ${weights}`);
  $("command").textContent = told.command;
  $("terminal").hidden = false;
  document.body.dataset.merged = told.weights.join();
};

const onMerge = {
  merged,
  progress: (told) => { $("merging").hidden = false; bar("merging", told); },
};

const refused = ({message, parameter}) => {
  say("refused", message);
  say("state");
  if (parameter) $("parameters").querySelector(`[name="${parameter}"]`)?.setAttribute("aria-invalid", "true");
};
const busy = (on) => {
  $("stop").hidden = !on || !asked;
  if (!on) { $("merging").hidden = true; return; }
  ["refused", "unasked"].forEach((id) => say(id));
  $("parameters").querySelectorAll("[aria-invalid]").forEach((field) => field.removeAttribute("aria-invalid"));
};

const merge = () => moving.run((signal) => listen("/api/merge", {point: point()}, signal, onMerge), busy, refused);

function answer() {
  clearTimeout(timer);
  const started = performance.now(), first = {};
  const max_tokens = Number($("tokens").value);
  const cards = Object.fromEntries([...document.querySelectorAll(".answer")].map((c) => [c.dataset.version, c]));
  const heard = ({seconds, answers}) => {
    for (const {version, text, tokens, finish} of answers) {
      const card = cards[version], said = card.querySelector("p");
      if (!(version in first)) { first[version] = [performance.now() - started, seconds]; said.textContent = ""; }
      said.append(text);
      const rate = tokens > 1 ? `${((tokens - 1) / (seconds - first[version][1])).toFixed(1)}/s, ` : "";
      const end = finish === "length" ? ", cut" : "";
      card.querySelector("small").textContent = `${tokens} tokens${end}, ${rate}first in ${(first[version][0] / 1000).toFixed(2)} s`;
      card.ariaBusy = String(!finish);
    }
  };
  const shown = (on) => {
    busy(on);
    for (const card of Object.values(cards)) {
      const line = card.querySelector("small");
      if (on) line.textContent = "…";
      else if (card.ariaBusy === "true") line.textContent = line.textContent.replace("…", "no tokens") + ", stopped";
      card.ariaBusy = String(on);
    }
    document.body.dataset.answering = on;
  };
  const failed = (error) => {
    if (error.point) refused(error); else { say("unasked", error.message); say("state"); }
    for (const [version, card] of Object.entries(cards)) {
      if (version in first) continue;
      card.querySelector("small").textContent = "";
      card.ariaBusy = "false";
    }
  };
  return moving.run(
    (signal) => listen("/api/answer", {point: point(), prompt: asked, max_tokens}, signal, {...onMerge, heard}), shown, failed);
}

function ask(text) {
  if (!text.trim()) return say("unasked", "Write something to answer.");
  say("unasked");
  asked = text;
  answer();
}

function drawAnswers() {
  for (const name of ["merge", "base", ...session.experts]) {
    const colour = session.colours[name] ?? `var(--${name})`;
    const title = make("h3", {}, make("span", {textContent: name}), make("small"));
    const card = make("article", {className: `answer ${name === "merge" ? "merge" : ""}`, ariaLabel: `Answer of ${name}`}, title, make("p"));
    card.dataset.version = name;
    $("answers").append(coloured(card, colour));
  }
  for (const text of session.prompts) {
    const chip = make("button", {type: "button", textContent: text});
    chip.addEventListener("click", () => { $("prompt").value = text; $("ask").requestSubmit(); });
    $("examples").append(chip);
  }
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); ask($("prompt").value); });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask").requestSubmit(); }
  });
  $("stop").addEventListener("click", () => { moving.stop(); });
}

// ---- the method

function drawMethods() {
  for (const m of session.methods) $("method").append(make("option", {value: m.name, textContent: m.name, title: m.title}));
  $("method").addEventListener("change", () => { choose($("method").value); soon(0); });
  $("strength").addEventListener("input", () => {
    strengths[method] = Number($("strength").value);
    sayStrength();
    soon();
  });
  $("form").addEventListener("submit", (event) => event.preventDefault());
}

function choose(name) {
  method = name;
  values[name] ??= {};
  strengths[name] ??= spec().strength;
  $("method").value = name;
  say("summary", spec().summary + (spec().weighted ? "" : " It takes no weights: the point does not change it."));
  $("parameters").replaceChildren(...spec().parameters.map(field), field(
    {name: "seed", kind: "int", default: 0, interval: "[0, inf)", choices: [], per_model: false}));
  showStrength();
  showPoint();
}

function showStrength() {
  $("strength-field").hidden = !hasStrength();
  $("strength").max = 2 * (spec().strength ?? 1);
  $("strength").value = strengths[method];
  sayStrength();
}

function sayStrength() {
  const now = number(strengths[method] ?? 1), place = {2: "At an end", 3: "In a corner"}[session.experts.length] ?? "At 100 %";
  $("strength-value").textContent = now;
  const means = now === "1" ? `${place} that expert alone` : `${place} ${now} times that expert, at 1 it alone`;
  say("strength-means", `${means}, as far as the method keeps it.`);
}

/** A method without weights has no place for a point. */
function showPoint() {
  const still = !spec().weighted;
  $("where").classList.toggle("still", still);
  $("handle").setAttribute("aria-disabled", still);
  for (const control of [$("centre"), ...$("shares").querySelectorAll("input")]) control.disabled = still;
}

/** A control for one parameter, as its specification says. */
function field(p) {
  const now = values[method][p.name] ?? p.default;
  let control, read;
  if (p.choices.length) {
    control = make("select", {}, ...p.choices.map((c) => make("option", {value: c, textContent: c})));
    control.value = now;
    read = () => control.value;
  } else if (p.kind === "bool") {
    control = make("input", {type: "checkbox", checked: now});
    read = () => control.checked;
  } else {
    control = make("input", {type: "text", inputMode: "decimal", value: now ?? ""});
    read = () => control.value.trim() === "" ? p.default : Number.isNaN(Number(control.value)) ? control.value : Number(control.value);
  }
  control.name = p.name;
  control.setAttribute("aria-errormessage", "refused");
  control.addEventListener("change", () => {
    const value = read();
    if (value === p.default) delete values[method][p.name]; else values[method][p.name] = value;
    showStrength();
    soon(0);
  });
  const rule = [p.interval && p.interval !== "(-inf, inf)" ? `in ${p.interval}` : "", p.per_model ? "for every expert" : ""];
  return make("label", {}, make("span", {}, p.name, make("small", {textContent: rule.filter(Boolean).join(", ")})), control);
}

// ---- scores

const scores = {}; // version -> benchmark -> row

/** The point in words: two that differ in anything are two columns. */
function inWords() {
  const strength = hasStrength() ? [`strength ${number(strengths[method])}`] : [];
  const set = Object.entries(values[method]).map(([key, value]) => `${key} ${value}`);
  return [`merge at ${shares.map((s) => Math.round(1000 * s) / 10).join("/")}`, method, ...strength, ...set].join(", ");
}

function drawScoring() {
  for (const name of ["merge", "base", ...session.experts]) $("whom").append(make("option", {value: name, textContent: name}));
  $("score").addEventListener("click", () => {
    moving.stop();
    const version = $("whom").value;
    const column = version === "merge" ? inWords() : version;
    const shown = (on) => { $("scoring").hidden = $("unscore").hidden = !on; $("score").disabled = on; };
    say("unscored");
    $("scoring").removeAttribute("value");
    scoring.run((signal) => listen("/api/score", {point: point(), version}, signal, {
      merged, progress: (told) => bar("scoring", told),
      scored: (row) => { (scores[column] ??= {})[row.benchmark] = row; showScores(); },
    }), shown, ({message}) => say("unscored", message));
  });
  $("unscore").addEventListener("click", () => scoring.stop());
}

function showScores() {
  const columns = Object.keys(scores), rows = new Map();
  for (const column of columns) for (const row of Object.values(scores[column])) rows.set(row.benchmark, row);
  const head = make("tr", {}, make("th", {textContent: "benchmark"}), make("th", {textContent: "H"}), make("th", {textContent: "rows"}),
                    ...columns.map((c) => make("th", {textContent: c})));
  const lines = [...rows.values()].map((row) => make("tr", {},
    make("td", {textContent: `${row.title} ${row.higher_is_better ? "↑" : "↓"}`}), make("td", {textContent: row.h}),
    make("td", {textContent: row.n}), ...columns.map((c) => cell(scores[c][row.benchmark], c))));
  $("scores").replaceChildren(make("thead", {}, head), make("tbody", {}, ...lines));
  $("scores").hidden = false;
}

function cell(row, column) {
  const td = make("td", {className: "number"});
  if (!row) return td;
  const shade = make("i"), mark = make("b");
  shade.style.left = `${100 * row.low}%`;
  shade.style.width = `${100 * (row.high - row.low)}%`;
  mark.style.left = `${100 * row.value}%`;
  td.append(`${(100 * row.value).toFixed(0)} % [${(100 * row.low).toFixed(0)}, ${(100 * row.high).toFixed(0)}]`,
            make("div", {className: "bar"}, shade, mark));
  return coloured(td, session.colours[column] ?? `var(--${column === "base" ? "base" : "merge"})`);
}

// ---- keeping

function drawKeeping() {
  const next = () => {
    const [, stem, n] = $("name").value.match(/^(.*?)(\d*)$/);
    $("name").value = `${stem}${n ? Number(n) + 1 : "-2"}`;
  };
  $("save").addEventListener("click", async () => {
    say("unkept");
    say("kept");
    try {
      const {path} = await (await post("/api/save", {point: point(), name: $("name").value})).json();
      say("kept", `Saved as ${path}`);
      next();
    } catch (error) { say("unkept", error.message); }
  });
  $("write").addEventListener("click", () => {
    say("unkept");
    say("kept");
    const shown = (on) => { $("writing").hidden = $("unwrite").hidden = !on; $("write").disabled = on; };
    $("writing").removeAttribute("value");
    writing.run((signal) => listen("/api/write", {point: point(), name: $("name").value}, signal, {
      progress: (told) => bar("writing", told),
      written: ({path, passed, checks}) => {
        const bad = checks.filter((c) => c.passed === false).map((c) => c.sentence);
        say("kept", `Merged into ${path}${passed ? ", all checks passed" : ""}`);
        say("unkept", bad.join(" "));
        next();
      },
    }), shown, ({message}) => say("unkept", message));
  });
  $("unwrite").addEventListener("click", () => writing.stop());
  $("copy").addEventListener("click", async () => {
    const text = $("command").textContent;
    try { await navigator.clipboard.writeText(text); } catch {
      getSelection().selectAllChildren($("command"));
      document.execCommand("copy");
    }
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
  });
}

/** The left card stays in sight; one that is higher than the window scrolls to its end first. */
function stick() {
  $("where").style.top = `${Math.min(16, innerHeight - 16 - $("where").offsetHeight)}px`;
}

// ---- begin

try {
  session = await (await reached(fetch("/api/session"))).json();
  const {start} = session;
  say("base", `${session.base} with ${session.experts.join(", ")}`);
  shares = start.shares;
  values[start.method] = start.parameters;
  drawMap();
  drawShares();
  drawMethods();
  drawAnswers();
  drawScoring();
  drawKeeping();
  choose(start.method);
  if (hasStrength()) strengths[method] = start.strength;
  showStrength();
  $("centre").addEventListener("click", centre);
  new ResizeObserver(stick).observe($("where"));
  addEventListener("resize", stick);
  show();
  merge();
} catch (error) {
  if (error.message) say("lost", `The page could not start: ${error.message}`);
}
