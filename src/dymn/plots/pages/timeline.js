const clock = seconds => {
  const whole = Math.floor(seconds), two = n => String(n).padStart(2, "0"), minutes = Math.floor(whole / 60);
  return (minutes >= 60 ? Math.floor(minutes / 60) + ":" + two(minutes % 60) : minutes) + ":" + two(whole % 60) + "." + Math.floor(10 * (seconds - whole));
};

const scores = unpacked(data.scores), player = at("audio");
document.title = data.name + " – dymn";
at("name").textContent = data.name;
at("about").textContent = data.about;
const logMel = unpacked(data.logMel);
paint(at("sound"), logMel.length, logMel[0].length, (r, c) => COLOURS.loudness(logMel[logMel.length - 1 - r][c]));
paint(at("scale"), 1, 64, (_, c) => COLOURS.probability(c / 63));
drawKilohertz();
at("ticks").replaceChildren(...data.ticks.map(([place, text]) => made("span", text, {left: 100 * place / data.seconds + "%"})), made("em", data.unit));
const items = data.labels.map((label, i) => {
  const item = document.createElement("li"), canvas = document.createElement("canvas"), name = made("b", label);
  item.append(name, made("span", data.peaks[i]));
  at("labels").append(item);
  paint(canvas, 1, scores[i].length, (_, c) => COLOURS.probability(scores[i][c]));
  at("rows").insertBefore(canvas, at("rows").lastElementChild);
  return item;
});

let position = 0;
function show(seconds) {
  position = Math.min(Math.max(seconds, 0), data.seconds);
  showHeads(position);
  const column = Math.min(Math.floor(position / data.seconds * scores[0].length), scores[0].length - 1);
  const now = items.filter((item, i) => item.classList.toggle("now", scores[i][column] >= 0.3)).length;
  const told = data.labels.filter((_, i) => scores[i][column] >= 0.3).join(", ");
  at("sound").setAttribute("aria-valuenow", position.toFixed(1));
  at("sound").setAttribute("aria-valuetext", clock(position) + (now ? ": " + told : ""));
}
function go(seconds) {
  show(seconds);
  if (data.audio) player.currentTime = position;
}
function follow() {
  show(player.currentTime);
  if (!player.paused) requestAnimationFrame(follow);
}

if (data.audio) {
  player.src = data.audio;
  player.addEventListener("play", follow);
  player.addEventListener("seeked", follow);
  at("keys").textContent = "Click the spectrogram, or move over it with the arrow keys, to go there; the space bar plays and pauses. Labels are bold where they reach 0.3.";
} else {
  player.remove();
  at("keys").textContent = "The recording is too long to be in this page, so it cannot be played here.";
}
at("sound").setAttribute("aria-valuemax", data.seconds.toFixed(1));
const pointed = event => { const box = at("sound").getBoundingClientRect(); go((event.clientX - box.left) / box.width * data.seconds); };
for (const element of [at("sound"), at("rows")]) element.addEventListener("click", pointed);
at("sound").addEventListener("keydown", event => {
  const step = Math.max(data.seconds / 100, 0.1);
  const moves = {ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -10 * step, PageUp: 10 * step, Home: -Infinity, End: Infinity};
  if (event.key in moves) go(position + moves[event.key]);
  else if (event.key === " " && data.audio) player.paused ? player.play() : player.pause();
  else return;
  event.preventDefault();
});
show(0);
