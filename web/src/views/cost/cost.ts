/**
 * What attention costs at a length: from formulas where they are exact, from curves through what was measured elsewhere.
 *
 * A stored pattern has N x N numbers for each head: its bytes are known without measuring anything. Everything else is
 * fitted: seconds of either way grow with N² in the end (each query meets each key), ours in bytes with N.
 */
import type { CostAnswer, CostPoint } from "../../source/contract";

/** Numbers of a stored pattern: heads x N x N. */
export function entries(heads: number, length: number, layers = 1): number {
  return layers * heads * length * length;
}

/** Bytes of a stored pattern of one layer. */
export function storedBytes(heads: number, itemsize: number, length: number): number {
  return entries(heads, length) * itemsize;
}

/** The longest text whose stored pattern has room in so many bytes. */
export function longestThatFits(heads: number, itemsize: number, room: number): number {
  return Math.floor(Math.sqrt(room / (heads * itemsize)));
}

/** A sum of powers of the length, fitted to measured points. */
export interface Curve {
  /** Factor of each power. */
  terms: readonly { power: number; factor: number }[];
  at: (length: number) => number;
  /** How far it is from the measured point that it misses most, as a share of that. */
  worst: number;
  /** Lengths between which it was measured. */
  measured: readonly [number, number];
}

/**
 * The sum of powers, none taken off, that misses measured points least in proportion to them: a point of a millisecond
 * counts as much as one of a second. The first power is always in it: it is the one that theory says. There are fewer
 * powers than points, as a sum that goes through all of them says nothing about the next. null: fewer than `FEWEST` points.
 */
export function fitted(
  points: readonly (readonly [length: number, value: number])[],
  powers: readonly number[],
): Curve | null {
  const known = points.filter(([length, value]) => length > 0 && value > 0);
  if (known.length < FEWEST) return null;
  const lengths = known.map(([length]) => length);
  const longest = Math.max(...lengths);
  let best: { factors: number[]; miss: number } | null = null;
  for (const chosen of choices(powers)) {
    if (chosen.length >= known.length) continue;
    const rows = known.map(([length, value]) => chosen.map((power) => (length / longest) ** power / value));
    const factors = leastSquares(rows);
    if (!factors?.every((factor) => factor > 0)) continue;
    const miss = rows.reduce((sum, row) => sum + (dot(row, factors) - 1) ** 2, 0);
    if (best && miss >= best.miss - 1e-12) continue;
    best = { factors: powers.map((power) => factors[chosen.indexOf(power)] ?? 0), miss };
  }
  if (!best) return null;
  const terms = powers.map((power, i) => ({ power, factor: (best.factors[i] as number) / longest ** power }));
  const at = (length: number) => terms.reduce((sum, { power, factor }) => sum + factor * length ** power, 0);
  const worst = Math.max(...known.map(([length, value]) => Math.abs(at(length) / value - 1)));
  return { terms, at, worst, measured: [Math.min(...lengths), longest] };
}

/** Points from which a curve is drawn: two say nothing about a third. */
export const FEWEST = 3;

/** All choices of powers with the first among them, small ones first. */
function choices(powers: readonly number[]): number[][] {
  const [first, ...others] = powers as [number, ...number[]];
  const some = [[first]];
  for (const power of others) some.push(...some.map((chosen) => [...chosen, power]));
  return some.sort((a, b) => a.length - b.length);
}

function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, i) => sum + value * (b[i] as number), 0);
}

/** Factors for which rows · factors are nearest to 1, by the normal equations; null where they say nothing. */
function leastSquares(rows: readonly (readonly number[])[]): number[] | null {
  const n = (rows[0] as readonly number[]).length;
  const system = Array.from({ length: n }, (_, i) => [
    ...Array.from({ length: n }, (_, j) => rows.reduce((sum, row) => sum + (row[i] as number) * (row[j] as number), 0)),
    rows.reduce((sum, row) => sum + (row[i] as number), 0),
  ]);
  return solved(system);
}

/** The solution of linear equations, rows with the right side last, by elimination with pivots. */
function solved(system: number[][]): number[] | null {
  const n = system.length;
  for (let i = 0; i < n; i++) {
    const pivot = system
      .slice(i)
      .reduce((best, row, k) => (Math.abs(row[i] as number) > Math.abs(system[best]?.[i] as number) ? i + k : best), i);
    [system[i], system[pivot]] = [system[pivot] as number[], system[i] as number[]];
    const top = system[i] as number[];
    if (Math.abs(top[i] as number) < 1e-300) return null;
    for (let k = 0; k < n; k++) {
      const row = system[k] as number[];
      const times = (row[i] as number) / (top[i] as number);
      if (k !== i) for (let j = i; j <= n; j++) row[j] = (row[j] as number) - times * (top[j] as number);
    }
  }
  return system.map((row, i) => (row[n] as number) / (row[i] as number));
}

export type Way = "ours" | "stored";
export const WAYS: Record<Way, { name: string; short: string }> = {
  stored: { name: "stored pattern", short: "stored" },
  ours: { name: "ours", short: "ours" },
};
export type Quantity = "bytes" | "seconds";

/** Where a number comes from: the formula, a point that was measured, within or beyond the lengths that were measured. */
export type Origin = "formula" | "measured" | "between" | "extrapolated";

export const ORIGINS: Record<Origin, string> = {
  formula: "by the formula",
  measured: "measured",
  between: "between measured points",
  extrapolated: "extrapolated",
};

export interface Said {
  value: number;
  origin: Origin;
}

/** All that is known of a layer's cost; without an answer, what the formula says. */
export class Cost {
  readonly seconds: Record<Way, Curve | null>;
  readonly oursBytes: Curve | null;

  constructor(
    readonly heads: number,
    readonly itemsize: number,
    readonly answer: CostAnswer | null,
  ) {
    const of = (way: Way, quantity: Quantity) => this.points(way, quantity);
    this.seconds = {
      ours: fitted(of("ours", "seconds"), [2, 1, 0]),
      stored: fitted(of("stored", "seconds"), [2, 1, 0]),
    };
    this.oursBytes = fitted(of("ours", "bytes"), [1, 0]);
  }

  /** What was measured. */
  points(way: Way, quantity: Quantity): [length: number, value: number][] {
    return (this.answer?.points ?? []).flatMap((point): [number, number][] => {
      const one: CostPoint | null = point[way];
      return one ? [[point.length, one[quantity]]] : [];
    });
  }

  /** What is drawn as a line; null where nothing is known. */
  curve(way: Way, quantity: Quantity): ((length: number) => number) | null {
    if (quantity === "seconds") return this.seconds[way]?.at ?? null;
    return way === "ours" ? (this.oursBytes?.at ?? null) : (length) => storedBytes(this.heads, this.itemsize, length);
  }

  /** Where lines are solid: between the lengths that were measured. */
  measured(way: Way, quantity: Quantity): readonly [number, number] | null {
    const lengths = this.points(way, quantity).map(([length]) => length);
    return lengths.length ? [Math.min(...lengths), Math.max(...lengths)] : null;
  }

  /** The cost at a length: measured if it was, else what the line says. The stored pattern's bytes are exact. */
  at(way: Way, quantity: Quantity, length: number): Said | null {
    const curve = this.curve(way, quantity);
    if (curve && way === "stored" && quantity === "bytes") return { value: curve(length), origin: "formula" };
    const measured = this.points(way, quantity).find(([at]) => at === length);
    if (measured) return { value: measured[1], origin: "measured" };
    if (!curve) return null;
    const [least, most] = this.measured(way, quantity) ?? [Infinity, -Infinity];
    return { value: curve(length), origin: length >= least && length <= most ? "between" : "extrapolated" };
  }
}

/** Powers of a number in a range, for ticks. */
export function powers(base: number, [least, most]: readonly [number, number]): number[] {
  const found = [];
  for (let k = Math.ceil(Math.log(least) / Math.log(base) - 1e-9); base ** k <= most * (1 + 1e-9); k++)
    found.push(base ** k);
  return found;
}

/** Ends of a logarithmic axis: the powers of ten around some values. */
export function decades(values: readonly number[]): [number, number] {
  const known = values.filter((value) => value > 0 && Number.isFinite(value));
  const least = Math.floor(Math.log10(Math.min(...known)) + 1e-9);
  return [10 ** least, 10 ** Math.max(Math.ceil(Math.log10(Math.max(...known)) - 1e-9), least + 1)];
}

/** A length as it was typed; null if it is none. */
export function lengthOf(text: string): number | null {
  const digits = text.replace(/[\s,._]/g, "");
  return /^\d{1,8}$/.test(digits) && Number(digits) >= 1 ? Math.min(Number(digits), LONGEST) : null;
}

/** The longest text that the charts show. */
export const LONGEST = 2 ** 20;
