// Draws a status document. Whatever comes from data is set as text, never as markup. An element is changed only where
// its text changes: what somebody reads, selects or has opened stays.

import { NOTHING, ago, brief, count, known, many, rate, share, span } from "./words.js";

const SPARK_S = 300;
const SPARK_WIDTH = 300;
const SPARK_HEIGHT = 56;
const WAITS_BRIEFLY_S = 5;
const HEADLINES = { ok: "All is well", degraded: "Degraded", down: "Down" };
const MARKS = {
  ok: "M12 2a10 10 0 1 1 0 20 10 10 0 0 1 0-20Zm5.2 6.3-1.5-1.4-5.1 5.5-2.5-2.4-1.4 1.4 4 3.9Z",
  degraded: "M12 2.5 23 21.5H1Zm-1.1 7v6h2.2v-6Zm0 7.6v2.1h2.2v-2.1Z",
  down:
    "M7.9 2h8.2L22 7.9v8.2L16.1 22H7.9L2 16.1V7.9Z" +
    "m.9 5.3L7.3 8.8l3.2 3.2-3.2 3.2 1.5 1.5 3.2-3.2 3.2 3.2 1.5-1.5-3.2-3.2 3.2-3.2-1.5-1.5-3.2 3.2Z",
  unknown: "M12 2a10 10 0 1 1 0 20 10 10 0 0 1 0-20Zm0 2.4a7.6 7.6 0 1 0 0 15.2 7.6 7.6 0 0 0 0-15.2Z",
};
const ICON_COLOURS = { ok: "#2f9e63", degraded: "#d18a14", down: "#d5392e", unknown: "#7d858c" };
const GATES = { closed: "open", paused: "paused" }; // a breaker that is closed lets through: as a gate it stands open
const GATE_WORDS = { closed: "lets calls through", away: "the model is away" };

// -- the page's elements ----------------------------------------------------------------------------------------------

export const at = (id) => document.getElementById(id);

export function put(element, text) {
  const target = typeof element === "string" ? at(element) : element;
  if (target.textContent !== text) target.textContent = text;
}

function made(tag, className, parent) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  parent?.append(element);
  return element;
}

// Make a list's children those of `items`, in their order. One whose key stays is not touched, only filled anew.
function list(parent, items, key, make, fill) {
  const names = items.map((item, index) => String(key(item, index)));
  for (const child of [...parent.children]) if (!names.includes(child.dataset.key)) child.remove();
  items.forEach((item, index) => {
    let child = [...parent.children].find((one) => one.dataset.key === names[index]);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = names[index];
    }
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
    fill(child, item);
  });
}

// -- drawing ----------------------------------------------------------------------------------------------------------

export function draw(status) {
  const health = status.health ?? {};
  const streams = status.streams ?? {};
  put("fleet", health.fleet ?? status.fleet ?? NOTHING);
  drawState(status, health);
  drawRace(health, streams);
  put("backlog", count(health.backlog));
  put("backlog-unit", health.backlog === 1 ? "event" : "events");
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
  const reasons = health.reasons ?? [];
  const headline = headlineOf(status, health);
  drawHead(HEADLINES[health.status] ? health.status : "unknown", headline, health.fleet ?? status.fleet);
  put("sentence", sentenceOf(status, health));
  list(at("reasons"), reasons, (_, index) => index, () => made("li"), put);
  list(at("notes"), health.notes ?? [], (_, index) => index, () => made("li"), put);
  announce(`${headline}. ${reasons.map(unnumbered).join(". ")}`);
}

function drawHead(state, headline, fleet) {
  document.body.dataset.status = state;
  document.title = `${headline} · ${fleet ?? "millhand"}`;
  at("mark").setAttribute("d", MARKS[state]);
  put("headline", headline);
  drawIcon(state);
}

// Take back the state and its reasons: what was true may not be so any more. The next `draw` puts them there again.
export function drawSilence() {
  drawHead("unknown", "No word from the desk", at("fleet").textContent);
  put("sentence", "How the fleet stands is not known. Below is what was heard last.");
  at("reasons").replaceChildren();
  at("notes").replaceChildren();
  announce("The connection to the desk is lost.");
}

// A reason without the seconds that run in it: the same one, as long as it lasts.
const unnumbered = (reason) => reason.replace(/,? ?\b(next probe in |for |in )?[\d.,]+ s\b( more| ago)?/g, "");

function headlineOf(status, health) {
  if (health.status === "down") return HEADLINES.down;
  if (status.crash_loop) return "Crash loop";
  if (status.paused) return "Paused";
  return HEADLINES[health.status] ?? "Unknown";
}

function sentenceOf(status, health) {
  const said = [];
  if (known(health.workers_ready) && !health.reasons?.length) said.push(`${readyOf(health)} ready.`);
  if (health.ready === false) said.push("No event is being enriched.");
  if (health.backlog === 0) said.push("Nothing waits.");
  else if (known(health.backlog)) said.push(waitingSentence(health, status.streams ?? {}));
  return said.join(" ");
}

const readyOf = (health) => `${health.workers_ready} of ${many(health.workers_desired, "worker")}`;

function waitingSentence(health, streams) {
  const waiting = `${many(health.backlog, "event")} wait${health.backlog === 1 ? "s" : ""}`;
  if (grows(health, streams)) return `${waiting}, and more come in than go out.`;
  if (!(health.drained_in_s > WAITS_BRIEFLY_S)) return `${waiting}.`;
  return `${waiting}; at this rate they are done in ${span(health.drained_in_s)}.`;
}

// Whether no end of the backlog is in sight; what has waited for a moment only is no backlog to speak of.
function grows(health, streams) {
  const out_per_s = health.enriched_per_s + (streams.dead_per_s ?? 0);
  return health.drained_in_s === null && health.backlog_age_s > WAITS_BRIEFLY_S && streams.in_per_s > out_per_s;
}

function drainedOf(health, streams) {
  if (health.backlog === 0) return "nothing waits";
  if (known(health.drained_in_s)) return `about ${span(health.drained_in_s)}`;
  if (grows(health, streams)) return "not at this rate";
  return health.backlog_age_s <= WAITS_BRIEFLY_S ? "keeps up" : NOTHING;
}

function drawIcon(state) {
  const path = `<path fill="${ICON_COLOURS[state]}" d="${MARKS[state]}"/>`;
  const icon = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">${path}</svg>`;
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
export function remember(status) {
  const at_s = performance.now() / 1000;
  past.push({ at_s, in: status.streams?.in_per_s ?? 0, out: status.health?.enriched_per_s ?? 0 });
  while (past[0].at_s < at_s - SPARK_S) past.shift();
}

export function recall(points) {
  const now_s = performance.now() / 1000;
  past = points.map(([ago_s, into, out]) => ({ at_s: now_s - ago_s, in: into, out }));
}

function drawRates(into, out) {
  const now_s = performance.now() / 1000;
  const peak = Math.max(...past.map((point) => Math.max(point.in, point.out)));
  const x = (point) => SPARK_WIDTH - ((now_s - point.at_s) / SPARK_S) * SPARK_WIDTH;
  const y = (value) => SPARK_HEIGHT - 1 - (value / Math.max(peak, 1)) * (SPARK_HEIGHT - 3);
  const line = (of) => `M${past.map((point) => `${x(point).toFixed(1)} ${y(point[of]).toFixed(1)}`).join("L")}`;
  at("spark-in").setAttribute("d", line("in"));
  at("spark-out").setAttribute("d", line("out"));
  at("spark-area").setAttribute("d", `${line("out")}V${SPARK_HEIGHT}H${x(past[0]).toFixed(1)}Z`);
  put("rate-out", rate(out));
  put("rate-out-2", rate(out));
  put("rate-in", rate(into));
  put("rate-peak", rate(peak));
  const told = `now ${rate(into)} in, ${rate(out)} out a second; peak ${rate(peak)}`;
  at("spark").setAttribute("aria-label", `Rate of the last 5 minutes: ${told}`);
}

function drawSuccess(health) {
  const over = health.success_rate_over ?? {};
  put("success", share(over["5m"]));
  put("success-1m", share(over["1m"]));
  put("success-15m", share(over["15m"]));
  put("success-ever", share(health.success_rate));
}

function drawLatency(latency) {
  put("latency", brief(latency.event?.p50_s));
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
  const probing = `for ${span(gate.since_s)}, next probe in ${span(gate.until_s)}`;
  const until = gate.state === "paused" ? `for ${span(gate.until_s)} more` : probing;
  return gate.says ? `${until}: ${gate.says}` : until;
}

// -- processes --------------------------------------------------------------------------------------------------------

const COLUMNS = ["name", "state", "doing", "in hand", "done", "up", "restarts", "memory", "pid"];
const DUTIES = {
  janitor: "hands back what nobody holds any more",
  desk: "answers, and draws this page",
  valkey: "the embedded server",
  model: "the embedded model",
};
const seen = new Map(); // the pid that a process had when it was drawn last

function drawProcesses(status, health) {
  const children = [...(status.children ?? [])].sort(byRank);
  put("workers-count", known(health.workers_ready) ? `${readyOf(health)} ready` : "");
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
  else if (stats.waits_for) said.push(/^(waits|paused)/.test(stats.waits_for) ? stats.waits_for : `waits for ${stats.waits_for}`);
  else if (stats.asking > 0) said.push(`asks the model, ${many(stats.asking, "call")}`);
  else if (stats.at_the_gate) said.push("waits at the gate");
  else if (stats.in_hand > 0) said.push("works");
  else said.push(child.name.startsWith("worker-") ? "idle" : DUTIES[child.name]);
  if (stats.oldest_s >= 1) said.push(`oldest in hand ${span(stats.oldest_s)}`);
  if (child.state === "ready" && child.restarts > 0 && child.last_exit) {
    said.push(`the one before ended with ${child.last_exit}`);
  }
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

// -- telling: to those who listen, only what has changed --------------------------------------------------------------

let announced = "";
function announce(text) {
  if (text === announced) return;
  if (announced) put("told", text); // what stands there when the page opens is read anyway
  announced = text;
}
