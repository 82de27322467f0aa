// The spans that are marked inside the responses of a question, by mouse or by keyboard.

import { WordCursor } from "./cursor.js";
import { selected, show } from "./marking.js";
import { $, button, say } from "./view.js";

export class SpanEditor {
  // kinds: names of the kinds of spans; save(spans) keeps them; mayEdit() is false while a request is under way.
  constructor(kinds, save, mayEdit) {
    this.kinds = kinds;
    this.save = save;
    this.mayEdit = mayEdit;
    this.responses = []; // [{element, text}]
    this.spans = []; // [{response, start, end, kind, weight}]
    this.selection = null; // {response, start, end}
    this.cursor = null; // a WordCursor, while marking by keyboard
  }

  // Begins with the responses of another question, and with what is marked in them already.
  open(responses, spans) {
    this.responses = responses;
    this.spans = spans;
    this.draw();
  }

  draw() {
    const all = this.spans.map((span, index) => ({ ...span, index, look: this.kinds.indexOf(span.kind) }));
    for (const [response, { element, text }] of this.responses.entries()) {
      const marks = all.filter((span) => span.response === response);
      show(element, text, marks);
      for (const mark of element.querySelectorAll("mark")) {
        const index = marks[Number(mark.dataset.mark)].index;
        mark.addEventListener("click", () => this.remove(index));
        mark.addEventListener("keydown", (event) => {
          if (!["Delete", "Backspace", "Enter"].includes(event.key)) return;
          event.preventDefault();
          event.stopPropagation();
          this.remove(index);
        });
      }
    }
  }

  change(spans) {
    this.spans = spans;
    this.save(spans);
    this.draw();
  }

  mark(kind) {
    if (!this.selection || !this.mayEdit()) return;
    const { response, start, end } = this.selection;
    document.getSelection().removeAllRanges();
    this.forgetSelection();
    this.change([...this.spans, { response, start, end, kind, weight: 1 }]);
    say(`Marked as ${kind}.`);
  }

  remove(index) {
    if (!this.mayEdit()) return;
    this.change(this.spans.filter((_, i) => i !== index));
    say("The mark is removed.");
  }

  // Takes over what is selected in the document, and offers the kinds that it can be marked as.
  takeSelection() {
    if (!this.kinds.length || !this.mayEdit()) return;
    this.selection = selected(this.responses);
    const bar = $("kinds");
    bar.hidden = this.selection === null;
    if (this.selection === null) return;
    const label = document.createElement("span");
    label.textContent = "Mark as";
    const buttons = this.kinds.map((kind, i) => button(kind, String(i + 1), `k${i % 4}`, () => this.mark(kind)));
    bar.replaceChildren(label, ...buttons);
  }

  forgetSelection() {
    this.selection = null;
    $("kinds").hidden = true;
  }

  // Begins to mark by keyboard, in the response that was marked last.
  startCursor() {
    const next = new WordCursor(this.responses);
    if (!next.goTo(this.cursor ? this.cursor.response : 0)) return;
    this.cursor = next;
    say("Marking. Arrows move from word to word, Shift extends, a number marks, Escape ends.");
  }

  // Ends marking by keyboard, and selects nothing.
  leave() {
    this.cursor = null;
    document.getSelection().removeAllRanges();
    this.forgetSelection();
  }
}
