// Parts of the page that are drawn from what they are given.

import { show } from "./marking.js";

export const $ = (id) => document.getElementById(id);

export function section(name) {
  for (const id of ["ask", "sign-in", "finished", "closed"]) $(id).hidden = id !== name;
  $("foot").hidden = name !== "ask";
  $("bar").hidden = name === "sign-in" || name === "closed";
}

export function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text ?? "";
}

export function say(text) {
  $("said").textContent = text;
}

export function button(text, key, kind, act) {
  const found = document.createElement("button");
  found.type = "button";
  found.className = kind;
  found.append(text);
  if (key) {
    const hint = document.createElement("kbd");
    hint.textContent = key;
    key === "←" ? found.prepend(hint) : found.append(hint);
  }
  found.addEventListener("click", act);
  return found;
}

// A response with its number, and a button for its rank if `rank` is given: {card, element, text}.
export function drawCard(text, place, rank) {
  const card = document.createElement("article");
  card.className = "response";
  card.setAttribute("aria-label", `Response ${place + 1}`);
  const head = document.createElement("div");
  head.className = "head";
  const badge = document.createElement("span");
  badge.className = "badge";
  badge.textContent = place + 1;
  head.append(badge);
  if (rank) head.append(button("Rank", null, "rank", rank));
  const element = document.createElement("div");
  card.append(head, element);
  return { card, element, text };
}

// Shows the rank of a response: 0 is the best, null is not ranked.
export function drawRank(card, place, rank) {
  card.classList.toggle("ranked", rank !== null);
  const own = card.querySelector(".rank");
  own.textContent = rank === null ? "Rank" : ["1st", "2nd", "3rd"][rank] ?? `${rank + 1}th`;
  own.setAttribute("aria-label", `Response ${place + 1}: ${rank === null ? "not ranked" : `rank ${rank + 1}`}`);
}

export function drawPrompt(prompt, columns) {
  const box = $("prompt");
  box.replaceChildren();
  const turns = typeof prompt === "string" ? [{ role: null, content: prompt }] : prompt;
  for (const { role, content } of turns) {
    const turn = document.createElement("div");
    turn.className = "turn";
    if (role !== null) {
      const name = document.createElement("p");
      name.className = "role";
      name.textContent = role;
      turn.append(name);
    }
    const text = document.createElement("div");
    show(text, content);
    turn.append(text);
    box.append(turn);
  }
  $("columns").replaceChildren();
  for (const [name, value] of Object.entries(columns)) {
    const [term, text] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    show(text, value);
    $("columns").append(term, text);
  }
  const empty = typeof prompt === "string" && prompt === "" && Object.keys(columns).length === 0;
  $("prompt-box").hidden = empty;
  $("prompt-box").scrollTop = 0;
  const scrolls = $("prompt-box").scrollHeight > $("prompt-box").clientHeight;
  scrolls ? ($("prompt-box").tabIndex = 0) : $("prompt-box").removeAttribute("tabindex");
}

export function drawStanding({ yours, left, done, questions, rate }, perItem) {
  const total = yours + left;
  $("meter").max = Math.max(total, 1);
  $("meter").value = yours;
  const parts = [`${yours.toLocaleString("en")} of ${total.toLocaleString("en")}`];
  if (rate !== null) {
    parts.push(`${rate < 10 ? rate.toFixed(1) : Math.round(rate)} a minute`);
    const minutes = left / rate;
    if (left) parts.push(minutes < 90 ? `about ${Math.max(1, Math.round(minutes))} min left` : `about ${(minutes / 60).toFixed(1)} h left`);
  }
  if (perItem > 1) parts.push(`${done} of ${questions} complete`);
  $("standing").textContent = parts.join(" · ");
}

export function drawKeys(isPair, canMark, annotator) {
  const pair = [["←", "response 1 is better (or 1)"], ["→", "response 2 is better (or 2)"], ["T", "tie: equally good"], ["B", "both are bad"]];
  const many = [["1 – 9", "rank a response, the best first"], ["=", "the next one ties with the last"], ["Backspace", "take the last rank back"], ["Enter", "save the ranking"], ["T", "all tie"], ["B", "all are bad"]];
  const marks = [["M", "mark words: arrows move, Shift extends, ↑ ↓ change the response"], ["1 – 9", "the kind of the selected text"], ["Esc", "leave the selection"]];
  const rest = [["S", "skip: no judgement"], ["U", "undo the last answer"], ["O", "overview"], ["?", "this list"]];
  $("key-list").replaceChildren();
  for (const [key, meaning] of [...(isPair ? pair : many), ...rest, ...(canMark ? marks : [])]) {
    const [term, text, sign] = [document.createElement("dt"), document.createElement("dd"), document.createElement("kbd")];
    sign.textContent = key;
    term.append(sign);
    text.textContent = meaning;
    $("key-list").append(term, text);
  }
  $("who").textContent = `You are ${annotator}. Another name: add &annotator=NAME to the address of the page.`;
}
