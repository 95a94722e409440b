// The desk's page: draws the status document of each message of /live. Whatever comes from data is set as text, never
// as markup. An element is changed only where its text changes: what somebody reads, selects or has opened stays.
"use strict";

const LOST_AFTER_MS = 6_000; // a message comes each second: so long without one is a connection that is gone
const REOPEN_AFTER_MS = 15_000; // … and one that is still open, but brings nothing, is given up
const RETRY_MS = 5_000; // after the desk refused the stream; meanwhile the page asks for the document itself
const SPARK_S = 300;
const SPARK_WIDTH = 300;
const SPARK_HEIGHT = 56;
const NOTHING = "–";
const HEADLINES = { ok: "All is well", degraded: "Degraded", down: "Down" };
const MARKS = {
  ok: "M12 2a10 10 0 1 1 0 20 10 10 0 0 1 0-20Zm5.2 6.3-1.5-1.4-5.1 5.5-2.5-2.4-1.4 1.4 4 3.9Z",
  degraded: "M12 2.5 23 21.5H1Zm-1.1 7v6h2.2v-6Zm0 7.6v2.1h2.2v-2.1Z",
  down: "M7.9 2h8.2L22 7.9v8.2L16.1 22H7.9L2 16.1V7.9Zm.9 5.3L7.3 8.8l3.2 3.2-3.2 3.2 1.5 1.5 3.2-3.2 3.2 3.2 1.5-1.5-3.2-3.2 3.2-3.2-1.5-1.5-3.2 3.2Z",
  unknown: "M12 2a10 10 0 1 1 0 20 10 10 0 0 1 0-20Zm0 2.4a7.6 7.6 0 1 0 0 15.2 7.6 7.6 0 0 0 0-15.2Z",
};
const ICON_COLOURS = { ok: "#2f9e63", degraded: "#d18a14", down: "#d5392e", unknown: "#7d858c" };
const GATES = { closed: "open", paused: "paused" }; // a breaker that is closed lets through: as a gate it stands open
const GATE_WORDS = { closed: "lets calls through", paused: "paused", throttled: "throttled", away: "the model is away" };

// -- figures as words; whatever is missing is a dash ------------------------------------------------------------------

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const known = (value) => typeof value === "number" && Number.isFinite(value);
const count = (value) => (known(value) ? grouped.format(value) : NOTHING);
const many = (value, one) => `${count(value)} ${one}${value === 1 ? "" : "s"}`;
const rate = (value) => (known(value) ? (value < 100 ? value.toFixed(1) : grouped.format(value)) : NOTHING);

function share(value) {
  if (!known(value)) return NOTHING;
  const percent = value * 100;
  return `${percent === 100 ? "100" : (Math.floor(percent * 100) / 100).toFixed(percent < 99 ? 1 : 2)} %`; // never rounds up
}

function span(seconds) {
  if (!known(seconds)) return NOTHING;
  if (seconds < 60) return `${seconds < 10 ? Math.round(seconds * 10) / 10 : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

function brief(seconds) {
  if (!known(seconds)) return NOTHING;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 99.5 ? `${seconds.toPrecision(3)} s` : span(seconds);
}

function ago(at, now) {
  const seconds = (Date.parse(now) - Date.parse(at)) / 1000; // both by the fleet's clock: the reader's may be wrong
  if (!known(seconds)) return at ?? NOTHING;
  return seconds < 1 ? "just now" : `${span(Math.floor(seconds))} ago`;
}

// -- the page's elements ----------------------------------------------------------------------------------------------

const at = (id) => document.getElementById(id);

function put(element, text) {
  const target = typeof element === "string" ? at(element) : element;
  if (target.textContent !== text) target.textContent = text;
}

function made(tag, className, parent) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  parent?.append(element);
  return element;
}

// Make a list's children those of `items`, in their order. One whose key stays is kept, with focus, selection, openness.
function list(parent, items, key, make, fill) {
  const kept = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, index) => {
    const name = String(key(item));
    let child = kept.get(name);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = name;
    }
    kept.delete(name);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
    fill(child, item);
  });
  for (const child of kept.values()) child.remove();
}

// -- drawing ----------------------------------------------------------------------------------------------------------

function draw(status) {
  const health = status.health ?? {};
  const streams = status.streams ?? {};
  put("fleet", health.fleet ?? status.fleet ?? NOTHING);
  drawState(status, health);
  drawRace(health, streams);
  put("backlog", count(health.backlog));
  put("backlog-age", health.backlog_age_s === null ? "none" : span(health.backlog_age_s));
  put("drained", drainedOf(health, streams));
  drawRates(streams.in_per_s, health.enriched_per_s);
  drawSuccess(health);
  drawLatency(status.latency ?? {});
  drawGate(status, status.gate ?? {});
  drawProcesses(status, health);
  drawDead(status, streams);
  drawEnriched(status);
  drawFoot(status);
}

function drawState(status, health) {
  const state = HEADLINES[health.status] ? health.status : "unknown";
  const reasons = health.reasons ?? [];
  document.body.dataset.status = state;
  at("mark").setAttribute("d", MARKS[state]);
  const headline = headlineOf(status, health);
  put("headline", headline);
  put("sentence", sentenceOf(status, health));
  list(at("reasons"), reasons, (reason) => reason.replace(/[\d.,]+/g, "#"), () => made("li"), put);
  document.title = `${headline} · ${health.fleet ?? status.fleet ?? "millhand"}`;
  drawIcon(state);
  announce(`${headline}. ${reasons.map((reason) => reason.replace(/ (for )?[\d.,]+ s\b/g, "")).join(". ")}`);
}

function headlineOf(status, health) {
  if (health.status === "down") return HEADLINES.down;
  if (status.crash_loop) return "Crash loop";
  if (status.paused) return "Paused";
  return HEADLINES[health.status] ?? "Unknown";
}

function sentenceOf(status, health) {
  const said = [];
  if (known(health.workers_ready)) said.push(`${health.workers_ready} of ${many(health.workers_desired, "worker")} ready.`);
  if (health.ready === false) said.push("No event is being enriched.");
  if (health.backlog === 0) said.push("Nothing waits.");
  else if (known(health.backlog)) said.push(waitingSentence(health, status.streams ?? {}));
  if (status.rolling) said.push(`A rolling ${status.rolling.what} is under way, ${status.rolling.left} to go.`);
  if (status.stop_wait_note) said.push(status.stop_wait_note);
  return said.join(" ");
}

function waitingSentence(health, streams) {
  const waiting = `${many(health.backlog, "event")} wait${health.backlog === 1 ? "s" : ""}`;
  if (known(health.drained_in_s)) return `${waiting}; at this rate they are done in ${span(health.drained_in_s)}.`;
  if (known(streams.in_per_s) && streams.in_per_s > health.enriched_per_s) return `${waiting}, and more come in than go out.`;
  return `${waiting}.`;
}

function drainedOf(health, streams) {
  if (health.backlog === 0) return "nothing waits";
  const grows = health.drained_in_s === null && streams.in_per_s > health.enriched_per_s;
  return grows ? "not at this rate" : span(health.drained_in_s);
}

function drawIcon(state) {
  const icon = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path fill="${ICON_COLOURS[state]}" d="${MARKS[state]}"/></svg>`;
  const href = `data:image/svg+xml,${encodeURIComponent(icon)}`;
  if (at("icon").getAttribute("href") !== href) at("icon").setAttribute("href", href);
}

function drawRace(health, streams) {
  const held = known(health.pending) ? health.pending - (streams.parked ?? 0) : undefined;
  put("race-backlog", count(health.backlog));
  put("race-hand", count(held));
  put("race-parked", count(streams.parked));
  put("race-enriched", count(health.enriched));
  put("race-dead", count(health.dead_letters));
  at("race-dead").parentElement.classList.toggle("some", health.dead_letters > 0);
}

let past = []; // {at_s, in, out}, by this page's clock; a stream opens with what was before
function remember(status) {
  const at_s = performance.now() / 1000;
  past.push({ at_s, in: status.streams?.in_per_s ?? 0, out: status.health?.enriched_per_s ?? 0 });
  while (past[0].at_s < at_s - SPARK_S) past.shift();
}

function recall(points) {
  const now_s = performance.now() / 1000;
  past = points.map(([ago_s, into, out]) => ({ at_s: now_s - ago_s, in: into, out }));
}

function drawRates(into, out) {
  const now_s = performance.now() / 1000;
  const peak = Math.max(...past.map((point) => Math.max(point.in, point.out)));
  const x = (point) => SPARK_WIDTH - ((now_s - point.at_s) / SPARK_S) * SPARK_WIDTH;
  const y = (value) => SPARK_HEIGHT - 1 - (value / Math.max(peak, 1)) * (SPARK_HEIGHT - 3);
  const line = (of) => past.map((point, n) => `${n ? "L" : "M"}${x(point).toFixed(1)} ${y(point[of]).toFixed(1)}`).join("");
  at("spark-in").setAttribute("d", line("in"));
  at("spark-out").setAttribute("d", line("out"));
  at("spark-area").setAttribute("d", `${line("out")}L${SPARK_WIDTH} ${SPARK_HEIGHT}L${x(past[0]).toFixed(1)} ${SPARK_HEIGHT}Z`);
  put("rate-out", rate(out));
  put("rate-out-2", rate(out));
  put("rate-in", rate(into));
  put("rate-peak", rate(peak));
  at("spark").setAttribute("aria-label", `Rate of the last 5 minutes: now ${rate(into)} in, ${rate(out)} out a second; peak ${rate(peak)}`);
}

function drawSuccess(health) {
  const over = health.success_rate_over ?? {};
  put("success", share(over["5m"]));
  put("success-1m", share(over["1m"]));
  put("success-15m", share(over["15m"]));
  put("success-ever", share(health.success_rate));
}

function drawLatency(latency) {
  for (const what of ["event", "model"]) {
    for (const p of ["p50", "p95", "p99"]) put(`${what}-${p}`, brief(latency[what]?.[`${p}_s`]));
  }
}

function drawGate(status, gate) {
  at("gate").dataset.gate = gate.state ? (GATES[gate.state] ?? "shut") : "unknown";
  put("model", status.model ?? "the model");
  put("gate-state", GATE_WORDS[gate.state] ?? gate.state ?? NOTHING);
  put("gate-says", gateSays(gate));
  put("permits", `${count(gate.permits)} of ${count(gate.permits_max)}`);
  drawMeter(at("permits-meter"), gate.permits ?? 0, gate.permits_max ?? 0);
  put("tokens", gate.tokens === null ? "no rate is set" : rate(gate.tokens));
  put("strikes", count(gate.strikes));
  const calls = Object.entries(gate.calls ?? {}).filter(([end, n]) => end === "ok" || n > 0);
  put("calls", calls.map(([end, n]) => `${count(n)} ${end}`).join(" · ") || NOTHING);
}

function drawMeter(meter, value, max) {
  meter.setAttribute("aria-valuemax", String(Math.max(max, value, 1)));
  meter.setAttribute("aria-valuenow", String(value));
  meter.firstElementChild.style.width = `${(100 * value) / Math.max(max, value, 1)}%`;
}

function gateSays(gate) {
  if (!gate.state || gate.state === "closed") return "";
  const until = gate.state === "paused" ? `${span(gate.until_s)} more` : `for ${span(gate.since_s)}, next probe in ${span(gate.until_s)}`;
  return gate.says ? `${until}: ${gate.says}` : until;
}

// -- processes --------------------------------------------------------------------------------------------------------

const COLUMNS = ["name", "state", "doing", "in hand", "done", "up", "restarts", "memory", "pid"];
const DUTIES = { janitor: "hands back what nobody holds any more", desk: "answers, and draws this page" };
const seen = new Map(); // the pid that a process had when it was drawn last

function drawProcesses(status, health) {
  const children = [...(status.children ?? [])].sort(byRank);
  put("workers-count", known(health.workers_ready) ? `${health.workers_ready} of ${count(health.workers_desired)} workers ready` : "");
  list(at("processes"), children, (child) => child.name, makeProcess, fillProcess);
}

const number = (name) => Number(/^worker-(\d+)$/.exec(name)?.[1] ?? Infinity);
function byRank(one, other) {
  return (number(one.name) - number(other.name) || 0) || one.name.localeCompare(other.name); // workers first
}

function makeProcess() {
  const row = made("tr");
  row.setAttribute("role", "row");
  COLUMNS.forEach((column, index) => {
    const cell = made(index ? "td" : "th", index > 2 ? "n" : column === "doing" ? "doing" : "", row);
    cell.setAttribute("role", index ? "cell" : "rowheader");
    if (!index) cell.scope = "row";
    cell.dataset.label = column;
    if (column === "state") made("span", "pill", cell);
  });
  row.addEventListener("animationend", () => row.classList.remove("new"));
  return row;
}

function fillProcess(row, child) {
  const [name, state, doing, hand, done, up, restarts, memory, pid] = row.children;
  put(name, child.name);
  const pill = state.firstChild;
  put(pill, child.state ?? NOTHING);
  pill.className = `pill ${child.state === "ready" ? "good" : child.state === "restarting" ? "bad" : "warn"}`;
  put(doing, doingOf(child));
  put(hand, count(child.stats?.in_hand));
  put(done, count(child.stats?.done));
  put(up, span(known(child.for_s) ? Math.floor(child.for_s) : undefined));
  put(restarts, count(child.restarts));
  restarts.classList.toggle("some", child.restarts > 0);
  put(memory, known(child.rss_mib) ? `${count(child.rss_mib)} MiB` : NOTHING);
  put(pid, known(child.pid) ? String(child.pid) : NOTHING);
  for (const cell of row.children) cell.classList.toggle("nil", cell.textContent === NOTHING);
  if (seen.has(child.name) && child.pid && seen.get(child.name) !== child.pid) row.classList.add("new");
  if (child.pid) seen.set(child.name, child.pid);
}

function doingOf(child) {
  const stats = child.stats ?? {};
  const said = [];
  if (child.state !== "ready") said.push(child.last_exit ? `ended last with ${child.last_exit}` : "");
  else if (stats.waits_for) said.push(`waits for ${stats.waits_for}`);
  else if (stats.asking > 0) said.push(`asks the model, ${many(stats.asking, "call")}`);
  else if (stats.at_the_gate) said.push("waits at the gate");
  else if (stats.in_hand > 0) said.push("works");
  else said.push(DUTIES[child.name] ?? "idle");
  if (stats.oldest_s > 0) said.push(`oldest in hand ${span(stats.oldest_s)}`);
  if (child.state === "ready" && child.restarts > 0 && child.last_exit) said.push(`the one before ended with ${child.last_exit}`);
  return said.filter(Boolean).join("; ") || NOTHING;
}

// -- dead letters and enriched events ---------------------------------------------------------------------------------

function drawDead(status, streams) {
  const causes = Object.entries(streams.dead_by_reason ?? {}).sort((a, b) => b[1] - a[1]);
  const most = Math.max(1, ...causes.map(([, n]) => n));
  const recent = status.recent_dead ?? [];
  at("dead-none").hidden = causes.length > 0 || recent.length > 0;
  put("dead-count", causes.length ? `${count(causes.reduce((sum, [, n]) => sum + n, 0))} ever, by reason` : "");
  list(at("causes"), causes, ([reason]) => reason, makeCause, (item, [reason, n]) => {
    const [name, track, number] = item.children;
    put(name, reason);
    track.firstChild.style.width = `${(n / most) * 100}%`;
    put(number, count(n));
  });
  at("h-recent-dead").hidden = recent.length === 0;
  list(at("dead"), recent, (entry) => entry.id, makeDead, (item, entry) => {
    const [line, detail] = item.children;
    put(line.children[0], entry.reason ?? NOTHING);
    put(line.children[1], entry.src ?? entry.id);
    put(line.children[2], ago(entry.at, status.at));
    put(detail, entry.detail ?? "");
  });
}

function makeCause() {
  const item = made("li");
  made("span", "name", item);
  made("div", "bar", made("div", "track", item));
  made("span", "count", item);
  return item;
}

function makeLine(item) {
  const line = made("p", "line", item);
  made("span", "what", line);
  made("span", "id", line);
  made("span", "ago", line);
}

function makeDead() {
  const item = made("li");
  makeLine(item);
  made("p", "detail", item);
  return item;
}

function drawEnriched(status) {
  const recent = status.recent_enriched ?? [];
  const read = at("enriched").matches(":focus-within") || at("enriched").querySelector("details[open]") !== null;
  at("enriched-held").hidden = !read;
  if (read) return; // what somebody reads, or has the focus in, is not taken away
  at("enriched-none").hidden = recent.length > 0;
  at("payload-note").hidden = !recent.length || recent.some((entry) => known(entry.payload?.length) || entry.results);
  list(at("enriched"), recent, (entry) => entry.id, makeEnriched, (item, entry) => {
    const [line, detail, more] = item.children;
    put(line.children[1], entry.src ?? entry.id);
    put(line.children[2], ago(entry.at, status.at));
    detail.hidden = !entry.results;
    put(detail, entry.results ? resultsOf(entry.results) : "");
    more.hidden = typeof entry.payload !== "string";
    put(more.lastChild, more.hidden ? "" : entry.payload);
  });
}

function makeEnriched() {
  const item = made("li");
  makeLine(item);
  made("p", "detail", item);
  const more = made("details", "", item);
  made("summary", "", more).textContent = "Payload";
  made("pre", "", more);
  return item;
}

function resultsOf(results) {
  const told = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));
  const fields = (result) =>
    result !== null && typeof result === "object" && !Array.isArray(result)
      ? Object.entries(result).map(([name, value]) => `${name} ${told(value)}`).join(", ")
      : told(result);
  return Object.entries(results).map(([task, result]) => `${task}: ${fields(result)}`).join("\n");
}

function drawFoot(status) {
  const redis = status.redis ?? {};
  const server = redis.reachable === false ? "Redis does not answer" : (redis.server || NOTHING);
  put("server", `${server} · writes ${redis.durability ?? NOTHING} · eviction ${redis.eviction ?? NOTHING}`);
  put("version", status.version ?? NOTHING);
  put("supervisor", known(status.supervisor_pid) ? String(status.supervisor_pid) : NOTHING);
}

// -- telling: to those who listen, only what has changed ---------------------------------------------------------------

let announced = "";
function announce(text) {
  if (text === announced) return;
  if (announced) put("told", text); // what stands there when the page opens is read anyway
  announced = text;
}

// -- the connection ---------------------------------------------------------------------------------------------------

let source;
let heardAt_ms = performance.now(); // also the moment of opening
let heardAtClock = "";
let held = false;
let latest;
let polls = false;

function hear(text) {
  latest = JSON.parse(text);
  heardAt_ms = performance.now();
  heardAtClock = new Date().toLocaleTimeString();
  remember(latest);
  if (!held) draw(latest);
  drawLink();
}

function drawLink() {
  const silent_ms = performance.now() - heardAt_ms;
  const lost = silent_ms > LOST_AFTER_MS;
  document.body.dataset.link = lost ? "lost" : held ? "held" : latest ? "live" : "waiting";
  const silence = `${Math.floor(silent_ms / 1000)} s`;
  put("link", lost ? `no news for ${silence}` : held ? "held still" : !latest ? "connecting" : polls ? "every 5 s" : "live");
  at("lost").hidden = !lost;
  if (!lost) return;
  const since = latest ? `What you see is ${span(silent_ms / 1000)} old, from ${heardAtClock}.` : "Nothing was heard yet.";
  put("lost", `The desk does not answer. ${since} Trying again.`);
  announce("The connection to the desk is lost.");
}

function open() {
  source?.close();
  source = new EventSource("live");
  source.onmessage = (message) => {
    polls = false;
    hear(message.data);
  };
  source.addEventListener("past", (message) => recall(JSON.parse(message.data)));
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
    ask();
    setTimeout(open, RETRY_MS);
  };
}

// The desk has refused the stream, since so many look on already: ask as worker-ctl does.
async function ask() {
  try {
    const reply = await fetch("status", { cache: "no-store" });
    if (!reply.ok) return;
    polls = true;
    hear(await reply.text());
  } catch {
    // the desk is away: the clock below says so
  }
}

let openedAt_ms = performance.now();
function watch() {
  const now_ms = performance.now();
  if (Math.min(now_ms - heardAt_ms, now_ms - openedAt_ms) > REOPEN_AFTER_MS && source.readyState !== EventSource.CLOSED) {
    openedAt_ms = now_ms;
    open();
  }
  drawLink();
}

at("hold").addEventListener("click", () => {
  held = !held;
  at("hold").setAttribute("aria-pressed", String(held));
  if (!held && latest) draw(latest);
  drawLink();
});

at("mark").setAttribute("d", MARKS.unknown);
open();
setInterval(watch, 1_000);
