// The place in the address: #x=..&y=..&z=..&id=.. with x and y as in the outputs, z the px of the
// screen to a px of the finest level, id the picked nucleus. Each may be left out.

export function readPlace() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = (name) => {
    const text = given.get(name);
    const value = text === null || text.trim() === "" ? NaN : Number(text);
    return Number.isFinite(value) ? value : null;
  };
  const id = number("id");
  const zoom = number("z");
  return {
    x: number("x"),
    y: number("y"),
    z: zoom !== null && zoom > 0 ? zoom : null,
    id: Number.isSafeInteger(id) && id > 0 ? id : null,
  };
}

// Without a new entry in the history: going back should leave the page.
export function writePlace({ x, y, z, id }) {
  const parts = [`x=${x.toFixed(1)}`, `y=${y.toFixed(1)}`, `z=${Number(z.toPrecision(4))}`];
  if (id !== null) parts.push(`id=${id}`);
  history.replaceState(null, "", `#${parts.join("&")}`);
}
