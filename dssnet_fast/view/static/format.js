// How numbers are written, and small pieces of the page.

export const whole = (value) => Math.round(value).toLocaleString("en-US");

export function fixed(value, digits) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en-US", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function dot([red, green, blue]) {
  const space = "http://www.w3.org/2000/svg";
  const made = document.createElementNS(space, "svg");
  made.setAttribute("class", "dot");
  made.setAttribute("viewBox", "0 0 2 2");
  made.setAttribute("aria-hidden", "true");
  const circle = document.createElementNS(space, "circle");
  circle.setAttribute("cx", 1);
  circle.setAttribute("cy", 1);
  circle.setAttribute("r", 0.9);
  circle.setAttribute("fill", `rgb(${red},${green},${blue})`);
  made.append(circle);
  return made;
}

// Rows of a <dl> from pairs of a name and a text.
export function rows(list, pairs) {
  list.replaceChildren(
    ...pairs.map(([name, text]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, text)),
    ),
  );
}
