/** The weights that are drawn as lines, as a table. */
import type { Head, SiteInfo } from "../../source/contract";
import type { Row, Subject } from "./rows";

export const COLUMNS = ["text", "site", "head", "query", "query_word", "key", "key_word", "weight"] as const;

/** What stands in the columns. */
export type Entry = [
  text: string,
  site: string,
  head: string,
  query: number,
  queryWord: string,
  key: number,
  keyWord: string,
  weight: number,
];

/** `rows`: of each unit, [head]. */
export function entriesOf(
  { text, side, queries, keys }: Subject,
  site: SiteInfo,
  heads: readonly Head[],
  rows: ReadonlyMap<number, readonly Row[]>,
): Entry[] {
  return [...rows].flatMap(([unit, each]) =>
    each.flatMap(({ partners, weights }, place) => {
      const head = heads[place] as Head;
      const number = head === "mean" ? "mean" : String(site.heads[head]);
      return Array.from(partners, (partner, rank): Entry => {
        const [query, key] = side === "queries" ? [unit, partner] : [partner, unit];
        const [queryWord, keyWord] = [queries.labels[query] as string, keys.labels[key] as string];
        return [text, site.name, number, query, queryWord, key, keyWord, weights[rank] as number];
      });
    }),
  );
}
