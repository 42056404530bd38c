/** Lines as pixels and as paths: opacity and width are the weight, colours the head's, or from query to key for one head. */
import type { Colour } from "../../model/colour";
import type { Line } from "./layout";
import { type Ink, Raster } from "./raster";

export type Tone = "linear" | "log";

/** Hues of heads, in light and dark, far from their neighbours; the thirteenth is the first again, dashed. */
const HUES = [
  ["#0159ae", "#6dadff"],
  ["#c14f02", "#fec1a6"],
  ["#016869", "#03c3c3"],
  ["#b9448e", "#feb8df"],
  ["#356a02", "#83be60"],
  ["#7063d6", "#cbcbfe"],
  ["#7a5103", "#de9c31"],
  ["#0084a7", "#8cdeff"],
  ["#a41b3b", "#f6838e"],
  ["#098d66", "#68eeba"],
  ["#7d329a", "#cc8ee7"],
  ["#827a03", "#dfd65f"],
] as const;

/** Between a query's blue and a key's orange, where both would mix to grey. */
export const BETWEEN = "light-dark(#8f4280, #d999ca)";

/** A head's colour for a style sheet. */
export function hueOf(head: number): string {
  const [light, dark] = HUES[head % HUES.length] as (typeof HUES)[number];
  return `light-dark(${light}, ${dark})`;
}

/** Whether a head has the hue of one before it, and is dashed. */
export function isDashed(head: number): boolean {
  return Math.floor(head / HUES.length) % 2 === 1;
}

const DASHES = [5, 4] as const;
/** Where a logarithmic scale of opacity begins, as a part of its end. */
const FAINTEST = 0.001;
/** Opacity that a thousand lines over each other do not show. */
const UNSEEN = 1e-5;
/** Opacity that no drawing program shows. */
const UNSEEN_IN_SVG = 1 / 512;
const [THIN, THICK] = [0.6, 5];
/** How much of a line's way its end bends. */
const BEND = 0.45;

/** A weight's opacity, 0 to 1; `top` is the weight that is opaque. */
export function opacityOf(weight: number, tone: Tone, top: number): number {
  const share = weight / top;
  const placed = tone === "linear" ? share : 1 - Math.log(Math.max(share, FAINTEST)) / Math.log(FAINTEST);
  return Math.min(Math.max(placed, 0), 1);
}

/** A line's width in pixels. */
export function widthOf(opacity: number): number {
  return THIN + (THICK - THIN) * opacity;
}

/** What lines are drawn with. */
export interface Pen {
  width: number;
  height: number;
  tone: Tone;
  /** The weight that is opaque. */
  top: number;
  /** Whether lines leave from the right: keys were asked who looks at them. */
  fromRight: boolean;
  /** Colours at the left end, in the middle and at the right end, of each drawn head. */
  colours: readonly (readonly [left: Colour, middle: Colour, right: Colour])[];
  /** Which of the drawn heads are dashed. */
  dashed: readonly boolean[];
}

/** Draws lines on a canvas; keeps what it needs from one drawing to the next. */
export class Brush {
  private raster: Raster | null = null;

  /** Draw lines, in order, with `ratio` pixels of the screen for each of the page. */
  draw(canvas: HTMLCanvasElement, lines: readonly Line[], pen: Pen, ratio: number): void {
    const [width, height] = [Math.max(1, Math.round(pen.width * ratio)), Math.max(1, Math.round(pen.height * ratio))];
    if (this.raster?.width !== width || this.raster.height !== height) this.raster = new Raster(width, height, BEND);
    else this.raster.clear();
    const inks = new Map<string, Ink>();
    for (const line of lines) {
      const opacity = opacityOf(line.weight, pen.tone, pen.top);
      if (opacity < UNSEEN) continue;
      const name = `${line.head} ${line.fades}`;
      const ink = inks.get(name) ?? inkOf(line, pen, width, ratio);
      inks.set(name, ink);
      const [left, right] = pen.fromRight ? [line.to, line.from] : [line.from, line.to];
      this.raster.stroke(left * ratio, right * ratio, widthOf(opacity) * ratio, opacity, ink);
    }
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d")?.putImageData(new ImageData(this.raster.pixels(), width, height), 0, 0);
  }
}

/** A line's colours and opacities in each column. */
function inkOf(line: Line, pen: Pen, width: number, ratio: number): Ink {
  const stops = stopsOf(line, pen);
  const ink = new Float32Array(width * 4);
  for (let x = 0; x < width; x++) {
    const at = (x + 0.5) / width;
    const after = Math.max(
      1,
      stops.findIndex((stop) => stop.at >= at),
    );
    const [a, b] = [stops[after - 1] as Stop, stops[after] as Stop];
    const share = (at - a.at) / (b.at - a.at);
    const gap = pen.dashed[line.head] && (x / ratio) % (DASHES[0] + DASHES[1]) >= DASHES[0];
    ink.set(
      [0, 1, 2].map((i) => (a.colour[i] as number) * (1 - share) + (b.colour[i] as number) * share),
      x * 4,
    );
    ink[x * 4 + 3] = gap ? 0 : a.opacity * (1 - share) + b.opacity * share;
  }
  return ink;
}

interface Stop {
  at: number;
  colour: Colour;
  opacity: number;
}

/** The colours along a line from left to right. */
function stopsOf({ head, fades }: Line, { colours, fromRight }: Pen): Stop[] {
  const [left, middle, right] = colours[head] as readonly [Colour, Colour, Colour];
  const fadesLeft = fades === "both" || fades === (fromRight ? "far" : "near");
  const fadesRight = fades === "both" || fades === (fromRight ? "near" : "far");
  return [
    { at: 0, colour: left, opacity: fadesLeft ? 0 : 1 },
    { at: 0.5, colour: middle, opacity: 1 },
    { at: 1, colour: right, opacity: fadesRight ? 0 : 1 },
  ];
}

/** The same as elements of an SVG, its left end at x. `name` is before the names of its gradients. */
export function linesAsSvg(lines: readonly Line[], pen: Pen, x: number, name: string): string {
  const styles = new Map<string, string>();
  const [near, far, bend] = pen.fromRight ? [x + pen.width, x, -BEND] : [x, x + pen.width, BEND];
  const paths = lines.flatMap((line) => {
    const opacity = opacityOf(line.weight, pen.tone, pen.top);
    if (opacity < UNSEEN_IN_SVG) return [];
    const id = `${name}-${line.head}-${line.fades}`;
    if (!styles.has(id)) styles.set(id, gradientAsSvg(id, line, pen, x));
    const curve = `M${n(near)} ${n(line.from)}C${n(near + bend * pen.width)} ${n(line.from)} ${n(far - bend * pen.width)} ${n(line.to)} ${n(far)} ${n(line.to)}`;
    const dash = pen.dashed[line.head] ? ` stroke-dasharray="${DASHES.join(" ")}"` : "";
    return [
      `<path d="${curve}" stroke="url(#${id})" stroke-width="${n(widthOf(opacity))}" stroke-opacity="${opacity.toFixed(4)}"${dash}/>`,
    ];
  });
  return `<defs>${[...styles.values()].join("")}</defs><g fill="none">${paths.join("")}</g>`;
}

/** In the drawing's own coordinates: a gradient along a level line has no box to be laid over. */
function gradientAsSvg(id: string, line: Line, pen: Pen, x: number): string {
  const stops = stopsOf(line, pen).map(
    ({ at, colour, opacity }) =>
      `<stop offset="${at}" stop-color="rgb(${colour.join(",")})" stop-opacity="${opacity}"/>`,
  );
  return `<linearGradient id="${id}" gradientUnits="userSpaceOnUse" x1="${n(x)}" x2="${n(x + pen.width)}" y1="0" y2="0">${stops.join("")}</linearGradient>`;
}

function n(value: number): string {
  return String(Math.round(value * 100) / 100);
}
