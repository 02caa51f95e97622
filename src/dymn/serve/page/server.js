// The server's part: the larger model.
import { LIVE_SECONDS } from "/page/sound.js";

const HOP = 0.5;
const MOST_WAITING = 2 ** 20; // bytes that the network has not taken yet
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
  if (!response.ok) throw new Refused(response.status, body?.error?.message ?? `The server answered ${response.status}.`);
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

// Sends chunks of samples; `heard` gets the tags of each window, `ended` why there are no more.
export class LiveOnServer {
  constructor(rate, heard, ended) {
    this.ready = this.begun = false;
    this.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/live`);
    this.socket.onopen = () =>
      this.socket.send(JSON.stringify({ sample_rate: rate, window: LIVE_SECONDS, hop: HOP, top_k: 10, token }));
    this.socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.ready) this.ready = true;
      else if (message.error) ended(message.error.message);
      else if (message.tags) heard(message);
    };
    this.socket.onclose = () => ended("The connection to the server ended.");
  }

  // The first second is sent as often as a window needs to be answered (a tenth more than its length), as if it had been heard all
  // along, so that there is an answer after one second.
  send(chunk, recent) {
    if (!this.ready || this.socket.bufferedAmount > MOST_WAITING) return;
    if (this.begun) this.socket.send(pcm(chunk));
    else if (recent.total >= recent.rate) {
      const first = pcm(recent.get().slice(-recent.rate));
      for (let seconds = 0; seconds < 1.1 * LIVE_SECONDS; seconds++) this.socket.send(first);
      this.begun = true;
    }
  }

  close() {
    this.ready = false;
    this.socket.onclose = null;
    this.socket.onmessage = null;
    this.socket.close();
  }
}
