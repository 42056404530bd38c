/** What is in view, in numbers: for the scale, for the picture in words, and for files. */
import type { Tally } from "../../model/colour";
import type { Range } from "../../source/contract";
import { cellRange, type Tile } from "./tiles";

/** A cell that is in view: its tokens and its weight, or difference of weights. */
export interface Cell {
  readonly queries: Range;
  readonly keys: Range;
  readonly weight: number;
}

/** Special tokens before each position: whether a range holds one is a difference. */
export function countsOf(special: ArrayLike<number>): Int32Array {
  const counts = new Int32Array(special.length + 1);
  for (let i = 0; i < special.length; i++) counts[i + 1] = (counts[i] as number) + ((special[i] as number) ? 1 : 0);
  return counts;
}

/** Call back for every cell of tiles that is in view, its weight first; of a difference, with the other's taken off. */
export function eachCell(
  tiles: readonly Tile[],
  against: readonly Tile[] | null,
  view: { queries: Range; keys: Range },
  see: (weight: number, tile: Tile, row: number, column: number) => void,
): void {
  for (const tile of tiles) {
    const [firstRow, lastRow] = cellsIn(tile.queries, tile.rows, view.queries);
    const [firstColumn, lastColumn] = cellsIn(tile.keys, tile.columns, view.keys);
    for (let row = firstRow; row < lastRow; row++) {
      for (let column = firstColumn; column < lastColumn; column++) {
        const weight = tile.weights[row * tile.columns + column] as number;
        const other = against ? otherAt(against, tile, row, column) : 0;
        if (other !== undefined) see(weight - other, tile, row, column);
      }
    }
  }
}

/** The weight that is taken off a cell's: of the same cell, or else of the one that holds its first pair. */
function otherAt(against: readonly Tile[], tile: Tile, row: number, column: number): number | undefined {
  const query = tile.queries[0] + Math.floor((row * (tile.queries[1] - tile.queries[0])) / tile.rows);
  const key = tile.keys[0] + Math.floor((column * (tile.keys[1] - tile.keys[0])) / tile.columns);
  for (let i = against.length - 1; i >= 0; i--) {
    const weight = (against[i] as Tile).at(query, key);
    if (weight !== undefined) return weight;
  }
  return undefined;
}

/** Cells of a side that meet a range. */
function cellsIn(side: Range, cells: number, range: Range): Range {
  const scale = cells / (side[1] - side[0]);
  const first = Math.max(Math.floor((range[0] - side[0]) * scale), 0);
  const last = Math.min(Math.ceil((range[1] - side[0]) * scale), cells);
  return [first, Math.max(last, first)];
}

/** Tally what is in view, without the columns of special tokens; `true` if some were left out. */
export function tallyOf(
  tally: Tally,
  tiles: readonly Tile[],
  against: readonly Tile[] | null,
  view: { queries: Range; keys: Range },
  special: Int32Array | null,
): boolean {
  let left = false;
  let known: Tile | null = null;
  let skipped: Uint8Array = new Uint8Array(0);
  eachCell(tiles, against, view, (weight, tile, _, column) => {
    if (tile !== known) {
      known = tile;
      skipped = specialColumns(tile, special);
    }
    if (skipped[column]) left = true;
    else tally.add(weight);
  });
  return left;
}

function specialColumns(tile: Tile, special: Int32Array | null): Uint8Array {
  const columns = new Uint8Array(tile.columns);
  if (!special) return columns;
  return columns.map((_, column) => {
    const [start, stop] = cellRange(column, tile.keys, tile.columns);
    return (special[stop] ?? 0) > (special[start] ?? 0) ? 1 : 0;
  });
}

/** The heaviest cells in view, heaviest first: of differences, the largest either way. */
export function strongest(
  tiles: readonly Tile[],
  against: readonly Tile[] | null,
  view: { queries: Range; keys: Range },
  count: number,
): Cell[] {
  const found: { size: number; weight: number; tile: Tile; row: number; column: number }[] = [];
  eachCell(tiles, against, view, (weight, tile, row, column) => {
    const size = Math.abs(weight);
    if (!(size > 0) || (found.length === count && size <= (found[count - 1]?.size ?? 0))) return;
    const place = found.findIndex((other) => other.size < size);
    found.splice(place < 0 ? found.length : place, 0, { size, weight, tile, row, column });
    if (found.length > count) found.pop();
  });
  return found.map(({ weight, tile, row, column }) => ({
    weight,
    queries: cellRange(row, tile.queries, tile.rows),
    keys: cellRange(column, tile.keys, tile.columns),
  }));
}

/** Which weights of a square of weights are on each query's heaviest key: the mean over queries. null without any. */
export function meanOfLargest(tiles: readonly Tile[], view: { queries: Range; keys: Range }): number | null {
  const largest = new Map<number, number>();
  eachCell(tiles, null, view, (weight, tile, row) => {
    const query = tile.queries[0] + row;
    if (weight > (largest.get(query) ?? -1)) largest.set(query, weight);
  });
  if (!largest.size) return null;
  return [...largest.values()].reduce((a, b) => a + b, 0) / largest.size;
}
