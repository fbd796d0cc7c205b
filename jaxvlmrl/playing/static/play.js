// The page: a game is its start and the list of what was done; the server answers what follows from them, and nothing else
// happens between a person's actions. The whole state is in the address.

import * as draw from "./draw.js";

const { at, plural } = draw;
const OWN = "*"; // a turn that the model answers for itself
const KEPT = 300; // answers that are remembered, so that stepping back asks nobody

const game = {
  start: null,
  you: { done: [], at: 0, backs: 0, taken: 0, score: null },
  model: { done: [], at: 0, played: [] },
  others: [],
};
let about = null; // who else sits at the board; comes after a person can play
let running = 0; // counts up whenever the model's run to the end is to stop

// Questions

const answers = new Map();

async function ask(name, question) {
  const body = JSON.stringify(question);
  const response = await fetch(`api/${name}`, { method: "POST", headers: { "content-type": "application/json" }, body });
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({ error: `the server says ${response.status}` }));
    throw new Error(error);
  }
  return name === "gif" ? response.blob() : response.json();
}

async function look(name, done) {
  const question = { ...game.start, done };
  const key = name + JSON.stringify(question);
  if (!answers.has(key)) remember(key, await ask(name, question));
  return answers.get(key);
}

function remember(key, answer) {
  answers.set(key, answer);
  if (answers.size > KEPT) answers.delete(answers.keys().next().value);
}

let line = Promise.resolve();

/** One thing after another, in the order in which it was wanted; what goes wrong is said in `id`. */
function inTurn(work, id = "alert") {
  line = line.then(work).catch((error) => say(id, error instanceof TypeError ? "The server does not answer; is it still running?" : error.message));
  return line;
}

function say(id, text, isWon = false) {
  const element = at(id);
  element.textContent = text.charAt(0).toUpperCase() + text.slice(1);
  element.classList.toggle("won", isWon);
  if (id === "alert") element.hidden = !text;
}

// The person's side

async function showYou() {
  const { you } = game;
  const view = await look("person", you.done.slice(0, you.at));
  if (you.at === you.done.length) you.score = view.score;
  const { won, turns, cells, efficiency } = view.score;
  draw.picture("you-picture", view.sharp, `The board after ${plural(turns, "command")}, seen from behind the player`);
  at("you-status").textContent = `${plural(turns, "command")}, ${plural(cells, "cell")}`;
  const ending = `Won! ${plural(turns, "command")}, ${plural(cells, "cell")}, efficiency ${efficiency}%`;
  say("you-message", won ? ending : turns ? `${view.done.at(-1)}: ${view.outcome}` : "Find the gold and stop on it.", won);
  draw.turns("you-turns", you.done.map((text) => ({ text })), you.at, goYou);
  steps("you", you.at, you.done.length);
  for (const button of document.querySelectorAll("[data-command]")) button.disabled = won;
  at("hand-over").disabled = won;
  showScores();
  write();
}

const goYou = (step) => inTurn(() => ((game.you.at = step), showYou()), "you-message");

function command(text) {
  return inTurn(async () => {
    const { you } = game;
    const view = await ask("person", { ...game.start, done: you.done.slice(0, you.at), command: text });
    if (view.refused) return say("you-message", view.refused);
    if (you.at < you.done.length) you.backs += 1;
    remember("person" + JSON.stringify({ ...game.start, done: view.done }), view);
    Object.assign(you, { done: view.done, at: view.done.length });
    return showYou();
  }, "you-message");
}

// The model's side

async function showModel(isFresh = false) {
  const { model } = game;
  const view = await look("model", model.done.slice(0, model.at));
  model.played.splice(0, view.played.length, ...view.played);
  const { won, turns, cells } = view.score;
  draw.picture("model-picture", view.image, `What the model sees at step ${turns}`);
  draw.picture("model-sharp", view.sharp, `The model's board at step ${turns}, at the quality you see`);
  at("model-status").textContent = `${about.model.name}: ${plural(turns, "command")}, ${plural(cells, "cell")}`;
  draw.turns("model-turns", model.done.map((each, turn) => ({ text: each === OWN ? model.played[turn] : each, isGiven: each !== OWN })), model.at, goModel);
  steps("model", model.at, model.done.length);
  const isOver = won || (model.at === model.done.length && model.at >= about.model.turns);
  for (const id of ["model-forward", "model-last"]) at(id).disabled = isOver && model.at === model.done.length;
  at("take-over").disabled = won;
  say("model-message", sentence(view, isOver), won);
  showSaid(view, isFresh);
  write();
}

function sentence({ score, said }, isOver) {
  if (score.won) return `Won in ${plural(score.turns, "command")}, efficiency ${score.efficiency}%`;
  if (isOver) return `Not won: ${plural(about.model.turns, "turn")} are used up`;
  return `It says ${said.text || "nothing"}`;
}

function showSaid(view, isFresh) {
  const { said } = view;
  at("said").hidden = !said;
  at("heat").hidden = true;
  at("on-picture").textContent = "";
  if (said) {
    draw.tokens(said, isFresh);
    draw.actions(said);
    draw.heat(said.attention, view.image_shape, at("layer").value, at("show-heat").checked);
  }
  const nothing = "This run has kept no critic: it was trained before runs did, or by a method without one.";
  at("value").replaceChildren(about.model.has_critic ? draw.values(view.values) : nothing);
}

const goModel = (step) => ((running += 1), inTurn(() => ((game.model.at = step), showModel()), "model-message"));

async function modelTurn() {
  const { model } = game;
  const view = await look("model", model.done.slice(0, model.at));
  if (model.at === model.done.length) {
    if (!view.said || model.at >= about.model.turns) return false;
    model.done = [...model.done, OWN];
  }
  model.at += 1;
  await showModel(true);
  return true;
}

function modelToTheEnd() {
  const mine = (running += 1);
  const next = async () => {
    if (mine === running && (await modelTurn())) inTurn(next, "model-message"); // and other things come in between
  };
  inTurn(next, "model-message");
}

function takeOver() {
  running += 1;
  return inTurn(async () => {
    const { model, you } = game;
    const view = await look("model", model.done.slice(0, model.at));
    const done = view.played.filter(Boolean); // what could not be read changed nothing
    Object.assign(you, { done, at: done.length, backs: 0, taken: done.length });
    await showYou();
    say("you-message", `You go on where the model stood after ${plural(done.length, "command")}.`);
    at("you-title").scrollIntoView({ block: "nearest" });
  }, "you-message");
}

function handOver() {
  running += 1;
  return inTurn(async () => {
    const done = game.you.done.slice(0, game.you.at);
    Object.assign(game.model, { done, at: done.length, played: [...done] });
    await showModel(true);
    at("model-title").scrollIntoView({ block: "nearest" });
  }, "model-message");
}

// Both

function steps(side, here, length) {
  at(`${side}-at`).textContent = `${here} of ${length}`;
  for (const [name, isEnd] of [["first", here === 0], ["back", here === 0], ["forward", here === length], ["last", here === length]]) {
    if (side === "you" || !["forward", "last"].includes(name)) at(`${side}-${name}`).disabled = isEnd;
  }
}

function showScores() {
  const { you, others } = game;
  const notes = [you.taken && `after ${plural(you.taken, "command")} of the model`, you.backs && `went back ${you.backs === 1 ? "once" : `${you.backs} times`}`].filter(Boolean);
  const player = notes.length ? `you (${notes.join(", ")})` : "you";
  draw.scores([...(you.score ? [{ ...you.score, player, isMine: true, isUnderWay: !you.score.won }] : []), ...others]);
}

/** A game at a start that the server accepts; where it does not, the one before stays, or the form's own where there is none. */
async function openOrStay(...wanted) {
  try {
    await open(...wanted);
  } catch (error) {
    if (!game.start) await open(entered());
    throw error;
  }
}

async function open(start, you = {}, model = {}) {
  running += 1;
  const before = game.start;
  game.start = start;
  try {
    await look("person", you.done ?? []);
  } catch (error) {
    game.start = before;
    throw error;
  }
  say("alert", "");
  const done = you.done ?? [], turns = model.done ?? [];
  game.you = { done, at: you.at ?? done.length, backs: you.backs ?? 0, taken: you.taken ?? 0, score: null };
  game.model = { done: turns, at: model.at ?? turns.length, played: [] };
  game.others = [];
  for (const name of ["seed", "size", "blocks"]) at(name).value = start[name];
  limitBlocks();
  game.you.score = (await look("person", done)).score;
  await showYou();
}

/** A game from its start: the person's board first, then the model's, then what the others did. */
function begin(start, you, model) {
  inTurn(() => openOrStay(start, you, model));
  seated.then(() => {
    if (about.model) inTurn(() => game.start && (game.start.size > about.model.largest ? showAbsent() : showPresent()), "model-message");
    inTurn(async () => game.start && ((game.others = await ask("scores", game.start)), showScores()));
  });
}

function showAbsent() {
  at("model").classList.add("absent");
  at("model-status").textContent = `${about.model.name} was made for boards up to ${about.model.largest} by ${about.model.largest}; on this one you play without it.`;
}

function showPresent() {
  at("model").classList.remove("absent");
  return showModel();
}

// The address

const CODES = { left: "l", right: "r", [OWN]: OWN };
const NAMES = { l: "left", r: "right", [OWN]: OWN };
const packed = (done) => done.map((each) => CODES[each] ?? each.replace("forward ", "")).join(".");
const unpacked = (text) => (text ? text.split(".").map((code) => NAMES[code] ?? `forward ${code}`) : []);

function write() {
  const { start, you, model } = game;
  const fields = { ...start, you: packed(you.done), model: packed(model.done) };
  if (you.at < you.done.length) fields.you_at = you.at;
  if (model.at < model.done.length) fields.model_at = model.at;
  for (const name of ["backs", "taken"]) if (you[name]) fields[name] = you[name];
  history.replaceState(null, "", `#${new URLSearchParams(fields)}`);
}

function read() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const number = (name, otherwise) => (fields.has(name) ? Number(fields.get(name)) : otherwise);
  const first = entered();
  const start = { seed: fields.get("seed") ?? first.seed, size: number("size", first.size), blocks: number("blocks", first.blocks) };
  const side = (name) => {
    const done = unpacked(fields.get(name));
    return { done, at: Math.min(Math.max(0, Math.trunc(number(`${name}_at`, done.length)) || 0), done.length) };
  };
  const you = { ...side("you"), backs: number("backs", 0) || 0, taken: number("taken", 0) || 0 };
  begin(start, you, side("model"));
}

// Wiring

const on = (id, what, event = "click") => at(id).addEventListener(event, what);

function entered() {
  return { seed: at("seed").value, size: at("size").valueAsNumber, blocks: at("blocks").valueAsNumber };
}

/** The game's own limit, so that a form that cannot be played is not sent. */
function limitBlocks() {
  at("blocks").max = Math.floor(at("size").valueAsNumber ** 2 / 4) || 0;
}

function newSeed() {
  if (at("board").reportValidity()) begin({ ...entered(), seed: String(Math.floor(Math.random() * 100000)) });
}

async function save(done) {
  const url = URL.createObjectURL(await ask("gif", { ...game.start, done }));
  const name = game.start.seed.trim().replace(/[^\w-]+/g, "_") || "0";
  draw.make("a", { href: url, download: `gridwalker-${name}.gif` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function share() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("you-message", "The link is copied. It opens these games wherever this page runs.");
  } catch {
    say("you-message", "The link is the page's address; copy it from there.");
  }
}

function pressed(event) {
  const isTyping = event.target.matches?.("input:not([type=checkbox]), select, textarea");
  if (!at("keys").checked || isTyping || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const texts = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "forward 1" };
  const text = texts[event.key] ?? (/^[1-9]$/.test(event.key) ? `forward ${event.key}` : null);
  const others = { n: newSeed, m: about?.model && (() => ((running += 1), inTurn(modelTurn, "model-message"))), b: about?.model && (() => goModel(Math.max(0, game.model.at - 1))) };
  const work = text ? () => command(text) : Object.hasOwn(others, event.key) && others[event.key];
  if (!work) return;
  event.preventDefault();
  work();
}

function wire() {
  on("board", (event) => (event.preventDefault(), begin(entered())), "submit");
  on("random", newSeed);
  on("size", limitBlocks, "input");
  on("typed", (event) => {
    event.preventDefault();
    if (at("command").value.trim()) command(at("command").value);
    at("command").value = "";
  }, "submit");
  for (let count = 2; count <= 9; count += 1) {
    const button = draw.make("button", { type: "button", textContent: count });
    button.dataset.command = `forward ${count}`;
    button.setAttribute("aria-label", `forward ${count}`);
    at("digits").append(button);
  }
  for (const button of document.querySelectorAll("[data-command]")) button.addEventListener("click", () => command(button.dataset.command));
  on("you-first", () => goYou(0));
  on("you-back", () => goYou(game.you.at - 1));
  on("you-forward", () => goYou(game.you.at + 1));
  on("you-last", () => goYou(game.you.done.length));
  on("you-gif", () => inTurn(() => save(game.you.done), "you-message"));
  on("share", share);
  document.addEventListener("keydown", pressed);
  window.addEventListener("hashchange", read);
}

function wireModel() {
  const { layers, image } = about.model;
  for (let layer = 0; layer < layers; layer += 1) at("layer").append(draw.make("option", { value: layer, textContent: layer + 1 }));
  at("pixels").textContent = `(${image[1]} × ${image[0]} pixels)`;
  on("model-first", () => goModel(0));
  on("model-back", () => goModel(game.model.at - 1));
  on("model-forward", () => ((running += 1), inTurn(modelTurn, "model-message")));
  on("model-last", modelToTheEnd);
  on("model-gif", () => inTurn(() => save(game.model.done), "model-message"));
  on("take-over", takeOver);
  on("hand-over", handOver);
  for (const id of ["show-heat", "layer"]) on(id, () => inTurn(() => showModel()), "change");
}

const hear = async (what) => (await fetch(`api/${what}`)).json();

const seated = hear("about").then((heard) => {
  about = heard;
  if (about.model) wireModel();
});
seated.catch(() => say("alert", "The server has gone; its terminal says why."));
hear("opened").then(({ checkpoint }) => document.body.classList.toggle("alone", !checkpoint));
wire();
read();
