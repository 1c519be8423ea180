// SPDX-License-Identifier: Apache-2.0
// Draws the plots of the chosen task, figure and cost; sorts and filters the table. Names are only ever set as text.
(() => {
  "use strict";
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const root = document.documentElement;
  const state = { intervals: true, task: null, metric: 0, cost: 0, hot: null };
  const panels = all("#panels [data-task]");
  const tableRows = all("#figures tbody tr[data-sub]");
  const mapRows = all("#map tbody tr[data-sub]");
  root.classList.add("live");

  // Numbers as the rest of the page writes them.
  const text = (scale, value, signed = false) => {
    if (value === null || value === undefined) return "–";
    const shown = (value * scale.factor).toLocaleString("en-US", {
      minimumFractionDigits: scale.digits, maximumFractionDigits: scale.digits, signDisplay: signed ? "always" : "auto",
    });
    return shown.replace("-", "−");
  };
  const labelOf = (scale) => (scale.unit ? `${scale.title} (${scale.unit})` : scale.title);
  const span = (scale, low, high, signed) =>
    low === null || high === null ? "–" : `${text(scale, low, signed)} to ${text(scale, high, signed)}`;

  const svg = (name, attributes = {}, content) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (content !== undefined) element.textContent = content;
    return element;
  };

  // Round places for about so many lines of a grid.
  const ticks = (low, high, number) => {
    const rough = (high - low) / Math.max(number, 1);
    const size = 10 ** Math.floor(Math.log10(rough));
    const step = size * [1, 2, 2.5, 5, 10].find((factor) => size * factor >= rough * 0.999);
    const found = [];
    for (let place = Math.ceil(low / step - 1e-9); place <= Math.floor(high / step + 1e-9); place += 1) found.push(place * step || 0); // no minus before zero
    let digits = 0;
    while (digits < 12 && Math.abs(Number(step.toFixed(digits)) - step) > step * 1e-6) digits += 1;
    return found.map((value) => ({
      value,
      text: value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−"),
    }));
  };
  const limits = (values) => {
    const low = Math.min(...values), high = Math.max(...values);
    const room = (high - low) * 0.06 || Math.abs(high) * 0.06 || 1;
    return [low - room, high + room];
  };

  const shapeOf = (sub) => (sub.parent ? "square" : sub.official ? "diamond" : "circle");
  const mark = (shape, x, y, size) => {
    if (shape === "square") return svg("rect", { class: "mark", x: x - size + 0.5, y: y - size + 0.5, width: 2 * size - 1, height: 2 * size - 1 });
    const d = size + 1.5;
    if (shape === "diamond") return svg("path", { class: "mark", d: `M${x},${y - d}l${d},${d}l${-d},${d}l${-d},${-d}z` });
    return svg("circle", { class: "mark", cx: x, cy: y, r: size });
  };

  // The figure that a task shows: the chosen one where it is looked at alone, else its main one.
  const shown = (task) => facts.tasks[task].metrics[state.task === task ? state.metric : 0];

  // Stairs that hold each height until the next point, the last one up to the edge.
  const corners = (points, edge) => {
    const path = [];
    points.forEach(([x, y], place) => {
      if (place) path.push([x, points[place - 1][1]]);
      path.push([x, y]);
    });
    if (points.length) path.push([edge, points[points.length - 1][1]]);
    return path;
  };

  const draw = (panel) => {
    const task = Number(panel.dataset.task), metric = shown(task), holder = one(".plot", panel);
    if (!metric || metric.values.every((value) => value === null)) return;
    const cost = facts.costs[state.cost], alone = state.task === task;
    const width = Math.max(holder.clientWidth, 240), narrow = width < 460;
    const height = Math.round(alone ? Math.min(520, Math.max(300, width * 0.5)) : Math.min(360, Math.max(280, width * 0.62)));
    const spans = metric.values.map((value) => value && [value[1] ?? value[0], value[0], value[2] ?? value[0]].map((end) => end * metric.factor));
    const bands = metric.bands.map((ends, index) => spans[index] && ends.map((end) => (end ?? metric.values[index][0]) * metric.factor));
    const costs = facts.subs.map((sub) => sub.costs[state.cost] * cost.factor);
    const present = spans.map((value, index) => (value ? index : -1)).filter((index) => index >= 0);
    const [xLow, xHigh] = limits(present.map((index) => costs[index]));
    const [yLow, yHigh] = limits(present.flatMap((index) => (state.intervals ? [...spans[index], ...bands[index]] : [spans[index][1]])));
    const yTicks = ticks(yLow, yHigh, height / 60);
    const left = 14 + 7.2 * Math.max(...yTicks.map((tick) => tick.text.length)), right = 14, top = 22, bottom = 48;
    const x = (value) => left + ((value - xLow) / (xHigh - xLow)) * (width - left - right);
    const y = (value) => height - bottom - ((value - yLow) / (yHigh - yLow)) * (height - top - bottom);
    const yLabel = `${labelOf(metric)}, ${metric.higher ? "higher" : "lower"} is better`;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `${yLabel}, against ${labelOf(cost)}` });
    for (const tick of yTicks) {
      picture.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick.value), y2: y(tick.value) }));
      picture.append(svg("text", { x: left - 7, y: y(tick.value) + 4, "text-anchor": "end" }, tick.text));
    }
    for (const tick of ticks(xLow, xHigh, width / (narrow ? 58 : 84))) {
      picture.append(svg("line", { class: "grid", x1: x(tick.value), x2: x(tick.value), y1: top, y2: height - bottom }));
      picture.append(svg("text", { x: x(tick.value), y: height - bottom + 18, "text-anchor": "middle" }, tick.text));
    }
    picture.append(svg("line", { class: "base", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    picture.append(svg("text", { class: "title", x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, labelOf(cost)));
    picture.append(svg("text", { class: "title", x: 2, y: 11 }, yLabel));

    const front = metric.fronts[state.cost], edge = width - right;
    const stairs = (value) => corners(front.map((index) => [x(costs[index]), y(value(index))]), edge);
    const path = (points) => `M${points.map((point) => point.map((value) => value.toFixed(1)).join(",")).join("L")}`;
    if (front.length) {
      if (state.intervals) picture.append(svg("path", { class: "band", d: `${path([...stairs((index) => bands[index][0]), ...stairs((index) => bands[index][1]).reverse()])}Z` }));
      picture.append(svg("path", { class: "steps", d: path(stairs((index) => spans[index][1])) }));
    }
    const ordered = [...present].sort((a, b) => costs[a] - costs[b] || a - b);
    const points = ordered.map((index) => {
      const sub = facts.subs[index], at = [x(costs[index]), y(spans[index][1])];
      const kinds = { front: front.includes(index), official: sub.official, parent: sub.parent };
      const names = Object.keys(kinds).filter((kind) => kinds[kind]).join(" ");
      const told = `${sub.name}: ${text(metric, metric.values[index][0])} ${metric.unit}, ${text(cost, sub.costs[state.cost])} ${cost.unit}`;
      const group = svg("g", { class: `point ${names}`, "data-sub": index, tabindex: -1, role: "img", "aria-label": told + (kinds.front ? ", on the frontier" : "") });
      if (state.intervals) group.append(svg("line", { class: "range", x1: at[0], x2: at[0], y1: y(spans[index][0]), y2: y(spans[index][2]) }));
      group.append(svg("circle", { class: "halo", cx: at[0], cy: at[1], r: 9 }), mark(shapeOf(sub), at[0], at[1], narrow ? 4 : 4.5));
      group.addEventListener("focus", () => heat(index, panel));
      return { index, at, group };
    });
    // What is on the frontier lies above what is not.
    for (const point of [...points].sort((a, b) => front.includes(a.index) - front.includes(b.index))) picture.append(point.group);
    points[0].group.setAttribute("tabindex", 0);
    nameThem(picture, points, front, { left, right: edge, top, bottom: height - bottom, most: narrow ? 5 : 99 });
    move(picture, points, panel);
    holder.replaceChildren(picture);
    panel.points = points;
  };

  // The first, the last and some between come first, so that few names are those of points far from each other.
  const spread = (points, most) => {
    if (points.length <= most) return points;
    const chosen = Array.from({ length: most }, (_, place) => points[Math.round((place * (points.length - 1)) / (most - 1))]);
    return [...chosen, ...points.filter((point) => !chosen.includes(point))];
  };

  // Names beside points of Google's table and the parent; those that would lie on another are left to the tip.
  const nameThem = (picture, points, front, box) => {
    const taken = points.map(({ at }) => [at[0] - 6, at[1] - 6, at[0] + 6, at[1] + 6]);
    const rank = ({ index }) => (facts.subs[index].parent ? 0 : 1) + (front.includes(index) ? 0 : 2);
    const named = points.filter(({ index }) => facts.subs[index].official || facts.subs[index].parent).sort((a, b) => rank(a) - rank(b));
    let left = box.most;
    for (const point of spread(named, box.most)) {
      if (left === 0) break;
      const sub = facts.subs[point.index];
      const name = sub.official || sub.name, long = name.length * 6.9 + 4, [x, y] = point.at;
      const places = [
        [x - 9 - long, y - 19, "end", -9, -8], [x - long / 2, y - 25, "middle", 0, -13], [x + 9, y + 6, "start", 9, 17],
        [x - long / 2, y + 10, "middle", 0, 21], [x + 9, y - 19, "start", 9, -8], [x - 9 - long, y + 6, "end", -9, 17],
      ];
      const free = places.find(([a, b]) => {
        const [c, d] = [a + long, b + 14];
        if (a < box.left || c > box.right || b < box.top - 2 || d > box.bottom) return false;
        return taken.every(([e, f, g, h]) => c < e || g < a || d < f || h < b);
      });
      if (!free) continue;
      left -= 1;
      taken.push([free[0], free[1], free[0] + long, free[1] + 14]);
      picture.append(svg("text", { class: `name${sub.parent ? " parent" : ""}`, x: x + free[3], y: y + free[4], "text-anchor": free[2] }, name));
    }
  };

  // Pointer and arrow keys choose a point.
  const move = (picture, points, panel) => {
    const nearest = (event) => {
      const box = picture.getBoundingClientRect(), zoom = picture.viewBox.baseVal.width / box.width;
      const away = ({ at }) => Math.hypot(at[0] - (event.clientX - box.left) * zoom, at[1] - (event.clientY - box.top) * zoom);
      const found = points.reduce((best, point) => (away(point) < away(best) ? point : best));
      return away(found) < 36 ? found.index : null;
    };
    picture.addEventListener("pointermove", (event) => heat(nearest(event), panel));
    picture.addEventListener("pointerdown", (event) => heat(nearest(event), panel));
    picture.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") heat(null, panel); });
    picture.addEventListener("focusout", () => heat(null, panel));
    picture.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return heat(null, panel);
      const here = points.findIndex(({ group }) => group === document.activeElement);
      const places = { ArrowRight: here + 1, ArrowUp: here + 1, ArrowLeft: here - 1, ArrowDown: here - 1, Home: 0, End: points.length - 1 };
      const next = points[places[event.key]];
      if (!(event.key in places)) return undefined;
      event.preventDefault();
      if (!next || here < 0) return undefined;
      points[here].group.setAttribute("tabindex", -1);
      next.group.setAttribute("tabindex", 0);
      next.group.focus();
      return undefined;
    });
  };

  // One sub-model stands out wherever it is; the panel that was pointed at tells about it.
  const heat = (index, panel) => {
    if (state.hot !== index) {
      state.hot = index;
      for (const element of all(".hot")) element.classList.remove("hot");
      if (index !== null) for (const element of all(`[data-sub="${index}"]`)) element.classList.add("hot");
    }
    for (const other of panels) if (other !== panel || index === null) one(".tip", other).hidden = true;
    if (index !== null && panel) tell(index, panel);
  };
  const tell = (index, panel) => {
    const tip = one(".tip", panel), sub = facts.subs[index], metric = shown(Number(panel.dataset.task)), cost = facts.costs[state.cost];
    const value = metric.values[index], change = metric.changes[index], { alike } = facts.tasks[Number(panel.dataset.task)];
    const limits = ([middle, low, high], signed, none) => (middle !== null && low === null ? none : span(metric, low, high, signed));
    const lines = [
      [metric.title, `${text(metric, value[0])} ${metric.unit}`],
      [`${+(100 * facts.confidence).toFixed(2)} %`, limits(value, false, alike)],
      ...(change && !sub.parent ? [
        ["from the parent", text(metric, change.span[0], true)],
        ["", limits(change.span, true, change.span[0] === 0 ? "no item differs" : alike)],
        ["p, adjusted", change.p],
      ] : []),
      [cost.title.toLowerCase(), `${text(cost, sub.costs[state.cost])} ${cost.unit}`],
      ["layers", String(sub.layers)],
    ];
    const name = document.createElement("b"), list = document.createElement("dl");
    name.textContent = sub.official && sub.official !== sub.name ? `${sub.name} · ${sub.official}` : sub.name;
    for (const [term, told] of lines) {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = term;
      dd.textContent = told;
      list.append(dt, dd);
    }
    tip.replaceChildren(name, list);
    tip.hidden = false;
    const figure = one("figure", panel).getBoundingClientRect();
    const point = one(".mark", panel.points.find((found) => found.index === index).group).getBoundingClientRect();
    const x = point.left + point.width / 2 - figure.left, y = point.top - figure.top;
    const below = y - tip.offsetHeight - 10 < 0;
    tip.style.left = `${Math.min(Math.max(x - tip.offsetWidth / 2, 4), figure.width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${below ? y + point.height + 12 : y - tip.offsetHeight - 10}px`;
  };

  // The table and the map: which columns, which rows, in which order.
  const onFront = () => {
    const chosen = state.task === null ? facts.tasks.map((_, task) => task) : [state.task];
    return new Set(chosen.flatMap((task) => (shown(task) ? shown(task).fronts[state.cost] : [])));
  };
  const filter = () => {
    const words = one("#search").value.toLowerCase().split(/\s+/).filter(Boolean), front = onFront();
    const official = one("#only-official"), fronts = one("#only-front").checked;
    let count = 0;
    tableRows.forEach((row) => {
      const index = Number(row.dataset.sub), sub = facts.subs[index];
      const name = `${sub.name} ${sub.official || ""}`.toLowerCase();
      const kept = words.every((word) => name.includes(word)) && (!(official && official.checked) || sub.official) && (!fronts || front.has(index));
      row.hidden = !kept;
      mapRows[index].hidden = !kept;
      one(".tag.front", row).hidden = !front.has(index);
      count += kept ? 1 : 0;
    });
    one("#none").hidden = count > 0;
    one("#count").textContent = `${count} of ${tableRows.length} sub-models`;
  };
  const place = (cell) => [...cell.parentElement.children].indexOf(cell);
  const sort = (heading) => {
    const column = place(heading), names = column === 0;
    const was = heading.getAttribute("aria-sort");
    const rising = was === "none" ? names : was === "descending";
    for (const other of all("#figures th[aria-sort]")) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const value = (row) => row.children[column].dataset.value;
    const sign = rising ? 1 : -1;
    const ordered = [...tableRows].sort((a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === "" || right === "") return (left === "") - (right === "");
      return sign * (names ? left.localeCompare(right, "en", { numeric: true }) : Number(left) - Number(right));
    });
    one("#figures tbody").prepend(...ordered);
    one("#map tbody").append(...ordered.map((row) => mapRows[Number(row.dataset.sub)]));
  };
  const showColumns = () => {
    for (const cell of all("#figures [data-task]:not([colspan])")) {
      const task = Number(cell.dataset.task);
      cell.hidden = state.task === null ? "extra" in cell.dataset : task !== state.task;
    }
    const headings = all("#figures thead tr:last-child th");
    for (const group of all("#figures thead tr:first-child [data-task]")) {
      const columns = headings.filter((cell) => cell.dataset.task === group.dataset.task && !cell.hidden).length;
      group.hidden = columns === 0;
      if (columns) group.colSpan = columns;
    }
  };

  const show = () => {
    heat(null, null);
    for (const panel of panels) panel.hidden = state.task !== null && Number(panel.dataset.task) !== state.task;
    for (const panel of panels) if (!panel.hidden) draw(panel);
    showColumns();
    filter();
  };
  const chooseTask = (value) => {
    state.task = value === "" ? null : Number(value);
    state.metric = 0;
    const metrics = state.task === null ? [] : facts.tasks[state.task].metrics;
    one("#metric").replaceChildren(...metrics.map((metric, index) => new Option(labelOf(metric), index)));
    one("#metric-choice").hidden = metrics.length < 2;
    show();
  };

  // Colours: as the system has them until they are chosen here.
  const darkSystem = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : darkSystem.matches);
  const nameTheme = () => {
    const other = isDark() ? "light" : "dark";
    one("#theme").textContent = other[0].toUpperCase() + other.slice(1);
    one("#theme").setAttribute("aria-label", `Use the ${other} colours`);
  };
  const remember = (theme) => { try { localStorage.setItem("matslice-theme", theme); } catch { /* a page from disk may have no store */ } };
  try {
    const before = localStorage.getItem("matslice-theme");
    if (before === "light" || before === "dark") root.dataset.theme = before;
  } catch { /* as above */ }
  one("#theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    nameTheme();
  });
  darkSystem.addEventListener("change", nameTheme);

  const taskChoices = all("[name=task]"); // buttons for a few tasks, a list for many
  for (const choice of taskChoices) choice.addEventListener("change", () => chooseTask(choice.value));
  one("#cost").addEventListener("change", (event) => { state.cost = Number(event.target.value); show(); });
  one("#intervals").addEventListener("change", (event) => { state.intervals = event.target.checked; show(); });
  one("#metric").addEventListener("change", (event) => { state.metric = Number(event.target.value); show(); });
  for (const heading of all("#figures th[aria-sort]")) one("button", heading).addEventListener("click", () => sort(heading));
  for (const element of all("#search, #only-official, #only-front")) element.addEventListener("input", filter);
  one("#clear").addEventListener("click", () => {
    one("#search").value = "";
    for (const box of all(".tools input[type=checkbox]")) box.checked = false;
    filter();
    one("#search").focus();
  });
  for (const row of [...tableRows, ...mapRows]) {
    row.addEventListener("pointerenter", () => heat(Number(row.dataset.sub), null));
    row.addEventListener("pointerleave", () => heat(null, null));
  }
  let drawn = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === drawn) return;
    drawn = window.innerWidth;
    window.requestAnimationFrame(show);
  });
  if (taskChoices[0].type === "radio") taskChoices[0].checked = true; else taskChoices[0].value = "";
  one("#cost").value = "0";
  one("#intervals").checked = true;
  nameTheme();
  if (facts.tasks.length === 1) chooseTask("0"); else show();
})();
