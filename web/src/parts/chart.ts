/** Charts: axes on d3's scales, ticks that fit, labels that do not lie on each other, numbers as people write them. */
import { scaleLinear, scaleLog } from "d3-scale";

export type Pair = readonly [number, number];

/** An axis as a view wants it. */
export interface Axis {
  kind: "linear" | "log";
  domain: Pair;
  label: string;
  /** Values that may get a tick; of these as many are labelled as fit. */
  ticks: readonly number[];
  format: (value: number) => string;
}

/** Room around a chart's middle, in pixels. */
export interface Margin {
  top: number;
  right: number;
  bottom: number;
  left: number;
}

/** What is drawn into a chart is given: places of values, and the middle's ends in pixels. */
export interface Frame {
  x: (value: number) => number;
  y: (value: number) => number;
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/** Pixels along a character of a label, at most, at the charts' 12 pixels. */
export const CHARACTER = 6.9;
const LINE = 15; // pixels from a label to the one below

/** From a value to its place, and back. */
export function scaleOf(axis: Axis, range: Pair): { to: (value: number) => number; from: (place: number) => number } {
  const scale = (axis.kind === "log" ? scaleLog() : scaleLinear()).domain(axis.domain).range(range);
  return { to: (value) => scale(value), from: (place) => scale.invert(place) };
}

/** A linear axis around some values: its ends and ticks are round. */
export function around(values: Iterable<number>, label: string, digits = 2, within?: Pair): Axis {
  const known = [...values].filter(Number.isFinite);
  const [least, most] = known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
  const some = most > least ? (most - least) * 0.04 : Math.max(Math.abs(most) * 0.04, 0.01);
  const scale = scaleLinear()
    .domain([least - some, most + some])
    .nice(5);
  const [low, high] = scale.domain() as [number, number];
  const domain: Pair = within ? [Math.max(low, within[0]), Math.min(high, within[1])] : [low, high];
  return { kind: "linear", domain, label, ticks: scale.ticks(5), format: (value) => minus(value.toFixed(digits)) };
}

/** Every so manieth tick, so that labels along a line have room: `sizes` are the labels' in pixels. */
export function thinned<T extends { place: number; size: number }>(ticks: readonly T[], gap: number): T[] {
  for (let every = 1; every < ticks.length; every++) {
    const some = ticks.filter((_, i) => i % every === 0);
    const fit = some.every((tick, i) => {
      const next = some[i + 1];
      return !next || Math.abs(next.place - tick.place) >= (tick.size + next.size) / 2 + gap;
    });
    if (fit) return some;
  }
  return ticks.slice(0, 1);
}

/** Ticks of an axis that lie within it, with their places. */
export function ticksOf(
  axis: Axis,
  to: (value: number) => number,
  along: "x" | "y",
): { place: number; size: number; text: string }[] {
  const [least, most] = axis.domain;
  const ticks = axis.ticks
    .filter((value) => value >= least && value <= most)
    .map((value) => {
      const text = axis.format(value);
      return { place: to(value), size: along === "x" ? text.length * CHARACTER : LINE, text };
    });
  return thinned(ticks, along === "x" ? 8 : 6);
}

/** Places near the wanted ones that are `gap` apart, in the same order, between two ends where that is possible. */
export function spread(wanted: readonly number[], gap: number, [low, high]: Pair): number[] {
  const order = wanted.map((_, i) => i).sort((a, b) => (wanted[a] as number) - (wanted[b] as number));
  const placed: number[] = [];
  for (const i of order) placed.push(Math.max(wanted[i] as number, low, (placed.at(-1) ?? -Infinity) + gap));
  for (let k = placed.length - 1, most = high; k >= 0; k--, most = (placed[k + 1] as number) - gap) {
    placed[k] = Math.min(placed[k] as number, most);
  }
  const result = new Array<number>(wanted.length);
  order.forEach((i, k) => {
    result[i] = placed[k] as number;
  });
  return result;
}

/** A line through points; a gap where one is not finite. */
export function line(points: Iterable<Pair>): string {
  let path = "";
  let pen = false;
  for (const [x, y] of points) {
    const drawn = Number.isFinite(x) && Number.isFinite(y);
    if (drawn) path += `${pen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = drawn;
  }
  return path;
}

/** Drawings one below the other as a single one, each under its title. */
export function stacked(parts: readonly { title: string; svg: string }[], ink: string, ground: string): string {
  const HEAD = 34;
  let top = 0;
  let width = 0;
  const inner = parts.map(({ title, svg }) => {
    const size = (name: string) => Number(new RegExp(`^<svg[^>]*\\s${name}="([\\d.]+)"`).exec(svg)?.[1] ?? 0);
    const text = `<text x="14" y="${top + 23}" fill="${ink}" font-family="sans-serif" font-size="15" font-weight="600">${escaped(title)}</text>`;
    const placed = svg.replace(/^<svg/, `<svg x="0" y="${top + HEAD}"`);
    top += HEAD + size("height");
    width = Math.max(width, size("width"));
    return text + placed;
  });
  const whole = `width="${width}" height="${top + 8}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${whole} viewBox="0 0 ${width} ${top + 8}"><rect ${whole} fill="${ground}"/>${inner.join("")}</svg>`;
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** Words as a whole sentence. */
export function sentence(text: string): string {
  const words = text.trim();
  return words && `${words[0]?.toUpperCase()}${words.slice(1)}${/[.!?…]$/.test(words) ? "" : "."}`;
}

/** A number with a real minus. */
export function minus(text: string): string {
  return text.replace("-", "−");
}

/** A whole number, in groups of three digits. */
export function grouped(value: number): string {
  return Math.round(value).toLocaleString("en");
}

function digits3(value: number): string {
  return value >= 100 ? grouped(value) : String(Number(value.toPrecision(value < 10 ? 2 : 3)));
}

function inUnits(value: number, units: readonly (readonly [size: number, name: string])[]): string {
  if (value === 0) return `0 ${units[0]?.[1] ?? ""}`;
  // What would be rounded up to the next unit's 1 is written in that unit.
  const unit = [...units].reverse().find(([size]) => value >= size * 0.9995) ?? units[0];
  return unit ? `${digits3(value / unit[0])} ${unit[1]}` : "";
}

/** Bytes in decimal units: "825 GB". */
export function bytes(value: number): string {
  return inUnits(value, [
    [1, "bytes"],
    [1e3, "kB"],
    [1e6, "MB"],
    [1e9, "GB"],
    [1e12, "TB"],
    [1e15, "PB"],
    [1e18, "EB"],
  ]);
}

/** Seconds in what people count: "12 ms", "3 min", "5 days". */
export function seconds(value: number): string {
  const said = inUnits(value, [
    [1e-6, "µs"],
    [1e-3, "ms"],
    [1, "s"],
    [60, "min"],
    [3600, "h"],
    [86400, "days"],
    [31_557_600, "years"],
  ]);
  return said.replace(/^1 (day|year)s$/, "1 $1");
}

/** A large count in words: "17.2 billion". */
export function counted(value: number): string {
  if (value < 1e6) return grouped(value);
  return inUnits(value, [
    [1e6, "million"],
    [1e9, "billion"],
    [1e12, "trillion"],
    [1e15, "quadrillion"],
    [1e18, "quintillion"],
  ]);
}
