// The server's part: the larger model.
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

// Sends chunks of samples; `heard` gets the tags of each window, `ended` why there are no more.
export class LiveOnServer {
  constructor(rate, heard, ended) {
    this.ready = false;
    this.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/live`);
    this.socket.onopen = () =>
      this.socket.send(JSON.stringify({ sample_rate: rate, format: "f32le", window: 5, hop: 1, top_k: 10, token }));
    this.socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.ready) this.ready = true;
      else if (message.error) ended(message.error.message);
      else if (message.tags) heard(message);
    };
    this.socket.onclose = () => ended("The connection to the server ended.");
  }

  send(chunk) {
    // What the network cannot take away in time is not piled up.
    if (this.ready && this.socket.bufferedAmount < 1 << 20) this.socket.send(chunk.buffer);
  }

  close() {
    this.socket.onclose = null;
    this.socket.onmessage = null;
    this.socket.close();
  }
}
