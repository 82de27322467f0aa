// The page: shows a question, takes an answer, shows the next one.

import { Outbox, Refused, Server, fromAddress, keepName, newId } from "./answering.js";
import { draw } from "./overview.js";
import { Ranking } from "./ranking.js";
import { SpanEditor } from "./spans.js";
import { $, button, drawCard, drawKeys, drawPrompt, drawRank, drawStanding, notice, say, section } from "./view.js";

const TOO_SOON_MS = 150; // a key that is pressed twice by accident does not answer a question unseen

let server;
let session;
let annotator;
let outbox;
let state = null; // as the server has sent it
let shown = []; // [{card, element, text}] of the responses
let ranking = new Ranking(0); // of more than two responses
let busy = true; // a request is under way, and no answer is taken
let shownAt = 0;
let awayMs = 0;
let awaySince = null;
let editor; // the SpanEditor: what is marked in the responses
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
    const tie = button("Tie with last", "=", ranking.tieNext ? "on" : "", toggleTie);
    tie.setAttribute("aria-pressed", ranking.tieNext);
    const save = button("Save ranking", "Enter", "side", saveRanking);
    tie.disabled = save.disabled = ranking.isEmpty;
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
  for (const [place, { card }] of shown.entries()) drawRank(card, place, ranking.ranks[place]);
  drawChoices();
}

function drawResponses(texts) {
  shown = texts.map((text, place) => drawCard(text, place, texts.length > 2 ? () => rank(place) : null));
  $("responses").replaceChildren(...shown.map(({ card }) => card));
  ranking = new Ranking(texts.length);
}

function render(next) {
  state = next;
  editor.cursor = null;
  editor.forgetSelection();
  drawStanding(next.progress, session.per_item);
  $("undo").disabled = next.last === null;
  if (next.question === null) {
    section("finished");
    $("export").textContent = `lm-env label export ${session.file} labels.jsonl`;
    $("finished").querySelector("h1").focus({ preventScroll: true });
    say("Nothing is left for you.");
  } else {
    section("ask");
    drawPrompt(next.question.prompt, next.question.columns);
    drawResponses(next.question.responses);
    editor.open(shown, next.question.spans);
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
  await marksSent; // marks that arrive after the answer to their question would be refused
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

async function answer(choice, ranks = []) {
  if (busy || state?.question === null || performance.now() - shownAt < TOO_SOON_MS) return;
  const seconds = (performance.now() - shownAt - awayMs) / 1000;
  const content = { annotator, id: newId(), presentation: state.question.presentation, choice, ranking: ranks, spans: editor.spans, seconds };
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
  ranking.toggle(place);
  drawRanks();
}

function unrank() {
  if (busy) return;
  ranking.takeBack();
  drawRanks();
}

function toggleTie() {
  ranking.toggleTie();
  drawChoices();
}

function saveRanking() {
  if (ranking.isEmpty) return;
  ranking.isTie ? answer("tie") : answer("ranked", ranking.ranks);
}

// -- marks --------------------------------------------------------------------------------------------------
function sendMarks(spans) {
  const content = { annotator, presentation: state.question.presentation, spans };
  // One after the other, so that an older state never replaces a newer one; the answer brings them all again.
  marksSent = marksSent.then(() => server.call("marks", content)).catch(() => {});
}

// -- keys -----------------------------------------------------------------------------------------------------
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat && !editor.cursor) return;
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
  if (key === "Escape" && (editor.selection || editor.cursor)) return () => editor.leave();
  if (editor.cursor && key.startsWith("Arrow")) return () => editor.cursor.move(key, event.shiftKey);
  if (key === "m" && session.span_types.length) return () => editor.startCursor();
  const number = /^[1-9]$/.test(key) ? Number(key) - 1 : null;
  if (number !== null) editor.takeSelection(); // the event that tells of a new selection may still be on its way
  if (editor.selection && number !== null) {
    return number < editor.kinds.length ? () => editor.mark(editor.kinds[number]) : null;
  }
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

async function openOverview() {
  $("overview").showModal();
  $("overview-body").textContent = "…";
  try {
    draw($("overview-body"), await server.call("overview", {}));
  } catch (error) {
    $("overview-body").textContent = `The overview cannot be loaded now: ${error.message}`;
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
  document.addEventListener("selectionchange", () => { if (!$("ask").hidden) editor.takeSelection(); });
  document.addEventListener("pointerdown", () => { editor.cursor = null; });
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
  editor = new SpanEditor(session.span_types, sendMarks, () => !busy);
  document.title = `${session.file} – labels`;
  $("instruction").textContent = session.instruction;
  watch();
  known ? await begin(known) : askName();
}

addEventListener("hashchange", () => location.reload());
start();
