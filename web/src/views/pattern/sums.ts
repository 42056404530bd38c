/** Sums of the weights in view along both sides of each map: asked for when the view has rested, and read at their bars. */
import type { Range, Source } from "../../source/contract";
import { mapBox, type Sums } from "./axes";
import { type Gutters, type Point, placeAt } from "./geometry";
import { type Shown, viewOf } from "./shown";
import { cellOf, cellRange, type Subject } from "./tiles";

/** A sum at a side that is pointed at. */
export interface PointedSum {
  readonly map: number;
  readonly side: "queries" | "keys";
  readonly tokens: Range;
  readonly sum: number;
}

export class SumsLoader {
  private asking = new AbortController();

  constructor(private readonly source: Source) {}

  /** Give these maps the sums of what is in view; what was asked before is given up. */
  async load(maps: readonly Shown[]): Promise<void> {
    this.stop();
    this.asking = new AbortController();
    const { signal } = this.asking;
    try {
      await Promise.all(maps.map((map) => this.loadOne(map, signal)));
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }

  stop(): void {
    this.asking.abort();
  }

  private async loadOne(map: Shown, signal: AbortSignal): Promise<void> {
    const { subject, against } = map.spec;
    if (!subject.exact || (against && !against.exact)) return;
    const { queries, keys } = viewOf(map);
    if (map.sums && equal(map.sums.queries, queries) && equal(map.sums.keys, keys)) return;
    const ask = ({ text, site, head }: Subject) =>
      this.source.ask("margins", { text, site, head, queries, keys }, signal);
    const [sums, less] = await Promise.all([ask(subject), against ? ask(against) : null]);
    if (signal.aborted) return;
    const rows = taken(sums.rows.data, less?.rows.data);
    const columns = taken(sums.columns.data, less?.columns.data);
    map.sums = { queries, keys, rows, columns };
  }
}

/** The sum whose bar is at a point beside one of the maps. */
export function sumAt(maps: readonly Shown[], gutters: Gutters, point: Point): PointedSum | null {
  for (const [i, map] of maps.entries()) {
    if (!map.sums) continue;
    const box = mapBox(map);
    const right = point.x - box.left - box.width;
    const below = point.y - box.top - box.height;
    const place = placeAt(map, point);
    if (right > 0 && right < gutters.right && below < 0) return sumOf(i, "queries", map.sums, place.query);
    if (below > 0 && below < gutters.bottom && right < 0) return sumOf(i, "keys", map.sums, place.key);
  }
  return null;
}

function sumOf(map: number, side: "queries" | "keys", sums: Sums, at: number): PointedSum | null {
  const range = sums[side];
  const values = side === "queries" ? sums.rows : sums.columns;
  if (at < range[0] || at >= range[1]) return null;
  const cell = cellOf(Math.floor(at), range, values.length);
  return { map, side, tokens: cellRange(cell, range, values.length), sum: values[cell] as number };
}

function taken(of: Float32Array, off: Float32Array | undefined): Float32Array {
  return off ? of.map((value, i) => value - (off[i] as number)) : of;
}

const equal = (a: Range, b: Range) => a[0] === b[0] && a[1] === b[1];
