/**
 * The pair that is pointed at: what the tiles that are drawn say of it, at once, and its single weight, asked for when the
 * pointer stays.
 */
import type { Range, Source } from "../../source/contract";
import type { Pair } from "./axes";
import type { Shown } from "./shown";
import { nameOf, type Subject, type TileCache } from "./tiles";

/** What is under the pointer. `exact`: undefined while it is on its way, null where it cannot be had. */
export interface Pointed extends Pair {
  readonly map: number;
  readonly exact: number | undefined | null;
  readonly cell: { queries: Range; keys: Range; weight: number } | null;
}

interface Hears {
  /** Another pair is pointed at, or none. */
  moves(at: Pointed | null): void;
  /** The weight of the same pair came, or could not be had. */
  learns(at: Pointed, error?: unknown): void;
}

/** Milliseconds for which the pointer stays until a weight is asked for. */
const STAYS = 20;
const MOST_KEPT = 1000;

export class Pointing {
  at: Pointed | null = null;
  private readonly weights = new Map<string, number>();
  private timer: ReturnType<typeof setTimeout> | undefined;
  private asking = new AbortController();

  constructor(
    private readonly maps: () => readonly Shown[],
    private readonly cache: TileCache,
    private readonly source: Source,
    private readonly hears: Hears,
  ) {}

  /** Point at a pair of a map, or at nothing. */
  point(map: number, pair: Pair | null): Pointed | null {
    clearTimeout(this.timer);
    const { at } = this;
    if (at && pair && at.map === map && at.query === pair.query && at.key === pair.key) return at;
    this.asking.abort();
    this.at = pair && { map, ...pair, exact: this.weightOf(map, pair), cell: this.cellOf(map, pair) };
    this.hears.moves(this.at);
    if (this.at && this.at.exact === undefined) this.timer = setTimeout(() => void this.ask(), STAYS);
    return this.at;
  }

  stop(): void {
    clearTimeout(this.timer);
    this.asking.abort();
  }

  /** A weight or difference that is here; undefined: not yet; null: never. */
  private weightOf(map: number, pair: Pair): number | undefined | null {
    const { subject, against } = (this.maps()[map] as Shown).spec;
    const weight = this.known(subject, pair);
    const less = against ? this.known(against, pair) : 0;
    if (weight === null || less === null) return null;
    return weight === undefined || less === undefined ? undefined : weight - less;
  }

  private known(of: Subject, pair: Pair): number | undefined | null {
    const { query, key } = pair;
    if (query >= of.extent.queries || key >= of.extent.keys) return null;
    const weight = this.cache.weightAt(of, query, key) ?? this.weights.get(keptAs(of, pair));
    return weight ?? (of.exact ? undefined : null);
  }

  private cellOf(map: number, { query, key }: Pair): Pointed["cell"] {
    const { tiles, against } = this.maps()[map] as Shown;
    const tile = tiles.findLast((one) => one.at(query, key) !== undefined);
    if (!tile) return null;
    const less = against ? against.findLast((one) => one.at(query, key) !== undefined)?.at(query, key) : 0;
    return less === undefined ? null : { ...tile.cellAt(query, key), weight: (tile.at(query, key) as number) - less };
  }

  private async ask(): Promise<void> {
    const { at } = this;
    if (!at) return;
    this.asking = new AbortController();
    const { signal } = this.asking;
    const { subject, against } = (this.maps()[at.map] as Shown).spec;
    try {
      await Promise.all([subject, ...(against ? [against] : [])].map((of) => this.fetch(of, at, signal)));
    } catch (error) {
      if (!signal.aborted) this.learn(at, null, error);
      return;
    }
    if (!signal.aborted) this.learn(at, this.weightOf(at.map, at));
  }

  private async fetch(of: Subject, pair: Pair, signal: AbortSignal): Promise<void> {
    if (this.known(of, pair) !== undefined) return;
    const { text, site, head } = of;
    const { query, key } = pair;
    const answer = await this.source.ask(
      "window",
      { text, site, head, queries: [query, query + 1], keys: [key, key + 1] },
      signal,
    );
    if (this.weights.size > MOST_KEPT) this.weights.clear();
    this.weights.set(keptAs(of, pair), answer.weights.data[0] as number);
  }

  private learn(at: Pointed, exact: number | undefined | null, error?: unknown): void {
    if (this.at !== at) return;
    this.at = { ...at, exact };
    this.hears.learns(this.at, error);
  }
}

function keptAs(of: Subject, { query, key }: Pair): string {
  return `${nameOf(of)} ${query} ${key}`;
}
