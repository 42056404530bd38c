/** The numbers in view, as files: single weights while they are not too many, else the cells that are drawn. */
import { csvOf, textIn } from "../../parts/save";
import type { Range, Source, TextInfo } from "../../source/contract";
import { type Cell, eachCell } from "./facts";
import type { Labels } from "./sentences";
import { cellRange, type Subject, type Tile } from "./tiles";

/** So many weights are answered at once. */
export const MOST_WEIGHTS = 1 << 20;
/** Characters of a text that stands in each row. */
const LONGEST = 300;

/** A side of a pair of maps: the whole text, and its tokens. */
export interface Written {
  readonly text: TextInfo;
  readonly queryLabels: Labels;
  readonly keyLabels: Labels;
}

/** What of a map is in view. */
export interface Seen extends Written {
  readonly subject: Subject;
  readonly against: Subject | null;
  /** Of what is taken off, where that is another text. */
  readonly other: Written | null;
  readonly tiles: readonly Tile[];
  readonly less: readonly Tile[] | null;
  readonly view: { queries: Range; keys: Range };
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

/**
 * The numbers in view as CSV: of several maps one after the other, with the text in front. All in single weights, or all in
 * cells.
 */
export async function csvOfMaps(source: Source, parts: readonly Seen[]): Promise<string> {
  const [columns, rows] = parts.every(isExact) ? await weightRows(source, parts) : cellRows(parts);
  const [only, more] = rows;
  if (only && !more) return csvOf(columns, only);
  return csvOf(["text", ...columns], named(rows, namesOf(parts.map(({ text }) => text))));
}

/** Rows with the name of their part in front; made one by one, for there may be millions. */
function* named(parts: readonly Rows[], names: readonly string[]): Rows {
  for (const [i, rows] of parts.entries()) for (const row of rows) yield [names[i] as string, ...row];
}

/** What stands in each row for its text: what it says where that is short. Each has a name of its own. */
function namesOf(texts: readonly TextInfo[]): string[] {
  const names = texts.map((text) => textIn(text, LONGEST));
  return names.map((name, i) => (names.indexOf(name) === names.lastIndexOf(name) ? name : `${name} (${texts[i]?.id})`));
}

type Rows = Iterable<(string | number)[]>;
type Table = [columns: string[], rows: Rows[]];

async function weightRows(source: Source, parts: readonly Seen[]): Promise<Table> {
  const less = parts[0]?.against ? ["other", "difference"] : [];
  const others = parts[0]?.other ? ["other_query", "other_key"] : [];
  const columns = ["query_position", "query", "key_position", "key", "weight", ...less, ...others];
  const weights = await Promise.all(parts.map((part) => weightsOf(source, part)));
  return [columns, weights.map((each, i) => rowsOf(each, parts[i] as Seen))];
}

function* rowsOf({ queries, keys, weight, less }: Weights, { queryLabels, keyLabels, other }: Seen): Rows {
  const [otherQueries, otherKeys] = [other?.queryLabels, other?.keyLabels];
  let i = 0;
  for (let query = queries[0]; query < queries[1]; query++) {
    for (let key = keys[0]; key < keys[1]; key++, i++) {
      const value = weight[i] as number;
      const row: (string | number)[] = [query, queryLabels?.[query] ?? "", key, keyLabels?.[key] ?? "", value];
      if (less) row.push(less[i] as number, value - (less[i] as number));
      if (other) row.push(otherQueries?.[query] ?? "", otherKeys?.[key] ?? "");
      yield row;
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

function cellRows(parts: readonly Seen[]): Table {
  const columns = [...CELL, nameOfCells(parts[0] as Seen)];
  return [columns, parts.map(tableOfCells)];
}

const CELL = ["query_start", "query_stop", "key_start", "key_stop"];
const nameOfCells = ({ reduce, less }: Seen) => `${reduce}_weight${less ? "_difference" : ""}`;
const tableOfCells = (seen: Seen) => cellsOf(seen).map(({ queries, keys, weight }) => [...queries, ...keys, weight]);

/** The numbers in view as JSON, those of a text beside in an entry of their own; NaN is null there. */
export async function jsonOf(
  source: Source,
  parts: readonly Seen[],
  about: { model: string; what: string },
): Promise<unknown> {
  const maps = await Promise.all(parts.map((part) => jsonOfMap(source, part, about)));
  return maps[1] ? { ...maps[0], beside: maps[1] } : maps[0];
}

async function jsonOfMap(source: Source, seen: Seen, { model, what }: { model: string; what: string }) {
  const { other } = seen;
  const about = { model, text: textIn(seen.text), ...(other ? { other_text: textIn(other.text) } : {}), what };
  if (!isExact(seen)) {
    return { ...about, ...seen.view, cells: tableOfCells(seen), columns: [...CELL, nameOfCells(seen)] };
  }
  const { queries, keys, weight, less } = await weightsOf(source, seen);
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
    ...(other
      ? { other_query_tokens: labels(other.queryLabels, queries), other_key_tokens: labels(other.keyLabels, keys) }
      : {}),
  };
}

const size = ([start, stop]: Range) => stop - start;
