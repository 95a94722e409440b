// The desk's page: follows /live, draws each document that comes, and says so when none does.

import { at, draw, drawSilence, put, recall, remember } from "./draw.js";
import { span } from "./words.js";

const LOST_AFTER_MS = 6_000; // a message comes each second: so long without one is a connection that is gone
const REOPEN_AFTER_MS = 15_000; // … and one that is still open, but brings nothing, is given up
const RETRY_MS = 5_000; // after the desk refused the stream; meanwhile the page asks for the document itself

let source;
let heardAt_ms = performance.now(); // also the moment of opening
let heardAtClock = "";
let held = false;
let latest;
let drawn; // the latest, or while the page is held still an older one
let lost = false;
let polls = false;

function hear(text) {
  latest = JSON.parse(text);
  heardAt_ms = performance.now();
  heardAtClock = new Date().toLocaleTimeString();
  remember(latest);
  if (!held) drawn = latest;
  if (!held || lost) draw(drawn);
  drawLink();
}

function drawLink() {
  const silent_ms = performance.now() - heardAt_ms;
  lost = silent_ms > LOST_AFTER_MS;
  document.body.dataset.link = lost ? "lost" : held ? "held" : latest ? "live" : "waiting";
  const silence = span(Math.floor(silent_ms / 1000));
  put("link", lost ? `lost ${silence} ago` : linkOf());
  at("lost").hidden = !lost;
  if (!lost) return;
  const since = latest ? `What you see is ${silence} old, from ${heardAtClock}.` : "Nothing was heard yet.";
  put("lost", `The desk does not answer. ${since} Trying again.`);
  drawSilence();
}

function linkOf() {
  if (!latest) return "connecting";
  if (held) return "held still";
  return polls ? "every 5 s" : "live";
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
  const silent_ms = now_ms - Math.max(heardAt_ms, openedAt_ms);
  if (silent_ms > REOPEN_AFTER_MS && source.readyState !== EventSource.CLOSED) {
    openedAt_ms = now_ms;
    open();
  }
  drawLink();
}

at("hold").addEventListener("click", () => {
  held = !held;
  at("hold").setAttribute("aria-pressed", String(held));
  drawn = latest;
  if (!held && drawn) draw(drawn);
  drawLink();
});

open();
setInterval(watch, 1_000);
