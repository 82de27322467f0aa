// The overview: progress, annotators and agreement as tables.

const share = (value) => (value === null || value === undefined
  ? "–" : value.toFixed(2).replace(/^-(0\.00)$/, "$1").replace("-", "\u2212"));
const interval = (low, high) => (low === null || low === undefined ? "" : ` (${share(low)} to ${share(high)})`);

function table(head, rows) {
  const wide = document.createElement("div");
  wide.className = "wide";
  wide.tabIndex = 0;
  const found = document.createElement("table");
  const line = (cells, name) => {
    const row = document.createElement("tr");
    cells.forEach((text, i) => {
      const cell = document.createElement(name === "th" || i === 0 ? "th" : "td");
      cell.scope = name === "th" ? "col" : "row";
      cell.textContent = text;
      row.append(cell);
    });
    return row;
  };
  found.createTHead().append(line(head, "th"));
  const body = found.createTBody();
  rows.forEach((cells) => body.append(line(cells, "td")));
  wide.append(found);
  return wide;
}

function paragraph(text, name = "p", kind = "") {
  const found = document.createElement(name);
  found.textContent = text;
  found.className = kind;
  return found;
}

export function draw(element, found) {
  const each = found.per_item === 1 ? "" : ` by ${found.per_item} annotators each`;
  element.replaceChildren(
    paragraph(`${found.done} of ${found.questions} questions are answered${each}; ${found.answers} answers in all.`),
  );
  if (found.annotators.length === 0) return;
  element.append(
    table(
      ["annotator", "answers", "ties", "both bad", "skips", "seconds", "first one preferred", "accuracy, 95% interval"],
      found.annotators.map((own) => [
        own.name,
        own.answers,
        own.choices.tie ?? 0,
        own.choices.bad ?? 0,
        own.choices.skip ?? 0,
        own.seconds.toFixed(1),
        own.shown_first ? `${share(own.shown_first.mean)}${interval(own.shown_first.low, own.shown_first.high)}` : "–",
        own.accuracy ? `${share(own.accuracy[0])}${interval(own.accuracy[1], own.accuracy[2])}` : "–",
      ]),
    ),
    paragraph("Seconds are medians. Accuracy is how often an annotator says what is most likely true, given everybody's"
      + " answers; it can be told only from questions that several have answered.", "p", "note"),
  );
  const agreement = found.agreement;
  if (!agreement || agreement.units === 0) return;
  element.append(
    paragraph("Agreement", "h3"),
    paragraph(`Krippendorff's alpha ${share(agreement.alpha)}${interval(agreement.low, agreement.high)}, on`
      + ` ${agreement.units} pairs of responses that several have judged. 1 is full agreement, 0 is chance.`),
    table(
      ["", "Cohen's kappa, 95% interval", "agreed", "judged by both"],
      agreement.kappas.map(([one, other, kappa]) => [
        `${one}, ${other}`, `${share(kappa.value)}${interval(kappa.low, kappa.high)}`, share(kappa.share), kappa.units,
      ]),
    ),
  );
}
