// The log-mel spectrogram that the networks hear (dymn.models.frontend), to be looked at.
const RATE = 32000, N_FFT = 1024, WIN = 800, HOP = 320, N_MELS = 128, F_MAX = 15000;
const BINS = N_FFT / 2;

const hann = Float64Array.from({ length: N_FFT }, (_, i) => {
  const at = i - (N_FFT - WIN) / 2;
  return at < 0 || at >= WIN ? 0 : 0.5 - 0.5 * Math.cos((2 * Math.PI * at) / (WIN - 1));
});
const cosines = Float64Array.from({ length: BINS }, (_, i) => Math.cos((2 * Math.PI * i) / N_FFT));
const sines = Float64Array.from({ length: BINS }, (_, i) => Math.sin((2 * Math.PI * i) / N_FFT));
const reversed = Uint16Array.from({ length: N_FFT }, (_, i) => parseInt(i.toString(2).padStart(10, "0").split("").reverse().join(""), 2));
const mel = (frequency) => 1127 * Math.log(1 + frequency / 700);

// Where a frequency in Hz is drawn, from 0 at the lower edge of the lowest band to 1 at the upper edge of the highest.
export const heightOf = (frequency) => ((mel(frequency) / mel(F_MAX)) * (N_MELS + 1) - 0.5) / N_MELS;

// Filters as lists of [bin, weight].
const filters = Array.from({ length: N_MELS }, (_, m) => {
  const spacing = mel(F_MAX) / (N_MELS + 1);
  const found = [];
  for (let bin = 0; bin < BINS; bin++) {
    const place = mel((bin * RATE) / N_FFT) / spacing - m;
    const weight = Math.min(place, 2 - place);
    if (weight > 0) found.push([bin, weight]);
  }
  return found;
});

function transform(re, im) {
  for (let size = 2; size <= N_FFT; size *= 2) {
    const half = size / 2, step = N_FFT / size;
    for (let start = 0; start < N_FFT; start += size) {
      for (let k = 0; k < half; k++) {
        const a = start + k, b = a + half, c = cosines[k * step], s = -sines[k * step];
        const x = re[b] * c - im[b] * s, y = re[b] * s + im[b] * c;
        re[b] = re[a] - x;
        im[b] = im[a] - y;
        re[a] += x;
        im[a] += y;
      }
    }
  }
}

// Samples at 32 kHz to { columns, rows, values }: values [column][row], the lowest band first. A long recording is looked at in
// `most` places only.
export function logMel(samples, most = 1000) {
  const columns = Math.max(1, Math.min(most, Math.floor(samples.length / HOP)));
  const values = new Float32Array(columns * N_MELS);
  const re = new Float64Array(N_FFT), im = new Float64Array(N_FFT), power = new Float64Array(BINS);
  for (let column = 0; column < columns; column++) {
    const start = Math.round((column * samples.length) / columns) - N_FFT / 2;
    for (let i = 0; i < N_FFT; i++) {
      const at = start + i;
      const sample = at >= 0 && at + 1 < samples.length ? samples[at + 1] - 0.97 * samples[at] : 0;
      re[reversed[i]] = sample * hann[i];
    }
    im.fill(0);
    transform(re, im);
    for (let bin = 0; bin < BINS; bin++) power[bin] = re[bin] * re[bin] + im[bin] * im[bin];
    for (let m = 0; m < N_MELS; m++) {
      let sum = 1e-5;
      for (const [bin, weight] of filters[m]) sum += weight * power[bin];
      values[column * N_MELS + m] = (Math.log(sum) + 4.5) / 5;
    }
  }
  return { columns, rows: N_MELS, values };
}
