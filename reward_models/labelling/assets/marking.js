// Texts as they are shown, and spans of them.  Places in a text count code points, as Python does.

const HIDES = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;
const SPELLING = new Set(["\n", "\t", "\u200c", "\u200d"]); // the last two belong to words and to emoji
const NAMED = new Map([["\r", "\\r"], ["\0", "\\x00"]]);

// A character that hides or reorders what is read, written out.
function writtenOut(character) {
  const hex = character.codePointAt(0).toString(16);
  if (NAMED.has(character)) return NAMED.get(character);
  return hex.length > 4 ? `\\U${hex.padStart(8, "0")}` : `\\u${hex.padStart(4, "0")}`;
}

const hides = (character) => HIDES.test(character) && !SPELLING.has(character);

// Fills an element with a text, which is never read as HTML.  marks: [{start, end, kind, look}], later ones on top.
export function show(element, text, marks = []) {
  const points = Array.from(text);
  element.replaceChildren();
  element.classList.add("text");
  element.dir = "auto";
  element.dataset.length = points.length;
  const top = new Array(points.length).fill(-1);
  marks.forEach((mark, number) => top.fill(number, mark.start, mark.end));
  for (let start = 0; start < points.length; ) {
    const hidden = hides(points[start]);
    let end = start + 1;
    while (!hidden && end < points.length && top[end] === top[start] && !hides(points[end])) end += 1;
    element.append(piece(points.slice(start, end).join(""), start, end, hidden, marks[top[start]], top[start]));
    start = end;
  }
  if (points.length === 0) element.append(note("(empty)"));
}

function note(text) {
  const found = document.createElement("span");
  found.className = "empty";
  found.textContent = text;
  return found;
}

function piece(text, start, end, hidden, mark, number) {
  const found = document.createElement(mark ? "mark" : "span");
  found.dataset.start = start;
  found.dataset.end = end;
  found.textContent = hidden ? writtenOut(text) : text;
  if (hidden) {
    found.classList.add("hidden-character");
    found.dataset.atomic = "";
  }
  if (mark) {
    found.classList.add(`k${mark.look % 4}`);
    found.dataset.mark = number;
    if (mark.end === end) {
      found.classList.add("last");
      found.dataset.kind = mark.kind;
      found.tabIndex = 0;
      found.setAttribute("role", "button");
      found.setAttribute("aria-label", `${mark.kind}: ${text}. Press Delete to remove the mark.`);
    }
    found.title = `${mark.kind}: click to remove`;
  }
  return found;
}

// The place in the text of a point in the document.
function placeOf(element, node, offset) {
  if (node === element) {
    const child = element.children[offset];
    return child?.dataset.start === undefined ? Number(element.dataset.length) : Number(child.dataset.start);
  }
  const inside = node.nodeType === Node.TEXT_NODE ? node.parentElement : node;
  const own = inside.closest("[data-start]");
  if (!own) return 0;
  const start = Number(own.dataset.start);
  if (offset === 0) return start;
  if ("atomic" in own.dataset || node.nodeType !== Node.TEXT_NODE) return Number(own.dataset.end);
  return start + Array.from(node.data.slice(0, offset)).length;
}

// What is selected inside one response: {response, start, end} without spaces at its ends, or null.
export function selected(responses) {
  const selection = document.getSelection();
  if (!selection || selection.isCollapsed || selection.rangeCount === 0) return null;
  const range = selection.getRangeAt(0);
  for (const [response, { element, text }] of responses.entries()) {
    const begins = element.contains(range.startContainer);
    const ends = element.contains(range.endContainer);
    if (!begins && !ends) continue;
    const points = Array.from(text);
    let start = begins ? placeOf(element, range.startContainer, range.startOffset) : 0;
    let end = ends ? placeOf(element, range.endContainer, range.endOffset) : points.length;
    while (start < end && !points[start].trim()) start += 1;
    while (start < end && !points[end - 1].trim()) end -= 1;
    if (start < end) return { response, start, end };
    if (begins) return null;
  }
  return null;
}

// Selects a stretch of a response in the document.
export function select(element, start, end) {
  const from = pointOf(element, start, false);
  const to = pointOf(element, end, true);
  document.getSelection().setBaseAndExtent(...from, ...to);
  from[0].parentElement.scrollIntoView({ block: "nearest" });
}

function pointOf(element, place, atEnd) {
  for (const child of element.children) {
    const [start, end] = [Number(child.dataset.start), Number(child.dataset.end)];
    if (!(start <= place && (place < end || (atEnd && place === end)))) continue;
    const node = child.firstChild;
    if ("atomic" in child.dataset) return [node, place === start ? 0 : node.data.length];
    return [node, Array.from(node.data).slice(0, place - start).join("").length];
  }
  return [element, element.childNodes.length];
}

// [start, end] of each word, for marking by keyboard.
export function words(text) {
  const found = [];
  const points = Array.from(text);
  for (let start = 0; start < points.length; ) {
    if (!points[start].trim()) { start += 1; continue; }
    let end = start;
    while (end < points.length && points[end].trim()) end += 1;
    found.push([start, end]);
    start = end;
  }
  return found;
}
