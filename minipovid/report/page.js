
"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);

// Light and dark: the system's, until the button says otherwise.
const theme = $("theme"), root = document.documentElement;
const isDark = () => root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const named = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Switch to ${theme.textContent.toLowerCase()} colours`); };
theme.addEventListener("click", () => { root.style.colorScheme = isDark() ? "light" : "dark"; named(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", named);
theme.hidden = false;
named();

// Charts: the step nearest to the pointer, or the next one by arrow key, is read out below.
const digits = (value) => {
  const text = value === 0 ? "0" : Math.abs(value) >= 1e-3 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  return text.replace(/^-/, "\u2212");
};
for (const chart of document.querySelectorAll("svg[data-chart]")) {
  const lines = data[chart.dataset.chart], readout = $(chart.dataset.chart), cursor = chart.querySelector(".cursor");
  const [x, y] = ["x", "y"].map((axis) => {
    const [low, high, start, end] = chart.dataset[axis].split(" ").map(Number);
    return { to: (v) => start + (v - low) / (high - low) * (end - start), from: (p) => low + (p - start) / (end - start) * (high - low) };
  });
  const steps = [...new Set(lines.flatMap(([, , points]) => points.map(([step]) => step)))].sort((a, b) => a - b);
  let at = steps.length - 1;
  const show = (index, mark) => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    const step = steps[at], told = [];
    cursor.hidden = !mark;
    cursor.querySelectorAll("circle").forEach((each) => each.remove());
    for (const [name, colour, points] of lines) {
      const point = points.find(([each]) => each === step);
      if (!point) continue;
      told.push(lines.length > 1 ? `${name} ${digits(point[1])}` : digits(point[1]));
      const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      dot.setAttribute("class", `line-${colour}`);
      dot.setAttribute("cx", x.to(step)); dot.setAttribute("cy", y.to(point[1])); dot.setAttribute("r", 4);
      cursor.append(dot);
    }
    const line = cursor.querySelector("line");
    line.setAttribute("x1", x.to(step)); line.setAttribute("x2", x.to(step));
    readout.textContent = `step ${step.toLocaleString("en")}: ${told.join(", ")}`;
  };
  const nearest = (event) => {
    const box = chart.getBoundingClientRect(), step = x.from((event.clientX - box.left) / box.width * chart.viewBox.baseVal.width);
    return steps.reduce((best, each, index) => Math.abs(each - step) < Math.abs(steps[best] - step) ? index : best, 0);
  };
  chart.addEventListener("pointermove", (event) => show(nearest(event), true));
  chart.addEventListener("pointerdown", (event) => show(nearest(event), true));
  chart.addEventListener("pointerleave", () => show(steps.length - 1, false));
  chart.addEventListener("focus", () => show(at, true));
  chart.addEventListener("blur", () => show(steps.length - 1, false));
  chart.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
    if (move) { event.preventDefault(); show(at + move, true); }
  });
  show(steps.length - 1, false);
}

// Answers: by kind and by words, some pictures at a time.
const SOME = 10;
const cards = $("cards");
if (cards) {
  const search = $("search"), chips = [...document.querySelectorAll(".chips button")], all = [...cards.children];
  const texts = new Map([...cards.querySelectorAll(".case")].map((each) => [each, each.textContent.toLowerCase()]));
  let most = SOME;
  const filter = () => {
    const kind = chips.find((chip) => chip.getAttribute("aria-pressed") === "true")?.dataset.kind || "";
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const card of all) {
      let any = false;
      for (const each of card.querySelectorAll(".case")) {
        const fits = (!kind || each.dataset.kind === kind) && words.every((word) => texts.get(each).includes(word));
        each.hidden = !fits;
        any ||= fits;
      }
      count += any;
      card.hidden = !any || count > most;
    }
    $("shown").textContent = `${count} of ${all.length} pictures`;
    $("more").hidden = count <= most;
    $("more").textContent = `Show ${Math.min(3 * SOME, count - most)} more of ${count - most}`;
    $("nothing").hidden = count > 0;
  };
  chips.forEach((chip) => chip.addEventListener("click", () => {
    chips.forEach((each) => each.setAttribute("aria-pressed", String(each === chip)));
    most = SOME;
    filter();
  }));
  search.addEventListener("input", () => { most = SOME; filter(); });
  $("more").addEventListener("click", () => { most += 3 * SOME; filter(); });
  $("filter").hidden = false;
  filter();
}
