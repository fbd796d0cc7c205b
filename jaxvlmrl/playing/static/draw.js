// What a step looks like: from the server's answers to elements. It asks nothing and remembers nothing.

const INFERNO = ["#000004", "#420a68", "#932667", "#dd513a", "#fca50a", "#fcffa4"];
const SVG = "http://www.w3.org/2000/svg";

export const at = (id) => document.getElementById(id);

export function make(tag, fields = {}, ...children) {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
}

export const percent = (share) => (share > 0 && share < 0.0005 ? "<0.1%" : `${(100 * share).toFixed(1)}%`);

export const plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

export function picture(id, uri, alt) {
  const image = at(id);
  if (image.src !== uri) image.src = uri;
  image.alt = alt;
  image.hidden = false;
}

/** A game's commands as buttons that lead to the step after each. `turns`: {text, isGiven}. */
export function turns(id, list, here, go) {
  const buttons = list.map(({ text, isGiven }, index) => {
    const button = make("button", { type: "button", textContent: text || "(cannot be read)" });
    button.className = [isGiven && "given", index >= here && "ahead"].filter(Boolean).join(" ");
    button.title = `${isGiven ? "given to the model; " : ""}step ${index + 1}`;
    if (index + 1 === here) button.setAttribute("aria-current", "step");
    button.addEventListener("click", () => go(index + 1));
    return make("li", {}, button);
  });
  at(id).replaceChildren(...buttons);
}

/** Rows of {name, share, isSaid} as bars. */
export function bars(id, rows, caption) {
  const table = at(id);
  if (caption !== undefined) table.querySelector("caption").textContent = caption;
  const lines = rows.map(({ name, share, isSaid }) => {
    const meter = make("meter", { min: 0, max: 1, value: share });
    meter.setAttribute("aria-label", `probability of ${name}`);
    const head = make("th", { scope: "row", textContent: name });
    const line = make("tr", {}, head, make("td", {}, meter), make("td", { textContent: percent(share) }));
    line.className = isSaid ? "said" : "";
    return line;
  });
  table.tBodies[0].replaceChildren(...lines);
}

const visible = (text) => (text.trim() === "" ? text.replaceAll(" ", "␣").replaceAll("\n", "⏎") : text);

/** The tokens of an answer, one after another; the one that was least sure shows its rivals first. */
export function tokens(said, isFresh) {
  const choose = (chosen) => {
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === chosen)));
    const { text, rivals } = said.tokens[chosen];
    const rows = rivals.map((rival) => ({ name: visible(rival.text), share: rival.probability, isSaid: rival.text === text }));
    bars("rivals", rows, `Token ${chosen + 1}: what it might have been`);
  };
  const buttons = said.tokens.map(({ text, probability }, index) => {
    const button = make("button", { type: "button" }, visible(text), make("small", { textContent: percent(probability) }));
    button.style.setProperty("--index", index);
    button.addEventListener("click", () => choose(index));
    return button;
  });
  at("tokens").classList.toggle("fresh", isFresh);
  at("tokens").replaceChildren(...buttons);
  const least = said.tokens.reduce((low, token, index, all) => (token.probability < all[low].probability ? index : low), 0);
  if (buttons.length) choose(least);
}

/** All commands where they are few, the likeliest where they are many, and what is left of 1. */
export function actions(said) {
  const all = said.actions.map(({ command, probability }) => ({ name: command, share: probability, isSaid: command === said.command }));
  const shown = all.length <= 10 ? all : [...all].sort((a, b) => b.share - a.share).slice(0, 9);
  const rest = Math.max(0, 1 - shown.reduce((sum, row) => sum + row.share, 0));
  bars("actions", [...shown, { name: "all else", share: rest, isSaid: false }]);
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The critic's values at steps 0, 1, ... with the present one marked. */
export function values(list) {
  const known = list.filter((value) => value !== null);
  const low = Math.min(0, ...known), high = Math.max(1, ...known);
  const x = (step) => 34 + (step * 350) / Math.max(list.length - 1, 6);
  const y = (value) => 84 - (76 * (value - low)) / (high - low);
  const points = list.flatMap((value, step) => (value === null ? [] : [[x(step), y(value), value, step]]));
  const title = `values ${known.map((value) => value.toFixed(2)).join(", ")}`;
  const plot = svg("svg", { viewBox: "0 0 400 96", preserveAspectRatio: "xMinYMid meet", role: "img", "aria-label": title });
  for (const level of new Set([low, 0, high])) {
    plot.append(svg("line", { x1: 32, x2: 396, y1: y(level), y2: y(level) }));
    plot.append(svg("text", { x: 28, y: y(level) + 4, "text-anchor": "end" }, level.toFixed(1)));
  }
  plot.append(svg("path", { d: points.map(([px, py], index) => `${index ? "L" : "M"}${px} ${py}`).join("") }));
  points.forEach(([px, py, value, step]) => {
    const isHere = step === list.length - 1;
    plot.append(svg("circle", { cx: px, cy: py, r: isHere ? 5 : 3, class: isHere ? "here" : "" }, svg("title", {}, `step ${step}: ${value.toFixed(2)}`)));
    if (isHere) plot.append(svg("text", { x: px + 9, y: Math.max(py - 6, 11) }, value.toFixed(2)));
  });
  return plot;
}

function colour(share) {
  const place = share * (INFERNO.length - 1), low = Math.min(Math.floor(place), INFERNO.length - 2);
  const [from, to] = [INFERNO[low], INFERNO[low + 1]].map((hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16)));
  return from.map((level, index) => Math.round(level + (to[index] - level) * (place - low)));
}

/** Attention over the picture: `attention` [layers][tokens], of one layer or the mean of all. */
export function heat(attention, [rows, columns], layer, isShown) {
  const canvas = at("heat");
  const of = layer === "all" ? attention[0].map((_, token) => mean(attention.map((each) => each[token]))) : attention[Number(layer)];
  const low = Math.min(...of), span = Math.max(...of) - low || 1;
  canvas.width = columns;
  canvas.height = rows;
  const image = new ImageData(columns, rows);
  of.forEach((weight, token) => image.data.set([...colour((weight - low) / span), 255], 4 * token));
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.hidden = !isShown;
  at("on-picture").textContent = `${percent(of.reduce((sum, weight) => sum + weight, 0))} of its attention on the picture`;
}

const mean = (list) => list.reduce((sum, value) => sum + value, 0) / list.length;

/** Rows of {player, won, turns, cells, efficiency, isMine, isUnderWay}. */
export function scores(rows) {
  const lines = rows.map(({ player, won, turns, cells, efficiency, isMine, isUnderWay }) => {
    const verdict = make("td", { textContent: won ? "won" : isUnderWay ? "playing" : "not won", className: won ? "yes" : isUnderWay ? "" : "no" });
    const rest = [turns, cells, efficiency === null ? "–" : `${efficiency}%`].map((value) => make("td", { textContent: value }));
    return make("tr", { className: isMine ? "mine" : "" }, make("th", { scope: "row", textContent: player }), verdict, ...rest);
  });
  at("scores").tBodies[0].replaceChildren(...lines);
}
