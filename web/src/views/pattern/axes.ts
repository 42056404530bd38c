/** What is around a map and upon it: tokens, positions, sums, the pair that is pointed at, weights where they fit. */
import { type Colour, colourOf, divergingColour, inkOn, type Scale } from "../../model/colour";
import { percent } from "../../parts/names";
import type { Range } from "../../source/contract";
import { type Box, type Extent, type Gutters, stepOf, tokensIn, type Window } from "./geometry";
import { FONT_SIZE, type Pen } from "./pen";
import { cellRange } from "./tiles";

/** Colours of the page, as a canvas takes them. */
export interface Theme {
  ink: string;
  muted: string;
  line: string;
  ground: string;
  query: string;
  key: string;
  /** Of bars. */
  querySoft: string;
  keySoft: string;
  nothing: Colour;
  behind: Colour;
}

export interface Pair {
  readonly query: number;
  readonly key: number;
}

/** What is chosen of the queries and of the keys. */
export interface Chosen {
  readonly query: number | null;
  readonly key: number | null;
}

/** Sums of a part of a map: `MarginsAnswer`, and of what. Differences may be less than nothing. */
export interface Sums {
  readonly queries: Range;
  readonly keys: Range;
  readonly rows: Float32Array;
  readonly columns: Float32Array;
}

/** One map, as far as what is around it goes. */
export interface Frame {
  readonly box: Box;
  readonly window: Window;
  readonly extent: Extent;
  readonly title: string;
  /** null: not known; numbers are written. */
  readonly queryLabels: readonly string[] | null;
  readonly keyLabels: readonly string[] | null;
  readonly sums: Sums | null;
  readonly pointed: Pair | null;
  readonly chosen: Chosen;
  /** A single weight, if it is known. */
  readonly weightAt: (query: number, key: number) => number | undefined;
}

/** Pixels that a token needs to be written; that a weight needs. */
const TOKEN = 11;
const NUMBER = { width: 42, height: 16 };
/** Around a number. */
const ROOM = 6;
const APART = 64;
/** Smaller cells are led to by lines from the axes. */
const GUIDED = 24;
const BAR = 34;

/** Where the map ends in its box. */
export function mapBox({ box, window, extent }: Pick<Frame, "box" | "window" | "extent">): Box {
  const width = Math.min(box.width, (extent.keys - window.x) * window.sx);
  const height = Math.min(box.height, (extent.queries - window.y) * window.sy);
  return { left: box.left, top: box.top, width, height };
}

export function guttersOf(
  labels: readonly string[],
  narrow: boolean,
  titled: boolean,
  pen: Pick<Pen, "width">,
): Gutters {
  const widest = labels.slice(0, 512).reduce((most, label) => Math.max(most, pen.width(label, true)), 0);
  const longest = narrow ? 74 : 116;
  const room = Math.min(Math.max(widest + 14, 58), longest);
  return {
    left: room,
    top: Math.min(Math.max(widest + 14, 48), longest) + (titled ? 22 : 4),
    right: BAR + 14,
    bottom: BAR + 18,
  };
}

export function drawFrame(pen: Pen, frame: Frame, gutters: Gutters, theme: Theme, scale: Scale): void {
  const map = mapBox(frame);
  if (frame.title)
    pen.text(shortened(frame.title, frame.box.width, pen), map.left, map.top - gutters.top + 8, {
      colour: theme.ink,
      bold: true,
    });
  pen.clip(map, () => {
    drawWeights(pen, frame, map, scale);
    drawChosen(pen, frame, map, theme);
    drawPointed(pen, frame, map, theme);
  });
  pen.frame(map.left - 0.5, map.top - 0.5, map.width + 1, map.height + 1, theme.line);
  drawQueries(pen, frame, map, gutters, theme);
  drawKeys(pen, frame, map, gutters, theme);
  if (frame.sums) drawSums(pen, frame, frame.sums, map, theme);
}

export function drawSmall(pen: Pen, box: Box, title: string, map: Box, theme: Theme): void {
  pen.text(shortened(title, box.width, pen), box.left, box.top - 11, { colour: theme.ink });
  pen.frame(map.left - 0.5, map.top - 0.5, map.width + 1, map.height + 1, theme.line);
}

/** A label cut so that it fits. */
export function shortened(label: string, room: number, pen: Pen, bold = false): string {
  if (pen.width(label, bold) <= room) return label;
  let cut = label;
  while (cut.length > 1 && pen.width(`${cut}…`, bold) > room) cut = [...cut].slice(0, -1).join("");
  return `${cut}…`;
}

/** How much is seen of a token, in pixels. */
function seenOf(token: number, scale: number, length: number): number {
  return Math.min((token + 1) * scale, length) - Math.max(token * scale, 0);
}

/** The middle of what is seen of a token, in pixels; NaN where that is too little to stand for it. */
function middleOf(token: number, scale: number, length: number): number {
  const from = Math.max(token * scale, 0);
  const to = Math.min((token + 1) * scale, length);
  return to - from >= Math.min(scale / 2, NUMBER.height) - 1e-6 ? (from + to) / 2 : Number.NaN;
}

function drawQueries(pen: Pen, frame: Frame, map: Box, gutters: Gutters, theme: Theme): void {
  const { window, queryLabels: labels, pointed, chosen, extent, box } = frame;
  const [start, stop] = tokensIn(window, extent, box).queries;
  const right = map.left - 7;
  const room = gutters.left - 12;
  const middle = (query: number) => map.top + middleOf(query - window.y, window.sy, map.height);
  const write = (query: number, text: string, strong: boolean) => {
    const y = middle(query);
    if (!(y >= map.top && y <= map.top + map.height)) return;
    const style = { colour: strong ? theme.query : theme.muted, anchor: "end" as const, bold: strong };
    pen.text(shortened(text, room, pen, strong), right, y, strong ? { ...style, behind: theme.ground } : style);
  };
  const words = labels && window.sy >= TOKEN;
  const step = words ? 1 : stepOf(window.sy, FONT_SIZE * 2.5);
  for (let query = Math.ceil(start / step) * step; query < stop; query += step) {
    write(query, words ? (labels[query] ?? String(query)) : query.toLocaleString("en"), false);
    if (!words) pen.line(map.left - 5, middle(query), map.left - 1, middle(query), theme.line);
  }
  for (const query of [chosen.query, pointed?.query ?? null]) {
    if (query !== null) write(query, labels?.[query] ?? query.toLocaleString("en"), true);
  }
  pen.text("query ↓", map.left - 7, map.top - 13, { colour: theme.query, anchor: "end" });
}

function drawKeys(pen: Pen, frame: Frame, map: Box, gutters: Gutters, theme: Theme): void {
  const { window, keyLabels: labels, pointed, chosen, extent, box } = frame;
  const [start, stop] = tokensIn(window, extent, box).keys;
  const bottom = map.top - 7;
  const room = gutters.top - (frame.title ? 28 : 10);
  const middle = (key: number) => map.left + middleOf(key - window.x, window.sx, map.width);
  const words = labels && window.sx >= TOKEN;
  const flat = !words || window.sx >= 72;
  const write = (key: number, text: string, strong: boolean) => {
    const x = middle(key);
    if (!(x >= map.left && x <= map.left + map.width)) return;
    const style = {
      colour: strong ? theme.key : theme.muted,
      bold: strong,
      ...(strong ? { behind: theme.ground } : {}),
    };
    if (flat && !(strong && labels)) {
      const short = shortened(text, Math.max(window.sx, APART) - 6, pen, strong);
      const least = map.left + pen.width(short, strong) / 2 - 2; // not over the names of the axes
      pen.text(short, Math.max(x, least), bottom - 4, { ...style, anchor: "middle" });
    } else if (flat)
      pen.text(shortened(text, 120, pen, strong), x, words ? bottom - 4 : bottom - 20, { ...style, anchor: "middle" });
    else pen.text(shortened(text, room, pen, strong), x, bottom, { ...style, upright: true });
  };
  const step = words ? 1 : stepOf(window.sx, APART);
  for (let key = Math.ceil(start / step) * step; key < stop; key += step) {
    write(key, words ? (labels[key] ?? String(key)) : key.toLocaleString("en"), false);
    if (!words) pen.line(middle(key), map.top - 5, middle(key), map.top - 1, theme.line);
  }
  for (const key of [chosen.key, pointed?.key ?? null]) {
    if (key !== null) write(key, labels?.[key] ?? key.toLocaleString("en"), true);
  }
  pen.text("key →", map.left - 7, map.top - 28, { colour: theme.key, anchor: "end" });
}

/** Weights as numbers, where cells are single weights and large. */
function drawWeights(pen: Pen, { window, extent, box, weightAt }: Frame, map: Box, scale: Scale): void {
  if (window.sx < NUMBER.width || window.sy < NUMBER.height) return;
  const { queries, keys } = tokensIn(window, extent, box);
  for (let query = queries[0]; query < queries[1]; query++) {
    for (let key = keys[0]; key < keys[1]; key++) {
      const weight = weightAt(query, key);
      if (weight === undefined || weight === 0) continue;
      const x = map.left + middleOf(key - window.x, window.sx, map.width);
      const y = map.top + middleOf(query - window.y, window.sy, map.height);
      const text = scale.signed ? pointsOf(weight) : percent(weight);
      if (pen.width(text) > seenOf(key - window.x, window.sx, map.width) - ROOM) continue;
      pen.text(text, x, y, {
        colour: Number.isNaN(weight) ? "white" : inkOn(colourOf(scale, weight)),
        anchor: "middle",
      });
    }
  }
}

/** A difference of weights in percentage points, whose unit the scale says: "+12", "−3.4". */
export function pointsOf(difference: number): string {
  const text = percent(Math.abs(difference)).replace("%", "");
  if (text.startsWith("<")) return "≈0";
  return difference > 0 ? `+${text}` : difference < 0 ? `−${text}` : text;
}

function drawChosen(pen: Pen, { window, chosen }: Frame, map: Box, theme: Theme): void {
  if (chosen.query !== null) {
    const y = map.top + (chosen.query - window.y) * window.sy;
    pen.frame(map.left - 4, y, map.width + 8, Math.max(window.sy, 2), theme.query, 1.5);
  }
  if (chosen.key !== null) {
    const x = map.left + (chosen.key - window.x) * window.sx;
    pen.frame(x, map.top - 4, Math.max(window.sx, 2), map.height + 8, theme.key, 1.5);
  }
}

function drawPointed(pen: Pen, { window, pointed }: Frame, map: Box, theme: Theme): void {
  if (!pointed) return;
  const left = map.left + (pointed.key - window.x) * window.sx;
  const top = map.top + (pointed.query - window.y) * window.sy;
  const [width, height] = [Math.max(window.sx, 5), Math.max(window.sy, 5)];
  const [x, y] = [left + (window.sx - width) / 2, top + (window.sy - height) / 2];
  if (window.sx < GUIDED) pen.line(map.left, y + height / 2, x, y + height / 2, theme.query);
  if (window.sx < GUIDED) pen.line(x + width / 2, map.top, x + width / 2, y, theme.key);
  pen.frame(x, y, width, height, "rgb(20 24 40)", 4);
  pen.frame(x, y, width, height, "white", 2);
}

function drawSums(pen: Pen, { window }: Frame, sums: Sums, map: Box, theme: Theme): void {
  const right = map.left + map.width + 5;
  const below = map.top + map.height + 5;
  const signed = sums.rows.some((value) => value < 0) || sums.columns.some((value) => value < 0);
  const colour = (value: number, own: string) =>
    signed ? `rgb(${divergingColour(value < 0 ? -0.8 : 0.8).join(" ")})` : own;
  const mostRow = largest(sums.rows);
  const mostColumn = largest(sums.columns);
  pen.clip({ left: right, top: map.top, width: BAR, height: map.height }, () => {
    sums.rows.forEach((value, cell) => {
      const [start, stop] = cellRange(cell, sums.queries, sums.rows.length);
      const y = map.top + (start - window.y) * window.sy;
      const height = (stop - start) * window.sy;
      pen.fill(
        right,
        y,
        (BAR * Math.abs(value)) / mostRow,
        height > 3 ? height - 1 : height,
        colour(value, theme.querySoft),
      );
    });
  });
  pen.clip({ left: map.left, top: below, width: map.width, height: BAR }, () => {
    sums.columns.forEach((value, cell) => {
      const [start, stop] = cellRange(cell, sums.keys, sums.columns.length);
      const x = map.left + (start - window.x) * window.sx;
      const width = (stop - start) * window.sx;
      pen.fill(
        x,
        below,
        width > 3 ? width - 1 : width,
        (BAR * Math.abs(value)) / mostColumn,
        colour(value, theme.keySoft),
      );
    });
  });
  const style = { colour: theme.muted, size: 10 };
  const upTo = signed ? "±" : "≤";
  pen.text("sum", right, map.top - 9, style);
  pen.text(`${upTo} ${signed ? percent(mostRow).replace("%", "") : percent(mostRow)}`, right - 2, below + 6, style);
  if (signed) pen.text("points", right - 2, below + 20, style);
  pen.text("received", map.left - 7, below + 6, { ...style, anchor: "end" });
  pen.text(
    `${upTo} ${mostColumn < 10 ? Number(mostColumn.toPrecision(2)) : Math.round(mostColumn).toLocaleString("en")}`,
    map.left - 7,
    below + 20,
    { ...style, anchor: "end" },
  );
}

function largest(values: Float32Array): number {
  return values.reduce((most, value) => Math.max(most, Math.abs(value) || 0), 0) || 1;
}
