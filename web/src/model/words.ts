/**
 * Units: what a view shows one label for, tokens by themselves or merged into words.
 *
 * A word is a run of tokens with one number. The source counts words in the same order, so a unit's place is what it
 * calls a position where words are asked for.
 */
import type { TokensAnswer } from "../source/contract";

/** Tokens or words of one sequence. */
export interface Units {
  /** Whether these are words. */
  readonly merged: boolean;
  readonly labels: readonly string[];
  /** The first token of each unit, and behind the last one the number of tokens. */
  readonly starts: Int32Array;
  /** 1 where all of the unit's tokens are special. */
  readonly special: Uint8Array;
  /** The unit of each token. */
  readonly of: Int32Array;
}

/** The units of a sequence of `length` tokens. Where the tokens are not known, their positions stand for them. */
export function unitsOf(tokens: TokensAnswer | null, length: number, merged: boolean): Units {
  if (tokens === null) return numbered(length);
  const of = merged ? runs(tokens.word.data) : Int32Array.from({ length }, (_, token) => token);
  const starts: number[] = [];
  const labels: string[] = [];
  const special: number[] = [];
  of.forEach((unit, token) => {
    const isSpecial = tokens.special.data[token] ?? 0;
    if (unit === labels.length) {
      starts.push(token);
      labels.push("");
      special.push(1);
    }
    labels[unit] += tokens.labels[token] ?? "";
    special[unit] = (special[unit] ?? 1) && isSpecial;
  });
  const trimmed = labels.map((label) => label.trim() || label);
  return {
    merged,
    labels: trimmed,
    starts: Int32Array.from([...starts, length]),
    special: Uint8Array.from(special),
    of,
  };
}

/** How many units there are. */
export function countOf(units: Units): number {
  return units.labels.length;
}

/** The places of the units that are shown. */
export function shownUnits(units: Units, special: boolean): Int32Array {
  const places: number[] = [];
  for (let unit = 0; unit < countOf(units); unit++) if (special || !units.special[unit]) places.push(unit);
  // A text of special tokens alone has nothing else to show.
  return Int32Array.from(places.length ? places : units.labels.keys());
}

/** The names of the special units, each once: "[CLS]", "[SEP]". */
export function specialNames(units: Units): string[] {
  return [...new Set(units.labels.filter((_, unit) => units.special[unit]))];
}

/** Words put together as in a sentence: "a, b and c". */
export function listed(words: readonly string[], most = 3): string {
  const said = words.slice(0, most);
  const more = words.length - said.length;
  if (more > 0) return `${said.join(", ")} and ${more} more`;
  return said.length < 2 ? (said[0] ?? "") : `${said.slice(0, -1).join(", ")} and ${said.at(-1)}`;
}

function numbered(length: number): Units {
  const of = Int32Array.from({ length }, (_, token) => token);
  const starts = Int32Array.from({ length: length + 1 }, (_, token) => token);
  return { merged: false, labels: Array.from(of, String), starts, special: new Uint8Array(length), of };
}

/** The run of equal numbers that each one lies in, from 0. */
function runs(numbers: Int32Array): Int32Array {
  let run = -1;
  return numbers.map((number, place) => {
    if (place === 0 || number !== numbers[place - 1]) run++;
    return run;
  });
}
