/** What lies above and below the window of a column of words, and how it is told. */
import { listed } from "../../model/words";
import { percent } from "../../parts/names";
import { beyond, type Column } from "./layout";
import type { Row } from "./rows";
import type { Partner } from "./selection";

/** One end of a column: -1 above its window, 1 below. */
export type End = -1 | 1;

/** What is told at an end of a column: of a `unit`, one may go to it. */
export interface Notice {
  readonly text: string;
  readonly title?: string;
  readonly unit: number | null;
}

const LEAST = 0.0005; // what would be told as 0.0%

/** The units that lie beyond an end, in their order. */
export function outside<T>(column: Column, end: End, all: readonly T[], unitOf: (one: T) => number): T[] {
  return all.filter((one) => beyond(column, column.slots[unitOf(one)] ?? 0) === end);
}

/** Which parts of the whole weight of some rows go above and below. */
export function passing(column: Column, rows: readonly Row[]): Record<End, number> {
  const sums = { "-1": 0, "0": 0, "1": 0 };
  let whole = 0;
  for (const row of rows) {
    whole += row.whole;
    row.partners.forEach((partner, rank) => {
      sums[beyond(column, column.slots[partner] ?? 0)] += row.weights[rank] as number;
    });
  }
  return whole > 0 ? { "-1": sums[-1] / whole, "1": sums[1] / whole } : { "-1": 0, "1": 0 };
}

/** Of partners of what is chosen: the strongest one beyond an end. `partners`: heaviest first. */
export function partnersNotice(partners: readonly Partner[], end: End, labels: readonly string[]): Notice | null {
  const [first] = partners;
  if (!first || !(first.weight >= LEAST)) return null;
  const more = partners.length > 1 ? `, ${partners.length - 1} more` : "";
  const sum = partners.reduce((all, { weight }) => all + weight, 0);
  return {
    text: `${arrow(end)} ${labels[first.unit]} ${percent(first.weight)}${more}`,
    title: `${partners.length} words ${end < 0 ? "above" : "below"}: ${percent(sum)}`,
    unit: first.unit,
  };
}

/** Of chosen words. */
export function keptNotice(units: readonly number[], end: End, labels: readonly string[]): Notice | null {
  const [first] = units;
  if (first === undefined) return null;
  const said = listed(
    units.map((unit) => labels[unit] as string),
    1,
  );
  return { text: `${arrow(end)} ${said}`, unit: first };
}

/** Of the weight of all words in view. */
export function passingNotice(part: number, end: End): Notice | null {
  if (!(part >= LEAST)) return null;
  return { text: `${arrow(end)} ${percent(part)} ${end < 0 ? "above" : "below"}`, unit: null };
}

const arrow = (end: End) => (end < 0 ? "↑" : "↓");
