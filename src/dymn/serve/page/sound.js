// Sound as the network wants it: mono at 32 kHz, cut into windows as dymn.audio.windows does it, filled up by repetition.

export const RATE = 32000;
export const WINDOW = 10 * RATE;
export const LIVE_SECONDS = 5; // of the microphone that an answer is about

// A recording, whatever its format, as mono samples at RATE; the browser decodes and resamples.
export async function decode(bytes) {
  const buffer = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
  return mono(buffer);
}

function mono(buffer) {
  const sum = Float32Array.from(buffer.getChannelData(0));
  for (let c = 1; c < buffer.numberOfChannels; c++) {
    const channel = buffer.getChannelData(c);
    for (let i = 0; i < sum.length; i++) sum[i] += channel[i];
  }
  for (let i = 0; i < sum.length; i++) sum[i] /= buffer.numberOfChannels;
  return sum;
}

export async function resampled(samples, rate) {
  if (rate === RATE) return samples;
  const context = new OfflineAudioContext(1, Math.max(1, Math.round((samples.length * RATE) / rate)), RATE);
  const buffer = context.createBuffer(1, samples.length, rate);
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

// Places of windows: a remainder of up to a tenth of a window belongs to the window before it.
export function windows(length) {
  const joined = Math.floor(WINDOW / 10);
  const found = [];
  let start = 0;
  for (; length - start > WINDOW + joined; start += WINDOW) found.push([start, start + WINDOW]);
  if (length - start > joined || start === 0) found.push([start, length]);
  return found;
}

export function filled(samples, length = WINDOW) {
  if (samples.length >= length) return samples;
  const whole = new Float32Array(length);
  for (let i = 0; i < length; i += samples.length) whole.set(samples.subarray(0, Math.min(samples.length, length - i)), i);
  return whole;
}

// The last seconds of sound that arrives in chunks.
export class Recent {
  constructor(rate, seconds) {
    this.rate = rate;
    this.buffer = new Float32Array(Math.round(rate * seconds));
    this.total = 0;
  }

  add(chunk) {
    const size = this.buffer.length;
    const kept = chunk.length > size ? chunk.subarray(chunk.length - size) : chunk;
    const at = (this.total + chunk.length - kept.length) % size;
    const first = kept.subarray(0, size - at);
    this.buffer.set(first, at);
    this.buffer.set(kept.subarray(first.length), 0);
    this.total += chunk.length;
  }

  get() {
    const size = this.buffer.length;
    if (this.total <= size) return this.buffer.slice(0, this.total);
    const at = this.total % size;
    const samples = new Float32Array(size);
    samples.set(this.buffer.subarray(at), 0);
    samples.set(this.buffer.subarray(0, at), size - at);
    return samples;
  }
}
