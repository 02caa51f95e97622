// The page: a file or the microphone, through the network in this browser or on the server.
import { clock, drawFrequencies, drawLogMel, drawStrips, drawTags, drawTimeline } from "/page/draw.js";
import { asCsv, asJson, save } from "/page/save.js";
import { LiveOnServer, Refused, served, tagOnServer, useToken } from "/page/server.js";
import { decode, filled, LIVE_SECONDS, RATE, Recent, resampled, windows } from "/page/sound.js";

const SHOWN = 10;
const ROWS = 6;
const COLUMNS = 12; // of the table over time; more windows are drawn as a picture
const SAID_EVERY = 3000; // milliseconds
const NO_SOUND_AFTER = 5000;
const MAX_FILE = 300 * 2 ** 20;
const part = (id) => document.getElementById(id);

// --- The worker ---

const worker = new Worker("/page/network.js", { type: "module" });
const waiting = new Map();
let calls = 0;

worker.onmessage = ({ data }) => {
  const { resolve, reject } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.error) reject(new Error(data.error));
  else resolve(data.result);
};
worker.onerror = () => {
  for (const { reject } of waiting.values()) reject(new Error("the worker cannot start"));
  waiting.clear();
};

function ask(what, rest = {}) {
  return new Promise((resolve, reject) => {
    waiting.set(++calls, { resolve, reject });
    worker.postMessage({ id: calls, what, ...rest });
  });
}

// --- What is said ---

let nextSaid = 0;

function say(text) {
  if (part("status").textContent !== text) part("status").textContent = text;
}

// What changes all the time is said now and then only: screen readers read it out.
function sayNowAndThen(text) {
  if (performance.now() < nextSaid) return;
  nextSaid = performance.now() + SAID_EVERY;
  say(text);
}

function complain(text) {
  part("problem").textContent = text;
}

// --- Where the network runs ---

let network = null; // what is known of the one in this browser
let turn = 0; // of what is being looked at; answers to what was before are dropped

const inBrowser = () => part("in-browser").checked;

function threads() {
  if (!self.crossOriginIsolated) return 1;
  return Math.max(1, Math.min(4, navigator.hardwareConcurrency ?? 1));
}

async function prepareBrowser() {
  const note = part("browser-note");
  try {
    const state = await (await fetch("/page/state.json")).json();
    if (!state.in_browser) throw new Error("its files are not installed (make page)");
    note.textContent = "Loading …";
    network = await ask("load", { threads: threads() });
    part("browser-model").textContent = network.name;
    note.textContent = "The audio never leaves this device.";
    part("in-browser").disabled = false;
    part("in-browser").checked = true;
  } catch (error) {
    note.textContent = `Not available: ${error.message}.`;
    part("on-server").checked = true;
  }
}

async function prepareServer() {
  part("server-host").textContent = location.host;
  try {
    const { models } = await served();
    part("server-model").textContent = models.find((model) => model.default).name;
    part("token-row").hidden = true;
  } catch (error) {
    if (!(error instanceof Refused && error.status === 401)) complain(`The server does not respond: ${error.message}`);
    else if (!inBrowser()) part("token-row").hidden = false;
  }
}

part("token-use").addEventListener("click", async () => {
  useToken(part("token").value);
  complain("");
  await prepareServer();
  if (part("token-row").hidden) say("The server accepts the token.");
  else complain("The server does not accept this token.");
});

part("where").addEventListener("change", async () => {
  stopListening();
  complain("");
  if (!inBrowser()) await prepareServer();
  else part("token-row").hidden = true;
  if (file) await look(file);
});

// --- A file ---

let file = null;
let address = "";
let result = null; // of the file, to be saved

const best = (scores, count) =>
  Array.from(scores, (score, i) => ({ label: network.labels[i], score }))
    .sort((a, b) => b.score - a.score)
    .slice(0, count);

async function tagHere(samples, mine) {
  const spans = windows(samples.length);
  const each = [];
  const highest = new Float32Array(network.labels.length);
  let milliseconds = 0;
  for (const [start, end] of spans) {
    if (spans.length > 1) sayNowAndThen(`Listening: ${clock(start / RATE)} of ${clock(samples.length / RATE)} …`);
    const answer = await ask("scores", { samples: filled(samples.slice(start, end)) });
    if (mine !== turn) return null;
    milliseconds += answer.milliseconds;
    each.push(answer.scores);
    answer.scores.forEach((score, i) => (highest[i] = Math.max(highest[i], score)));
  }
  const tags = best(highest, SHOWN);
  const rows = tags.slice(0, ROWS).map(({ label }) => ({ label, scores: each.map((scores) => scores[network.labels.indexOf(label)]) }));
  const parts = spans.map(([start, end], i) => ({ start: start / RATE, end: end / RATE, tags: best(each[i], SHOWN) }));
  return { model: network.name, tags, rows, windows: parts, milliseconds, seconds: samples.length / RATE };
}

async function tagThere(recording) {
  const before = performance.now();
  const answer = await tagOnServer(recording);
  const tags = answer.tags.slice(0, SHOWN);
  const score = (window, label) => window.tags.find((tag) => tag.label === label)?.score ?? 0;
  const rows = tags.slice(0, ROWS).map(({ label }) => ({ label, scores: answer.windows.map((window) => score(window, label)) }));
  const model = part("server-model").textContent;
  return { model, tags, rows, windows: answer.windows, milliseconds: performance.now() - before, seconds: answer.seconds };
}

async function look(recording) {
  const mine = ++turn;
  file = recording;
  stopListening();
  complain("");
  say(`Reading ${recording.name} …`);
  show(recording.name);
  try {
    if (recording.size > MAX_FILE) throw new Error(`It is larger than ${MAX_FILE / 2 ** 20} MiB. Split it, or use dymn tag.`);
    const samples = await recording.arrayBuffer().then(decode).catch(() => null);
    if (mine !== turn) return;
    if (!samples?.length && inBrowser()) throw new Error("This browser cannot decode it. Try the server: select it above.");
    part("answer").hidden = false;
    showSound(recording, samples, mine);
    say("Listening …");
    const answer = inBrowser() ? await tagHere(samples, mine) : await tagThere(recording);
    if (mine !== turn || !answer) return;
    showAnswer(answer);
    result = { file: recording.name, model: answer.model, seconds: answer.seconds, tags: answer.tags, windows: answer.windows };
    part("save").hidden = false;
    say(`Done. Most likely: ${answer.tags.slice(0, 3).map((tag) => `${tag.label} ${tag.score.toFixed(2)}`).join(", ") || "nothing"}.`);
    part("title").focus({ preventScroll: true });
  } catch (error) {
    if (mine !== turn) return;
    say("");
    part("answer").hidden = true;
    if (error instanceof Refused && error.status === 401) part("token-row").hidden = false;
    complain(error.message.startsWith(recording.name) ? error.message : `${recording.name}: ${error.message}`);
  }
}

// An empty answer, which is not shown before there is something to see.
function show(title) {
  part("answer").hidden = true;
  part("title").textContent = title;
  part("tags").replaceChildren();
  part("player").pause();
  part("player").hidden = true;
  part("picture").hidden = true;
  part("timeline-part").hidden = part("save").hidden = true;
  part("speed").textContent = part("pointed").textContent = "";
  result = null;
  for (const head of heads) head.hidden = true;
}

async function showSound(recording, samples, mine) {
  if (address) URL.revokeObjectURL(address);
  if (!samples?.length) return; // this browser cannot play it either
  address = URL.createObjectURL(recording);
  part("player").src = address;
  part("from").textContent = "0 s";
  part("to").textContent = clock(samples.length / RATE);
  part("player").hidden = part("picture").hidden = false;
  const picture = await ask("logMel", { samples, columns: 1000 });
  if (mine === turn) drawLogMel(part("log-mel"), picture);
}

function showAnswer({ tags, rows, windows, milliseconds, seconds }) {
  drawTags(part("tags"), tags);
  const spans = windows.map(({ start, end }) => [start, end]);
  const isLong = spans.length > COLUMNS;
  part("timeline-part").hidden = spans.length < 2;
  part("timeline").hidden = isLong;
  part("strips").hidden = !isLong;
  if (isLong) drawStrips(STRIPS, rows, spans, seconds);
  else if (spans.length > 1) drawTimeline(part("timeline"), rows, spans);
  const times = seconds / (milliseconds / 1000);
  const speed = part("speed");
  speed.textContent = `${clock(seconds)} of sound took ${(milliseconds / 1000).toFixed(2)} s ${inBrowser() ? "in this browser" : "on the server and on the way"}: ${times.toFixed(times < 10 ? 1 : 0)} times as fast as it plays.`;
  speed.dataset.milliseconds = milliseconds;
  speed.dataset.seconds = seconds;
}

const heads = document.querySelectorAll(".head");
const STRIPS = { labels: part("strip-labels"), canvases: part("strip-canvases"), ticks: part("strip-ticks"), scale: part("scale") };

part("player").addEventListener("timeupdate", () => {
  const { currentTime, duration } = part("player");
  for (const head of heads) {
    head.hidden = !(duration > 0);
    head.style.left = `${(100 * currentTime) / duration}%`;
  }
});

// A click goes to its place in the recording; pointing says what was heard there.
for (const id of ["log-mel", "strip-canvases"]) {
  const place = (event) => {
    const box = part(id).getBoundingClientRect();
    return Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
  };
  part(id).addEventListener("click", (event) => {
    const { duration, hidden } = part("player");
    if (!hidden && duration > 0) part("player").currentTime = place(event) * duration;
  });
  part(id).addEventListener("pointermove", (event) => {
    if (!result) return;
    const at = place(event) * result.seconds;
    const tags = result.windows.find(({ end }) => at <= end)?.tags ?? [];
    part("pointed").textContent = [clock(at), ...tags.slice(0, 3).map((tag) => `${tag.label} ${tag.score.toFixed(2)}`)].join("  ·  ");
  });
}

part("save-csv").addEventListener("click", () => save(result.file, "csv", asCsv(result)));
part("save-json").addEventListener("click", () => save(result.file, "json", asJson(result)));

part("file").addEventListener("change", () => {
  const [chosen] = part("file").files;
  if (chosen) look(chosen);
  part("file").value = "";
});

for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    part("drop").classList.toggle("over", name === "dragover");
    const [dropped] = (name === "drop" && event.dataTransfer?.files) || [];
    if (dropped) look(dropped);
  });
}

// --- The microphone ---

let listening = null;

async function listen() {
  const mine = ++turn;
  file = null;
  complain("");
  if (!navigator.mediaDevices?.getUserMedia) {
    complain("The browser allows the microphone only for pages on this machine or with HTTPS. Open this page at http://127.0.0.1, or over HTTPS.");
    return;
  }
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
  } catch (error) {
    complain(error.name === "NotFoundError" ? "There is no microphone." : "Access to the microphone is denied. Allow it for this page in the browser.");
    return;
  }
  const context = new AudioContext();
  context.resume(); // not waited for: without a device for sound it never comes to an end
  await context.audioWorklet.addModule("/page/capture.js");
  const recent = new Recent(context.sampleRate, LIVE_SECONDS);
  const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  new MediaStreamAudioSourceNode(context, { mediaStream: stream }).connect(node);
  const server = inBrowser() ? null : new LiveOnServer(context.sampleRate, heard, unheard, (why) => (stopListening(), complain(why)));
  node.port.onmessage = ({ data }) => {
    recent.add(data);
    server?.send(data, recent);
  };
  listening = { stream, context, server };
  part("mic").classList.add("primary");
  part("mic").textContent = "Stop the microphone";
  show("The microphone");
  say("Listening …");
  const begun = performance.now();
  while (mine === turn && listening) {
    if (!recent.total && performance.now() - begun > NO_SOUND_AFTER) {
      stopListening();
      complain("No audio arrives. Check that the system's microphone and loudspeakers work, and restart the browser.");
    }
    if (recent.total >= recent.rate) await hear(await resampled(recent.get(), recent.rate), mine);
    await new Promise((resolve) => setTimeout(resolve, 400));
  }
}

async function hear(samples, mine) {
  const picture = await ask("logMel", { samples, columns: 500 });
  if (mine !== turn || !listening) return;
  part("answer").hidden = part("picture").hidden = false;
  drawLogMel(part("log-mel"), picture);
  part("from").textContent = `${clock(samples.length / RATE)} ago`;
  part("to").textContent = "now";
  if (!inBrowser()) return;
  const { scores, milliseconds } = await ask("scores", { samples: filled(samples, LIVE_SECONDS * RATE) });
  if (mine !== turn || !listening) return;
  heard(best(scores, SHOWN));
  part("speed").textContent = `The last ${LIVE_SECONDS} s of audio took ${(milliseconds / 1000).toFixed(2)} s.`;
}

function heard(tags) {
  drawTags(part("tags"), tags);
  sayNowAndThen(`Detected: ${tags.length && tags[0].score >= 0.1 ? tags[0].label : "no known sound"}`);
}

function unheard(why) {
  if (part("problem").textContent !== why) complain(why); // it is read out again whenever it is set
  if (why) say("Waiting for the server …");
}

function stopListening() {
  if (!listening) return;
  turn++;
  for (const track of listening.stream.getTracks()) track.stop();
  listening.context.close();
  listening.server?.close();
  listening = null;
  part("mic").classList.remove("primary");
  part("mic").textContent = "Use the microphone";
  say("The microphone is off.");
}

part("mic").addEventListener("click", () => (listening ? stopListening() : listen()));

// --- Start ---

drawFrequencies(part("frequencies"));
await prepareBrowser();
await prepareServer();
say("Ready.");
document.body.dataset.ready = "true";
