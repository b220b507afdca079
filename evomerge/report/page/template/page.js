"use strict";
// Draws the charts in the colours of the page, light or dark; the menus of two slices; the buttons that copy.
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const chosen = {};

  function painted(value, style) {
    if (Array.isArray(value)) return value.map((inner) => painted(inner, style));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, painted(inner, style)]));
    }
    return typeof value === "string" && /^--[a-z0-9]+$/.test(value) ? style.getPropertyValue(value).trim() : value;
  }

  function layoutOf(layout, style) {
    const ink = style.getPropertyValue("--ink").trim(), grid = style.getPropertyValue("--grid").trim();
    const page = style.getPropertyValue("--page").trim(), line = style.getPropertyValue("--line").trim();
    const full = {
      ...layout, autosize: true, dragmode: false, paper_bgcolor: page, plot_bgcolor: page,
      font: { color: ink, family: getComputedStyle(document.body).fontFamily, size: 12 },
      hoverlabel: { bgcolor: page, bordercolor: ink, font: { color: ink }, align: "left" },
    };
    for (const key of Object.keys(full)) {
      if (/^[xy]axis\d*$/.test(key)) full[key] = { gridcolor: grid, zerolinecolor: ink, linecolor: line, ...full[key] };
    }
    return full;
  }

  // Trials that no other one beats on both slices; scores are turned so that higher is better.
  function front(points) {
    const order = [...points].sort((a, b) => b.u - a.u || b.v - a.v);
    const kept = [];
    for (const point of order) if (!kept.length || point.v > kept[kept.length - 1].v) kept.push(point);
    return kept;
  }

  function pair(id, spec) {
    const { slices, names, numbers, kinds, looks, winner } = spec.pairs;
    const [i, j] = chosen[id] || (chosen[id] = [0, 1]);
    const across = slices[i], up = slices[j];
    const points = names.map((name, at) => ({
      name, kind: kinds[at], number: numbers[at], x: across.scores[at], y: up.scores[at],
      u: across.sign * across.scores[at], v: up.sign * up.scores[at],
    })).filter((point) => point.x !== null && point.y !== null);
    const data = Object.keys(looks).map((kind) => {
      const of = points.filter((point) => point.kind === kind), look = looks[kind];
      return {
        type: "scatter", mode: "markers", name: look.name, x: of.map((p) => p.x), y: of.map((p) => p.y),
        marker: { symbol: look.symbol, color: look.color, size: 9 }, hoverinfo: "text",
        text: of.map((p) => `${p.name}<br>${across.name} ${p.x}<br>${up.name} ${p.y}`),
      };
    }).filter((trace) => trace.x.length);
    const best = front(points.filter((point) => point.kind === "feasible" || point.kind === "infeasible" || point.kind === "open"));
    if (best.length) {
      data.push({
        type: "scatter", mode: "lines+markers", name: "Pareto front", x: best.map((p) => p.x), y: best.map((p) => p.y),
        line: { color: "--c3", width: 2 }, marker: { symbol: "circle-open", size: 14, color: "--c3" }, hoverinfo: "skip",
      });
    }
    for (const p of points.filter((point) => point.number === winner)) {
      data.push({
        type: "scatter", mode: "markers", name: "winner", x: [p.x], y: [p.y], hoverinfo: "skip",
        marker: { symbol: "star-open", size: 20, color: "--ink", line: { width: 2 } },
      });
    }
    const floor = { color: "--bad", dash: "dash", width: 1.5 }, shapes = [];
    if (across.floor !== null) shapes.push({ type: "line", xref: "x", yref: "paper", x0: across.floor, x1: across.floor, y0: 0, y1: 1, line: floor });
    if (up.floor !== null) shapes.push({ type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: up.floor, y1: up.floor, line: floor });
    const axis = (slice) => ({ title: { text: slice.axis }, automargin: true, fixedrange: true, zeroline: false });
    const says = document.getElementById(`${id}-says`);
    says.textContent = best.length ? `On the front of these two slices: ${plain(best.slice(0, 12).map((p) => p.name).join(", "))}${best.length > 12 ? ", ..." : ""}.` : "";
    return { data, layout: { ...spec.layout, shapes, xaxis: axis(across), yaxis: axis(up) } };
  }

  // Names in charts are written for plotly, which reads a little markup.
  function plain(text) {
    return text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
  }

  function draw() {
    if (!window.Plotly) return;
    const style = getComputedStyle(document.documentElement);
    for (const [id, spec] of Object.entries(charts)) {
      const made = spec.pairs ? pair(id, spec) : spec;
      const config = { displayModeBar: false, responsive: true };
      Plotly.react(id, painted(made.data, style), painted(layoutOf(made.layout, style), style), config);
    }
  }

  for (const menu of document.querySelectorAll("select[data-chart]")) {
    menu.addEventListener("change", () => {
      const id = menu.dataset.chart;
      chosen[id] = [...document.querySelectorAll("select[data-chart]")].filter((m) => m.dataset.chart === id).map((m) => Number(m.value));
      draw();
    });
  }

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      let done = true;
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        getSelection().selectAllChildren(source);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Select and copy";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", draw);
  addEventListener("afterprint", draw);
  document.documentElement.dataset.drawn = "yes";
})();
