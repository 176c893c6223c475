// The page of one slide: OpenSeadragon shows the slide and over it the nuclei, and the parts of
// the page around it are kept in step.
import { Classes } from "./classes.js";
import { fixed, rows, whole } from "./format.js";
import { Gallery } from "./gallery.js";
import { Drawing, Panel } from "./nucleus.js";
import { readPlace, writePlace } from "./place.js";
import { ScaleBar } from "./scale_bar.js";

const byId = (id) => document.getElementById(id);
const NEAR = 1; // Px of the screen to a px of the slide that a jump to a nucleus zooms to, at least.
const PAN = 0.15; // Of the screen, for an arrow key.
const ZOOM = 1.4;
const MESSAGE_MS = 3500;

const view = await (await fetch("view.json")).json();
const { summary, stamp, tile } = view;
const [left, top] = summary.origin;

function pyramid([width, height], address) {
  return { width, height, tileSize: tile, tileOverlap: 0, minLevel: 8, getTileUrl: address };
}

const slideSource = pyramid(
  summary.slide_size,
  (level, x, y) => `slide/${level}/${x}_${y}.jpg?v=${stamp}`,
);
const nucleiSource = () => {
  const hidden = classes.query;
  return pyramid(
    view.nuclei_size,
    (level, x, y) => `nuclei/${level}/${x}_${y}.png?v=${stamp}&hidden=${hidden}`,
  );
};

const classes = new Classes(byId("classes"), summary, () => replaceNuclei());
const panel = new Panel(byId("nucleus"), summary, () => pick(null));
const gallery = new Gallery(byId("gallery"), view, (one) => goTo({ ...one, z: null }));
describe();

// The parts around the slide are filled by now, so the room it has is known.
const viewer = OpenSeadragon({
  element: byId("slide"),
  tileSources: slideSource,
  drawer: "canvas",
  showNavigationControl: false,
  showNavigator: true,
  navigatorPosition: "BOTTOM_RIGHT",
  navigatorSizeRatio: 0.16,
  navigatorAutoFade: false,
  animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.5,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
  maxZoomPixelRatio: 8,
  minZoomImageRatio: 0.7,
  visibilityRatio: 0.3,
  imageLoaderLimit: 6,
});

const scaleBar = new ScaleBar(byId("scale"));
let slide;
let nuclei = null; // The layer of nuclei.
let drawing;
let picked = null;
let asked = 0; // Counts what was asked for, so that late answers are dropped.
let shown = true;
let messageTimer;

// --- The layer of nuclei --------------------------------------------------------------------

// The new layer is put over the old one, which goes when the new one is drawn.
function replaceNuclei() {
  if (view.problems.nuclei) return;
  const before = nuclei;
  viewer.addTiledImage({
    tileSource: nucleiSource(),
    x: 0,
    y: 0,
    // The analysed image may end with a px that the slide has only a part of.
    width: (summary.analysis_size[0] * summary.scale) / summary.slide_size[0],
    opacity: before ? 0 : opacity(),
    success: ({ item }) => {
      nuclei = item;
      // Lines would be too thin on tiles much finer than the screen.
      item.minPixelRatio = 0.8;
      const swap = () => {
        if (before && viewer.world.getIndexOfItem(before) !== -1) viewer.world.removeItem(before);
        if (nuclei === item) item.setOpacity(opacity());
      };
      if (before) {
        item.setPreload(true);
        if (item.getFullyLoaded()) swap();
        else item.addOnceHandler("fully-loaded-change", swap);
      }
    },
  });
}

const opacity = () => (shown ? byId("opacity").value / 100 : 0);

function showNuclei(next) {
  shown = next;
  byId("overlay").setAttribute("aria-pressed", shown);
  nuclei?.setOpacity(opacity());
}

// --- Places ---------------------------------------------------------------------------------

const zoomNow = () => slide.viewportToImageZoom(viewer.viewport.getZoom(true));

function centre() {
  const at = slide.viewportToImageCoordinates(viewer.viewport.getCenter(true));
  return { x: at.x - left, y: at.y - top };
}

function moveTo({ x, y, z }) {
  const zoom = slide.imageToViewportZoom(z ?? Math.max(zoomNow(), NEAR));
  const at = slide.imageToViewportCoordinates(new OpenSeadragon.Point(x + left, y + top));
  viewer.viewport.zoomTo(zoom);
  viewer.viewport.panTo(at);
}

// Go to a place as in the address; with an id only, to that nucleus.
async function goTo(place) {
  if (place.x !== null && place.y !== null) moveTo(place);
  if (place.id === null) return pick(null);
  const nucleus = await ask(`nucleus/${place.id}`);
  if (nucleus && (place.x === null || place.y === null)) moveTo({ ...nucleus, z: place.z });
}

function pick(nucleus) {
  asked += 1;
  picked = nucleus;
  panel.show(nucleus);
  drawing.show(nucleus, summary.origin);
  gallery.mark(nucleus?.id ?? null);
  remember();
}

// Ask the server for a nucleus and pick it.
async function ask(address) {
  const mine = ++asked;
  let answer;
  try {
    const response = await fetch(address);
    if (!response.ok) throw new Error((await response.text()).trim());
    answer = (await response.json()).nucleus;
  } catch (error) {
    if (mine === asked) say(`Nucleus not shown: ${error.message}`);
    return null;
  }
  if (mine !== asked) return null;
  pick(answer);
  return answer;
}

let remembering;
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    writePlace({ ...centre(), z: zoomNow(), id: picked?.id ?? null });
  }, 150);
}

function say(text) {
  byId("announce").textContent = text;
  clearTimeout(messageTimer);
  messageTimer = setTimeout(() => {
    byId("announce").textContent = "";
  }, MESSAGE_MS);
}

// --- Controls -------------------------------------------------------------------------------

function zoomBy(factor) {
  viewer.viewport.zoomBy(factor);
  viewer.viewport.applyConstraints();
}

function panBy(x, y) {
  const bounds = viewer.viewport.getBounds();
  const step = PAN * Math.min(bounds.width, bounds.height);
  viewer.viewport.panBy(new OpenSeadragon.Point(x * step, y * step));
  viewer.viewport.applyConstraints();
}

const KEYS = {
  ArrowLeft: () => panBy(-1, 0),
  ArrowRight: () => panBy(1, 0),
  ArrowUp: () => panBy(0, -1),
  ArrowDown: () => panBy(0, 1),
  "+": () => zoomBy(ZOOM),
  "=": () => zoomBy(ZOOM),
  "-": () => zoomBy(1 / ZOOM),
  _: () => zoomBy(1 / ZOOM),
  0: () => viewer.viewport.goHome(),
  o: () => showNuclei(!shown),
  O: () => showNuclei(!shown),
  Escape: () => pick(null),
};

function onKey(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = event.key.startsWith("Arrow");
  // Arrows mean something else in a slider, in tabs and in lists that scroll.
  if (arrow && event.target.closest("input, [role=tablist], #gallery-strip, #panel")) return;
  const action = KEYS[event.key];
  if (!action) return;
  action();
  event.preventDefault();
}

function wire() {
  // OpenSeadragon has keys of its own, among them some that turn and mirror the slide.
  viewer.addHandler("canvas-key", (event) => {
    event.preventDefaultAction = true;
    event.preventDefault = false;
  });
  document.addEventListener("keydown", onKey);
  byId("zoom-in").addEventListener("click", () => zoomBy(ZOOM));
  byId("zoom-out").addEventListener("click", () => zoomBy(1 / ZOOM));
  byId("home").addEventListener("click", () => viewer.viewport.goHome());
  byId("overlay").addEventListener("click", () => showNuclei(!shown));
  byId("opacity").addEventListener("input", () => showNuclei(true));
  byId("toggle-panel").addEventListener("click", () => {
    byId("panel").hidden = !byId("panel").hidden;
    byId("toggle-panel").setAttribute("aria-pressed", !byId("panel").hidden);
  });
  viewer.addHandler("canvas-click", (event) => {
    if (!event.quick || event.originalEvent.defaultPrevented) return;
    const at = slide.viewerElementToImageCoordinates(event.position);
    ask(`at?x=${(at.x - left).toFixed(3)}&y=${(at.y - top).toFixed(3)}`);
  });
  byId("slide").addEventListener("pointermove", (event) => {
    const box = byId("slide").getBoundingClientRect();
    const at = slide.viewerElementToImageCoordinates(
      new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top),
    );
    byId("pointer").textContent = `x ${whole(at.x - left)}  y ${whole(at.y - top)}`;
  });
  byId("slide").addEventListener("pointerleave", () => {
    byId("pointer").textContent = "";
  });
  viewer.addHandler("animation-finish", remember);
  viewer.addHandler("update-viewport", () => scaleBar.show(summary.slide_mpp / zoomNow()));
  addEventListener("hashchange", () => goTo(readPlace()));
}

// --- What the panel says of the slide -------------------------------------------------------

function describe() {
  const area = summary.analysed_mm2;
  rows(byId("facts"), [
    ["Nuclei", whole(summary.nuclei)],
    ["Analysed", `${fixed(area, 2)} mm²`],
    ...(area > 0 ? [["Density", `${whole(summary.nuclei / area)} / mm²`]] : []),
    ["Size", `${summary.slide_size.map(whole).join(" × ")} px`],
    ["Resolution", `${Number(summary.slide_mpp.toPrecision(4))} µm/px`],
    ["Analysed at", `${Number(summary.analysis_mpp.toPrecision(4))} µm/px`],
    ["Reader", String(summary.reader ?? "–")],
    ...(summary.unreadable.length ? [["Unreadable regions", whole(summary.unreadable.length)]] : []),
  ]);
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  rows(
    byId("provenance"),
    Object.entries(summary.provenance).map(([name, value]) => [name.replaceAll("_", " "), text(value)]),
  );
  const titles = { slide: "Slide not shown", nuclei: "Nuclei not drawn", table: "No numbers" };
  byId("problems").replaceChildren(
    ...Object.entries(view.problems).map(([part, why]) => {
      const line = document.createElement("li");
      line.textContent = `${titles[part]}: ${why}`;
      return line;
    }),
  );
  byId("problems").hidden = !Object.keys(view.problems).length;
}

viewer.addOnceHandler("open", () => {
  slide = viewer.world.getItemAt(0);
  drawing = new Drawing(viewer, slide, summary.unreadable);
  wire();
  replaceNuclei();
  scaleBar.show(summary.slide_mpp / zoomNow());
  const place = readPlace();
  if (place.id !== null || place.x !== null) goTo(place);
});
