// What is seen: spectrogram, tags, timeline. Names and labels are only ever text.
import { heightOf } from "/page/log-mel.js";

const STOPS = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const COLOURS = Array.from({ length: 256 }, (_, i) => {
  const place = (i / 255) * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((from, c) => from + (STOPS[low + 1][c] - from) * (place - low));
});

export function drawLogMel(canvas, { columns, rows, values }) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const sorted = Float32Array.from(values.filter((_, i) => i % 7 === 0)).sort();
  const low = sorted[Math.floor(sorted.length * 0.02)], high = Math.max(sorted[Math.floor(sorted.length * 0.998)], low + 0.2);
  for (let x = 0; x < columns; x++) {
    for (let y = 0; y < rows; y++) {
      const share = (values[x * rows + rows - 1 - y] - low) / (high - low);
      const colour = COLOURS[Math.max(0, Math.min(255, Math.round(share * 255)))];
      image.data.set([...colour, 255], 4 * (y * columns + x));
    }
  }
  context.putImageData(image, 0, 0);
}

function made(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Labels may say which way their letters run; isolated, they cannot turn what stands beside them.
function label(name, className, text) {
  const element = made(name, className, text);
  element.dir = "auto";
  return element;
}

export function drawTags(list, tags) {
  list.replaceChildren(
    ...tags.map(({ label: name, score }) => {
      const item = made("li");
      const trough = made("div", "trough"), bar = made("div", "bar");
      trough.setAttribute("aria-hidden", "true");
      bar.style.width = `${(100 * score).toFixed(1)}%`;
      trough.append(bar);
      item.append(label("span", "label", name), trough, made("span", "score", score.toFixed(2)));
      return item;
    }),
  );
  if (!tags.length) list.append(made("li", "none", "No label is likely."));
}

export function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return minutes ? `${minutes}:${String(Math.floor(seconds % 60)).padStart(2, "0")}` : `${Math.round(seconds * 10) / 10} s`;
}

export function drawFrequencies(axis) {
  axis.replaceChildren(
    ...[["200 Hz", 200], ["500", 500], ["1 kHz", 1000], ["2", 2000], ["5", 5000], ["10", 10000]].map(([text, frequency]) => {
      const tick = made("span", "", text);
      tick.style.bottom = `${100 * heightOf(frequency)}%`;
      return tick;
    }),
  );
}

const STEPS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 86400];

function drawTicks(place, seconds) {
  const step = STEPS.find((one) => seconds / one <= 6) ?? seconds;
  place.replaceChildren(
    ...Array.from({ length: Math.floor(seconds / step) + 1 }, (_, i) => {
      const tick = made("span", "", clock(i * step));
      tick.style.left = `${(100 * i * step) / seconds}%`;
      return tick;
    }),
  );
}

// The timeline of a long recording as a picture: a strip for each label. rows and spans are those of drawTimeline.
export function drawStrips({ labels, canvases, ticks, scale }, rows, spans, seconds) {
  labels.replaceChildren(...rows.map((row) => Object.assign(label("span", "", row.label), { title: row.label })));
  canvases.replaceChildren(
    ...rows.map((row) => {
      const canvas = Object.assign(made("canvas"), { width: Math.min(4000, Math.max(1000, spans.length)), height: 1 });
      const context = canvas.getContext("2d"), wide = canvas.width / seconds;
      spans.forEach(([start, end], i) => {
        context.fillStyle = `rgb(${COLOURS[Math.round(255 * row.scores[i])].map(Math.round)})`;
        context.fillRect(start * wide, 0, (end - start) * wide, 1);
      });
      return canvas;
    }),
  );
  canvases.ariaLabel = `Probability over time of ${rows.map((row) => row.label).join(", ")}. Save the results for the numbers.`;
  drawTicks(ticks, seconds);
  scale.style.background = `linear-gradient(90deg, ${STOPS.map((stop) => `rgb(${stop})`)})`;
}

// rows: [{ label, scores }], spans: [[start, end]] in seconds.
export function drawTimeline(table, rows, spans) {
  const first = made("tr");
  first.append(made("td"), ...spans.map(([start]) => Object.assign(made("th", "", clock(start)), { scope: "col" })));
  table.tHead.replaceChildren(first);
  table.tBodies[0].replaceChildren(
    ...rows.map((row) => {
      const line = made("tr");
      line.append(
        Object.assign(label("th", "", row.label), { scope: "row" }),
        ...row.scores.map((score) => {
          const cell = made("td", "", score.toFixed(2));
          cell.style.background = `color-mix(in srgb, var(--heat) ${Math.round(100 * score)}%, var(--panel))`;
          return cell;
        }),
      );
      return line;
    }),
  );
}
