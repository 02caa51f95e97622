const HEIGHT = {sound: 300, tags: 26, time: 165, fan: 76};
const wanted = Number(location.hash.slice(1)) - 1; // page.html#5 opens on block 5
let chosen = wanted in data.blocks ? wanted : null; // a block's place in the list, or null for the means of all

const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
const meanRow = rows => Float32Array.from(rows[0], (_, c) => mean(rows.map(row => row[c])));
const centred = row => { const m = mean(row); return Float32Array.from(row, value => value - m); };

const logMel = unpacked(data.logMel), timeline = unpacked(data.timeline);
const blocks = data.blocks.map(block => ({...block, time: unpacked(block.time), frequency: unpacked(block.frequency)}));
const deviations = axis => blocks.map(block => block[axis] ? centred(meanRow(block[axis])) : new Float32Array(1));
const all = {time: deviations("time"), frequency: deviations("frequency")};
const has = {time: blocks.some(b => b.time), frequency: blocks.some(b => b.frequency)};

function shown(axis) { // rows of deviations to draw, and the value of the strongest colour
  if (chosen === null) return [all[axis], data.scale];
  const rows = (blocks[chosen][axis] || []).map(centred);
  const order = rows.map((row, i) => [Math.max(...row.map(Math.abs)), i]).sort((a, b) => b[0] - a[0]);
  const sorted = order.map(([, i]) => rows[i]);
  return [sorted, sorted.length ? Math.max(order[Math.floor(order.length * 0.1)][0], 1e-3) : 1];
}

function surface(id, height) {
  const canvas = at(id), ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || 300;
  canvas.style.height = height + "px";
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return [context, width, height];
}

function image(context, width, height, rows, columns, colour) {
  const small = document.createElement("canvas");
  paint(small, rows, columns, colour);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, width, height);
}

function drawSound() {
  const [context, width, height] = surface("sound", HEIGHT.sound), n = logMel.length;
  image(context, width, height, n, logMel[0].length, (r, c) => COLOURS.loudness(logMel[n - 1 - r][c]));
  at("kilohertz").style.height = height + "px";
  drawKilohertz();
}

function drawTags() {
  const k = data.labels.length, [context, width, height] = surface("tags", HEIGHT.tags * k);
  const peaks = timeline.map(row => Math.max(...row)), most = Math.max(...peaks, 1e-6);
  timeline.forEach((row, i) => {
    const base = (i + 1) * HEIGHT.tags, x = t => t / data.seconds * width;
    context.beginPath(); context.moveTo(0, base); context.lineTo(0, base - 0.88 * HEIGHT.tags * row[0] / most);
    row.forEach((value, w) => context.lineTo(x(data.times[w]), base - 0.88 * HEIGHT.tags * value / most));
    context.lineTo(width, base - 0.88 * HEIGHT.tags * row[row.length - 1] / most); context.lineTo(width, base);
    context.fillStyle = "#d55e00"; context.fill();
    context.fillStyle = "#dcdce2"; context.fillRect(0, base - 1, width, 1);
  });
  const axis = at("labels");
  axis.style.height = HEIGHT.tags * k + "px";
  axis.replaceChildren(...data.labels.map((text, i) => {
    const item = made("span", "", {bottom: (100 * (k - i - 0.55) / k) + "%"});
    item.append(made("b", text), made("i", peaks[i].toFixed(2)));
    return item;
  }));
}

function drawAttention() {
  const [time, strongest] = shown("time"), [frequency, strongestFrequency] = shown("frequency");
  const [context, width, height] = surface("time", HEIGHT.time);
  const columns = Math.max(1, ...time.map(row => row.length));
  if (has.time && time.length) image(context, width, height, time.length, columns, (r, c) =>
    COLOURS.deviation(0.5 + time[r][Math.floor(c * time[r].length / columns)] / strongest / 2));
  else nothing(context, width, height, "no channel-time attention");
  const [side, sideWidth, sideHeight] = surface("frequency", HEIGHT.sound);
  const bands = Math.max(1, ...frequency.map(row => row.length));
  if (has.frequency && frequency.length) image(side, sideWidth, sideHeight, bands, frequency.length, (r, c) =>
    COLOURS.deviation(0.5 + frequency[c][Math.floor((bands - 1 - r) * frequency[c].length / bands)] / strongestFrequency / 2));
  else nothing(side, sideWidth, sideHeight, "no channel-frequency attention");
  const number = chosen === null ? null : blocks[chosen].number;
  at("when").textContent = "Channel-time attention of " + (number ? "the channels of block " + number : "each block");
  at("where").textContent = "Frequency attention";
  const ends = number ? ["channels, most", "least"] : ["block 1", String(blocks.length)];
  at("frequencyTicks").replaceChildren(...ends.map(text => Object.assign(document.createElement("span"), {textContent: text})));
  const axis = at("rows");
  axis.style.height = HEIGHT.time + "px";
  const names = number ? [["channels that", 0.93], ["vary most first", 0.83]] :
    blocks.map((block, i) => [block.number === 1 ? "block 1" : String(block.number), 1 - (i + 0.5) / blocks.length]).filter((_, i) => i === 0 || (i + 1) % 5 === 0);
  axis.replaceChildren(...names.map(([text, place]) => made("span", text, {bottom: 100 * place + "%"})));
  at("scaleText").textContent = (number ? "weight of a channel against its mean over the clip, up to ±" + strongest.toFixed(2) + " over time, ±" + strongestFrequency.toFixed(2) + " over frequency"
    : "mean weight of a block's channels against its mean over the clip, up to ±" + data.scale.toFixed(3));
}

function nothing(context, width, height, text) {
  context.fillStyle = "#63636b"; context.font = "14px sans-serif"; context.textAlign = "center";
  context.fillText(text, width / 2, height / 2);
}

function drawKernels() {
  const head = document.createElement("tr");
  head.append(document.createElement("th"), ...data.positions.map(name => Object.assign(document.createElement("th"), {textContent: name})));
  const rows = blocks.map((block, i) => {
    const row = document.createElement("tr"), name = document.createElement("th");
    name.textContent = block.number; row.append(name); row.className = i === chosen ? "chosen" : "";
    row.style.cursor = "pointer"; row.onclick = () => choose(i === chosen ? null : i);
    for (const position of data.positions) {
      const cell = document.createElement("td"), bar = document.createElement("div"), shares = block.kernels[position];
      bar.className = shares ? "bar" : "bar none";
      bar.title = shares ? shares.map((share, k) => "kernel " + (k + 1) + ": " + share.toFixed(3)).join("\n") : "static";
      (shares || []).forEach((share, k) => { const part = document.createElement("i");
        const shown = 1 / shares.length + data.kernelZoom * (share - 1 / shares.length);
        part.style.cssText = "width:" + 100 * shown + "%;background:" + data.colours[k % data.colours.length]; bar.append(part); });
      cell.append(bar); row.append(cell);
    }
    return row;
  });
  at("kernels").replaceChildren(head, ...rows);
}

function drawFans() {
  at("fans").replaceChildren(...blocks.map((block, i) => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas"), caption = document.createElement("figcaption");
    canvas.id = "fan" + i; caption.textContent = (i ? "" : "block ") + block.number + (block.zoom > 1 ? "  ×" + block.zoom : "");
    figure.append(canvas, caption); figure.className = i === chosen ? "chosen" : "";
    figure.onclick = () => choose(i === chosen ? null : i);
    return figure;
  }));
  blocks.forEach((block, i) => {
    const [context, width, height] = surface("fan" + i, HEIGHT.fan);
    const x = v => (v + 2) / 4 * width, y = v => (3 - v) / 4 * height, places = Array.from({length: 41}, (_, j) => -2 + j / 10);
    const line = (values, colour, thickness, dash) => { context.beginPath(); context.setLineDash(dash || []); context.strokeStyle = colour; context.lineWidth = thickness;
      values.forEach((value, j) => context.lineTo(x(places[j]), y(value))); context.stroke(); };
    context.strokeStyle = "#dcdce2"; context.strokeRect(0.5, 0.5, width - 1, height - 1);
    line(places.map(() => 0), "#dcdce2", 1);
    const positions = Object.keys(block.slopes);
    for (const position of positions) {
      const curves = block.slopes[position].map((slopes, c) => places.map(v => {
        const value = Math.max(...slopes.map((a, m) => a * v + block.intercepts[position][c][m])), relu = Math.max(v, 0);
        return relu + block.zoom * (value - relu); }));
      const step = Math.max(1, Math.floor(curves.length / 120));
      curves.filter((_, c) => c % step === 0).forEach(curve => line(curve, "rgba(0,114,178,0.18)", 0.7));
      line(places.map((_, j) => mean(curves.map(curve => curve[j]))), "#d55e00", 1.8);
    }
    if (positions.length) line(places.map(v => Math.max(v, 0)), "#1b1b1f", 1, [3, 2]); else nothing(context, width, height, "static");
  });
}

function drawScale() {
  const [context, width, height] = surface("scale", 10);
  image(context, width, height, 1, 120, (_, c) => COLOURS.deviation(c / 119));
}

function choose(block) {
  chosen = block;
  document.querySelectorAll("#blocks button").forEach((button, i) => button.setAttribute("aria-pressed", String(block === (i ? i - 1 : null))));
  drawAttention(); drawKernels(); drawFans();
}

function draw() { drawSound(); drawTags(); drawScale(); choose(chosen); }

at("name").textContent = data.name; document.title = data.name + " · dymn explain";
at("found").textContent = data.found.join(",  ") + "  ·  " + data.model + ", " + data.seconds.toFixed(1) + " s";
at("mixes").textContent = "Kernel shares" + (data.kernelZoom > 1 ? " (differences ×" + data.kernelZoom + ")" : "");
at("says").textContent = "Tags in windows of " + data.window + " s (peak next to each name)";
at("seconds").replaceChildren(...[0, 0.2, 0.4, 0.6, 0.8, 1].map(part => Object.assign(document.createElement("span"), {textContent: (part * data.seconds).toFixed(1) + " s"})));
["all blocks", ...blocks.map(block => String(block.number))].forEach((text, i) => {
  const button = document.createElement("button");
  button.textContent = text; button.type = "button"; button.setAttribute("aria-label", i ? "block " + text : text);
  button.onclick = () => choose(i ? i - 1 : null);
  at("blocks").append(button);
});
const audio = at("audio");
audio.src = data.audio;
document.querySelectorAll(".along canvas").forEach(canvas => canvas.addEventListener("click", event => {
  audio.currentTime = event.offsetX / canvas.clientWidth * data.seconds; move(); }));
const move = () => showHeads(audio.currentTime);
(function follow() { move(); requestAnimationFrame(follow); })();
let waiting; window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(draw, 150); });
draw();
