/** What is chosen, and what the rows of it say together: their partners' sums, and what part of the weight is drawn. */
import type { Row, Side } from "./rows";

/** Units of one side whose lines alone are drawn. */
export interface Choice {
  readonly side: Side;
  readonly units: readonly number[];
}

/** A partner of the chosen units. */
export interface Partner {
  readonly unit: number;
  /** Its weight in each drawn head, summed over the chosen units. */
  readonly heads: readonly number[];
  /** Their mean over the heads. */
  readonly weight: number;
}

/** The partners of some units, heaviest first. `rows`: [unit][head]. */
export function partnersOf(rows: readonly (readonly Row[])[], heads: number): Partner[] {
  const sums = new Map<number, number[]>();
  for (const unit of rows) {
    unit.forEach((row, head) => {
      row.partners.forEach((partner, rank) => {
        const sum = sums.get(partner) ?? new Array<number>(heads).fill(0);
        sum[head] = (sum[head] as number) + (row.weights[rank] as number);
        sums.set(partner, sum);
      });
    });
  }
  const found = [...sums].map(([unit, each]) => ({
    unit,
    heads: each,
    weight: each.reduce((a, b) => a + b, 0) / heads,
  }));
  return found.sort((a, b) => b.weight - a.weight || a.unit - b.unit);
}

/** How a word stands out. */
export interface Standing {
  readonly chosen: boolean;
  /** Its share in what is chosen on the other side. */
  readonly partner: Partner | undefined;
  readonly faint: boolean;
}

const FAINT = 0.02; // the share below which a partner is faint

export function standingOf(
  side: Side,
  unit: number,
  choice: Choice | null,
  partners: ReadonlyMap<number, Partner>,
): Standing {
  const chosen = choice?.side === side && choice.units.includes(unit);
  const partner = choice && choice.side !== side ? partners.get(unit) : undefined;
  return { chosen, partner, faint: choice !== null && !chosen && !((partner?.weight ?? 0) >= FAINT) };
}

/** Parts of a weight, from 0 to 1; together 1. */
export interface Shares {
  drawn: number;
  special: number;
  /** Of partners that are too weak to be among those that were asked for. */
  rest: number;
}

/** Which parts of the whole weight of some rows are drawn, and which are not. null: there is no weight at all. */
export function sharesOf(rows: Iterable<Row>): Shares | null {
  let whole = 0;
  let drawn = 0;
  let special = 0;
  for (const row of rows) {
    whole += row.whole;
    special += row.special;
    for (const weight of row.weights) drawn += weight;
  }
  if (!(whole > 0)) return null;
  const rest = Math.max(0, whole - drawn - special);
  // Sums of single-precision numbers: what is less than their rounding is none.
  return { drawn: drawn / whole, special: special / whole, rest: rest / whole < 1e-4 ? 0 : rest / whole };
}

/** The list with a value in it, or without if it was there. */
export function toggled(list: readonly number[], value: number): number[] {
  return list.includes(value) ? list.filter((one) => one !== value) : [...list, value].sort((a, b) => a - b);
}
