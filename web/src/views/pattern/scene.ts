/** What a painter is to draw: maps in their places, from tiles, in the colours of a scale. */
import type { Colour, Scale } from "../../model/colour";
import type { Box, Size, Window } from "./geometry";
import type { Tile } from "./tiles";

export interface Panel {
  /** In the canvas's pixels of CSS. */
  box: Box;
  window: Window;
  /** In the order in which they are drawn. */
  tiles: readonly Tile[];
  /** Of a difference: what is taken off, token by token. */
  against: readonly Tile[] | null;
}

export interface Scene {
  size: Size;
  /** Pixels of the screen per pixel of CSS. */
  ratio: number;
  panels: readonly Panel[];
  scale: Scale;
  /** Where no map is, and where a map's weight is exactly nothing. */
  ground: Colour;
  nothing: Colour;
}

export interface Painter {
  draw(scene: Scene): void;
  /** Let go of a tile. */
  drop(tile: Tile): void;
  destroy(): void;
}

/** Stripes where a weight is not a number. */
export const NOT_A_NUMBER: readonly [Colour, Colour] = [
  [171, 84, 148],
  [104, 62, 94],
];

/** What is seen of a tile (of two, where one is taken off the other): where in the canvas, and from which token on. */
export interface Patch {
  left: number;
  top: number;
  right: number;
  bottom: number;
  /** Tokens at the left and upper edge, with fractions, and how many there are to the other edge. */
  key: number;
  query: number;
  keys: number;
  queries: number;
}

/** Write what is seen of a tile into a patch; false if nothing is. */
export function patch(into: Patch, { box, window }: Panel, tile: Tile, other: Tile | null): boolean {
  const key = Math.max(tile.keys[0], other?.keys[0] ?? 0, window.x);
  const query = Math.max(tile.queries[0], other?.queries[0] ?? 0, window.y);
  const far = Number.POSITIVE_INFINITY;
  const keyStop = Math.min(tile.keys[1], other?.keys[1] ?? far, window.x + box.width / window.sx);
  const queryStop = Math.min(tile.queries[1], other?.queries[1] ?? far, window.y + box.height / window.sy);
  if (!(keyStop > key && queryStop > query)) return false;
  into.left = box.left + (key - window.x) * window.sx;
  into.right = box.left + (keyStop - window.x) * window.sx;
  into.top = box.top + (query - window.y) * window.sy;
  into.bottom = box.top + (queryStop - window.y) * window.sy;
  into.key = key;
  into.query = query;
  into.keys = keyStop - key;
  into.queries = queryStop - query;
  return true;
}

export const emptyPatch = (): Patch => ({
  left: 0,
  top: 0,
  right: 0,
  bottom: 0,
  key: 0,
  query: 0,
  keys: 0,
  queries: 0,
});

/** Call back for each tile of a panel, or each pair of tiles that meet. */
export function eachTile(panel: Panel, paint: (tile: Tile, other: Tile | null) => void): void {
  for (const tile of panel.tiles) {
    if (!panel.against) paint(tile, null);
    else for (const other of panel.against) if (tile.meets(other.queries, other.keys)) paint(tile, other);
  }
}
