// The nucleus that was picked: its numbers in the panel, its outline over the slide.
import { dot, element, fixed, rows } from "./format.js";

const SPACE = "http://www.w3.org/2000/svg";

export class Panel {
  constructor(section, summary, close) {
    this.hint = section.querySelector("#nucleus-hint");
    this.box = section.querySelector("#nucleus-numbers");
    this.summary = summary;
    this.close = close;
  }

  show(nucleus) {
    this.hint.hidden = Boolean(nucleus);
    this.box.hidden = !nucleus;
    if (!nucleus) return this.box.replaceChildren();
    const close = element("button", { type: "button", "aria-label": "Close", title: "Close (Esc)" }, "×");
    close.addEventListener("click", this.close);
    const list = element("dl");
    rows(list, [
      ["Number", String(nucleus.id)],
      ["Area", `${fixed(nucleus.area_um2, 1)} µm²`],
      ["Perimeter", `${fixed(nucleus.perimeter_um, 1)} µm`],
      ["Eccentricity", fixed(nucleus.eccentricity, 3)],
      ["Solidity", fixed(nucleus.solidity, 3)],
      ["Mean OD", fixed(nucleus.mean_od, 3)],
      ["Integrated OD", `${fixed(nucleus.integrated_od, 1)} µm²`],
      ["Mean probability", fixed(nucleus.mean_probability, 3)],
      ["x, y", `${nucleus.x.toFixed(1)}, ${nucleus.y.toFixed(1)} px`],
    ]);
    const who = element(
      "p",
      { class: "who" },
      dot(this.summary.class_colours[nucleus.class] ?? [128, 128, 128]),
      element("span", {}, nucleus.class_name),
      close,
    );
    this.box.replaceChildren(who, list);
  }
}

export class Drawing {
  // What lies over the slide: the picked nucleus's outline and what could not be read of the
  // slide. Coordinates are px of the finest level.
  constructor(viewer, slide, unreadable) {
    const svg = document.createElementNS(SPACE, "svg");
    svg.id = "drawing";
    svg.setAttribute("aria-hidden", "true");
    this.group = svg.appendChild(document.createElementNS(SPACE, "g"));
    for (const [left, top, right, bottom] of unreadable) {
      const box = this.group.appendChild(document.createElementNS(SPACE, "rect"));
      const sides = { x: left, y: top, width: right - left, height: bottom - top };
      for (const [name, value] of Object.entries(sides)) box.setAttribute(name, value);
    }
    this.paths = ["halo", "outline"].map((name) => {
      const path = this.group.appendChild(document.createElementNS(SPACE, "path"));
      path.setAttribute("class", name);
      return path;
    });
    viewer.canvas.append(svg);
    const follow = () => {
      const at = slide.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
      const next = slide.imageToViewerElementCoordinates(new OpenSeadragon.Point(1000, 0));
      const zoom = (next.x - at.x) / 1000;
      this.group.setAttribute("transform", `translate(${at.x} ${at.y}) scale(${zoom})`);
    };
    viewer.addHandler("update-viewport", follow);
    viewer.addHandler("resize", follow);
    follow();
  }

  // nucleus: as the server gives it, or null. origin: of outputs, px of the finest level.
  show(nucleus, [left, top]) {
    const rings = nucleus?.outline ?? [];
    const line = rings
      .map((ring) => `M${ring.map(([x, y]) => `${x + left} ${y + top}`).join("L")}Z`)
      .join("");
    for (const path of this.paths) path.setAttribute("d", line);
  }
}
