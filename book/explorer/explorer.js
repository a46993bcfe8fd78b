"use strict";

// The explorer: what recorded runs say at any ratio.  Data stand in data.js, so that
// the page also works from a folder, without a server or a network.
(() => {
  const DATA = window.EXPLORER;
  const ASKED = [2, 4, 10, 30, 100]; // ratios that a pointer snaps to
  const NEAR = 0.1; // of a ratio: how far a point may be from it and count as it
  const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C98700", "#3A9AD0", "#7A5195", "#8B6D00", "#B03A5B", "#4C7D2C"];
  const METRICS = {
    auc: { name: "test AUC", better: 1 },
    log_loss: { name: "test log-loss", better: -1 },
    "recall@20": { name: "test Recall@20", better: 1 },
    "ndcg@20": { name: "test NDCG@20", better: 1 },
  };
  const AXES = {
    ratio: { name: "compression ratio (full bytes / stored bytes)", label: "compression ratio", of: null },
    rows: { name: "rows seen, search and training (millions)", label: "rows seen", of: (m, p) => p.rows },
    seconds: { name: "seconds to train alone, search included", label: "training time", of: (m, p) => p.seconds },
    memory: { name: "peak of training (full tables)", label: "training memory", of: (m) => m.cost.peak },
    lookup: { name: "look-up of 256 ids (µs, median)", label: "look-up time", of: (m) => m.cost.lookup },
  };
  const $ = (id) => document.getElementById(id);
  const make = (tag, given = {}, ...inside) => {
    const node = Object.assign(document.createElement(tag), given);
    node.append(...inside);
    return node;
  };

  const state = {
    data: DATA.contests[0].name, metric: "", axis: "ratio", ratio: 10, sort: "value", down: true,
    families: new Set(), stages: new Set(), find: "", chosen: "",
  };
  let plot = null;

  // --- Numbers -----------------------------------------------------------------

  const contest = () => DATA.contests.find((one) => one.name === state.data);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const deviation = (values) => {
    if (values.length < 2) return NaN;
    const middle = mean(values);
    return Math.sqrt(values.reduce((a, b) => a + (b - middle) ** 2, 0) / (values.length - 1));
  };
  const bySeed = (point) => Object.fromEntries(point.runs.filter((run) => state.metric in run.values).map((run) => [run.seed, run.values[state.metric]]));
  const cost = (method, point) => ({ rows: point.rows / 1e6, seconds: method.cost.us_per_row ? (method.cost.us_per_row * point.rows) / 1e6 : undefined });

  // A method at a ratio: its nearest point within a tenth, else between two others.
  function readPoint(method, ratio) {
    const far = (p) => Math.abs(Math.log(p.reached / ratio));
    const near = method.points.filter((p) => Math.abs(p.reached / ratio - 1) <= NEAR);
    if (near.length) {
      const best = near.reduce((a, b) => (far(b) < far(a) ? b : a));
      return { values: bySeed(best), points: [best], ...cost(method, best) };
    }
    const below = method.points.filter((p) => p.reached < ratio);
    const above = method.points.filter((p) => p.reached > ratio);
    if (!below.length || !above.length) return null;
    const low = below.reduce((a, b) => (b.reached > a.reached ? b : a));
    const high = above.reduce((a, b) => (b.reached < a.reached ? b : a));
    const share = Math.log(ratio / low.reached) / Math.log(high.reached / low.reached);
    const [one, other, values] = [bySeed(low), bySeed(high), {}];
    for (const seed of Object.keys(one)) if (seed in other) values[seed] = one[seed] + share * (other[seed] - one[seed]);
    return Object.keys(values).length ? { values, points: [low, high], ...cost(method, far(low) < far(high) ? low : high) } : null;
  }

  function isShown(method) {
    return state.families.has(method.family) && state.stages.has(method.stage) && method.name.toLowerCase().includes(state.find.toLowerCase());
  }

  function rankAll() {
    const better = METRICS[state.metric].better;
    const found = [];
    const missing = [];
    for (const method of contest().methods) {
      if (method.key === "full" || !isShown(method)) continue;
      const at = readPoint(method, state.ratio);
      if (!at) { missing.push(method.name); continue; }
      const values = Object.values(at.values);
      found.push({ method, at, value: mean(values), spread: deviation(values) });
    }
    found.sort((a, b) => better * (b.value - a.value) || a.method.name.localeCompare(b.method.name));
    found.forEach((row, k) => {
      row.place = k + 1;
      const best = found[0].at.values;
      const seeds = Object.keys(best).filter((seed) => seed in row.at.values);
      const differences = seeds.map((seed) => row.at.values[seed] - best[seed]);
      row.behind = mean(differences);
      row.noise = deviation(differences);
      row.clear = k > 0 && differences.length > 2 && Math.abs(row.behind) > 2 * row.noise;
    });
    return { found, missing };
  }

  // --- Ranking -----------------------------------------------------------------

  const COLUMNS = [
    { key: "place", name: "", of: (r) => r.place, show: (r) => r.place },
    { key: "name", name: "method", of: (r) => r.method.name },
    { key: "value", name: "value", of: (r) => METRICS[state.metric].better * r.value, down: true, show: (r) => r.value.toFixed(4) },
    { key: "spread", name: "±", of: (r) => r.spread, show: (r) => r.spread.toFixed(4) },
    { key: "behind", name: "from the best", of: (r) => -r.place, down: true, show: (r) => (r.place === 1 ? "" : `${r.behind >= 0 ? "+" : "−"}${Math.abs(r.behind).toFixed(4)} ± ${Number.isNaN(r.noise) ? "?" : r.noise.toFixed(4)}`) },
    { key: "clear", name: "clear?", of: (r) => (r.clear ? 1 : 0), show: (r) => (r.place === 1 ? "" : r.clear ? "yes" : "no") },
    { key: "rows", name: "rows seen", of: (r) => r.at.rows, show: (r) => `${r.at.rows.toFixed(1)} M` },
    { key: "seconds", name: "training", of: (r) => r.at.seconds, show: (r) => `${r.at.seconds.toFixed(0)} s` },
    { key: "memory", name: "peak", of: (r) => r.method.cost.peak, show: (r) => `${r.method.cost.peak.toFixed(2)}` },
    { key: "lookup", name: "256 ids", of: (r) => r.method.cost.lookup, show: (r) => `${r.method.cost.lookup.toFixed(0)} µs` },
  ];
  const knownColumns = (found) => COLUMNS.filter((c) => ["place", "name"].includes(c.key) || found.some((r) => c.of(r) !== undefined && !Number.isNaN(c.of(r))));

  function drawRanking() {
    const { found, missing } = rankAll();
    const columns = knownColumns(found);
    const sorted = columns.find((c) => c.key === state.sort) || columns[2];
    const rows = [...found].sort((a, b) => {
      const [x, y] = [sorted.of(a), sorted.of(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined) || a.place - b.place;
      const order = typeof x === "string" ? x.localeCompare(y) : x - y;
      return (state.down ? -order : order) || a.place - b.place;
    });
    $("ranking-title").textContent = `${METRICS[state.metric].name} at ${state.ratio.toFixed(1)}x, ${contest().title}`;
    $("heads").replaceChildren(...columns.map((column) => {
      const head = make("th", { scope: "col" });
      if (column === sorted) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      const button = make("button", { type: "button", textContent: column.name });
      button.onclick = () => {
        state.down = state.sort === column.key ? !state.down : Boolean(column.down);
        state.sort = column.key;
        drawRanking();
        $("heads").querySelector("[aria-sort] button")?.focus();
      };
      head.append(column.name ? button : "");
      return head;
    }));
    const focused = document.activeElement?.dataset?.method;
    $("rows").replaceChildren(...rows.map((row) => drawRow(row, columns)));
    if (focused) [...$("rows").querySelectorAll("button")].find((b) => b.dataset.method === focused)?.focus();
    $("out").textContent = missing.length ? `Not at this ratio: ${missing.join(", ")}.` : "";
    state.shown = rows;
  }

  function drawRow(row, columns) {
    const line = make("tr", { className: row.method.name === state.chosen ? "chosen" : "" });
    for (const column of columns) {
      const cell = make("td");
      if (column.key === "name") {
        const button = make("button", { type: "button", textContent: row.method.name, className: row.at.points.length > 1 ? "between" : "", title: row.method.title });
        button.dataset.method = row.method.name;
        button.style.setProperty("--own", colorOf(row.method));
        button.onclick = () => choose(row.method.name);
        cell.append(button);
      } else {
        const value = column.of(row);
        cell.textContent = value === undefined || Number.isNaN(value) ? "" : column.show(row);
        if (["behind", "clear"].includes(column.key) && !row.clear) cell.className = "level";
      }
      line.append(cell);
    }
    line.onmouseenter = () => highlight(row.method.name);
    line.onfocus = line.onmouseenter;
    return line;
  }

  $("rows").addEventListener("keydown", (event) => {
    if (!["ArrowDown", "ArrowUp"].includes(event.key)) return;
    const buttons = [...$("rows").querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const next = buttons[at + (event.key === "ArrowDown" ? 1 : -1)];
    if (next) { next.focus(); highlight(next.dataset.method); event.preventDefault(); }
  });

  // --- Evidence ----------------------------------------------------------------

  function choose(name) {
    state.chosen = name;
    drawRanking();
    drawEvidence();
    highlight(name);
    remember();
  }

  function drawEvidence() {
    const method = contest().methods.find((one) => one.name === state.chosen);
    const at = method && readPoint(method, state.ratio);
    $("evidence-title").textContent = method ? `Evidence: ${method.name}` : "Evidence";
    if (!method) return $("lines").replaceChildren(make("p", { className: "hint", textContent: "Choose a method in the ranking." }));
    const about = make("p", { textContent: `${method.title}; ${method.family}, ${method.stage}.` });
    if (!at) return $("lines").replaceChildren(about, make("p", { textContent: `Nothing was recorded at ${state.ratio.toFixed(1)}x.` + (method.cannot.length ? ` It cannot reach ${method.cannot.map((r) => `${r}x`).join(", ")}.` : "") }));
    $("lines").replaceChildren(about, ...at.points.flatMap(drawPoint));
    return undefined;
  }

  const tell = (value) => (typeof value === "number" ? `${+value.toPrecision(4)}` : typeof value === "string" ? value : JSON.stringify(value));

  function drawPoint(point) {
    const facts = {
      "asked for": `${point.asked}x, reached ${point.reached.toFixed(2)}x, ${point.bytes.toLocaleString("en")} bytes`,
      options: Object.entries(point.options).filter(([, v]) => v !== null).map(([k, v]) => `${k} = ${tell(v)}`).join(", ") || "none",
      training: Object.entries(point.settings).filter(([, v]) => v !== null).map(([k, v]) => `${k.replaceAll("_", " ")} ${tell(v)}`).join(", "),
      "made by": `${point.command}, ${point.date}, ${point.device}`,
    };
    const list = make("dl");
    for (const [name, text] of Object.entries(facts)) list.append(make("dt", { textContent: name }), make("dd", { textContent: text }));
    const metrics = Object.keys(point.runs[0].values);
    const head = make("tr", {}, ...["seed", ...metrics.map((m) => METRICS[m]?.name || m), "line"].map((text) => make("th", { textContent: text, scope: "col" })));
    const body = point.runs.map((run) => make("tr", {}, ...[run.seed, ...metrics.map((m) => run.values[m].toFixed(5)), `${contest().file}:${run.line}`].map((text) => make("td", { textContent: text }))));
    return [list, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body))];
  }

  // --- Plot --------------------------------------------------------------------

  const colorOf = (method) => COLORS[DATA.families.indexOf(method.family) % COLORS.length];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function pointsOf(method) {
    const axis = AXES[state.axis];
    if (!axis.of) return method.points.map((p) => [p.reached, mean(Object.values(bySeed(p)))]).filter((p) => !Number.isNaN(p[1])).sort((a, b) => a[0] - b[0]);
    const at = readPoint(method, state.ratio);
    const x = at && axis.of(method, at);
    return at && x > 0 ? [[x, mean(Object.values(at.values))]] : [];
  }

  function drawPlot() {
    plot?.destroy();
    const shown = contest().methods.filter((m) => m.key !== "full" && isShown(m));
    const drawn = shown.map((m) => ({ method: m, points: pointsOf(m) })).filter((d) => d.points.length);
    const data = drawn.length ? uPlot.join(drawn.map((d) => [d.points.map((p) => p[0]), d.points.map((p) => p[1])])) : [[1, 2], [null, null]];
    const curves = state.axis === "ratio";
    const full = contest().methods.find((m) => m.key === "full");
    const level = full ? mean(Object.values(bySeed(full.points[0]))) : NaN;
    const width = $("plot").clientWidth;
    plot = new uPlot({
      width, height: Math.max(320, Math.min(560, width * 0.62)),
      scales: { x: { time: false, distr: 3, log: curves ? 2 : 10 }, y: { range: rangeOf(drawn.flatMap((d) => d.points.map((p) => p[1])), level) } },
      axes: [
        { stroke: () => css("--text"), grid: { stroke: () => css("--line") }, ticks: { stroke: () => css("--line") }, label: AXES[state.axis].name, values: (u, ticks) => ticks.map((t) => (t === null ? "" : `${+t.toPrecision(3)}${curves ? "x" : ""}`)) },
        { stroke: () => css("--text"), grid: { stroke: () => css("--line") }, ticks: { stroke: () => css("--line") }, label: METRICS[state.metric].name, size: 62 },
      ],
      series: [{}, ...(drawn.length ? drawn : [{}]).map(({ method }) => ({
        label: method?.name ?? "", stroke: method ? colorOf(method) : "transparent", width: 1.3, spanGaps: true, points: { show: true, size: curves ? 5 : 9 },
      }))],
      cursor: { focus: { prox: 24 }, y: false, points: { show: false }, drag: { x: false, y: false } },
      focus: { alpha: 0.18 },
      legend: { show: false },
      hooks: {
        setCursor: [(u) => { if (curves && u.cursor.left >= 0 && u.cursor.event) setRatio(snap(u.posToVal(u.cursor.left, "x")), true); }],
        setSeries: [(u, k) => { nameAt(k && drawn[k - 1] ? drawn[k - 1].method.name : ""); }],
        draw: [(u) => drawMarks(u, level, curves)],
      },
    }, data, $("plot"));
    plot.names = drawn.map((d) => d.method.name);
    $("plot").setAttribute("role", "img");
    $("plot").setAttribute("aria-label", `${METRICS[state.metric].name} against ${AXES[state.axis].label} of ${drawn.length} methods; the table beside it holds the same numbers`);
  }

  // Few methods far from the others would flatten everybody: unless the whole range is
  // asked for, the worst tenth of the points may leave the picture.
  function rangeOf(values, level) {
    const better = METRICS[state.metric].better;
    const sorted = values.map((v) => better * v).sort((a, b) => a - b);
    const first = $("whole").checked ? 0 : Math.floor(sorted.length / 10);
    const ends = [sorted[first], sorted[sorted.length - 1], ...(Number.isNaN(level) ? [] : [better * level])].map((v) => better * v);
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const pad = 0.04 * (high - low || 1);
    return [low - pad, high + pad];
  }

  function drawMarks(u, level, curves) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.strokeStyle = css("--soft");
    ctx.fillStyle = css("--soft");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    if (!Number.isNaN(level)) {
      const y = u.valToPos(level, "y", true);
      ctx.beginPath(); ctx.moveTo(bbox.left, y); ctx.lineTo(bbox.left + bbox.width, y); ctx.stroke();
      ctx.textAlign = "right";
      ctx.fillText("uncompressed", bbox.left + bbox.width - 4, y - 5);
    }
    if (curves) {
      const x = u.valToPos(state.ratio, "x", true);
      ctx.setLineDash([]);
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
    }
    ctx.restore();
  }

  function highlight(name) {
    const k = plot ? plot.names.indexOf(name) : -1;
    if (k >= 0) plot.setSeries(k + 1, { focus: true });
  }

  function nameAt(name) {
    for (const line of $("rows").children) {
      const own = line.querySelector("button").dataset.method;
      line.classList.toggle("chosen", own === name || own === state.chosen);
    }
    $("about").textContent = aboutText() + (name ? ` At the pointer: ${name}.` : "");
  }

  // --- Controls ----------------------------------------------------------------

  function aboutText() {
    const { title, network, dim, full_bytes: bytes, methods } = contest();
    const names = methods.filter((m) => m.key !== "full").length;
    return `${title}: ${network}, d = ${dim}, the full table ${bytes.toLocaleString("en")} bytes; ${names} methods and variants, three seeds, all tuned alike.`;
  }

  function setRatio(ratio, quietly = false) {
    const [low, high] = limits();
    state.ratio = Math.min(high, Math.max(low, ratio));
    $("ratio").value = Math.log2(state.ratio);
    $("ratio-shown").textContent = `${state.ratio.toFixed(1)}x`;
    drawRanking();
    drawEvidence();
    if (state.axis !== "ratio") drawPlot();
    else if (plot) plot.redraw(false);
    if (!quietly) remember();
  }

  const snap = (ratio) => ASKED.find((asked) => Math.abs(Math.log(asked / ratio)) < 0.08) ?? ratio;

  function limits() {
    const reached = contest().methods.filter((m) => m.key !== "full").flatMap((m) => m.points.map((p) => p.reached));
    return [Math.min(...reached), Math.max(...reached)];
  }

  function boxes(place, names, chosen, colored) {
    const items = names.map((name) => {
      const box = make("input", { type: "checkbox", checked: chosen.has(name), value: name });
      box.onchange = () => { box.checked ? chosen.add(name) : chosen.delete(name); drawAll(); };
      const mark = make("span", { textContent: "● " });
      mark.style.color = colored ? COLORS[DATA.families.indexOf(name) % COLORS.length] : "transparent";
      return make("label", {}, box, " ", ...(colored ? [mark] : []), name);
    });
    $(place).replaceChildren($(place).querySelector("legend"), ...items);
  }

  function drawControls() {
    const { methods, metrics } = contest();
    if (!metrics.includes(state.metric)) state.metric = metrics[0];
    $("data").replaceChildren(...DATA.contests.map((c) => make("option", { value: c.name, textContent: c.title, selected: c.name === state.data })));
    $("metric").replaceChildren(...metrics.map((m) => make("option", { value: m, textContent: METRICS[m]?.name || m, selected: m === state.metric })));
    const known = Object.keys(AXES).filter((a) => a === "ratio" || methods.some((m) => m.points.some((p) => AXES[a].of(m, cost(m, p)) > 0)));
    if (!known.includes(state.axis)) state.axis = "ratio";
    $("axis").replaceChildren(...known.map((a) => make("option", { value: a, textContent: AXES[a].label, selected: a === state.axis })));
    const families = DATA.families.filter((f) => methods.some((m) => m.family === f));
    boxes("families", families, state.families, true);
    boxes("stages", DATA.stages, state.stages, false);
    const [low, high] = limits().map(Math.log2);
    Object.assign($("ratio"), { min: low, max: high });
    $("find").value = state.find;
  }

  function drawAll() {
    drawControls();
    drawPlot();
    setRatio(state.ratio);
    nameAt("");
  }

  // The address says what is shown, so that figures of the book can point here.
  function remember() {
    const all = (set, names) => names.every((name) => set.has(name));
    const said = new URLSearchParams({ data: state.data, metric: state.metric, ratio: state.ratio.toFixed(2) });
    if (state.axis !== "ratio") said.set("axis", state.axis);
    if (!all(state.families, DATA.families)) said.set("families", [...state.families].join("|"));
    if (!all(state.stages, DATA.stages)) said.set("stages", [...state.stages].join("|"));
    if (state.find) said.set("find", state.find);
    if (state.chosen) said.set("method", state.chosen);
    try { history.replaceState(null, "", `#${said}`); } catch { /* a file has no history in some browsers */ }
  }

  function recall() {
    const said = new URLSearchParams(location.hash.slice(1));
    const pick = (key, names) => new Set((said.has(key) ? said.get(key).split("|") : names).filter((name) => names.includes(name)));
    if (DATA.contests.some((c) => c.name === said.get("data"))) state.data = said.get("data");
    state.metric = said.get("metric") in METRICS ? said.get("metric") : "";
    state.axis = said.get("axis") in AXES ? said.get("axis") : "ratio";
    state.ratio = Number(said.get("ratio")) > 0 ? Number(said.get("ratio")) : 10;
    state.families = pick("families", DATA.families);
    state.stages = pick("stages", DATA.stages);
    state.find = said.get("find") || "";
    state.chosen = said.get("method") || "";
  }

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    $("theme").textContent = theme === "dark" ? "Light" : "Dark";
    $("theme").setAttribute("aria-pressed", String(theme === "dark"));
    plot?.redraw(false);
  }

  $("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  $("data").onchange = () => { state.data = $("data").value; state.chosen = ""; drawAll(); };
  $("metric").onchange = () => { state.metric = $("metric").value; drawAll(); };
  $("axis").onchange = () => { state.axis = $("axis").value; drawAll(); };
  $("ratio").oninput = () => setRatio(2 ** Number($("ratio").value));
  $("find").oninput = () => { state.find = $("find").value; drawPlot(); setRatio(state.ratio); };
  $("whole").onchange = drawPlot;
  $("reset").onclick = () => { Object.assign(state, { families: new Set(DATA.families), stages: new Set(DATA.stages), find: "", chosen: "" }); drawAll(); };
  $("controls").onsubmit = (event) => event.preventDefault();
  addEventListener("hashchange", () => { recall(); drawAll(); });
  addEventListener("resize", () => { plot?.setSize({ width: $("plot").clientWidth, height: plot.height }); });
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  recall();
  drawAll();
})();
