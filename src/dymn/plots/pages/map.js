const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4e00", "#6a3d9a", "#b2182b", "#4d9221", "#01665e", "#c51b7d"];
const OTHERS = "#8a8a92", canvas = at("map"), player = at("player"), points = data.points;
const colour = group => group < 0 ? OTHERS : PALETTE[group % PALETTE.length];
document.title = "Map of sounds – dymn";
at("about").textContent = data.about;
const legend = data.groups.map((name, i) => [name, i]).concat(data.others ? [["others", -1]] : []);
at("groups").replaceChildren(...legend.map(([name, i]) => {
  const item = document.createElement("li");
  item.append(made("i", "", {background: colour(i)}), made("span", name));
  return item;
}));

let current = -1, box = {width: 1, height: 1};
const across = points.map((_, i) => i).sort((a, b) => points[a].x - points[b].x);
const place = one => [16 + one.x * (box.width - 32), 16 + (1 - one.y) * (box.height - 32)];
function draw() {
  box = canvas.getBoundingClientRect();
  const scale = window.devicePixelRatio || 1, context = canvas.getContext("2d");
  canvas.width = box.width * scale; canvas.height = box.height * scale;
  context.scale(scale, scale);
  const circle = (one, radius) => { context.beginPath(); context.arc(...place(one), radius, 0, 7); };
  for (const one of points) {
    circle(one, 5);
    context.globalAlpha = 0.75; context.fillStyle = colour(one.group); context.fill();
  }
  context.globalAlpha = 1;
  if (current < 0) return;
  circle(points[current], 9);
  context.lineWidth = 3; context.strokeStyle = "#000"; context.stroke();
}
function go(i) {
  current = i;
  const one = points[i];
  at("now").textContent = one.name + ", " + one.start.toFixed(1) + "–" + one.end.toFixed(1) + " s" + (one.why ? ": " + one.why : "");
  draw();
  player.pause();
  if (one.audio) { player.src = one.audio; player.play().catch(() => {}); }
  else player.removeAttribute("src");
}
canvas.addEventListener("click", event => {
  const x = event.clientX - box.left, y = event.clientY - canvas.getBoundingClientRect().top;
  const far = points.map(one => { const [px, py] = place(one); return (px - x) ** 2 + (py - y) ** 2; });
  go(far.indexOf(Math.min(...far)));
});
canvas.addEventListener("keydown", event => {
  const step = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
  if (step) go(across[Math.min(Math.max(across.indexOf(current) + step, 0), across.length - 1)]);
  else if (event.key === " " && current >= 0) go(current);
  else return;
  event.preventDefault();
});
window.addEventListener("resize", draw);
draw();
