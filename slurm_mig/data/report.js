"use strict";
// The slices are read from the table, so that there is one truth; without a script it is read by people.
(() => {
  const svgns = "http://www.w3.org/2000/svg";
  const table = document.getElementById("slices");
  if (!table) return;
  const full = { since: +document.body.dataset.since, until: +document.body.dataset.until };
  // Times are those of the machine that wrote the page, as in its tables; not the reader's.
  const offset = +document.body.dataset.offset;
  const view = { ...full };
  const slices = [...table.tBodies[0].rows].map((row) => ({
    row,
    text: row.textContent.toLowerCase(),
    words: [...row.cells].map((cell) => cell.textContent),
    gpu: +row.dataset.gpu,
    units: +row.dataset.units,
    low: +row.dataset.low,
    high: +row.dataset.high,
    since: +row.dataset.since,
    until: +row.dataset.until,
    colour: row.dataset.colour,
  }));
  const bands = new Map();
  for (const slice of slices) {
    const known = bands.get(slice.gpu) || { name: `${slice.words[3]} GPU ${slice.words[4]}`, units: 1 };
    known.units = Math.max(known.units, slice.units, slice.high);
    bands.set(slice.gpu, known);
  }
  const order = [...bands.keys()].sort((one, other) => one - other);
  const field = document.getElementById("filter");
  const told = document.getElementById("told");
  const place = document.getElementById("drawn");
  const HIGH = 64, GAP = 22, AXIS = 20;
  let wide = 600;

  const make = (name, attributes, parent, text) => {
    const made = document.createElementNS(svgns, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  const x = (time) => ((time - view.since) / (view.until - view.since)) * wide;
  const clock = (seconds, step) => {
    const at = new Date((seconds + offset) * 1000);
    const two = (number) => String(number).padStart(2, "0");
    const day = `${two(at.getUTCMonth() + 1)}-${two(at.getUTCDate())}`;
    if (step >= 86400) return day;
    const clock = `${day} ${two(at.getUTCHours())}:${two(at.getUTCMinutes())}`;
    return step < 60 ? `${clock}:${two(at.getUTCSeconds())}` : clock;
  };
  const STEPS = [1, 5, 15, 60, 300, 900, 3600, 10800, 21600, 43200, 86400, 172800, 604800, 2592000, 7776000];

  function draw() {
    wide = Math.max(place.clientWidth, 280);
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const height = order.length * (HIGH + GAP) + AXIS;
    const svg = document.createElementNS(svgns, "svg");
    svg.setAttribute("viewBox", `0 0 ${wide} ${height}`);
    svg.setAttribute("height", height);
    const step = STEPS.find((size) => (view.until - view.since) / size < wide / 110) || 31536000;
    for (let at = Math.ceil((view.since + offset) / step) * step - offset; at < view.until; at += step) {
      make("line", { x1: x(at), x2: x(at), y1: 0, y2: height - AXIS, class: "tick" }, svg);
      // A label that would stick out at the right stands to the left of its line.
      const end = x(at) > wide - 90;
      const label = { x: x(at) + (end ? -2 : 2), y: height - 6, "text-anchor": end ? "end" : "start" };
      make("text", label, svg, clock(at, step));
    }
    order.forEach((gpu, number) => {
      const top = number * (HIGH + GAP) + GAP - 4;
      make("text", { x: 0, y: top - 5 }, svg, bands.get(gpu).name);
      make("rect", { x: 0, y: top, width: wide, height: HIGH, class: "ground" }, svg);
    });
    let count = 0;
    for (const slice of slices) {
      const meant = words.every((word) => slice.text.includes(word));
      slice.row.hidden = !meant;
      count += meant;
      if (!meant || slice.until < view.since || slice.since > view.until) continue;
      const band = bands.get(slice.gpu);
      const top = order.indexOf(slice.gpu) * (HIGH + GAP) + GAP - 4;
      const left = Math.max(x(slice.since), 0);
      const made = make("rect", {
        x: left,
        y: top + (slice.low / band.units) * HIGH,
        width: Math.max(Math.min(x(slice.until), wide) - left, 1.5),
        height: ((slice.high - slice.low) / band.units) * HIGH,
        class: `slice c${slice.colour}`,
      }, svg);
      const [job, user, account, , , what, from, to, outcome] = slice.words;
      make("title", {}, made, `job ${job} of ${user} (${account})\n${what}, ${outcome}\n${from} to ${to}`);
    }
    told.textContent = `${count} of ${slices.length} slices`;
    place.replaceChildren(svg);
  }

  function zoom(factor, middle) {
    const span = Math.min(Math.max((view.until - view.since) * factor, 10), full.until - full.since);
    const share = (middle - view.since) / (view.until - view.since);
    move(middle - share * span, span);
  }
  function move(since, span) {
    view.since = Math.min(Math.max(since, full.since), full.until - span);
    view.until = view.since + span;
    draw();
  }
  const centre = () => (view.since + view.until) / 2;
  const timeAt = (event) => {
    const box = place.getBoundingClientRect();
    return view.since + ((event.clientX - box.left) / box.width) * (view.until - view.since);
  };

  document.getElementById("in").onclick = () => zoom(0.5, centre());
  document.getElementById("out").onclick = () => zoom(2, centre());
  document.getElementById("all").onclick = () => move(full.since, full.until - full.since);
  field.oninput = draw;
  place.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.3 : 0.77, timeAt(event));
  }, { passive: false });
  let grabbed = null;
  place.onpointerdown = (event) => { grabbed = { at: event.clientX, since: view.since }; };
  window.addEventListener("pointermove", (event) => {
    if (!grabbed) return;
    const span = view.until - view.since;
    move(grabbed.since - ((event.clientX - grabbed.at) / place.clientWidth) * span, span);
  });
  window.addEventListener("pointerup", () => { grabbed = null; });
  place.ondblclick = (event) => zoom(0.4, timeAt(event));
  window.addEventListener("resize", draw);
  document.getElementById("timeline").hidden = false;
  draw();
})();
