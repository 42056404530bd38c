/** The drawing of q·k: columns of dimensions, with a bar for each product and the running sum. */
import type { Product } from "./story";

export const LEFT = 58;
export const RIGHT = 60;
export const STRIP = 22;
const BARS_TOP = 76;
const BARS = 120;
const SUMS_TOP = 236;
const SUMS = 84;
export const HEIGHT = 336;
/** Room that a printed number needs. */
const LABEL_WIDTH = 46;

export interface Bar {
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Drawing {
  /** Width of a column. */
  column: number;
  /** Left edge of a column. */
  left: (dimension: number) => number;
  /** Where the bars' and the sums' zero lies. */
  zero: number;
  sumZero: number;
  bars: Bar[];
  /** Of the largest products, those that have room. */
  labels: { product: Product; x: number; y: number }[];
  /** The running sum as a line of steps, and the area between it and zero. */
  line: string;
  area: string;
  /** Height of the running sum behind a dimension. */
  sumAt: (dimension: number) => number;
}

/** Lay the products out in a drawing that is `width` pixels wide. */
export function drawn(products: readonly Product[], largest: readonly Product[], width: number): Drawing {
  const column = Math.max(width - LEFT - RIGHT, products.length) / products.length;
  const left = (dimension: number) => LEFT + dimension * column;
  const bar = between(
    products.map((one) => one.product),
    BARS_TOP,
    BARS,
  );
  const sum = between(
    products.map((one) => one.sum),
    SUMS_TOP,
    SUMS,
  );
  const gap = column > 4 ? 1 : 0;
  const bars = products.map(({ dimension, product }) => {
    const end = bar(product);
    return {
      x: left(dimension) + gap,
      y: Math.min(end, bar(0)),
      width: column - 2 * gap,
      height: Math.abs(end - bar(0)),
    };
  });
  const labels: Drawing["labels"] = [];
  for (const product of largest) {
    const label = {
      product,
      x: left(product.dimension) + column / 2,
      y: bar(product.product) + (product.product < 0 ? 14 : -5),
    };
    if (labels.every((other) => Math.abs(other.x - label.x) > LABEL_WIDTH || Math.abs(other.y - label.y) > 14))
      labels.push(label);
  }
  const sumAt = (dimension: number) => sum(products[dimension]?.sum ?? 0);
  const steps = products.map(({ dimension }) => `V${round(sumAt(dimension))}H${round(left(dimension + 1))}`).join("");
  return {
    column,
    left,
    zero: bar(0),
    sumZero: sum(0),
    bars,
    labels,
    line: `M${LEFT} ${round(sum(0))}${steps}`,
    area: `M${LEFT} ${round(sum(0))}${steps}V${round(sum(0))}Z`,
    sumAt,
  };
}

/** A scale from numbers to pixels that has all of them and zero between its ends. */
function between(numbers: readonly number[], top: number, size: number): (value: number) => number {
  const finite = numbers.filter(Number.isFinite);
  const most = Math.max(0, ...finite);
  const least = Math.min(0, ...finite);
  const span = most - least || 1;
  return (value) => (Number.isFinite(value) ? top + ((most - value) / span) * size : top + (most / span) * size);
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
