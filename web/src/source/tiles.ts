/**
 * Questions about a rectangle of a pattern, from a trace: tile, window, margins. The answers are those of
 * `src/saccade/explorer/tiles.py`, but for one thing: a tile that would take a browser too long is answered from the
 * stored map, with larger cells or another reduction, as its answer says.
 */
import { cellsOf, length } from "./attention";
import {
  type Head,
  type MarginsAnswer,
  type Questions,
  type Range,
  SourceError,
  TILE,
  type TileAnswer,
  type TileKey,
  type WindowAnswer,
} from "./contract";
import type { Recorded } from "./recorded";
import { type StoredSource, shaped } from "./stored";

type Rectangle = Questions["window"][0];

const MOST_WEIGHTS = 1 << 20;
const MOST_CELLS = 512;
/** Weights that are computed for one tile, heads of a mean each counted: some seconds, at 0.1 to 0.4 µs each for D = 64. */
const PATIENCE = 1 << 24;
/** The same for the sums along two sides. */
const LONGEST = 1 << 26;

export async function window(source: StoredSource, asked: Rectangle, signal?: AbortSignal): Promise<WindowAnswer> {
  const site = await source.exact(asked);
  const [rows, columns] = [length(asked.queries), length(asked.keys)];
  if (rows * columns > MOST_WEIGHTS) {
    throw new SourceError(`The window has ${rows * columns} weights; expected at most ${MOST_WEIGHTS}.`, "bad");
  }
  return { weights: shaped(await cells(site, asked, [rows, columns], "mean", signal), rows, columns) };
}

export async function margins(source: StoredSource, asked: Rectangle, signal?: AbortSignal): Promise<MarginsAnswer> {
  const site = await source.asked(asked);
  const { queries, keys, head } = asked;
  const known = await marginsOfAll(site, asked, signal);
  if (!known) await source.exact(asked);
  const [rows, columns] = known ?? [new Float64Array(length(queries)), new Float64Array(length(keys))];
  if (!known) {
    check(site, asked, LONGEST, "Zoom in for the sums along the sides: so many weights are too much for a saved page.");
    await site.sweep(
      head,
      queries,
      keys,
      (weights, query, key) => {
        for (let at = 0; at < weights.length; at++) {
          const weight = weights[at] as number;
          (rows[query - queries[0]] as number) += weight;
          (columns[key - keys[0] + at] as number) += weight;
        }
      },
      signal,
    );
  }
  return {
    rows: shaped(averages(rows), Math.min(rows.length, MOST_CELLS)),
    columns: shaped(averages(columns), Math.min(columns.length, MOST_CELLS)),
  };
}

export async function tile(source: StoredSource, asked: TileKey, signal?: AbortSignal): Promise<TileAnswer> {
  const site = await source.asked(asked);
  const { info } = site;
  const queries = place("row", asked.row, asked.level, info.queries);
  const keys = place("column", asked.column, asked.level, info.keys);
  const area = { head: asked.head, queries, keys };
  const heads = asked.head === "mean" ? info.heads.length : 1;
  const slow = length(queries) * length(keys) * heads > PATIENCE;
  const stored = await storedTile(site, asked, [queries, keys], slow);
  if (stored) return stored;
  await source.exact({ ...asked, queries, keys });
  check(
    site,
    area,
    PATIENCE,
    "Zoom in: this part is too large for a saved page to compute, and no map of it was kept.",
  );
  const size = 2 ** asked.level;
  const shape: [number, number] = [Math.ceil(length(queries) / size), Math.ceil(length(keys) / size)];
  const weights = await cells(site, area, shape, asked.reduce, signal);
  return { queries, keys, weights: shaped(weights, ...shape), exact: asked.level === 0, reduce: asked.reduce };
}

/** A rectangle reduced to cells. */
export async function cells(
  site: Recorded,
  { head, queries, keys }: { head: Head; queries: Range; keys: Range },
  [high, wide]: [number, number],
  reduce: "mean" | "max",
  signal?: AbortSignal,
): Promise<Float32Array> {
  const found = new Float64Array(high * wide);
  const [down, across] = [cellsOf(length(queries), high), cellsOf(length(keys), wide)];
  await site.sweep(
    head,
    queries,
    keys,
    (weights, query, key) => {
      const start = (down[query - queries[0]] as number) * wide;
      for (let at = 0; at < weights.length; at++) {
        const cell = start + (across[key - keys[0] + at] as number);
        const weight = weights[at] as number;
        if (reduce === "mean") (found[cell] as number) += weight;
        else if (!(weight <= (found[cell] as number))) found[cell] = weight; // NaN is the largest
      }
    },
    signal,
  );
  if (reduce === "mean") share(found, counts(down, high), counts(across, wide));
  return Float32Array.from(found);
}

/** Divide sums over cells by how many weights each has. */
function share(sums: Float64Array, high: Float64Array, wide: Float64Array): void {
  for (let row = 0, at = 0; row < high.length; row++) {
    for (let column = 0; column < wide.length; column++, at++) {
      (sums[at] as number) /= (high[row] as number) * (wide[column] as number);
    }
  }
}

function counts(cell: Int32Array, cells: number): Float64Array {
  const found = new Float64Array(cells);
  for (const at of cell) (found[at] as number)++;
  return found;
}

/** Means over at most `MOST_CELLS` cells. */
function averages(values: Float64Array): Float32Array {
  const cells = Math.min(values.length, MOST_CELLS);
  const cell = cellsOf(values.length, cells);
  const sums = new Float64Array(cells);
  values.forEach((value, at) => {
    (sums[cell[at] as number] as number) += value;
  });
  const sizes = counts(cell, cells);
  return Float32Array.from(sums, (sum, at) => sum / (sizes[at] as number));
}

/** The tokens that a tile covers along one side. */
function place(name: string, number: number, level: number, count: number): Range {
  const side = TILE * 2 ** level;
  if (!(number * side < count)) throw new SourceError(`There is no ${name} ${number} at level ${level}.`, "bad");
  return [number * side, Math.min((number + 1) * side, count)];
}

function check(
  site: Recorded,
  { head, queries, keys }: { head: Head; queries: Range; keys: Range },
  most: number,
  message: string,
): void {
  const heads = head === "mean" ? site.info.heads.length : 1;
  if (length(queries) * length(keys) * heads > most) throw new SourceError(message, "bad");
}

// ---------------------------------------------------------------------------------------- what was kept

/** A tile from the stored map; null if it is to be computed. `slow`: it would take too long. */
async function storedTile(
  site: Recorded,
  { head, level, reduce }: TileKey,
  area: [Range, Range],
  slow: boolean,
): Promise<TileAnswer | null> {
  const { info } = site;
  if (!info.map) return null;
  const kept = info.map.reduce;
  const fits = (kept === reduce && !(head === "mean" && reduce === "max")) || (reduce === "mean" && kept === "sum");
  const levels = site.levels();
  const size = 2 ** level;
  const fine =
    levels.filter(([queries, keys]) => info.queries <= queries * size && info.keys <= keys * size).length - 1;
  if (info.exact && !slow && !(fits && fine >= 0 && level)) return null;
  if (head === "mean" && kept === "max") {
    if (info.exact) return null; // and so it is refused as too large
    throw new SourceError(
      `${info.label}: the mean of heads cannot be had from maps of each head's largest weights, and queries and keys were not kept.`,
      "bad",
    );
  }
  return part(site, head, Math.max(fine, 0), area, fits ? reduce : kept);
}

/** The cells of a level of the stored map that cover a rectangle. */
async function part(
  site: Recorded,
  head: Head,
  level: number,
  area: [Range, Range],
  reduce: TileAnswer["reduce"],
): Promise<TileAnswer> {
  const { info } = site;
  const [high, wide] = site.levels()[level] as [number, number];
  const map = await site.map(head, level);
  const [rows, queries] = covering(area[0], info.queries, high);
  const [columns, keys] = covering(area[1], info.keys, wide);
  const found = new Float64Array(length(rows) * length(columns));
  for (let row = rows[0]; row < rows[1]; row++) {
    found.set(map.subarray(row * wide + columns[0], row * wide + columns[1]), (row - rows[0]) * length(columns));
  }
  if (reduce === "mean" && info.map?.reduce === "sum") {
    share(
      found,
      counts(cellsOf(length(queries), length(rows)), length(rows)),
      counts(cellsOf(length(keys), length(columns)), length(columns)),
    );
  }
  return {
    queries,
    keys,
    weights: shaped(Float32Array.from(found), length(rows), length(columns)),
    exact: high === info.queries && wide === info.keys,
    reduce,
  };
}

/**
 * Which of the cells of a whole length cover a range, and the tokens that they hold. Cells begin at floor(a n / c); those
 * of a part follow its own length by that rule only if it begins and ends at multiples of c / gcd(c, n).
 */
export function covering(range: Range, count: number, cells: number): [cells: Range, tokens: Range] {
  const step = cells / divisor(cells, count);
  const first = Math.floor(Math.floor((range[0] * cells) / count) / step) * step;
  const stop = Math.min(Math.ceil((range[1] * cells) / (count * step)) * step, cells);
  return [
    [first, stop],
    [Math.floor((first * count) / cells), Math.floor((stop * count) / cells)],
  ];
}

function divisor(a: number, b: number): number {
  return b ? divisor(b, a % b) : a;
}

/** What each query gives all keys, and each key gets from all queries, as it was kept: of the whole pattern. */
async function marginsOfAll(
  site: Recorded,
  { head, queries, keys }: Rectangle,
  signal: AbortSignal | undefined,
): Promise<[Float64Array, Float64Array] | null> {
  const { stack } = site;
  if (!site.info.exact && !stack.statistics.some(({ field }) => field === "lse")) return null;
  if (length(queries) !== stack.queries || length(keys) !== stack.keys) return null;
  const heads = head === "mean" ? site.info.heads.map((_, at) => at) : [head];
  const [given, received] = [new Float64Array(stack.queries), new Float64Array(stack.keys)];
  for (const one of heads) {
    signal?.throwIfAborted();
    const got = await site.received(one, keys);
    if (!got) return null;
    const [lse, sink] = [await site.lse(one, queries), await site.sink(one)];
    got.forEach((weight, key) => {
      (received[key] as number) += weight / heads.length;
    });
    lse.forEach((sum, query) => {
      if (sum === Number.NEGATIVE_INFINITY) return;
      const held = sink === null ? 0 : Math.exp(sink - sum);
      (given[query] as number) += (Number.isNaN(sum) ? sum : 1 - held) / heads.length;
    });
  }
  return [given, received];
}
