/**
 * Which parts of a map are needed, which are there, and which are on their way.
 *
 * A map is a pyramid of tiles: cells of one token at level 0, of 2^level tokens above. What is in view is drawn from the
 * level whose cells are about a pixel; until its tiles are there, from coarser ones, and for the moment from finer ones.
 * Tiles are kept up to a number of bytes, the ones least lately seen go first.
 */
import type { Head, Range, TileAnswer, TileKey } from "../../source/contract";
import { TILE } from "../../source/contract";
import type { Extent } from "./geometry";

/** Whose map: a head of a site of a text. */
export interface Subject {
  readonly text: string;
  readonly site: number;
  readonly head: Head;
  readonly reduce: "mean" | "max";
  readonly extent: Extent;
  /** Whether any part can be had at any level; else there is one stored map, and that is all there is. */
  readonly exact: boolean;
}

export function nameOf({ text, site, head, reduce }: Subject): string {
  return `${text} ${site} ${head} ${reduce}`;
}

/** A rectangle of a map, as it was answered. */
export class Tile {
  readonly rows: number;
  readonly columns: number;
  /** Tokens per cell, of the longer side. */
  readonly cell: number;

  constructor(
    readonly queries: Range,
    readonly keys: Range,
    readonly weights: Float32Array,
    shape: readonly number[],
    readonly exact: boolean,
    readonly reduce: "mean" | "max" | "sum",
  ) {
    [this.rows, this.columns] = shape as [number, number];
    this.cell = Math.max((queries[1] - queries[0]) / this.rows, (keys[1] - keys[0]) / this.columns);
  }

  /** In this computer's memory and once more in the graphics card's. */
  get bytes(): number {
    return 2 * this.weights.byteLength;
  }

  /** The weight of the cell that holds a pair of tokens; undefined outside. */
  at(query: number, key: number): number | undefined {
    if (!holds(this.queries, query) || !holds(this.keys, key)) return undefined;
    const row = cellOf(query, this.queries, this.rows);
    const column = cellOf(key, this.keys, this.columns);
    return this.weights[row * this.columns + column];
  }

  /** Tokens of the cell that holds a pair. */
  cellAt(query: number, key: number): { queries: Range; keys: Range } {
    return {
      queries: cellRange(cellOf(query, this.queries, this.rows), this.queries, this.rows),
      keys: cellRange(cellOf(key, this.keys, this.columns), this.keys, this.columns),
    };
  }

  covers(queries: Range, keys: Range): boolean {
    return within(queries, this.queries) && within(keys, this.keys);
  }

  /** Whether another has the same cells. */
  alike(other: Tile): boolean {
    const { rows, columns, queries, keys } = other;
    return (
      this.rows === rows &&
      this.columns === columns &&
      this.covers(queries, keys) &&
      other.covers(this.queries, this.keys)
    );
  }

  meets(queries: Range, keys: Range): boolean {
    return overlaps(this.queries, queries) && overlaps(this.keys, keys);
  }
}

/** The cell that holds a token: the last one that does not begin behind it. */
export function cellOf(token: number, [start, stop]: Range, cells: number): number {
  return Math.floor(((token - start + 1) * cells - 1) / (stop - start));
}

/** The tokens that a cell holds, as in the contract. */
export function cellRange(cell: number, [start, stop]: Range, cells: number): Range {
  const length = stop - start;
  return [start + Math.floor((cell * length) / cells), start + Math.floor(((cell + 1) * length) / cells)];
}

const holds = ([start, stop]: Range, token: number) => token >= start && token < stop;
const within = (inner: Range, outer: Range) => inner[0] >= outer[0] && inner[1] <= outer[1];
const overlaps = (a: Range, b: Range) => a[0] < b[1] && b[0] < a[1];

/** A place in the grid of tiles of a level. */
export interface Place {
  readonly level: number;
  readonly row: number;
  readonly column: number;
  /** Its tokens. */
  readonly queries: Range;
  readonly keys: Range;
}

/** The places that cover a part of a map, the middle one first. */
export function placesOf(level: number, queries: Range, keys: Range, extent: Extent): Place[] {
  const tile = TILE * 2 ** level;
  const places: Place[] = [];
  for (let row = Math.floor(queries[0] / tile); row * tile < queries[1]; row++) {
    for (let column = Math.floor(keys[0] / tile); column * tile < keys[1]; column++) {
      places.push({
        level,
        row,
        column,
        queries: [row * tile, Math.min((row + 1) * tile, extent.queries)],
        keys: [column * tile, Math.min((column + 1) * tile, extent.keys)],
      });
    }
  }
  const far = (place: Place) => Math.hypot(middle(place.queries) - middle(queries), middle(place.keys) - middle(keys));
  return places.sort((a, b) => far(a) - far(b));
}

const middle = ([start, stop]: Range) => (start + stop) / 2;

/** Cells at a map's end, or of a stored map, are not just as large as those of a level; those of the next one are twice. */
const UNEVEN = 1.5;

/** Tiles that are kept. */
export class TileCache {
  private readonly tiles = new Map<Tile, string>(); // in the order in which they were last seen
  private readonly bySubject = new Map<string, Tile[]>();
  private held = 0;

  constructor(
    private readonly most: number,
    /** Called with a tile that goes, so that what else holds its numbers lets go of them. */
    private readonly gone: (tile: Tile) => void = () => {},
  ) {}

  get bytes(): number {
    return this.held;
  }

  /** Keep an answer. The same rectangle in the same cells is kept once. */
  put(subject: Subject, answer: TileAnswer): Tile {
    const name = nameOf(subject);
    const { queries, keys, weights, exact, reduce } = answer;
    const made = new Tile(queries, keys, weights.data, weights.shape, exact, reduce);
    const kept = this.of(subject).find((tile) => tile.alike(made) && tile.reduce === reduce);
    if (kept) return kept;
    this.tiles.set(made, name);
    this.bySubject.set(name, [...this.of(subject), made]);
    this.held += made.bytes;
    this.shrink(made);
    return made;
  }

  /** All tiles of a map, in no order. */
  of(subject: Subject): readonly Tile[] {
    return this.bySubject.get(nameOf(subject)) ?? [];
  }

  /** The tile for a place: one that covers it in cells as fine; of a stored map, one that covers it. */
  find(subject: Subject, place: Place): Tile | undefined {
    const fine = 2 ** place.level;
    let found: Tile | undefined;
    for (const tile of this.of(subject)) {
      if (!tile.covers(place.queries, place.keys) || (subject.exact && tile.cell > fine * UNEVEN)) continue;
      if (!found || Math.abs(tile.cell - fine) < Math.abs(found.cell - fine)) found = tile;
    }
    return found;
  }

  /** A single weight, if it is here. */
  weightAt(subject: Subject, query: number, key: number): number | undefined {
    for (const tile of this.of(subject)) {
      if (!tile.exact) continue;
      const weight = tile.at(query, key);
      if (weight !== undefined) return weight;
    }
    return undefined;
  }

  /** These were seen just now. */
  touch(tiles: Iterable<Tile>): void {
    for (const tile of tiles) {
      const name = this.tiles.get(tile);
      if (name === undefined) continue;
      this.tiles.delete(tile);
      this.tiles.set(tile, name);
    }
  }

  clear(): void {
    for (const tile of [...this.tiles.keys()]) this.drop(tile);
  }

  private shrink(newest: Tile): void {
    for (const tile of this.tiles.keys()) {
      if (this.held <= this.most) return;
      if (tile !== newest) this.drop(tile);
    }
  }

  private drop(tile: Tile): void {
    const name = this.tiles.get(tile) as string;
    this.tiles.delete(tile);
    const left = (this.bySubject.get(name) ?? []).filter((other) => other !== tile);
    if (left.length) this.bySubject.set(name, left);
    else this.bySubject.delete(name);
    this.held -= tile.bytes;
    this.gone(tile);
  }
}

/** How far from the right level a tile may be to stand in for one that is not there yet: two levels. */
const NEAR = 4;

/** What to draw for a part of a map, in this order: the coarse first, so that the fine covers it. */
export function drawn(cache: TileCache, subject: Subject, places: readonly Place[]): Tile[] {
  const chosen = new Set<Tile>();
  for (const place of places) {
    const tile = cache.find(subject, place);
    for (const one of tile ? [tile] : standIns(cache.of(subject), place)) chosen.add(one);
  }
  return [...chosen].sort((a, b) => b.cell - a.cell);
}

/** For a tile that is missing: the finest that covers its place, and if that is far too coarse, what finer ones there are. */
function standIns(tiles: readonly Tile[], { level, queries, keys }: Place): Tile[] {
  const right = 2 ** level;
  const covering = tiles
    .filter((tile) => tile.cell >= right && tile.covers(queries, keys))
    .reduce<Tile | null>((best, tile) => (best && best.cell <= tile.cell ? best : tile), null);
  if (covering && covering.cell <= right * NEAR) return [covering];
  const finest = covering?.cell ?? Number.POSITIVE_INFINITY;
  const others = tiles.filter((tile) => tile.cell < finest && tile.cell >= right / NEAR && tile.meets(queries, keys));
  return covering ? [covering, ...others] : others;
}

/** A tile that is wanted. */
export interface Wanted {
  readonly subject: Subject;
  readonly place: Place;
}

type Ask = (key: TileKey, signal: AbortSignal) => Promise<TileAnswer>;

/** Fetches what is wanted, a few at a time, the first ones first; gives up what is not wanted any more. */
export class TileLoader {
  private wanted: readonly Wanted[] = [];
  private readonly running = new Map<string, { abort: AbortController; subject: Subject }>();
  private readonly failed = new Map<string, unknown>();

  constructor(
    private readonly ask: Ask,
    private readonly cache: TileCache,
    /** Called when a tile came, or failed. */
    private readonly changed: () => void,
    private readonly most = 3,
  ) {}

  /** How many are missing. */
  get missing(): number {
    return this.wanted.filter((one) => !this.failed.has(keyName(one)) && !this.cache.find(one.subject, one.place))
      .length;
  }

  /** Why one of those that are wanted could not be had. */
  get error(): unknown {
    return this.wanted.map((one) => this.failed.get(keyName(one))).find((error) => error !== undefined);
  }

  want(wanted: readonly Wanted[]): void {
    this.wanted = wanted;
    const names = new Set(wanted.map(keyName));
    for (const [name, { abort }] of this.running) {
      if (names.has(name)) continue;
      this.running.delete(name);
      abort.abort();
    }
    this.next();
  }

  /** Try again what failed. */
  retry(): void {
    this.failed.clear();
    this.next();
  }

  stop(): void {
    this.want([]);
  }

  private next(): void {
    for (const one of this.wanted) {
      if (this.running.size >= this.most) return;
      const name = keyName(one);
      if (this.running.has(name) || this.failed.has(name) || this.cache.find(one.subject, one.place)) continue;
      if (!one.subject.exact && this.asks(one.subject)) continue; // its one answer may be the whole map
      void this.fetch(name, one);
    }
  }

  private asks(subject: Subject): boolean {
    return [...this.running.values()].some((running) => nameOf(running.subject) === nameOf(subject));
  }

  private async fetch(name: string, { subject, place }: Wanted): Promise<void> {
    const abort = new AbortController();
    this.running.set(name, { abort, subject });
    try {
      const { text, site, head, reduce } = subject;
      const { level, row, column } = place;
      const answer = await this.ask({ text, site, head, level, row, column, reduce }, abort.signal);
      if (abort.signal.aborted) return;
      const tile = this.cache.put(subject, answer);
      if (!this.cache.find(subject, place))
        throw new Error(`${expected(place)}; got ${said(tile.queries, tile.keys, tile.cell)}.`);
    } catch (error) {
      if (abort.signal.aborted) return;
      this.failed.set(name, error);
    }
    this.running.delete(name);
    this.changed();
    this.next();
  }
}

function keyName({ subject, place: { level, row, column } }: Wanted): string {
  return `${nameOf(subject)} ${level} ${row} ${column}`;
}

function expected({ level, queries, keys }: Place): string {
  return `Expected ${said(queries, keys, 2 ** level)}`;
}

function said(queries: Range, keys: Range, cell: number): string {
  return `queries ${queries.join("–")} and keys ${keys.join("–")} in cells of ${Math.round(cell)} tokens`;
}
