// The words that the keys select, so that they can be marked without a mouse.

import { select, words } from "./marking.js";

export class WordCursor {
  // responses: [{element, text}].
  constructor(responses) {
    this.responses = responses;
    this.response = this.first = this.last = 0;
  }

  // Selects the first word of a response; false if it has no word, and then nothing changes.
  goTo(response) {
    if (!words(this.responses[response].text).length) return false;
    this.response = response;
    this.first = this.last = 0;
    this.select();
    return true;
  }

  // Follows an arrow key: left and right to another word, up and down to another response.
  move(key, extend) {
    const count = this.responses.length;
    if (key === "ArrowDown") return this.goTo((this.response + 1) % count);
    if (key === "ArrowUp") return this.goTo((this.response + count - 1) % count);
    const step = key === "ArrowRight" ? 1 : -1;
    const last = Math.min(Math.max(this.last + step, 0), this.words().length - 1);
    this.last = extend ? Math.max(last, this.first) : last;
    if (!extend) this.first = last;
    this.select();
    return true;
  }

  words() {
    return words(this.responses[this.response].text);
  }

  // Selects in the document what the cursor covers.
  select() {
    const list = this.words();
    select(this.responses[this.response].element, list[this.first][0], list[this.last][1]);
  }
}
