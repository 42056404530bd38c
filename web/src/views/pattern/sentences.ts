/** What a map says, in words. */
import type { Scale } from "../../model/colour";
import type { Range } from "../../source/contract";
import type { State } from "./engine";
import type { Cell } from "./facts";
import type { Pointed } from "./pointing";
import { extentOf, type MapSpec } from "./specs";
import type { PointedSum } from "./sums";

/** The tokens along a side; null: not known. */
export type Labels = readonly string[] | null;

const LONGEST = 40; // characters of a token in a sentence

/** "river (2)", or "token 2". */
export function tokenName(labels: Labels, position: number): string {
  const label = labels?.[position];
  const at = position.toLocaleString("en");
  if (label === undefined) return `token ${at}`;
  return `${label.length > LONGEST ? `${label.slice(0, LONGEST - 1)}…` : label} (${at})`;
}

/** "128–255", or one token's name. */
export function rangeName(labels: Labels, [start, stop]: Range): string {
  return stop - start === 1
    ? tokenName(labels, start)
    : `tokens ${start.toLocaleString("en")}–${(stop - 1).toLocaleString("en")}`;
}

/** A weight as a percentage, with three digits that say something. */
export function share(weight: number): string {
  if (Number.isNaN(weight)) return "not a number";
  const percent = Math.abs(weight) * 100;
  const text = percent === 0 ? "0" : percent < 1e-4 ? percent.toExponential(1) : String(Number(percent.toPrecision(3)));
  return `${weight < 0 ? "−" : ""}${text}%`;
}

/** The same of a difference, with its sign: percentage points. */
export function difference(weight: number): string {
  return Number.isNaN(weight) ? share(weight) : `${weight > 0 ? "+" : ""}${share(weight).replace("%", "")} points`;
}

export interface Names {
  queries: Labels;
  keys: Labels;
  /** What is taken off, if anything: "layer 2 head 3". */
  against: string | null;
}

/** "bank (8) looks at river (2): 37.2%". */
export function pairSentence(at: { query: number; key: number }, weight: number, names: Names): string {
  const pair = `${tokenName(names.queries, at.query)} looks at ${tokenName(names.keys, at.key)}`;
  return names.against ? `${pair}: ${difference(weight)} against ${names.against}` : `${pair}: ${share(weight)}`;
}

/** What is under the pointer, the pair first. */
export function pointedSentence(at: Pointed, names: Names): string {
  if (typeof at.exact === "number") return `${pairSentence(at, at.exact, names)}.`;
  const pair = `${tokenName(names.queries, at.query)} at ${tokenName(names.keys, at.key)}`;
  return at.exact === undefined ? `${pair} …` : `${pair}: the single weight was not kept.`;
}

/** What the cell under the pointer holds, where it is more than one pair. */
export function cellSentence(at: Pointed, names: Names, reduce: State["reduce"]): string {
  const { cell } = at;
  if (!cell || (cell.queries[1] - cell.queries[0] === 1 && cell.keys[1] - cell.keys[0] === 1)) return "";
  const weight = names.against ? difference(cell.weight) : share(cell.weight);
  return `Its cell, ${rangeName(null, cell.queries)} at ${rangeName(null, cell.keys)}: ${REDUCED[reduce ?? "max"]} ${weight}.`;
}

const REDUCED = { max: "largest weight", mean: "mean weight", sum: "sum of weights" } as const;

export function sumSentence(at: PointedSum, names: Names): string {
  const signed = names.against !== null;
  if (at.side === "queries") {
    const who = rangeName(names.queries, at.tokens);
    return signed
      ? `${who}: ${difference(at.sum)} of attention on the keys in view.`
      : `${who}: ${share(at.sum)} of the attention is on the keys in view.`;
  }
  const who = rangeName(names.keys, at.tokens);
  const times = `${signed && at.sum > 0 ? "+" : ""}${Number(at.sum.toPrecision(3))}`;
  return at.tokens[1] - at.tokens[0] === 1
    ? `${who} receives ${times} in all from the queries in view.`
    : `${who} receive ${times} each from the queries in view.`;
}

/** What a cell of the picture holds: "Largest weight in a cell of 128 × 128 tokens". */
export function cellMeaning({
  scale,
  exact,
  reduce,
  cell,
}: Pick<State, "scale" | "exact" | "reduce" | "cell">): string {
  if (exact) return scale.signed ? "Difference of weights" : "Weight";
  const size = cell.map((tokens) => tokens.toLocaleString("en")).join(" × ");
  const what = REDUCED[reduce ?? "max"];
  if (scale.signed) return `Difference of the cells’ ${what}s, ${size} tokens each`;
  return `${what.charAt(0).toUpperCase()}${what.slice(1)} in a cell of ${size} tokens`;
}

/** The unit of a scale. */
export function unitOf(scale: Scale): string {
  return scale.signed ? "percentage points of the query's attention" : "share of the query's attention";
}

/** How far a difference goes, where one of its maps goes farther; "" where none does. */
export function comparedSentence(spec: Pick<MapSpec, "subject" | "against">): string {
  const { queries, keys } = extentOf(spec);
  const all = [spec.subject, spec.against ?? spec.subject].map(({ extent }) => extent);
  if (all.every((extent) => extent.queries === queries && extent.keys === keys)) return "";
  const first = (count: number) => `the first ${count.toLocaleString("en")}`;
  const what = queries === keys ? `${first(keys)} tokens` : `${first(queries)} queries and ${first(keys)} keys`;
  return `Only ${what} of both are compared.`;
}

/** A picture that is told in words. */
export interface Picture {
  readonly title: string;
  readonly view: { queries: Range; keys: Range };
  readonly extent: { queries: number; keys: number };
  /** The strongest of those in view. */
  readonly cells: readonly Cell[];
  readonly names: Names;
  /** How much of a query's attention is on its heaviest key; null: that is not known. */
  readonly concentration: number | null;
  /** How far a difference goes. */
  readonly compared: string;
  /** Whether all or a part of it could not be loaded. */
  readonly lacks: "nothing" | "part" | "all";
}

/** The picture in words. */
export function pictureWords({ title, view, extent, cells, names, concentration, compared, lacks }: Picture): string {
  if (lacks === "all") return `Map of ${title}. The map could not be loaded.`;
  const all = view.queries[1] - view.queries[0] === extent.queries && view.keys[1] - view.keys[0] === extent.keys;
  const where = all
    ? `all ${extent.queries.toLocaleString("en")} queries by ${extent.keys.toLocaleString("en")} keys`
    : `queries ${view.queries[0]} to ${view.queries[1] - 1}, keys ${view.keys[0]} to ${view.keys[1] - 1}`;
  const told = cells.map((cell) => cellWords(cell, names)).join("; ");
  const said = [
    `Map of ${title}: ${where}.`,
    told ? `Strongest: ${told}.` : `No ${names.against ? "difference" : "weight"} in view.`,
    concentration === null
      ? ""
      : `On average ${share(concentration)} of a query's attention is on its heaviest key in view.`,
    compared,
    lacks === "part" ? "Part of the map could not be loaded." : "",
  ];
  return said.filter(Boolean).join(" ");
}

function cellWords({ queries, keys, weight }: Cell, names: Names): string {
  const single = queries[1] - queries[0] === 1 && keys[1] - keys[0] === 1;
  const pair = `${rangeName(names.queries, queries)} ${single ? "looks at" : "at"} ${rangeName(names.keys, keys)}`;
  return `${pair}: ${names.against ? difference(weight) : share(weight)}`;
}
