// The page: shows a question, takes an answer, shows the next one.

import { Outbox, Refused, Server, fromAddress, keepName, newId } from "./answering.js";
import { select, selected, show, words } from "./marking.js";
import { draw } from "./overview.js";
import { $, button, drawKeys, drawPrompt, drawStanding, notice, say, section } from "./view.js";

const TOO_SOON_MS = 150; // a key that is pressed twice by accident does not answer a question unseen

let server;
let session;
let annotator;
let outbox;
let state = null; // as the server has sent it
let shown = []; // [{element, text}] of the responses
let spans = []; // what is marked in them
let ranks = []; // ranks so far, of more than two responses
let tieNext = false; // the next one ranked ties with the last
let busy = true;
let shownAt = 0;
let awayMs = 0;
let awaySince = null;
let selection = null; // {response, start, end}
let cursor = null; // {response, first, last}: words, while marking by keyboard
let marksSent = Promise.resolve();

// -- what is visible ------------------------------------------------------------------------------------
const isPair = () => shown.length === 2;

function drawChoices() {
  const box = $("choices");
  box.classList.toggle("many", !isPair());
  if (isPair()) {
    box.replaceChildren(
      button("1 is better", "←", "side", () => answer("ranked", [0, 1])),
      button("Tie", "T", "", () => answer("tie")),
      button("Both bad", "B", "", () => answer("bad")),
      button("Skip", "S", "", () => answer("skip")),
      button("2 is better", "→", "side", () => answer("ranked", [1, 0])),
    );
  } else {
    const tie = button("Tie with last", "=", tieNext ? "on" : "", toggleTie);
    tie.setAttribute("aria-pressed", tieNext);
    const save = button("Save ranking", "Enter", "side", saveRanking);
    tie.disabled = save.disabled = ranks.every((rank) => rank === null);
    box.replaceChildren(
      button("All tie", "T", "", () => answer("tie")),
      button("All bad", "B", "", () => answer("bad")),
      button("Skip", "S", "", () => answer("skip")),
      tie,
      save,
    );
  }
  const marking = session.span_types.length ? " Select text, or press M, to mark it." : "";
  $("hint").textContent = isPair()
    ? marking.trim()
    : `Press the numbers from best to worst; what is not ranked counts as worse than what is.${marking}`;
}

function drawRanks() {
  for (const [place, { card }] of shown.entries()) {
    const rank = ranks[place];
    card.classList.toggle("ranked", rank !== null);
    const own = card.querySelector(".rank");
    own.textContent = rank === null ? "Rank" : ["1st", "2nd", "3rd"][rank] ?? `${rank + 1}th`;
    own.setAttribute("aria-label", `Response ${place + 1}: ${rank === null ? "not ranked" : `rank ${rank + 1}`}`);
  }
  drawChoices();
}

function drawResponses(texts) {
  shown = texts.map((text, place) => {
    const card = document.createElement("article");
    card.className = "response";
    card.setAttribute("aria-label", `Response ${place + 1}`);
    const head = document.createElement("div");
    head.className = "head";
    const badge = document.createElement("span");
    badge.className = "badge";
    badge.textContent = place + 1;
    head.append(badge);
    if (texts.length > 2) head.append(button("Rank", null, "rank", () => rank(place)));
    const element = document.createElement("div");
    card.append(head, element);
    return { card, element, text };
  });
  $("responses").replaceChildren(...shown.map(({ card }) => card));
  ranks = texts.map(() => null);
  tieNext = false;
  drawMarks();
}

function drawMarks() {
  for (const [response, { element, text }] of shown.entries()) {
    const own = spans.map((span, index) => ({ ...span, index, look: session.span_types.indexOf(span.kind) }));
    const marks = own.filter((span) => span.response === response);
    show(element, text, marks);
    for (const mark of element.querySelectorAll("mark")) {
      const index = marks[Number(mark.dataset.mark)].index;
      mark.addEventListener("click", () => removeMark(index));
      mark.addEventListener("keydown", (event) => {
        if (["Delete", "Backspace", "Enter"].includes(event.key)) {
          event.preventDefault();
          event.stopPropagation();
          removeMark(index);
        }
      });
    }
  }
}

function render(next) {
  state = next;
  cursor = null;
  clearSelection();
  drawStanding(next.progress, session.per_item);
  $("undo").disabled = next.last === null;
  if (next.question === null) {
    section("finished");
    $("export").textContent = `lm-env label export ${session.file} labels.jsonl`;
    $("finished").querySelector("h1").focus({ preventScroll: true });
    say("Nothing is left for you.");
  } else {
    section("ask");
    spans = next.question.spans;
    drawPrompt(next.question.prompt, next.question.columns);
    drawResponses(next.question.responses);
    isPair() ? drawChoices() : drawRanks();
    drawKeys(isPair(), session.span_types.length > 0, annotator);
    scrollTo(0, 0);
    $("instruction").focus({ preventScroll: true });
    say(`Question ${next.progress.yours + 1} of ${next.progress.yours + next.progress.left}.`);
  }
  shownAt = performance.now();
  awayMs = 0;
  awaySince = document.hidden ? shownAt : null;
  setBusy(false);
}

function setBusy(value) {
  busy = value;
  document.body.dataset.state = value ? "busy" : "ready";
}

// -- answers ----------------------------------------------------------------------------------------------
async function send(name, content) {
  setBusy(true);
  try {
    render(await server.persist(name, content));
    return true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 403) {
      section("closed");
      return false;
    }
    notice(`That was not taken: ${error.message}`);
    return true;
  }
}

async function answer(choice, ranking = []) {
  if (busy || state?.question === null || performance.now() - shownAt < TOO_SOON_MS) return;
  const seconds = (performance.now() - shownAt - awayMs) / 1000;
  const content = { annotator, id: newId(), presentation: state.question.presentation, choice, ranking, spans, seconds };
  notice(null);
  outbox.put(content);
  await deliver(content);
}

async function deliver(content) {
  const before = state;
  if (!(await send("answer", content))) return; // it stays in the outbox until the page has its token again
  outbox.clear();
  if (state === before) await send("next", { annotator });
}

async function undo() {
  if (busy || !state?.last) return;
  notice(null);
  const before = state;
  if (!(await send("undo", { annotator, answer: state.last }))) return;
  if (state === before) await send("next", { annotator });
  else say("The last answer is undone.");
}

// -- ranking more than two ----------------------------------------------------------------------------------
function rank(place) {
  if (busy) return;
  if (ranks[place] !== null) {
    ranks[place] = null;
  } else {
    const given = ranks.filter((value) => value !== null);
    const last = given.length ? Math.max(...given) : -1;
    ranks[place] = tieNext && last >= 0 ? last : last + 1;
  }
  const levels = [...new Set(ranks.filter((value) => value !== null))].sort((a, b) => a - b);
  ranks = ranks.map((value) => (value === null ? null : levels.indexOf(value)));
  tieNext = false;
  drawRanks();
}

function unrank() {
  const given = ranks.filter((value) => value !== null);
  if (given.length) rank(ranks.lastIndexOf(Math.max(...given)));
}

function toggleTie() {
  tieNext = !tieNext && ranks.some((value) => value !== null);
  drawChoices();
}

function saveRanking() {
  if (ranks.every((value) => value === null)) return;
  const all = ranks.every((value) => value === 0);
  all ? answer("tie") : answer("ranked", ranks);
}

// -- marks --------------------------------------------------------------------------------------------------
function keepMarks() {
  const content = { annotator, presentation: state.question.presentation, spans };
  // One after the other, so that an older state never replaces a newer one; the answer brings them all again.
  marksSent = marksSent.then(() => server.call("marks", content)).catch(() => {});
  drawMarks();
}

function mark(kind) {
  if (!selection || busy) return;
  spans = [...spans, { response: selection.response, start: selection.start, end: selection.end, kind, weight: 1 }];
  document.getSelection().removeAllRanges();
  clearSelection();
  keepMarks();
  say(`Marked as ${kind}.`);
}

function removeMark(index) {
  if (busy) return;
  spans = spans.filter((_, i) => i !== index);
  keepMarks();
  say("The mark is removed.");
}

function clearSelection() {
  selection = null;
  $("kinds").hidden = true;
}

function takeSelection() {
  if (busy || !session?.span_types.length || $("ask").hidden) return;
  selection = selected(shown);
  const bar = $("kinds");
  bar.hidden = selection === null;
  if (selection === null) return;
  const label = document.createElement("span");
  label.textContent = "Mark as";
  bar.replaceChildren(label, ...session.span_types.map((kind, i) => button(kind, String(i + 1), `k${i % 4}`, () => mark(kind))));
}

function moveCursor(event) {
  const list = words(shown[cursor.response].text);
  const step = event.key === "ArrowRight" ? 1 : -1;
  if (event.key === "ArrowUp" || event.key === "ArrowDown") {
    startCursor((cursor.response + (event.key === "ArrowDown" ? 1 : shown.length - 1)) % shown.length);
    return;
  }
  const last = Math.min(Math.max(cursor.last + step, 0), list.length - 1);
  cursor = { ...cursor, last: event.shiftKey ? Math.max(last, cursor.first) : last, first: event.shiftKey ? cursor.first : last };
  select(shown[cursor.response].element, list[cursor.first][0], list[cursor.last][1]);
}

function startCursor(response) {
  const list = words(shown[response].text);
  if (!list.length) return;
  cursor = { response, first: 0, last: 0 };
  select(shown[response].element, ...list[0]);
  say("Marking. Arrows move from word to word, Shift extends, a number marks, Escape ends.");
}

// -- keys -----------------------------------------------------------------------------------------------------
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat && !cursor) return;
  if (document.querySelector("dialog[open]") || event.target.closest("input, textarea")) return;
  if ($("bar").hidden) return;
  const act = actionOf(event);
  if (!act) return;
  event.preventDefault();
  act();
}

function actionOf(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "u") return undo;
  if (key === "o") return openOverview;
  if (key === "?") return () => $("keys").showModal();
  if ($("ask").hidden) return null;
  if (key === "Escape" && (selection || cursor)) return leaveSelection;
  if (cursor && key.startsWith("Arrow")) return () => moveCursor(event);
  if (key === "m" && session.span_types.length) return () => startCursor(cursor ? cursor.response : 0);
  const number = /^[1-9]$/.test(key) ? Number(key) - 1 : null;
  if (number !== null) takeSelection(); // the event that tells of a new selection may still be on its way
  if (selection && number !== null) return number < session.span_types.length ? () => mark(session.span_types[number]) : null;
  const choice = { t: "tie", b: "bad", s: "skip" }[key];
  if (choice) return () => answer(choice);
  if (isPair()) {
    if (key === "ArrowLeft" || number === 0) return () => answer("ranked", [0, 1]);
    if (key === "ArrowRight" || number === 1) return () => answer("ranked", [1, 0]);
    return null;
  }
  if (number !== null) return number < shown.length ? () => rank(number) : null;
  if (event.target.closest("button") && key === "Enter") return null; // it presses the button
  return { "=": toggleTie, Backspace: unrank, Enter: saveRanking }[key] ?? null;
}

function leaveSelection() {
  cursor = null;
  document.getSelection().removeAllRanges();
  clearSelection();
}

async function openOverview() {
  $("overview").showModal();
  $("overview-body").textContent = "…";
  try {
    draw($("overview-body"), await server.call("overview", {}));
  } catch (error) {
    $("overview-body").textContent = `It cannot be had now: ${error.message}`;
  }
}

// -- start ----------------------------------------------------------------------------------------------------
function askName() {
  section("sign-in");
  $("names").replaceChildren(...session.annotators.map((name) => Object.assign(document.createElement("option"), { value: name })));
  $("name").value = session.annotators.length === 1 ? session.annotators[0] : "";
  $("name").focus();
}

async function begin(name) {
  annotator = name.normalize("NFC").trim();
  outbox = new Outbox(session.store, annotator);
  const unsent = outbox.get();
  if (unsent) await deliver(unsent);
  else if ((await send("next", { annotator })) && state === null) askName();
  if (state !== null) keepName(annotator);
}

function watch() {
  document.addEventListener("keydown", onKey);
  document.addEventListener("selectionchange", takeSelection);
  document.addEventListener("pointerdown", () => { cursor = null; });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) awaySince = performance.now();
    else if (awaySince !== null) awayMs += performance.now() - awaySince;
  });
  $("kinds").addEventListener("pointerdown", (event) => event.preventDefault()); // the selection stays
  $("kinds").addEventListener("mousedown", (event) => event.preventDefault());
  $("undo").addEventListener("click", undo);
  $("show-overview").addEventListener("click", openOverview);
  $("show-keys").addEventListener("click", () => $("keys").showModal());
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  }
  $("name-form").addEventListener("submit", (event) => {
    event.preventDefault();
    notice(null);
    begin($("name").value);
  });
}

async function start() {
  const { token, annotator: known } = fromAddress();
  server = new Server(token, (trouble) =>
    notice(trouble && `Not saved yet: ${trouble}. It is tried again until it is; leave this page open.`));
  if (!token) return section("closed");
  try {
    session = await server.persist("session", {});
  } catch (error) {
    if (error.status !== 403) throw error;
    return section("closed");
  }
  document.title = `${session.file} – labels`;
  $("instruction").textContent = session.instruction;
  watch();
  known ? await begin(known) : askName();
}

addEventListener("hashchange", () => location.reload());
start();
