/** The weights that are drawn as lines, as a table. */
import { textIn } from "../../parts/save";
import type { Head, SiteInfo, TextInfo } from "../../source/contract";
import type { Row, Subject } from "./rows";

export const COLUMNS = ["text", "site", "head", "unit", "query", "query_word", "key", "key_word", "weight"] as const;
/** Characters of a text that stands in each row. */
const LONGEST = 2000;

/** What stands in the columns. */
export type Entry = [
  text: string,
  site: string,
  head: string,
  /** What `query` and `key` count. */
  unit: "word" | "token",
  query: number,
  queryWord: string,
  key: number,
  keyWord: string,
  weight: number,
];

/** `rows`: of each unit, [head]. */
export function entriesOf(
  text: TextInfo,
  { side, queries, keys }: Subject,
  site: SiteInfo,
  heads: readonly Head[],
  rows: ReadonlyMap<number, readonly Row[]>,
): Entry[] {
  const said = textIn(text, LONGEST);
  const unitName = queries.merged ? "word" : "token";
  return [...rows].flatMap(([unit, each]) =>
    each.flatMap(({ partners, weights }, place) => {
      const head = heads[place] as Head;
      const number = head === "mean" ? "mean" : String(site.heads[head]);
      return Array.from(partners, (partner, rank): Entry => {
        const [query, key] = side === "queries" ? [unit, partner] : [partner, unit];
        const [queryWord, keyWord] = [queries.labels[query] as string, keys.labels[key] as string];
        return [said, site.name, number, unitName, query, queryWord, key, keyWord, weights[rank] as number];
      });
    }),
  );
}

/** A row by the names of its columns. `inView`: whether others of the text are not among them, as they were out of view. */
export function objectOf(entry: Entry, inView: boolean): Record<string, string | number | boolean> {
  return { ...Object.fromEntries(COLUMNS.map((name, i) => [name, entry[i] as string | number])), in_view_only: inView };
}
