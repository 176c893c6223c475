// The strip of remarkable nuclei. All pictures of a tab have the same scale, so that sizes compare.
import { dot, element, fixed, whole } from "./format.js";

const TITLES = { largest: "Largest", darkest: "Darkest" };
const AROUND = 2.2; // Times the diameter of the largest one that a picture shows.

export class Gallery {
  constructor(footer, view, jump) {
    this.strip = footer.querySelector("#gallery-strip");
    this.view = view;
    this.jump = jump;
    const lists = view.summary.gallery;
    const kinds = Object.keys(TITLES).filter((kind) => lists[kind]?.length);
    footer.hidden = !kinds.length;
    this.tabs = kinds.map((kind) => {
      const tab = element("button", { type: "button", role: "tab", id: `tab-${kind}` }, TITLES[kind]);
      tab.setAttribute("aria-controls", this.strip.id);
      tab.addEventListener("click", () => this.show(kind));
      return [kind, tab];
    });
    const bar = footer.querySelector("#gallery-tabs");
    bar.replaceChildren(...this.tabs.map(([, tab]) => tab));
    bar.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const at = this.tabs.findIndex(([, tab]) => tab === document.activeElement);
      const [kind, tab] = this.tabs[(at + step + this.tabs.length) % this.tabs.length];
      tab.focus();
      this.show(kind);
      event.preventDefault();
    });
    if (kinds.length) this.show(kinds[0]);
  }

  show(kind) {
    for (const [one, tab] of this.tabs) {
      tab.setAttribute("aria-selected", one === kind);
      tab.tabIndex = one === kind ? 0 : -1;
    }
    this.strip.setAttribute("aria-labelledby", `tab-${kind}`);
    const { summary, stamp } = this.view;
    const list = summary.gallery[kind];
    const area = Math.max(...list.map((one) => one.area_um2));
    const diameter = (2 * Math.sqrt(area / Math.PI)) / summary.slide_mpp;
    const size = Math.min(Math.max(Math.round(AROUND * diameter), 16), 4096);
    this.strip.replaceChildren(
      ...list.map((one) => {
        const number = kind === "largest" ? `${whole(one.area_um2)} µm²` : `OD ${fixed(one.mean_od, 2)}`;
        const place = `x=${one.x.toFixed(1)}&y=${one.y.toFixed(1)}`;
        const picture = element("img", {
          src: `crop?${place}&size=${size}&v=${stamp}`,
          alt: "",
          width: 80,
          height: 80,
        });
        // Without the slide there is nothing to see but the number.
        if (this.view.problems.slide) picture.hidden = true;
        const button = element(
          "button",
          { type: "button", "data-id": one.id, "aria-label": `Nucleus ${one.id}, ${number}` },
          picture,
          element("span", { class: "label" }, dot(summary.class_colours[one.class]), number),
        );
        button.addEventListener("click", () => this.jump(one));
        return button;
      }),
    );
    this.strip.scrollLeft = 0;
  }

  mark(id) {
    for (const button of this.strip.children) {
      button.setAttribute("aria-current", button.dataset.id === String(id));
    }
  }
}
