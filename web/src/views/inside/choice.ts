/** Which query and key the view starts with, and which part of a long text is listed to choose from. */
import type { Range, StrongestAnswer, TokensAnswer } from "../../source/contract";

/** Tokens that are listed at once. */
export const LISTED = 160;

/** The last ordinary word that is one token; else the last ordinary token; else the last of all. */
export function ordinaryQuery(tokens: TokensAnswer | null, count: number): number {
  if (tokens === null) return count - 1;
  let last = -1;
  for (let i = Math.min(tokens.labels.length, count) - 1; i >= 0; i--) {
    if (tokens.special.data[i] || !/[\p{L}\p{N}]/u.test(tokens.labels[i] as string)) continue;
    if (last < 0) last = i;
    const word = tokens.word.data[i];
    if (word !== tokens.word.data[i - 1] && word !== tokens.word.data[i + 1]) return i;
  }
  return last < 0 ? count - 1 : last;
}

/** The heaviest partner that is not the query itself; itself where it looks at nothing else. */
export function heaviestKey(answer: StrongestAnswer, query: number, sameTokens: boolean, count: number): number {
  const partners = Array.from(answer.partner.data).filter((partner) => partner >= 0);
  const other = partners.find((partner) => !sameTokens || partner !== query);
  return other ?? partners[0] ?? Math.min(query, count - 1);
}

/** The part of `count` tokens that is listed around one of them. */
export function listedAround(token: number, count: number, listed = LISTED): Range {
  const start = Math.max(Math.min(token - (listed >> 1), count - listed), 0);
  return [start, Math.min(start + listed, count)];
}

/** The range moved by pages, inside the text. */
export function paged([start, stop]: Range, pages: number, count: number): Range {
  const size = stop - start;
  const moved = Math.max(Math.min(start + pages * size, count - size), 0);
  return [moved, moved + size];
}

/** Where a key of the keyboard leads in a list; null: it is not one of these. */
export function moved(key: string, from: number, count: number, page = 16): number | null {
  const by: Record<string, number> = {
    ArrowLeft: -1,
    ArrowUp: -1,
    ArrowRight: 1,
    ArrowDown: 1,
    PageUp: -page,
    PageDown: page,
    Home: -count,
    End: count,
  };
  const step = by[key];
  return step === undefined ? null : Math.min(Math.max(from + step, 0), count - 1);
}
