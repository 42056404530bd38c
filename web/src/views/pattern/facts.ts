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

/** Call back for the cells of each row in view: `values[from]` is that of the first column. Where nothing can be taken off: NaN. */
function eachRow(
  tiles: readonly Tile[],
  against: readonly Tile[] | null,
  view: { queries: Range; keys: Range },
  see: (values: Float32Array, from: number, to: number, tile: Tile, row: number, column: number) => void,
): void {
  for (const tile of tiles) {
    const [firstRow, lastRow] = cellsIn(tile.queries, tile.rows, view.queries);
    const [firstColumn, lastColumn] = cellsIn(tile.keys, tile.columns, view.keys);
    const twin = against?.findLast((other) => other.alike(tile));
    const differences = new Float32Array(against ? lastColumn - firstColumn : 0);
    for (let row = firstRow; row < lastRow; row++) {
      const start = row * tile.columns;
      if (!against) {
        see(tile.weights, start + firstColumn, start + lastColumn, tile, row, firstColumn);
        continue;
      }
      for (let i = 0; i < differences.length; i++) {
        const at = start + firstColumn + i;
        const other = twin ? (twin.weights[at] as number) : otherAt(against, tile, row, firstColumn + i);
        differences[i] = (tile.weights[at] as number) - (other ?? Number.NaN);
      }
      see(differences, 0, differences.length, tile, row, firstColumn);
    }
  }
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
  let skipped: Uint8Array | null = null;
  eachRow(tiles, against, view, (values, from, to, tile, _, column) => {
    if (tile !== known) {
      known = tile;
      skipped = special && specialColumns(tile, special).subarray(column, column + to - from);
      left ||= skipped?.includes(1) ?? false;
    }
    tally.addAll(values, from, to, skipped);
  });
  return left;
}

function specialColumns(tile: Tile, special: Int32Array): Uint8Array {
  return new Uint8Array(tile.columns).map((_, column) => {
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
  let least = 0;
  eachRow(tiles, against, view, (values, from, to, tile, row, column) => {
    for (let i = from; i < to; i++) {
      const weight = values[i] as number;
      const size = Math.abs(weight);
      if (!(size > least)) continue;
      const place = found.findIndex((other) => other.size < size);
      found.splice(place < 0 ? found.length : place, 0, { size, weight, tile, row, column: column + i - from });
      if (found.length > count) found.pop();
      if (found.length === count) least = (found[count - 1] as { size: number }).size;
    }
  });
  return found.map(({ weight, tile, row, column }) => ({
    weight,
    queries: cellRange(row, tile.queries, tile.rows),
    keys: cellRange(column, tile.keys, tile.columns),
  }));
}

/** How much of a query's weight is on its heaviest key in view: the mean over queries of single weights. null without any. */
export function meanOfLargest(tiles: readonly Tile[], view: { queries: Range; keys: Range }): number | null {
  const largest = new Map<number, number>();
  eachRow(tiles, null, view, (values, from, to, tile, row) => {
    const query = tile.queries[0] + row;
    let most = largest.get(query) ?? 0;
    for (let i = from; i < to; i++) most = Math.max(most, values[i] as number);
    largest.set(query, most);
  });
  if (!largest.size) return null;
  return [...largest.values()].reduce((a, b) => a + b, 0) / largest.size;
}
