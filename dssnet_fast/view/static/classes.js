// The legend: how many nuclei there are of each class, and which classes are shown.
import { dot, element, whole } from "./format.js";

export class Classes {
  constructor(list, summary, changed) {
    this.hidden = new Set();
    list.replaceChildren(
      ...summary.class_names.slice(1).map((name, index) => {
        const kind = index + 1;
        const box = element("input", { type: "checkbox", checked: "" });
        box.addEventListener("change", () => {
          if (box.checked) this.hidden.delete(kind);
          else this.hidden.add(kind);
          changed();
        });
        const label = element(
          "label",
          {},
          box,
          dot(summary.class_colours[kind]),
          element("span", {}, name),
          element("b", {}, whole(summary.nuclei_per_class[name] ?? 0)),
        );
        return element("li", {}, label);
      }),
    );
  }

  // For addresses of tiles.
  get query() {
    return [...this.hidden].sort((a, b) => a - b).join(",");
  }
}
