/**
 * Where tokens are on the screen. Positions are computed here, in double precision, and only what is in view goes to a
 * shader: single precision has run short of digits at 131,072 tokens.
 *
 * Keys run to the right, queries down, as in a printed matrix. Cells are square unless the map is far from square itself
 * (a short text that looks at a long one): then it fills its place.
 */
import type { Rectangle } from "../../look.svelte";
import { type Range, TILE } from "../../source/contract";

/** What of a map is seen: the token at the left and upper edge, and pixels per token. */
export interface Window {
  readonly x: number;
  readonly y: number;
  readonly sx: number;
  readonly sy: number;
}

/** Tokens along both sides of a map. */
export interface Extent {
  readonly queries: number;
  readonly keys: number;
}

export interface Size {
  readonly width: number;
  readonly height: number;
}

export interface Point {
  readonly x: number;
  readonly y: number;
}

export interface Box extends Size {
  readonly left: number;
  readonly top: number;
}

export function contains({ left, top, width, height }: Box, { x, y }: Point): boolean {
  return x >= left && x < left + width && y >= top && y < top + height;
}

/** Beyond this ratio of its sides, a map is stretched. */
const STRETCHED = 4;

/** The whole map. */
export function whole(extent: Extent, size: Size): Window {
  const sx = size.width / extent.keys;
  const sy = size.height / extent.queries;
  const ratio = extent.queries / extent.keys;
  if (Math.max(ratio, 1 / ratio) > STRETCHED) return { x: 0, y: 0, sx, sy };
  const s = Math.min(sx, sy);
  return { x: 0, y: 0, sx: s, sy: s };
}

/** A window at least as large as the rectangle, with cells as wide and high as those of the whole map. */
export function windowOf(rectangle: Rectangle, extent: Extent, size: Size): Window {
  const all = whole(extent, size);
  const shape = all.sy / all.sx;
  const keys = rectangle.keys[1] - rectangle.keys[0];
  const queries = rectangle.queries[1] - rectangle.queries[0];
  const fitting = Math.min(size.width / keys, size.height / queries / shape);
  const sx = Math.min(Math.max(fitting, all.sx), closest(all, size));
  return clamped({ x: rectangle.keys[0], y: rectangle.queries[0], sx, sy: sx * shape }, extent, size);
}

/** What is seen, as a rectangle of the map; null if it is all of it. */
export function rectangleOf(window: Window, extent: Extent, size: Size): Rectangle | null {
  const keys = seen(window.x, size.width / window.sx, extent.keys);
  const queries = seen(window.y, size.height / window.sy, extent.queries);
  const all = whole(extent, size);
  return window.sx <= all.sx * (1 + 1e-9) && window.sy <= all.sy * (1 + 1e-9) ? null : { queries, keys };
}

function seen(start: number, length: number, tokens: number): Range {
  return [Math.max(start, 0), Math.min(start + length, tokens)];
}

/** Tokens that are seen, wholly or in part. */
export function tokensIn(window: Window, extent: Extent, size: Size): { queries: Range; keys: Range } {
  const range = (start: number, length: number, tokens: number): Range => [
    Math.min(Math.max(Math.floor(start + 1e-9), 0), tokens - 1),
    Math.max(Math.min(Math.ceil(start + length - 1e-9), tokens), 1),
  ];
  return {
    queries: range(window.y, size.height / window.sy, extent.queries),
    keys: range(window.x, size.width / window.sx, extent.keys),
  };
}

/** Pixels per token where one pair fills the view. */
function closest(all: Window, size: Size): number {
  return Math.max(Math.min(size.width, size.height) * 0.9, all.sx);
}

/** Closer (factor > 1) or farther, around a point of the screen. */
export function zoomed(window: Window, factor: number, point: Point, extent: Extent, size: Size): Window {
  const all = whole(extent, size);
  const sx = Math.min(Math.max(window.sx * factor, all.sx), closest(all, size));
  const done = sx / window.sx;
  const key = window.x + point.x / window.sx;
  const query = window.y + point.y / window.sy;
  const sy = window.sy * done;
  return clamped({ x: key - point.x / sx, y: query - point.y / sy, sx, sy }, extent, size);
}

/** Moved by pixels. */
export function panned(window: Window, right: number, down: number, extent: Extent, size: Size): Window {
  return clamped({ ...window, x: window.x + right / window.sx, y: window.y + down / window.sy }, extent, size);
}

/** The window nearest to this one that shows no place where no map is, unless there is too little of it. */
export function clamped(window: Window, extent: Extent, size: Size): Window {
  const inside = (start: number, length: number, tokens: number) => Math.max(Math.min(start, tokens - length), 0);
  return {
    ...window,
    x: inside(window.x, size.width / window.sx, extent.keys),
    y: inside(window.y, size.height / window.sy, extent.queries),
  };
}

/** A window moved so far that a token is well inside it. */
export function following(window: Window, query: number, key: number, extent: Extent, size: Size): Window {
  const moved = (start: number, length: number, token: number) => {
    const margin = Math.max(Math.min(length * 0.2, length / 2 - 1), 0);
    if (length <= 2) return token + 0.5 - length / 2;
    return Math.min(Math.max(start, token + 1 + margin - length), token - margin);
  };
  const x = moved(window.x, size.width / window.sx, key);
  const y = moved(window.y, size.height / window.sy, query);
  return clamped({ ...window, x, y }, extent, size);
}

/** The same part of another map: of a map twice as long, twice as many tokens. */
export function alike(window: Window, from: Extent, to: Extent): Window {
  const keys = to.keys / from.keys;
  const queries = to.queries / from.queries;
  return { x: window.x * keys, y: window.y * queries, sx: window.sx / keys, sy: window.sy / queries };
}

/** The same part in another size, all of it in view. */
export function resized(window: Window, from: Size, to: Size): Window {
  const factor = Math.min(to.width / from.width, to.height / from.height);
  return { ...window, sx: window.sx * factor, sy: window.sy * factor };
}

/** A place in the tokens of a map, with fractions, also beside it. */
export function placeAt({ window, box }: { window: Window; box: Box }, point: Point): { query: number; key: number } {
  return {
    query: window.y + (point.y - box.top) / window.sy,
    key: window.x + (point.x - box.left) / window.sx,
  };
}

/** The token pair at a point; null beside the map. */
export function pairAt(
  map: { window: Window; box: Box; extent: Extent },
  point: Point,
): { query: number; key: number } | null {
  const place = placeAt(map, point);
  const [query, key] = [Math.floor(place.query), Math.floor(place.key)];
  const { extent } = map;
  return query >= 0 && query < extent.queries && key >= 0 && key < extent.keys ? { query, key } : null;
}

/** The most tiles that may cover a view. */
const MOST_TILES = 32;

/** Cells are 2^level tokens wide: the finest level whose cells are at least a pixel, and whose tiles are not too many. */
export function levelOf(window: Window, extent: Extent, size: Size): number {
  const coarsest = coarsestLevel(extent);
  let level = Math.max(Math.ceil(Math.log2(1 / Math.max(window.sx, window.sy)) - 1e-9), 0);
  if (level >= coarsest) return coarsest;
  const { queries, keys } = tokensIn(window, extent, size);
  while (tilesAlong(queries, level) * tilesAlong(keys, level) > MOST_TILES) level++;
  return level;
}

/** The level at which one tile holds all of a map. */
export function coarsestLevel({ queries, keys }: Extent): number {
  return Math.max(Math.ceil(Math.log2(Math.max(queries, keys) / TILE)), 0);
}

function tilesAlong([start, stop]: Range, level: number): number {
  const tile = TILE * 2 ** level;
  return Math.ceil(stop / tile) - Math.floor(start / tile);
}

/** Where a map is, what is around it, and that of others. */
export interface Layout {
  /** Maps that can be moved, largest first; the next ones are the same part of other heads, small. */
  readonly plots: readonly Box[];
  readonly small: readonly Box[];
  readonly height: number;
}

/** Pixels around a map: tokens left and above, sums right and below. */
export interface Gutters {
  readonly left: number;
  readonly top: number;
  readonly right: number;
  readonly bottom: number;
}

const SMALL_SIDE = 150;
const SMALL_TITLE = 22;
const GAP = 16;

/** One or two maps in this width, beside one another if there is room, and small ones below. */
export function layout(width: number, height: number, maps: 1 | 2, small: number, gutters: Gutters): Layout {
  const stacked = maps === 2 && width < 640;
  const each = maps === 2 && !stacked ? (width - GAP) / 2 : width;
  const plotHeight = Math.max(Math.min(height, stacked ? each : height) - gutters.top - gutters.bottom, 120);
  const plotWidth = Math.max(each - gutters.left - gutters.right, 120);
  const block = plotHeight + gutters.top + gutters.bottom;
  const plots = Array.from({ length: maps }, (_, i) => ({
    left: gutters.left + (stacked ? 0 : i * (each + GAP)),
    top: gutters.top + (stacked ? i * (block + GAP) : 0),
    width: plotWidth,
    height: plotHeight,
  }));
  const base = stacked ? 2 * block + GAP : block;
  if (small === 0) return { plots, small: [], height: base };
  const columns = Math.max(Math.min(small, Math.floor((width + GAP) / (SMALL_SIDE + GAP))), 1);
  const boxes = Array.from({ length: small }, (_, i) => ({
    left: (i % columns) * (SMALL_SIDE + GAP),
    top: base + GAP + Math.floor(i / columns) * (SMALL_SIDE + SMALL_TITLE + GAP) + SMALL_TITLE,
    width: SMALL_SIDE,
    height: SMALL_SIDE,
  }));
  return { plots, small: boxes, height: (boxes.at(-1) as Box).top + SMALL_SIDE };
}

/** Position numbers to write along an axis: 1, 2 or 5 times a power of ten, at least `apart` pixels from each other. */
export function stepOf(scale: number, apart: number): number {
  const least = apart / scale;
  const power = 10 ** Math.floor(Math.log10(least));
  return Math.max([1, 2, 5, 10].map((step) => step * power).find((step) => step >= least) ?? 1, 1);
}
