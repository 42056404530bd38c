/** The numbers in view, as files: single weights while they are not too many, else the cells that are drawn. */
import { csvOf } from "../../parts/save";
import type { Range, Source } from "../../source/contract";
import { type Cell, eachCell } from "./facts";
import type { Labels } from "./sentences";
import { cellRange, type Subject, type Tile } from "./tiles";

/** So many weights are answered at once. */
export const MOST_WEIGHTS = 1 << 20;

/** What of a map is in view. */
export interface Seen {
  readonly subject: Subject;
  readonly against: Subject | null;
  readonly tiles: readonly Tile[];
  readonly less: readonly Tile[] | null;
  readonly view: { queries: Range; keys: Range };
  readonly queryLabels: Labels;
  readonly keyLabels: Labels;
  readonly reduce: string;
}

/** Single weights of the part in view; of a difference, what it is taken off and what is taken off. */
export interface Weights {
  readonly queries: Range;
  readonly keys: Range;
  readonly weight: Float32Array;
  readonly less: Float32Array | null;
}

/** Whether the part in view is given in single weights. */
export function isExact({ subject, against, view }: Seen): boolean {
  return subject.exact && (against?.exact ?? true) && size(view.queries) * size(view.keys) <= MOST_WEIGHTS;
}

export async function weightsOf(source: Source, { subject, against, view }: Seen): Promise<Weights> {
  const within = (range: Range, tokens: number): Range => [range[0], Math.min(range[1], tokens)];
  const queries = within(view.queries, against?.extent.queries ?? view.queries[1]);
  const keys = within(view.keys, against?.extent.keys ?? view.keys[1]);
  if (queries[0] >= queries[1] || keys[0] >= keys[1]) {
    throw new Error("In view is only a part where the other map has no tokens: there is no difference to save.");
  }
  const ask = async ({ text, site, head }: Subject) =>
    (await source.ask("window", { text, site, head, queries, keys })).weights.data;
  const [weight, less] = await Promise.all([ask(subject), against ? ask(against) : null]);
  return { queries, keys, weight, less };
}

export function weightsCsv(weights: Weights, queryLabels: Labels, keyLabels: Labels): string {
  const columns = [
    "query_position",
    "query",
    "key_position",
    "key",
    "weight",
    ...(weights.less ? ["other", "difference"] : []),
  ];
  return csvOf(columns, rows(weights, queryLabels, keyLabels));
}

function* rows(
  { queries, keys, weight, less }: Weights,
  queryLabels: Labels,
  keyLabels: Labels,
): Generator<(string | number)[]> {
  let i = 0;
  for (let query = queries[0]; query < queries[1]; query++) {
    for (let key = keys[0]; key < keys[1]; key++, i++) {
      const value = weight[i] as number;
      const row = [query, queryLabels?.[query] ?? "", key, keyLabels?.[key] ?? "", value];
      yield less ? [...row, less[i] as number, value - (less[i] as number)] : row;
    }
  }
}

/** The cells that are drawn. Where finer ones lie upon coarser ones, both are given, with their sizes. */
export function cellsOf({ tiles, less, view }: Seen): Cell[] {
  const cells: Cell[] = [];
  eachCell(tiles, less, view, (weight, tile, row, column) => {
    cells.push({
      weight,
      queries: cellRange(row, tile.queries, tile.rows),
      keys: cellRange(column, tile.keys, tile.columns),
    });
  });
  return cells;
}

export function cellsCsv(seen: Seen): string {
  const name = `${seen.reduce}_weight${seen.less ? "_difference" : ""}`;
  return csvOf(
    ["query_start", "query_stop", "key_start", "key_stop", name],
    cellsOf(seen).map(({ queries, keys, weight }) => [...queries, ...keys, weight]),
  );
}

/** The numbers in view as JSON; NaN is null there. */
export async function jsonOf(source: Source, seen: Seen, about: Record<string, unknown>): Promise<unknown> {
  if (!isExact(seen)) {
    return {
      ...about,
      ...seen.view,
      cells: cellsOf(seen).map(({ queries, keys, weight }) => [...queries, ...keys, weight]),
      columns: ["query_start", "query_stop", "key_start", "key_stop", `${seen.reduce}_weight`],
    };
  }
  const weights = await weightsOf(source, seen);
  const { queries, keys, weight, less } = weights;
  const labels = (of: Labels, [start, stop]: Range) => of?.slice(start, stop) ?? null;
  const table = (values: Float32Array) =>
    Array.from({ length: size(queries) }, (_, i) => [...values.subarray(i * size(keys), (i + 1) * size(keys))]);
  return {
    ...about,
    queries,
    keys,
    query_tokens: labels(seen.queryLabels, queries),
    key_tokens: labels(seen.keyLabels, keys),
    weights: table(weight),
    ...(less ? { other: table(less) } : {}),
  };
}

const size = ([start, stop]: Range) => stop - start;
