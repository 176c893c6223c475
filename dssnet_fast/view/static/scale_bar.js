// A bar of a round length: 1, 2 or 5 times a power of ten, at most so many px long.
import { whole } from "./format.js";

const LONGEST_PX = 150;

export class ScaleBar {
  constructor(box) {
    this.box = box;
    this.bar = box.querySelector("span");
    this.text = document.createTextNode("");
    box.prepend(this.text);
  }

  // micrometres: per px of the screen.
  show(micrometres) {
    const longest = LONGEST_PX * micrometres;
    const power = 10 ** Math.floor(Math.log10(longest));
    const length = [5, 2, 1].map((one) => one * power).find((one) => one <= longest * 1.0001);
    const text =
      length >= 1000
        ? `${whole(length / 1000)} mm`
        : `${length >= 1 ? whole(length) : Number(length.toPrecision(1))} µm`;
    this.text.data = text;
    this.bar.style.width = `${length / micrometres}px`;
    this.box.setAttribute("aria-label", `Scale bar: ${text}`);
  }
}
