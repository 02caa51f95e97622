const place = one => one.start.toFixed(1) + "–" + one.end.toFixed(1) + " s";
document.title = data.query.name + " – dymn";
at("name").textContent = data.query.name + ", " + place(data.query);
at("about").textContent = data.about;
const sound = (player, one) => {
  if (one.audio) { player.src = one.audio; return player; }
  const why = made("p", one.why || "");
  player.replaceWith(why);
  return why;
};
sound(at("query"), data.query);
data.found.forEach((one, i) => {
  const item = document.createElement("li"), line = document.createElement("div"), bar = document.createElement("div");
  line.append(made("span", i + 1 + "."), made("b", one.name), made("span", place(one)), made("span", one.score.toFixed(3)));
  bar.className = "bar";
  bar.append(made("i", "", {width: 100 * Math.min(Math.max(one.score, 0), 1) + "%"}));
  const player = document.createElement("audio");
  player.controls = true;
  player.preload = "none";
  player.setAttribute("aria-label", "Sound " + (i + 1) + ": " + one.name + ", " + place(one));
  item.append(line, bar, player);
  sound(player, one);
  at("found").append(item);
});
document.addEventListener("play", event => { // one sound at a time
  for (const player of document.querySelectorAll("audio")) if (player !== event.target) player.pause();
}, true);
