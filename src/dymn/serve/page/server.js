// The server's part: the larger model.
import { LIVE_SECONDS } from "/page/sound.js";

const HOP = 0.5;
const MOST_BEHIND = 10; // seconds of sound that wait for their answer; what does not fit is left out
const AGAIN_AFTER = 3; // seconds
const FOR_NOW = [1001, 1006, 1012, 1013]; // the server ends, is gone, begins anew, or takes no more just now
let token = "";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function useToken(text) {
  token = text.trim();
}

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

async function answer(response) {
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, body?.error?.message ?? `The server responded with ${response.status}.`);
  return body;
}

export async function served() {
  return answer(await fetch("/v1/models", { headers: headers() }));
}

export async function tagOnServer(file) {
  const body = new FormData();
  body.append("file", file);
  return answer(await fetch("/v1/tag?timeline=true&top_k=20", { method: "POST", headers: headers(), body }));
}

const pcm = (samples) => Int16Array.from(samples, (value) => 32767 * Math.max(-1, Math.min(1, value))).buffer;

// Sends chunks of samples. `heard` gets the tags of each window; `lost` why sound goes unheard for now, and "" when it is heard again;
// `ended` why there are no more answers.
export class LiveOnServer {
  constructor(rate, heard, lost, ended) {
    Object.assign(this, { rate, heard, lost, ended });
    this.connect();
  }

  connect() {
    this.ready = this.begun = false;
    this.sent = this.answered = 0; // seconds of sound
    let why = "The server does not respond.";
    this.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/live`);
    this.socket.onopen = () =>
      this.socket.send(JSON.stringify({ sample_rate: this.rate, window: LIVE_SECONDS, hop: HOP, top_k: 10, token }));
    this.socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.ready) this.ready = true;
      else if (message.error) why = message.error.message;
      else if (message.tags) {
        this.answered = message.end;
        if (this.behind() <= MOST_BEHIND / 2) this.lost("");
        this.heard(message.tags);
      }
    };
    this.socket.onclose = ({ code }) => {
      this.ready = false;
      if (!FOR_NOW.includes(code)) return this.ended(why);
      this.lost(`${why} The microphone is not analysed meanwhile; this page tries again every ${AGAIN_AFTER} s.`);
      this.timer = setTimeout(() => this.connect(), 1000 * AGAIN_AFTER);
    };
  }

  behind() {
    return this.sent - this.answered;
  }

  // The first second is sent as often as a window needs to be answered (a tenth more than its length), as if it had been heard all
  // along, so that there is an answer after one second.
  send(chunk, recent) {
    if (!this.ready) return;
    if (this.begun && this.behind() > MOST_BEHIND) {
      this.lost("The server is currently too slow for live audio: parts of it are not analysed.");
    } else if (this.begun) {
      this.socket.send(pcm(chunk));
      this.sent += chunk.length / this.rate;
    } else if (recent.total >= recent.rate) {
      const first = pcm(recent.get().slice(-recent.rate));
      for (; this.sent < 1.1 * LIVE_SECONDS; this.sent++) this.socket.send(first);
      this.begun = true;
    }
  }

  close() {
    this.ready = false;
    clearTimeout(this.timer);
    this.socket.onclose = null;
    this.socket.onmessage = null;
    this.socket.close();
  }
}
