const asked = data.questions, answers = asked.map(() => ""), player = at("audio");
let place = 0, saved = true;
document.title = "Review – " + data.model;
at("name").textContent = asked.length + " questions of " + data.model;
at("done").max = asked.length;

function show(i) {
  place = Math.min(Math.max(i, 0), asked.length - 1);
  const one = asked[place], rows = unpacked(one.logMel);
  data.seconds = one.seconds;
  data.kilohertz = one.kilohertz;
  at("question").replaceChildren("Do you hear ", made("b", one.label), "?");
  at("about").textContent = (place + 1) + " of " + asked.length + ": " + one.name + ", " + one.start + " to " + one.end + " s; score " + one.score + ", threshold " + one.threshold;
  paint(at("sound"), rows.length, rows[0].length, (r, c) => COLOURS.loudness(rows[rows.length - 1 - r][c]));
  drawKilohertz();
  at("ticks").replaceChildren(...one.ticks.map(([x, text]) => made("span", text, {left: 100 * x / one.seconds + "%"})));
  for (const [id, answer] of [["yes", "yes"], ["no", "no"], ["skip", "skip"]]) at(id).classList.toggle("now", answers[place] === answer);
  at("done").value = answers.filter(Boolean).length;
  player.src = one.audio;
  showHeads(0);
}

function answer(value) {
  answers[place] = value;
  saved = false;
  show(place + 1);
  player.play().catch(() => {}); // a browser may want a click first
}

const quoted = text => /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
function table() {
  const rows = asked.flatMap((one, i) => answers[i] === "yes" || answers[i] === "no" ? [[one.path, one.start, one.end, one.label, answers[i]]] : []);
  return [["path", "start", "end", "label", "heard"], ...rows].map(row => row.map(value => quoted(String(value))).join(",") + "\n").join("");
}
function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], {type: "text/csv"}));
  link.download = "labels.csv";
  link.click();
  saved = true;
}

const keys = {y: () => answer("yes"), n: () => answer("no"), u: () => answer("skip"), ArrowLeft: () => show(place - 1), s: save, " ": () => player.paused ? player.play() : player.pause()};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});
for (const [id, key] of [["yes", "y"], ["no", "n"], ["skip", "u"], ["back", "ArrowLeft"], ["save", "s"]]) at(id).addEventListener("click", keys[key]);
const follow = () => { showHeads(player.currentTime); if (!player.paused) requestAnimationFrame(follow); };
player.addEventListener("play", follow);
addEventListener("beforeunload", event => { if (!saved) event.preventDefault(); });
show(0);
